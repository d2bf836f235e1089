"""What encoding tells: samples by bucket, and what was set aside, cut and cropped."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ...common.report import StepReport, histogram, images, table
from ...common.storage import DataRoot
from ...common.storage_directory import DirectoryRoot
from .settings import EncodeSettings
from .units import Unit

WHAT = {"encode": "clips", "encode_orbits": "orbits", "encode_images": "images"}


def encode_report(
    step: str,
    title: str,
    settings: EncodeSettings,
    units: list[Unit],
    rows: list[dict[str, Any]],
    reasons: Counter[str],
    shown: list[tuple[np.ndarray, str]],
    root: DataRoot,
) -> StepReport:
    """The step's report.

    Args:
        step: its name.
        title: as a reader would call it.
        settings: of the step.
        units: what was to be encoded.
        rows: of the samples manifest.
        reasons: how many units gave no sample, by reason.
        shown: first frames with a word on each.
        root: where shards lie.
    """
    shards = sorted({row[name] for row in rows for name in ("shard_uri", "text_uri") if row.get(name)})
    size = sum(root.size(uri) for uri in shards) if isinstance(root, DirectoryRoot) else None
    splits = Counter(row["split"] for row in rows)
    by_bucket = Counter((row["split"], (row["frames"], row["height"], row["width"])) for row in rows)
    planned = {unit.unit_id: unit.sequence for unit in units}
    cut = [planned[row["clip_id"]] for row in rows if planned[row["clip_id"]].available > row["sequence_frames"]]
    cropped = [1 - (1 - c[0] - c[2]) * (1 - c[1] - c[3]) for c in (row["crop"] for row in rows) if any(c)]
    summary = {
        "samples": len(rows),
        "buckets": len({size for _, size in by_bucket}),
        "flipped": sum(row["flipped"] for row in rows),
        "train_samples": splits["train"],
        "held_out_samples": splits["held_out"],
        "frames": sum(row["sequence_frames"] for row in rows),
        "shards": len(shards),
        "skipped_by_reason": dict(sorted(reasons.items())),
        "cut_in_time": len(cut),
        "cropped": len(cropped),
        "cropped_share_mean": round(sum(cropped) / len(cropped), 4) if cropped else 0.0,
        "padded": 0,  # pictures are covered, sequences are not lengthened
        "bytes": size,
    }
    what = WHAT[step]
    sections = [
        table(
            "Samples",
            ["frames, height, width", "train", "held out"],
            [
                [" x ".join(map(str, size)), by_bucket["train", size], by_bucket["held_out", size]]
                for size in sorted({size for _, size in by_bucket})
            ],
            note=f"by bucket of the reference window; {summary['frames']} frames in {len(shards)} shards",
        ),
        table(
            "Set aside, cut and cropped",
            ["what", what, "note"],
            [
                *([reason, count, "set aside"] for reason, count in sorted(reasons.items())),
                ["cut in time", len(cut), f"more than {settings.max_frames} frames, or ends before its claim"],
                ["cropped", len(cropped), f"{100 * summary['cropped_share_mean']:.1f} % of the picture on average"],
                ["padded", 0, "never"],
            ],
        ),
    ]
    if rows and step == "encode":
        sections.append(histogram("Frame rate of the samples", [row["fps"] for row in rows], "frames/s"))
    if shown:
        sections.append(images("First frames", shown, note="as the model is given them"))
    counts: dict[str, int | float] = {what: len(units), "samples": len(rows)}
    return StepReport(step, title, counts=counts, summary={step: summary}, sections=sections)
