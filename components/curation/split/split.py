"""Videos into clips: shots are found, and clips are cut out of them by stream copy, into one tar shard a video."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from ...common.errors import BadInputError, ConfigError
from ...common.fanout import chosen_executor, in_pods, map_units
from ...common.files import is_storage_fault, storage_error
from ...common.identity import CHUNK_BYTES, file_sha256, identity
from ...common.manifest_spool import ManifestSpool
from ...common.manifests import read_blocks
from ...common.report import StepReport
from ...common.storage import DataRoot
from .clip_check import is_the_source
from .clipping import Plan, Span, cut_clips, plan_spans
from .cuts import CutFinder, Transition, merge_detections, shots_between
from .scan import SECOND_FIELD, Checksums, Scan, scan_video
from .settings import SplitSettings
from .show import Tally
from .tar_shard import TarShard

VERSION = "5"  # of the detection and the cutting together
CUTTER_VERSION = "3"  # of the cutting alone: names the clips
ENDS = ("key_frame", "cut")
_CHECKSUMS: dict[str, Checksums] = {"packets": "packets", "ends": "frames", "every_frame": "frames", "off": "off"}
_THUMBNAIL_PX = 96
_FINDS_A_LEVEL = 8
_BYTE_IN_PIXELS = 100  # of work: what H.264 costs to decode and to copy per byte, beside what it costs per pixel
FRAME_RATES = (0.1, 1000.0)  # beyond them a figure is no video's


@dataclass(frozen=True)
class _Unit:
    """One video's work, for a worker process: the video as ingest probed it."""

    video_id: str
    uri: str
    name: str
    bytes: int
    fps: float
    width: int
    height: int
    frames: int | None
    duration_s: float | None
    root: str
    settings: SplitSettings


_COLUMNS = ("video_id", "uri", "name", "bytes", "fps", "width", "height", "frames", "duration_s", "status")


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
        StorageError: a source cannot be read, or what comes of it not be stored.
    """
    weights = _weights_sha256(settings)
    scratch = root.scratch("split")
    _sweep(scratch)
    tally = Tally(settings.end)
    with ManifestSpool("clips", scratch) as clips:
        for block in _blocks(videos, root, settings):
            for at, result, took_s in _results(block, root, settings, weights):
                for clip in result["clips"]:
                    clips.add({name: value for name, value in clip.items() if name != "thumbnail"})
                tally.add(tally.videos + at, block[at].name, result, took_s)
            tally.videos += len(block)
        if not tally.videos:
            raise BadInputError(f"{videos}: not one video can be used; the run's report says why each was set aside")
        if not clips.rows:
            why = ", ".join(f"{reason}: {n}" for reason, n in tally.dropped.most_common())
            raise BadInputError(
                f"{videos}: no clip came out of {tally.videos} videos ({why}); "
                f"lower split.min_s ({settings.min_s:g} s), or set split.end to cut for footage with few key frames"
            )
        clips.write(out)
    return tally.report(root)


def _blocks(videos: Path, root: DataRoot, settings: SplitSettings) -> Iterator[list[_Unit]]:
    """The usable videos, as many at a time as are held in memory."""
    for table in read_blocks("videos", videos, _COLUMNS):
        rows = table.filter(pc.field("status") == "ok").drop_columns(["status"]).to_pylist()
        yield [_Unit(**row, root=root.location, settings=settings) for row in rows]


def _results(
    block: Sequence[_Unit], root: DataRoot, settings: SplitSettings, weights: str
) -> Iterator[tuple[int, dict[str, Any], float | None]]:
    """What became of each video of a block, in no order: its place, its result, and seconds if that is new."""
    fresh: dict[str, int] = {}
    for at, unit in enumerate(block):
        found = root.find("split", _key(unit, weights))
        if found is not None and all(root.exists(uri) for uri in {clip["shard_uri"] for clip in found["clips"]}):
            yield at, found, None
        else:
            fresh[unit.video_id] = at
    units = [block[at] for at in fresh.values()]
    key = identity(units=[_key(unit, weights) for unit in block])
    executor = chosen_executor(root, "split", key, cost=_cost)
    for outcome in map_units(
        _split_video, units, "videos split", settings.workers, settings.timeout_s, executor=executor
    ):
        unit, result = outcome.unit, outcome.value
        if result is None:  # a crash or a time-out: no verdict on the video, tried again in the next run
            result = {"clips": [], "error": f"crash: splitting it {outcome.error}"}
        else:
            root.writes += result.pop("writes")
            root.record("split", _key(unit, weights), result)
        yield fresh[unit.video_id], result, outcome.seconds


def _cost(unit: _Unit) -> float:
    frames = unit.frames or (unit.duration_s or 0.0) * unit.fps
    return frames * unit.width * unit.height + _BYTE_IN_PIXELS * unit.bytes


def _key(unit: _Unit, weights_sha256: str) -> str:
    """Names a video's result: not by where weights lie, but by what they are."""
    chosen = unit.settings.model_dump(
        mode="json", exclude={"timeout_s", "workers", "transnet_weights", "transnet_sha256"}
    )
    probed = [unit.fps, unit.width, unit.height, unit.frames, unit.duration_s]
    return identity(video_id=unit.video_id, probed=probed, settings=chosen, weights=weights_sha256, version=VERSION)


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


