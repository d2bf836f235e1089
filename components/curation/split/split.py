"""Videos into clips: shots are found, and clips are cut out of them by stream copy, into one tar shard a video."""

from __future__ import annotations

import io
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import BadInputError
from ...common.fanout import map_units
from ...common.identity import identity
from ...common.manifests import read_rows, write_manifest
from ...common.report import StepReport, histogram, images, table
from ...common.storage import DataRoot
from .clipping import Span, cut_clips, decoded_checksums, plan_spans, read_packets
from .cuts import Decoded, Transition, decode_and_detect, merge_detections
from .settings import SplitSettings
from .tar_shard import TarShard

VERSION = "1"  # of the detection and the cutting together
CUTTER_VERSION = "1"  # of the cutting alone: names the clips
_THUMBNAIL_PX = 96
_SHOWN, _LISTED = 48, 120


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
        settings: cascade, ends and lengths.

    Raises:
        BadInputError: the manifest cannot be read, or not one clip came out of it.
    """
    rows = [row for row in read_rows("videos", videos) if row["status"] == "ok"]
    keys = {row["video_id"]: _key(row["video_id"], settings) for row in rows}
    results: dict[str, dict[str, Any]] = {}
    for video_id, key in keys.items():
        found = root.find("split", key)
        if found is not None and all(root.exists(uri) for uri in {clip["shard_uri"] for clip in found["clips"]}):
            results[video_id] = found
    fresh = [row for row in rows if row["video_id"] not in results]
    units = [
        _Unit(row["video_id"], row["uri"], row["fps"], row["width"], row["height"], root.location, settings)
        for row in fresh
    ]
    for outcome in map_units(_split_video, units, "videos split", timeout_s=settings.timeout_s):
        video_id = outcome.unit.video_id
        if outcome.value is None:  # a crash or a time-out: no verdict on the video, tried again in the next run
            results[video_id] = {"clips": [], "error": f"crash: splitting it {outcome.error}"}
            continue
        root.writes += outcome.value.pop("writes")
        root.record("split", keys[video_id], outcome.value)
        results[video_id] = outcome.value
    results = {row["video_id"]: results[row["video_id"]] for row in rows}  # in the manifest's order
    clips = [clip for result in results.values() for clip in result["clips"]]
    if not clips:
        why = ", ".join(f"{reason}: {n}" for reason, n in _dropped(results).most_common())
        raise BadInputError(
            f"{videos}: no clip came out of {len(rows)} videos ({why or 'there is none that can be used'}); lower "
            f"split.min_s ({settings.min_s:g} s), or set split.end to cut for footage with few key frames"
        )
    write_manifest("clips", [{k: v for k, v in clip.items() if k != "thumbnail"} for clip in clips], out)
    report = _report(rows, results, clips, root, settings)
    report.done, report.reused = len(fresh), len(rows) - len(fresh)
    return report


def _dropped(results: dict[str, dict[str, Any]]) -> Counter[str]:
    """What became of the shots without a clip, and of the videos that could not be split, by reason."""
    dropped = Counter[str]()
    for result in results.values():
        dropped.update(result.get("dropped", {}))
        dropped["video cannot be split"] += bool(result.get("error"))
    return +dropped


def _key(video_id: str, settings: SplitSettings) -> str:
    return identity(
        video_id=video_id, settings=settings.model_dump(mode="json", exclude={"timeout_s"}), version=VERSION
    )


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
    decoded = decode_and_detect(path, settings.levels, settings.detect_width_px)
    packets = read_packets(path, decoded.pts)
    seconds = _time_base(path)
    duration = next((p.duration for p in packets if p.shown == len(decoded.pts) - 1 and p.duration), 0) or round(
        1 / unit.fps / seconds
    )
    times_s = [(pts - decoded.pts[0]) * seconds for pts in decoded.pts]
    times_s.append(times_s[-1] + duration * seconds)
    cuts = merge_detections(decoded.detections, decoded.pts, seconds, settings.levels)
    shots = shots_between(cuts, len(decoded.pts))
    plans = {
        end: plan_spans(packets, times_s, shots, end, settings.min_s, settings.max_s) for end in ("key_frame", "cut")
    }
    plan = plans[settings.end]
    lost = Counter({reason: n for reason, n in plan.lost_frames.items() if n})
    dropped = Counter({reason: n for reason, n in plan.dropped.items() if n})
    clips = []
    with tempfile.TemporaryDirectory(dir=root.scratch("split")) as scratch:
        shard_path = Path(scratch) / "shard.tar"
        with TarShard(shard_path) as shard:
            for span, clip in cut_clips(path, packets, plan.spans):
                if settings.verify and not same_frames(clip, decoded, span):
                    dropped["not the source's frames"] += 1
                    lost["in clips that differ from the source"] += span.last - span.first + 1
                    continue
                clip_id = identity(video_id=unit.video_id, first=span.first, last=span.last, version=CUTTER_VERSION)
                clips.append(
                    {
                        "clip_id": clip_id,
                        "video_id": unit.video_id,
                        "start_s": round(times_s[span.first], 6),
                        "end_s": round(times_s[span.last + 1], 6),
                        "first_frame": span.first,
                        "last_frame": span.last,
                        "cut_evidence": json.dumps(_evidence(span, shots, cuts, settings), sort_keys=True),
                        "member": f"{clip_id}.mp4",
                        "offset": shard.add(f"{clip_id}.mp4", clip),
                        "bytes": len(clip),
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
    yields = {
        end: [len(p.spans), round(sum(times_s[s.last + 1] - times_s[s.first] for s in p.spans), 6)]
        for end, p in plans.items()
    }
    return {
        "clips": clips,
        "shots": len(shots),
        "cuts": [_cut_row(cut, times_s) for cut in cuts],
        "lost_frames": dict(lost),
        "dropped": dict(dropped),
        "yields": yields,
        "fault": decoded.fault,
        "error": None,
    }


def shots_between(cuts: Sequence[Transition], frames: int) -> list[tuple[int, int]]:
    """First and last frame of every shot; the frames inside a gradual transition are in none."""
    starts = [0] + [cut.last for cut in cuts]
    stops = [cut.first - 1 for cut in cuts] + [frames - 1]
    return [(start, stop) for start, stop in zip(starts, stops, strict=True) if start <= stop]


def same_frames(clip: bytes, decoded: Decoded, span: Span) -> bool:
    """Whether a clip decodes to the source's frames, bit for bit, with times from zero."""
    checksums, times = decoded_checksums(clip)
    return checksums == decoded.checksums[span.first : span.last + 1].tolist() and times[0] == 0


