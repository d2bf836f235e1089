"""Kept clips to training samples: every frame encoded once, and the captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...common.files import write_atomic
from ...common.manifests import read_rows
from ...common.report import StepReport, text
from ...common.storage import DataRoot
from ...common.windows import stride_for
from .samples import encode_units
from .settings import EncodeSettings
from .sources import ClipSource, Sequence
from .units import Unit
from .variants import nearest_size, variants


def encode_clips(
    clips: Path, annotations: Path, selection: Path, out: Path, root: DataRoot, settings: EncodeSettings
) -> StepReport:
    """Encode the kept clips of a selection.

    Args:
        clips: clips manifest.
        annotations: annotations manifest; captions and motion scores come from it.
        selection: which clips are kept, and the split of each.
        out: the samples manifest to write.
        root: where clip bytes lie and shards go.
        settings: frames, size, rate, encoders.

    Raises:
        BadInputError: a manifest cannot be read. A clip that cannot be used is set aside and counted.
    """
    chosen = read_rows("selection", selection)
    kept = {row["clip_id"]: row for row in chosen if row["keep"]}
    alike: dict[str, set[str]] = {}
    for row in chosen:  # dropped ones too: they tie videos together as well
        if row["group"] is not None:
            alike.setdefault(row["group"], set()).add(row["video_id"])
    notes = {row["clip_id"]: row for row in read_rows("annotations", annotations) if row["clip_id"] in kept}
    units = [
        _unit(clip, _side(kept[clip["clip_id"]], alike), notes.get(clip["clip_id"], {}), settings)
        for clip in read_rows("clips", clips)
        if clip["clip_id"] in kept
    ]
    return encode_units(units, out, root, settings, "Encode", "encode")


def encode_mix(mixed: Path, out: Path, root: DataRoot, settings: EncodeSettings) -> StepReport:
    """Encode further dataset versions, each as ``encode_clips`` does it.

    Args:
        mixed: folder with a folder of manifests for each version, called by its tag.
        out: folder for a samples manifest of each, ``<tag>.parquet``.
        root: where clip bytes lie and shards go.
        settings: as of the clips that they join.

    Raises:
        BadInputError: a manifest cannot be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    total = StepReport("encode_mix", "Encode mixed datasets")
    for folder in sorted(path for path in mixed.iterdir() if path.is_dir()):
        clips, annotations, selection = (folder / f"{kind}.parquet" for kind in ("clips", "annotations", "selection"))
        one = encode_clips(clips, annotations, selection, out / f"{folder.name}.parquet", root, settings)
        total.done, total.reused, total.versions = total.done + one.done, total.reused + one.reused, one.versions
        total.counts |= {f"{name} of {folder.name}": count for name, count in one.counts.items()}
        total.summary.setdefault("encode_mix", {})[folder.name] = one.summary["encode"]
        total.sections += [section | {"title": f"{folder.name}: {section['title']}"} for section in one.sections]
    tags = sorted(path.stem for path in out.glob("*.parquet"))
    write_atomic(out / "mix.json", json.dumps(tags).encode())  # object stores know no folder without a file
    if not total.sections:
        total.sections.append(text("Samples", "no further dataset is mixed in"))
    return total


def plan_sequence(frames: int, fps: float, settings: EncodeSettings) -> Sequence:
    """Which frames of a clip are encoded: all, or every k-th to come near ``max_fps``; of a long clip the middle."""
    stride = stride_for(fps, settings.max_fps) if settings.max_fps else 1
    available = (frames - 1) // stride + 1
    count = min(available, settings.max_frames)
    return Sequence(count, fps / stride, (available - count) // 2 * stride / fps, available)


def _side(chosen: dict[str, Any], alike: dict[str, set[str]]) -> dict[str, Any]:
    """The side of a clip, and what other datasets can be held apart from it by."""
    sources = alike.get(chosen["group"], set())
    told = sorted(sources) if len(sources) > 1 else None
    return {
        "split": chosen["split"], "source_id": chosen["video_id"], "group": chosen["group"], "group_sources": told
    }  # fmt: skip


def _unit(clip: dict[str, Any], side: dict[str, Any], note: dict[str, Any], settings: EncodeSettings) -> Unit:
    # Three captions always: where an annotator gave none, the next best stands in for it.
    given = [note.get("caption_image"), note.get("caption_video"), note.get("caption_summary")]
    stand_in = next((text for text in given if text), "")
    sequence = plan_sequence(clip["frames"], clip["fps"], settings)
    size = nearest_size(clip["height"], clip["width"], settings.targets)
    return Unit(
        unit_id=clip["clip_id"],
        sequence=sequence,
        size=size,
        variants=variants(clip["height"], clip["width"], size, side["split"], settings),
        key_parts={"max_fps": settings.max_fps, "max_frames": settings.max_frames},
        starts=settings.starts_per_clip,
        window=(settings.frames, stride_for(sequence.fps, settings.fps)),
        captions=[text or stand_in for text in given],
        row={**side, **{name: note.get(name) for name in ("motion_score", "motion_unit")}, "elevation_deg": None},
        clip={"clip_shard": clip["shard_uri"], "clip_offset": clip["offset"], "clip_bytes": clip["bytes"]},
        source=ClipSource(clip["shard_uri"], clip["offset"], clip["bytes"], sequence),
    )