@in_pods
def _split_video(unit: _Unit) -> dict[str, Any]:
    """One video's manifest rows, its cuts and what was lost. Stores the shard; records nothing."""
    root = DataRoot.open(unit.root)
    with root.held(unit.uri) as path:  # it is opened for the pictures, for the clips and for the sound
        try:
            result = _split_file(path, unit, root)
        except BadInputError as error:
            result = {"clips": [], "error": str(error).removeprefix(f"{path}: ")}
        except OSError as error:
            if is_storage_fault(error):
                raise storage_error(error.filename or unit.root, error) from error
            raise
        if result["error"] or result.get("fault"):
            _require_readable(path)
    result["writes"] = root.writes
    return result


def _require_readable(path: Path) -> None:
    """A file that went, or a disk that fails while it is read, is no fault of the video and no verdict on it."""
    try:
        with open(path, "rb") as stream:
            while stream.read(CHUNK_BYTES):
                pass
    except OSError as error:
        raise storage_error(path, error) from error


def _split_file(path: Path, unit: _Unit, root: DataRoot) -> dict[str, Any]:
    settings = unit.settings
    scan = scan_video(path, _finder(settings), unit.fps, _CHECKSUMS[settings.verify])
    verify = settings.verify
    if verify == "packets" and SECOND_FIELD in scan.packets.shown:
        verify = "ends"  # a clip's file joins the packets of a frame: it is told by its frames
        if not scan.checksums[0]:  # fields only later on: seldom
            scan = scan_video(path, _finder(settings), unit.fps)
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
                start_s, end_s = round(scan.times_s[span.first], 6), round(scan.end_s(span.last), 6)
                frames = span.last - span.first + 1
                fps = _mean_rate(frames, end_s - start_s, unit.fps)
                if verify != "off" and not is_the_source(clip, scan, span, verify):
                    _require_readable(clip)
                    dropped["not the source's frames"] += 1
                    lost["in clips that differ from the source"] += frames
                    continue
                if refusal := _implausible(fps, end_s, span.last, unit):
                    dropped[refusal] += 1
                    lost[f"in clips: {refusal}"] += frames
                    continue
                clip_id = _clip_id(unit.video_id, span, settings)
                clips.append(
                    {
                        "clip_id": clip_id,
                        "video_id": unit.video_id,
                        "start_s": start_s,
                        "end_s": end_s,
                        "first_frame": span.first,
                        "last_frame": span.last,
                        "cut_evidence": json.dumps(_evidence(span, shots, cuts, scan, settings), sort_keys=True),
                        "member": f"{clip_id}{clip.suffix}",
                        "offset": shard.add(f"{clip_id}{clip.suffix}", clip),
                        "bytes": clip.stat().st_size,
                        "frames": frames,
                        "fps": fps,
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


def _mean_rate(frames: int, length_s: float, video_fps: float) -> float:
    """A clip's own mean rate; the video's where the clip keeps to it, to half a frame."""
    return video_fps if abs(frames / video_fps - length_s) <= 0.5 / video_fps else round(frames / length_s, 6)


def _implausible(fps: float, end_s: float, last: int, unit: _Unit) -> str:
    """Why a clip cannot be vouched for, though its frames are the source's; "" when it can."""
    if not FRAME_RATES[0] <= fps <= FRAME_RATES[1]:
        return "no video's frame rate"
    late = unit.duration_s is not None and end_s > unit.duration_s + 2 / unit.fps
    if late or (unit.frames is not None and last >= unit.frames):
        return "beyond the end that probing found"
    return ""


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
