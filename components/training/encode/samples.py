"""From windows of frames to samples in shards: what clips and orbits share.

A unit (a clip, an orbit) becomes no, one or several samples. What is recorded under a unit's key is the list of its
samples' manifest rows without what comes from elsewhere (split, captions as text, motion), so that a changed split
encodes nothing anew.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import StorageError, SvdflowError
from ...common.identity import identity
from ...common.manifests import write_manifest
from ...common.progress import track
from ...common.report import StepReport, histogram, images, table
from ...common.shards import write_shard
from ...common.storage import DataRoot
from .encoders import Encoders
from .settings import EncodeSettings

VERSION = "1"
KIND = "encode"


@dataclass(frozen=True)
class Unit:
    """What becomes samples: its id, what else names the result, the manifest values its samples take over."""

    unit_id: str
    key_parts: dict[str, Any]
    captions: list[str]
    row: dict[str, Any]  # split, motion_score, elevation_deg
    load: Callable[[], list[tuple[np.ndarray, float]]]  # windows: uint8 frames [F, H, W, 3] and their frame rate


class Unusable(SvdflowError):
    """A unit that gives no sample, with a short reason that can be counted."""


@dataclass
class _Shard:
    samples: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    records: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # key, result without its shard


def encode_units(
    units: Iterable[Unit], out: Path, root: DataRoot, settings: EncodeSettings, title: str, step: str
) -> StepReport:
    """Encode every unit that is not encoded yet, write shards and the samples manifest, and report.

    Shards hold whole units, in the order given, so that a run that was cut off goes on at the same borders.
    """
    encoders = Encoders(settings)
    naming = settings.model_dump(exclude={"samples_per_shard", "autoencoder", "text_encoder", "image_encoder"})
    base = {"version": VERSION, "encoders": encoders.identity(), "settings": naming}
    units = list(units)
    keys = {
        unit.unit_id: identity(unit=unit.unit_id, captions=unit.captions, **unit.key_parts, **base) for unit in units
    }
    results: dict[str, dict[str, Any]] = {}
    shard, done = _Shard(), 0
    shown: list[tuple[np.ndarray, str]] = []
    for unit in track(units, "clips" if step == "encode" else "orbits"):
        key = keys[unit.unit_id]
        found = root.find(KIND, key)
        if found is None:
            found, frame = _encode(unit, key, encoders, shard, settings)
            done += 1
            if frame is not None and len(shown) < 8:
                shown.append((frame, unit.captions[0][:60] if unit.captions else unit.unit_id[:8]))
            if found["skipped"]:
                root.record(KIND, key, found)
            elif len(shard.samples) >= settings.samples_per_shard:
                results |= _store(shard, root)
                shard = _Shard()
        if found["skipped"] or found["samples"][0].get("shard_uri"):
            results[key] = found
    results |= _store(shard, root)
    rows = [
        {**unit.row, **sample, "clip_id": unit.unit_id, "captions": unit.captions}
        for unit in units
        for sample in results[keys[unit.unit_id]]["samples"]
    ]
    write_manifest("samples", rows, out)
    skipped = Counter(results[keys[unit.unit_id]]["skipped"] for unit in units)
    skipped.pop(None, None)
    return _report(step, title, settings, encoders, units, rows, skipped, done, shown, root)


def _encode(
    unit: Unit, key: str, encoders: Encoders, shard: _Shard, settings: EncodeSettings
) -> tuple[dict[str, Any], np.ndarray | None]:
    try:
        windows = unit.load()
    except Unusable as reason:
        return {"skipped": str(reason), "samples": []}, None
    except StorageError:
        raise  # says nothing of the clip
    except SvdflowError as error:
        return {"skipped": "unreadable", "error": str(error), "samples": []}, None
    precision = np.float16 if settings.half else np.float32
    text = encoders.texts(unit.captions).astype(precision) if unit.captions else None
    samples = []
    for index, (frames, fps) in enumerate(windows):
        prefix = f"{key}-{index:02d}"
        tensors = {
            "latents": encoders.latents(frames).astype(precision),
            "image": encoders.image(frames[0]).astype(np.float32),
            "frame": frames[0],
        }
        if text is not None:
            tensors["text"] = text
        shard.samples[prefix] = tensors
        samples.append(
            {
                "sample_id": prefix,
                "tensor_prefix": prefix,
                "frames": len(frames),
                "height": frames.shape[1],
                "width": frames.shape[2],
                "fps": fps,
            }
        )
    result = {"skipped": None, "samples": samples}
    shard.records.append((key, result))
    return result, windows[0][0][0]


def _store(shard: _Shard, root: DataRoot) -> dict[str, dict[str, Any]]:
    if not shard.samples:
        return {}
    with tempfile.TemporaryDirectory(dir=root.scratch("encode")) as folder:
        path = Path(folder) / "shard.safetensors"
        write_shard(path, shard.samples)
        uri = root.put_file(path)
    stored = {}
    for key, result in shard.records:
        stored[key] = {**result, "samples": [{**sample, "shard_uri": uri} for sample in result["samples"]]}
        root.record(KIND, key, stored[key])
    return stored


def _report(
    step: str,
    title: str,
    settings: EncodeSettings,
    encoders: Encoders,
    units: list[Unit],
    rows: list[dict[str, Any]],
    skipped: Counter[str],
    done: int,
    shown: list[tuple[np.ndarray, str]],
    root: DataRoot,
) -> StepReport:
    from ...common.storage import DirectoryRoot

    shards = sorted({row["shard_uri"] for row in rows})
    size = sum(root.fetch(uri).stat().st_size for uri in shards) if isinstance(root, DirectoryRoot) else None
    splits = Counter(row["split"] for row in rows)
    summary = {
        "samples": len(rows),
        "train_samples": splits["train"],
        "held_out_samples": splits["held_out"],
        "shards": len(shards),
        "skipped_by_reason": dict(sorted(skipped.items())),
        "bytes": size,
    }
    what = "clips" if step == "encode" else "orbits"
    sections = [
        table(
            "Samples",
            ["", "samples"],
            [["train", splits["train"]], ["held out", splits["held_out"]]],
            note=f"{settings.frames} frames of {settings.width}x{settings.height} px each, in {len(shards)} shards",
        )
    ]
    if skipped:
        sections.append(
            table("Set aside", ["reason", what], [[reason, count] for reason, count in sorted(skipped.items())])
        )
    if rows and step == "encode":
        sections.append(histogram("Frame rate of the samples", [row["fps"] for row in rows], "frames/s"))
    if shown:
        sections.append(
            images("Conditioning frames", shown, note="the first frame of a sample, as the model is given it")
        )
    return StepReport(
        step,
        title,
        done=done,
        reused=len(units) - done,
        counts={what: len(units), "samples": len(rows)},
        summary={step: summary},
        sections=sections,
        versions=encoders.identity(),
    )
