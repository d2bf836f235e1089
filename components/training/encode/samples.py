"""From sequences of frames to samples in shards: what clips and orbits share.

A unit (a clip, an orbit) becomes a sample for each variant of its picture, or is set aside with a reason. Results are
recorded for each part, under keys of their own: the frames of each variant (by unit, encoders of frames, size, variant
and which frames) and the captions (by captions and text encoder). Which window is the reference one, the split and the
motion score are in the manifest alone, so that other ones encode nothing anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...common.errors import BadInputError
from ...common.identity import identity
from ...common.manifests import write_manifest
from ...common.report import StepReport, first_rows
from ...common.sample_tensors import CLIP, FRAMES
from ...common.storage import DataRoot
from ...common.windows import choose_window
from .encode_report import WHAT, encode_report
from .encoders import Encoders
from .encoding import KIND, TEXT_KIND, EncodeWork, encode_missing
from .settings import EncodeSettings
from .units import Unit
from .variants import Variant

VERSION = "2"
_SHOWN = 8


def encode_units(
    units: Iterable[Unit], out: Path, root: DataRoot, settings: EncodeSettings, title: str, step: str
) -> StepReport:
    """Encode what is not encoded yet, write shards and the samples manifest, and report.

    Shards hold whole units, in the order given, so that a run that was cut off goes on at the same borders; in pods, a
    shard holds units of one pod.
    """
    units, encoders, what = list(units), Encoders(settings), WHAT[step]
    if not settings.cache and any(unit.clip is None for unit in units):
        raise BadInputError(f"{step}.cache is false, and {what} are always encoded; set it to true")
    names = encoders.identity()
    keyed = [
        (unit, {v: _frames_key(unit, v, names, settings) for v in unit.variants}, _text_key(unit, names, settings))
        for unit in units
    ]
    found: dict[str, dict[str, Any]] = {}
    works: list[EncodeWork] = []
    usable = 0
    for unit, keys, text_key in keyed:
        if not unit.fits(unit.sequence.frames):
            continue
        usable += 1
        there = {key: result for key in keys.values() if (result := root.find(KIND, key)) is not None}
        missing = [(variant, key) for variant, key in keys.items() if key not in there]
        some = any(not result["skipped"] for result in there.values())
        text_missing = False
        if settings.cache and unit.captions and (missing or some):
            text = root.find(TEXT_KIND, text_key)
            there |= {} if text is None else {text_key: text}
            text_missing = text is None
        if missing or text_missing:
            show = len(works) < _SHOWN
            works.append(
                EncodeWork(
                    root.location, settings, names, unit, missing, text_key if text_missing else None, some, show
                )
            )
        found |= there
    inputs = identity(keys=[[*keys.values(), text_key] for _, keys, text_key in keyed])
    made = encode_missing(works, root, encoders, inputs, what)
    found |= made.results
    rows, reasons = [], Counter[str]()
    for unit, keys, text_key in keyed:
        if reason := "not_encoded" if unit.unit_id in made.lost else _reason(unit, found.get(keys[unit.variants[0]])):
            reasons[reason] += 1
            continue
        ways = {variant: key for variant, key in keys.items() if not found[key]["skipped"]}
        rows += [_row(unit, variant, key, found[key], found.get(text_key), text_key) for variant, key in ways.items()]
    write_manifest("samples", _groups_told_once(rows), out)
    report = encode_report(step, title, settings, units, rows, reasons, made.shown, root)
    report.done, report.reused, report.versions = len(works) - len(made.lost), usable - len(works), names
    report.set_aside = first_rows(made.lost.items())
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
