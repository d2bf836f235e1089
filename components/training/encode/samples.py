"""From sequences of frames to samples in shards: what clips and orbits share.

A unit (a clip, an orbit) becomes a sample for each variant of its picture, or is set aside with a reason. Results are
recorded for each part, under keys of their own: the frames of each variant (by unit, encoders of frames, size, variant
and which frames) and the captions (by captions and text encoder). Which window is the reference one, the split and the
motion score are in the manifest alone, so that other ones encode nothing anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import BadInputError, StorageError, SvdflowError
from ...common.identity import identity
from ...common.manifests import write_manifest
from ...common.progress import track
from ...common.report import StepReport
from ...common.sample_tensors import CLIP, FRAMES
from ...common.storage import DataRoot
from ...common.windows import choose_window
from .encode_report import WHAT, encode_report
from .encoders import Encoders
from .sequence_tensors import SequenceTensors, precision
from .settings import EncodeSettings
from .shard_writer import ShardWriter
from .units import Unit
from .variants import Variant

VERSION = "2"
KIND, TEXT_KIND = "encode", "encode_text"
_CHUNK = 8  # frames that are decoded, and go through the encoders, at once
_SHOWN = 8


def encode_units(
    units: Iterable[Unit], out: Path, root: DataRoot, settings: EncodeSettings, title: str, step: str
) -> StepReport:
    """Encode what is not encoded yet, write shards and the samples manifest, and report.

    Shards hold whole units, in the order given, so that a run that was cut off goes on at the same borders.
    """
    units, encoders, what = list(units), Encoders(settings), WHAT[step]
    if not settings.cache and any(unit.clip is None for unit in units):
        raise BadInputError(f"{step}.cache is false, and {what} are always encoded; set it to true")
    names = encoders.identity()
    keyed = [
        (unit, {v: _frames_key(unit, v, names, settings) for v in unit.variants}, _text_key(unit, names, settings))
        for unit in units
    ]
    shard = ShardWriter(root, settings.samples_per_shard, settings.shard_mib << 20)
    found: dict[str, dict[str, Any]] = {}
    work = Counter[bool]()
    shown: list[tuple[np.ndarray, str]] = []
    for unit, keys, text_key in track(keyed, what):
        if not unit.fits(unit.sequence.frames):
            continue
        there = {key: result for key in keys.values() if (result := root.find(KIND, key)) is not None}
        missing = {variant: key for variant, key in keys.items() if key not in there}
        if missing:
            made, first = _encode_frames(unit, missing, encoders, shard, settings)
            there |= made
            if first is not None and len(shown) < _SHOWN:
                shown.append((first, unit.captions[0][:60] if unit.captions else unit.unit_id[:8]))
        fresh = bool(missing)
        if settings.cache and unit.captions and not all(result["skipped"] for result in there.values()):
            if (text := root.find(TEXT_KIND, text_key)) is not None:
                there[text_key] = text
            else:
                fresh = True
                states = encoders.texts(unit.captions).astype(precision(settings))
                shard.add(TEXT_KIND, text_key, {"text": states}, {})
        found |= there
        work[fresh] += 1
        shard.close_if_full()
    shard.close()
    found |= shard.stored  # now with their shard
    rows, reasons = [], Counter[str]()
    for unit, keys, text_key in keyed:
        if reason := _reason(unit, found.get(keys[unit.variants[0]])):
            reasons[reason] += 1
            continue
        usable = {variant: key for variant, key in keys.items() if not found[key]["skipped"]}
        rows += [_row(unit, variant, key, found[key], found.get(text_key), text_key) for variant, key in usable.items()]
    write_manifest("samples", _groups_told_once(rows), out)
    report = encode_report(step, title, settings, units, rows, reasons, shown, root)
    report.done, report.reused, report.versions = work[True], work[False], names
    return report


def _frames_key(unit: Unit, variant: Variant, names: dict[str, str], settings: EncodeSettings) -> str:
    return identity(
        version=VERSION,
        unit=unit.unit_id,
        encoders={"autoencoder": names["autoencoder"], "image": names["image"]} if settings.cache else None,
        size=unit.size,
        variant=[variant.place, variant.flipped],
        starts=unit.starts,
        half=settings.half if settings.cache else None,
        **unit.key_parts,
    )


def _text_key(unit: Unit, names: dict[str, str], settings: EncodeSettings) -> str:
    return identity(
        version=VERSION, unit=unit.unit_id, captions=unit.captions, encoder=names["text"], half=settings.half
    )


def _encode_frames(
    unit: Unit, keys: dict[Variant, str], encoders: Encoders, shard: ShardWriter, settings: EncodeSettings
) -> tuple[dict[str, dict[str, Any]], np.ndarray | None]:
    """Put variants of a unit's frames into the shard, in one pass over the unit; what is unusable is recorded.

    Without the cache the unit is only decoded, to see that it can be and how many frames it holds.

    Returns:
        The results by key, those in the shard without its URI yet, and the first frame.
    """
    parts = {variant: SequenceTensors(variant, unit, settings) for variant in keys}
    count = 0
    try:
        decoded = unit.load()
        while chunk := list(islice(decoded, _CHUNK)):
            for part in parts.values():
                part.take(chunk, count, encoders if settings.cache else None)
            count += len(chunk)
    except StorageError:
        raise  # says nothing of the clip
    except SvdflowError as error:
        return _unreadable(str(error), keys, shard), None
    if not count:
        return _unreadable("it holds no frame", keys, shard), None
    results = {}
    for variant, key in keys.items():
        part = parts[variant]
        results[key] = {
            "skipped": None,
            "sequence_frames": count,
            "starts": sorted(start for start in part.starts if start < count),
            "crop": part.crop,
        }
        if settings.cache:
            shard.add(KIND, key, part.tensors(), results[key])
        else:
            shard.root.record(KIND, key, results[key])
    return results, parts[next(iter(keys))].first


def _unreadable(error: str, keys: dict[Variant, str], shard: ShardWriter) -> dict[str, dict[str, Any]]:
    result = {"skipped": "unreadable", "error": error}
    for key in keys.values():
        shard.root.record(KIND, key, result)
    return dict.fromkeys(keys.values(), result)


def _groups_told_once(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same, the sources of each group on its first sample alone: a group of n sources does not take n² places."""
    told: set[str] = set()
    for row in rows:
        if row.get("group_sources"):
            if row["group"] in told:
                row["group_sources"] = None
            told.add(row["group"])
    return rows


