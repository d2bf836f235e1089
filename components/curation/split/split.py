"""Videos into clips: shots are found, and clips are cut out of them by stream copy, into one tar shard a video."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...common.errors import BadInputError, ConfigError
from ...common.fanout import map_units
from ...common.identity import file_sha256, identity
from ...common.manifests import read_rows, write_manifest
from ...common.report import StepReport, leading
from ...common.storage import DataRoot
from .clipping import Plan, Span, cut_clips, plan_spans, same_frames
from .cuts import CutFinder, Transition, merge_detections, shots_between
from .scan import Scan, scan_video
from .settings import SplitSettings
from .show import dropped_by_reason, split_report
from .tar_shard import TarShard

VERSION = "2"  # of the detection and the cutting together
CUTTER_VERSION = "2"  # of the cutting alone: names the clips
ENDS = ("key_frame", "cut")
_THUMBNAIL_PX = 96
_FINDS_A_LEVEL = 8


@dataclass(frozen=True)
class _Unit:
    """One video's work, for a worker process."""

    video_id: str
    uri: str
    fps: float
    width: int
    height: int
    root: str
    settings: SplitSettings


def split_videos(videos: Path, out: Path, root: DataRoot, settings: SplitSettings) -> StepReport:
    """Split all usable videos of a manifest into clips.

    Args:
        videos: the manifest ``videos``.
        out: the manifest ``clips`` to write.
        root: holds the videos' bytes, takes the shards.
        settings: cut detection, ends and lengths.

    Raises:
        BadInputError: the manifest or the network's weights cannot be read, or not one clip came out of it.
        ConfigError: the network's weights are not the pinned ones.
    """
    rows = [row for row in read_rows("videos", videos) if row["status"] == "ok"]
    weights = _weights_sha256(settings)
    keys = {row["video_id"]: _key(row["video_id"], settings, weights) for row in rows}
    results: dict[str, dict[str, Any]] = {}
    took_s: dict[str, float] = {}
    for video_id, key in keys.items():
        found = root.find("split", key)
        if found is not None and all(root.exists(uri) for uri in {clip["shard_uri"] for clip in found["clips"]}):
            results[video_id] = found
    fresh = [row for row in rows if row["video_id"] not in results]
    units = [
        _Unit(row["video_id"], row["uri"], row["fps"], row["width"], row["height"], root.location, settings)
        for row in fresh
    ]
    _sweep(root.scratch("split"))
    for outcome in map_units(_split_video, units, "videos split", timeout_s=settings.timeout_s):
        video_id = outcome.unit.video_id
        took_s[video_id] = outcome.seconds
        if outcome.value is None:  # a crash or a time-out: no verdict on the video, tried again in the next run
            results[video_id] = {"clips": [], "error": f"crash: splitting it {outcome.error}"}
            continue
        root.writes += outcome.value.pop("writes")
        root.record("split", keys[video_id], outcome.value)
        results[video_id] = outcome.value
    results = {row["video_id"]: results[row["video_id"]] for row in rows}  # in the manifest's order
    clips = [clip for result in results.values() for clip in result["clips"]]
    if not clips:
        why = ", ".join(f"{reason}: {n}" for reason, n in dropped_by_reason(results).most_common())
        raise BadInputError(
            f"{videos}: no clip came out of {len(rows)} videos ({why or 'there is none that can be used'}); lower "
            f"split.min_s ({settings.min_s:g} s), or set split.end to cut for footage with few key frames"
        )
    write_manifest("clips", [{k: v for k, v in clip.items() if k != "thumbnail"} for clip in clips], out)
    report = split_report(rows, results, clips, root, settings.end)
    report.done, report.reused = len(fresh), len(rows) - len(fresh)
    report.slowest = leading({row["name"]: took_s[row["video_id"]] for row in fresh})
    return report


def _key(video_id: str, settings: SplitSettings, weights_sha256: str) -> str:
    """Names a video's result: not by where weights lie, but by what they are."""
    chosen = settings.model_dump(mode="json", exclude={"timeout_s", "transnet_weights", "transnet_sha256"})
    return identity(video_id=video_id, settings=chosen, weights=weights_sha256, version=VERSION)


def _weights_sha256(settings: SplitSettings) -> str:
    if settings.backend != "transnetv2":
        return ""
    from .transnet import load_network

    path = Path(settings.transnet_weights)
    load_network(path)  # a file that does not load is no fault of the videos
    found = file_sha256(path)
    if settings.transnet_sha256 and found != settings.transnet_sha256.lower():
        raise ConfigError(f"split.transnet_weights: {path} has the sha256 {found}, not split.transnet_sha256")
    return found


def _finder(settings: SplitSettings) -> CutFinder:
    if settings.backend == "transnetv2":
        from .transnet import TransNetFinder, load_network

        return TransNetFinder(load_network(Path(settings.transnet_weights)), settings.transnet_threshold)
    from .cascade import Cascade

    return Cascade(settings.levels, settings.detect_width_px)


def _sweep(scratch: Path) -> None:
    """Remove what processes of this machine that were killed left behind."""
    import psutil

    for left in scratch.glob(f"{socket.gethostname()}-*-*"):
        try:
            gone = psutil.Process(int(left.name.split("-")[-2])).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            gone = True
        if gone:
            shutil.rmtree(left, ignore_errors=True)


def _split_video(unit: _Unit) -> dict[str, Any]:
    """One video's manifest rows, its cuts and what was lost. Stores the shard; records nothing."""
    root = DataRoot.open(unit.root)
    path = root.fetch(unit.uri)
    try:
        result = _split_file(path, unit, root)
    except BadInputError as error:
        result = {"clips": [], "error": str(error).removeprefix(f"{path}: ")}
    result["writes"] = root.writes
    return result