def _time_base(path: Path) -> float:
    from ...common.video import open_video

    with open_video(path) as container:
        return float(container.streams.video[0].time_base)


def _evidence(
    span: Span, shots: Sequence[tuple[int, int]], cuts: Sequence[Transition], settings: SplitSettings
) -> dict[str, Any]:
    """What opened and what closed a clip's shot, and how the clip lies in it."""
    start, stop = shots[span.shot]
    opened = next((cut for cut in cuts if cut.last == start), None)
    closed = next((cut for cut in cuts if cut.first - 1 == stop), None)
    return {
        "opened_by": [asdict(found) for found in opened.evidence] if opened else "start of the video",
        "closed_by": [asdict(found) for found in closed.evidence] if closed else "end of the video",
        "shot": [start, stop],
        "end": settings.end,
    }


def _cut_row(cut: Transition, times_s: Sequence[float]) -> dict[str, Any]:
    return {
        "first": cut.first,
        "last": cut.last,
        "time_s": round(times_s[cut.last], 3),
        "evidence": [asdict(found) for found in cut.evidence],
    }


def _first_frame_jpeg(clip: bytes) -> bytes:
    from PIL import Image

    from ...common.video import decode

    picture = Image.fromarray(next(decode(clip)).rgb)
    picture.thumbnail((4 * _THUMBNAIL_PX, _THUMBNAIL_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _report(
    rows: list[dict], results: dict[str, dict], clips: list[dict], root: DataRoot, settings: SplitSettings
) -> StepReport:
    names = {row["video_id"]: row["name"] for row in rows}
    lengths = [clip["end_s"] - clip["start_s"] for clip in clips]
    cuts = [(names[video_id], cut) for video_id, result in results.items() for cut in result.get("cuts", [])]
    dropped, lost = _dropped(results), Counter[str]()
    for result in results.values():
        lost.update(result.get("lost_frames", {}))
    faults = [
        [names[v], r.get("error") or f"kept up to there: {r['fault']}"]
        for v, r in results.items()
        if r.get("error") or r.get("fault")
    ]
    shots = sum(result.get("shots", 0) for result in results.values())
    report = StepReport("split", "Shots found, clips cut")
    report.counts = {
        "videos": len(rows),
        "cuts": len(cuts),
        "shots": shots,
        "clips": len(clips),
        **{f"dropped: {k}": v for k, v in sorted(dropped.items())},
    }
    report.summary = {
        "clips": {
            "count": len(clips),
            "videos": len({clip["video_id"] for clip in clips}),
            "hours": round(sum(lengths) / 3600, 6),
            "mean_s": round(float(np.mean(lengths)), 3),
            "cuts": len(cuts),
            "set_aside": sum(bool(result.get("error")) for result in results.values()),
        }
    }
    shown = clips if len(clips) <= _SHOWN else [clips[i] for i in np.linspace(0, len(clips) - 1, _SHOWN).astype(int)]
    pictures = [
        (
            _picture(root.read(clip["thumbnail"])),
            f"{names[clip['video_id']]} {clip['start_s']:.2f}–{clip['end_s']:.2f} s",
        )
        for clip in shown
    ]
    report.sections = [
        images(
            "First frame of every clip",
            pictures,
            note=f"{len(shown)} of {len(clips)} clips" if len(shown) < len(clips) else "",
        ),
        histogram("Length of the clips", lengths, "s"),
        _yields_table(results, settings),
    ]
    if lost:
        report.sections.append(
            table("Frames in no clip", ["why", "frames"], [[reason, n] for reason, n in lost.most_common()])
        )
    if cuts:
        listed = [
            [
                name,
                f"{c['time_s']:.2f}",
                f"{c['first']}" if c["first"] == c["last"] else f"{c['first']}–{c['last']}",
                _found_by(c),
            ]
            for name, c in cuts
        ]
        note = f"{_LISTED} of {len(cuts)} cuts are listed" if len(cuts) > _LISTED else ""
        report.sections.append(
            table(
                "Cuts and what found them",
                ["video", "time (s)", "frame", "levels (score / threshold)"],
                listed[:_LISTED],
                note,
            )
        )
    if faults:
        report.sections.append(table("Videos that do not decode to their end", ["video", "what happened"], faults))
    return report


def _yields_table(results: dict[str, dict], settings: SplitSettings) -> dict[str, Any]:
    words = {"key_frame": "at a key frame (the paper)", "cut": "at the last whole frame before the cut (ours)"}
    rows = []
    for end, meaning in words.items():
        each = [result["yields"][end] for result in results.values() if "yields" in result]
        rows.append(
            [meaning, sum(n for n, _ in each), round(sum(s for _, s in each), 2), "yes" if end == settings.end else ""]
        )
    return table("What either way to end a clip yields", ["clips end", "clips", "seconds", "used"], rows)


def _found_by(cut: dict[str, Any]) -> str:
    best: dict[str, dict[str, Any]] = {}  # each level's strongest find
    for find in cut["evidence"]:
        level = "every frame" if find["fps"] is None else f"{find['fps']:g} fps"
        if level not in best or find["score"] > best[level]["score"]:
            best[level] = find
    return "; ".join(f"{level}: {find['score']:.1f} / {find['threshold']:g}" for level, find in best.items())


def _picture(jpeg: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