def _reason(unit: Unit, result: dict[str, Any] | None) -> str | None:
    """Why a unit gives no sample, if it does not."""
    if result is None:
        return "too_short"
    if result["skipped"]:
        return str(result["skipped"])
    return None if unit.fits(result["sequence_frames"]) else "ends_early"


def _row(
    unit: Unit, variant: Variant, key: str, result: dict[str, Any], text: dict[str, Any] | None, text_key: str
) -> dict[str, Any]:
    frames, stride = unit.window
    window = choose_window(result["sequence_frames"], result["starts"], frames, stride, 0.5)
    encoded = "shard_uri" in result
    return {
        **unit.row,
        **({} if encoded else unit.clip or {}),
        "sample_id": f"{key}-{variant.number:02d}",
        "clip_id": unit.unit_id,
        "captions": unit.captions,
        "layout": FRAMES if encoded else CLIP,
        "shard_uri": result.get("shard_uri"),
        "tensor_prefix": key,
        "text_uri": text["shard_uri"] if text else None,
        "text_prefix": text_key if text else None,
        "height": unit.size[0],
        "width": unit.size[1],
        "frames": frames,
        "fps": unit.sequence.fps / window.stride,
        "first_frame": window.first,
        "stride": window.stride,
        "sequence_frames": result["sequence_frames"],
        "sequence_fps": unit.sequence.fps,
        "start_s": unit.sequence.start_s,
        "starts": result["starts"],
        "flipped": variant.flipped,
        "crop": result["crop"],
    }