def _split_file(path: Path, unit: _Unit, root: DataRoot) -> dict[str, Any]:
    settings = unit.settings
    scan = scan_video(path, _finder(settings), unit.fps, checksums=settings.verify != "off")
    cuts = merge_detections(scan.detections, scan.times_s, scan.gap_s)
    shots = shots_between(cuts, len(scan.pts))
    limits = (settings.min_s, settings.max_s)
    plans = {end: plan_spans(scan.packets, scan.times_s, shots, end, *limits, scan.ends_s) for end in ENDS}
    plan = plans[settings.end]
    lost = Counter({reason: n for reason, n in plan.lost_frames.items() if n})
    lost["inside a transition or damaged"] = len(scan.pts) - sum(last - first + 1 for first, last in shots)
    dropped = Counter({reason: n for reason, n in plan.dropped.items() if n})
    clips = []
    with tempfile.TemporaryDirectory(
        dir=root.scratch("split"), prefix=f"{socket.gethostname()}-{os.getpid()}-"
    ) as scratch:
        shard_path = Path(scratch) / "shard.tar"
        with TarShard(shard_path) as shard:
            for span, clip in cut_clips(path, scan, plan.spans, Path(scratch), settings.audio == "keep"):
                if settings.verify != "off" and not same_frames(clip, scan, span, settings.verify == "every_frame"):
                    dropped["not the source's frames"] += 1
                    lost["in clips that differ from the source"] += span.last - span.first + 1
                    continue
                clip_id = _clip_id(unit.video_id, span, settings)
                clips.append(
                    {
                        "clip_id": clip_id,
                        "video_id": unit.video_id,
                        "start_s": round(scan.times_s[span.first], 6),
                        "end_s": round(scan.end_s(span.last), 6),
                        "first_frame": span.first,
                        "last_frame": span.last,
                        "cut_evidence": json.dumps(_evidence(span, shots, cuts, scan, settings), sort_keys=True),
                        "member": f"{clip_id}.mp4",
                        "offset": shard.add(f"{clip_id}.mp4", clip),
                        "bytes": clip.stat().st_size,
                        "frames": span.last - span.first + 1,
                        "fps": unit.fps,
                        "width": unit.width,
                        "height": unit.height,
                        "thumbnail": root.put_bytes(_first_frame_jpeg(clip)),
                    }
                )
        shard_uri = root.put_file(shard_path) if clips else ""
    for row in clips:
        row["shard_uri"] = shard_uri
    return {
        "clips": clips,
        "shots": len(shots),
        "seconds": round(scan.times_s[-1], 6),
        "cuts": [_cut_row(cut, scan) for cut in cuts],
        "lost_frames": dict(+lost),
        "dropped": dict(dropped),
        "yields": {end: _yield(plans[end], scan) for end in ENDS},
        "fault": scan.fault,
        "error": None,
    }


def _clip_id(video_id: str, span: Span, settings: SplitSettings) -> str:
    sound = {"audio": settings.audio} if settings.audio != "drop" else {}
    return identity(video_id=video_id, first=span.first, last=span.last, version=CUTTER_VERSION, **sound)


def _yield(plan: Plan, scan: Scan) -> dict[str, Any]:
    """What a way to end clips would keep: clips, seconds, and frames that reordering costs at their ends."""
    seconds = sum(scan.end_s(span.last) - scan.times_s[span.first] for span in plan.spans)
    return {
        "clips": len(plan.spans),
        "seconds": round(seconds, 6),
        "reordering_frames": plan.lost_frames["open GOP or reordering"],
    }


def _evidence(
    span: Span, shots: Sequence[tuple[int, int]], cuts: Sequence[Transition], scan: Scan, settings: SplitSettings
) -> dict[str, Any]:
    """What opened and what closed a clip's shot, and how the clip lies in it."""
    start, stop = shots[span.shot]
    opened = next((cut for cut in cuts if cut.last == start), None)
    closed = next((cut for cut in cuts if cut.first - 1 == stop), None)
    return {
        "opened_by": _find_rows(opened, scan) if opened else "start of the video",
        "closed_by": _find_rows(closed, scan) if closed else "end of the video",
        "shot": [start, stop],
        "end": settings.end,
    }


def _find_rows(cut: Transition, scan: Scan) -> list[dict[str, Any]]:
    """A transition's evidence with times; of each level the strongest few, for flicker has thousands."""
    kept: Counter[tuple[str, float | None]] = Counter()
    rows = []
    for found in sorted(cut.evidence, key=lambda f: (-(f.score or 0.0), f.first)):
        kept[found.detector, found.fps] += 1
        if kept[found.detector, found.fps] <= _FINDS_A_LEVEL:
            rows.append(
                {
                    **asdict(found),
                    "start_s": round(scan.times_s[found.first], 6),
                    "end_s": round(scan.times_s[found.last], 6),
                }
            )
    return sorted(rows, key=lambda row: (row["first"], row["last"], row["detector"]))


def _cut_row(cut: Transition, scan: Scan) -> dict[str, Any]:
    return {
        "first": cut.first,
        "last": cut.last,
        "time_s": round(scan.times_s[cut.last], 3),
        "evidence": _find_rows(cut, scan),
    }


def _first_frame_jpeg(clip: Path) -> bytes:
    from PIL import Image

    from ...common.video import decode

    picture = Image.fromarray(next(decode(clip)).rgb)
    picture.thumbnail((4 * _THUMBNAIL_PX, _THUMBNAIL_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
