"""From sequences of frames to samples in shards: what clips and orbits share.

A unit (a clip, an orbit) becomes a sample for each variant of its picture, or is set aside with a reason. Results are
recorded for each part, under keys of their own: the frames of each variant (by unit, encoders of frames, size, variant
and which frames) and the captions (by captions and text encoder). Which window is the reference one, the split and the
motion score are in the manifest alone, so that other ones encode nothing anew.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import BadInputError, StorageError, SvdflowError
from ...common.frames import crop_shares, fit_frame
from ...common.identity import identity
from ...common.manifests import write_manifest
from ...common.progress import track
from ...common.report import StepReport, histogram, images, table
from ...common.sample_tensors import CLIP, FRAMES, pack_picture, picture_name
from ...common.shards import write_shard
from ...common.storage import DataRoot, DirectoryRoot
from ...common.windows import Window, choose_window, spread
from .encoders import Encoders
from .settings import EncodeSettings
from .variants import Variant

VERSION = "2"
KIND, TEXT_KIND = "encode", "encode_text"
_CHUNK = 8  # frames that are decoded, and go through the encoders, at once
_SHOWN = 8
_WHAT = {"encode": "clips", "encode_orbits": "orbits", "encode_images": "images"}


@dataclass(frozen=True)
class Sequence:
    """The frames of a clip that are encoded: so many, at a rate, from a time in the clip on.

    Attributes:
        frames: how many, if the clip holds what it claims.
        fps: their rate.
        start_s: time of the first one from the clip's first frame.
        available: how many there would be without a limit.
    """

    frames: int
    fps: float
    start_s: float
    available: int

    @property
    def times_s(self) -> list[float]:
        """The time of each frame in the clip."""
        return [self.start_s + i / self.fps for i in range(self.frames)]


@dataclass(frozen=True)
class Unit:
    """What becomes a sample.

    Attributes:
        unit_id: identity of the clip or orbit.
        sequence: its frames.
        size: height and width to encode it at.
        variants: the ways to bring it to that size; each gives a sample.
        key_parts: what else names the encoded frames.
        starts: at most so many frames keep their pixels; None for all.
        window: frames and stride of the reference window.
        captions: three, or none.
        row: manifest values that the sample takes over: split, motion_score, elevation_deg.
        load: the frames as decoded, uint8 [H, W, 3] one at a time.
        clip: manifest values that say where the clip lies, for training without the cache; None: that cannot be.
    """

    unit_id: str
    sequence: Sequence
    size: tuple[int, int]
    variants: list[Variant]
    key_parts: dict[str, Any]
    starts: int | None
    window: tuple[int, int]
    captions: list[str]
    row: dict[str, Any]
    load: Callable[[], Iterator[np.ndarray]]
    clip: dict[str, Any] | None = None

    def fits(self, frames: int) -> bool:
        """Whether the reference window fits so many frames."""
        return Window(0, self.window[1], self.window[0]).span <= frames


@dataclass
class _Shard:
    """Tensors on their way to a shard, with the results to be recorded once they lie there."""

    root: DataRoot
    settings: EncodeSettings
    samples: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    results: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)  # kind, key, result without its shard
    stored: dict[str, dict[str, Any]] = field(default_factory=dict)  # key to result, of all shards so far
    bytes: int = 0

    def add(self, kind: str, key: str, tensors: dict[str, np.ndarray], result: dict[str, Any]) -> None:
        self.samples[key] = tensors
        self.results.append((kind, key, result))
        self.bytes += sum(tensor.nbytes for tensor in tensors.values())

    def close_if_full(self) -> None:
        units = sum(kind == KIND for kind, _, _ in self.results)
        if units >= self.settings.samples_per_shard or self.bytes >= self.settings.shard_mib << 20:
            self.close()

    def close(self) -> None:
        if not self.samples:
            return
        with tempfile.TemporaryDirectory(dir=self.root.scratch("encode")) as folder:
            path = Path(folder) / "shard.safetensors"
            write_shard(path, self.samples)
            uri = self.root.put_file(path)
        for kind, key, result in self.results:
            self.stored[key] = {**result, "shard_uri": uri}
            self.root.record(kind, key, self.stored[key])
        self.samples, self.results, self.bytes = {}, [], 0


def encode_units(
    units: Iterable[Unit], out: Path, root: DataRoot, settings: EncodeSettings, title: str, step: str
) -> StepReport:
    """Encode what is not encoded yet, write shards and the samples manifest, and report.

    Shards hold whole units, in the order given, so that a run that was cut off goes on at the same borders.
    """
    encoders, shard, what = Encoders(settings), _Shard(root, settings), _WHAT[step]
    names = encoders.identity()
    found: dict[str, dict[str, Any]] = {}
    units, done, reused = list(units), 0, 0
    shown: list[tuple[np.ndarray, str]] = []
    if not settings.cache and any(unit.clip is None for unit in units):
        raise BadInputError(f"{step}.cache is false, and {what} are always encoded; set it to true")
    for unit in track(units, what):
        if not unit.fits(unit.sequence.frames):
            continue
        results = {v: root.find(KIND, _frames_key(unit, v, names, settings)) for v in unit.variants}
        missing = {v: _frames_key(unit, v, names, settings) for v, result in results.items() if result is None}
        if missing:
            made, first = _encode_frames(unit, missing, encoders, shard, settings)
            results |= made
            if first is not None and len(shown) < _SHOWN:
                shown.append((first, unit.captions[0][:60] if unit.captions else unit.unit_id[:8]))
        for variant, result in results.items():
            if result and (result["skipped"] or "shard_uri" in result or not settings.cache):
                found[_frames_key(unit, variant, names, settings)] = result
        fresh = bool(missing)
        if settings.cache and unit.captions and not all(result and result["skipped"] for result in results.values()):
            text_key = _text_key(unit, names, settings)
            if (text := root.find(TEXT_KIND, text_key)) is not None:
                found[text_key] = text
            else:
                fresh = True
                states = encoders.texts(unit.captions).astype(_precision(settings))
                shard.add(TEXT_KIND, text_key, {"text": states}, {})
        done, reused = done + fresh, reused + (not fresh)
        shard.close_if_full()
    shard.close()
    found |= shard.stored
    rows, reasons = [], Counter[str]()
    for unit in units:
        keys = {variant: _frames_key(unit, variant, names, settings) for variant in unit.variants}
        if reason := _reason(unit, found.get(keys[unit.variants[0]])):
            reasons[reason] += 1
            continue
        for variant, key in keys.items():
            if found[key]["skipped"]:
                continue
            rows.append(_row(unit, variant, key, found[key]))
            if not settings.cache:
                rows[-1] |= {"layout": CLIP, **(unit.clip or {})}
            elif unit.captions:
                text_key = _text_key(unit, names, settings)
                rows[-1] |= {"text_uri": found[text_key]["shard_uri"], "text_prefix": text_key}
    write_manifest("samples", rows, out)
    report = _report(step, title, settings, units, rows, reasons, shown, root)
    report.done, report.reused, report.versions = done, reused, names
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


def _precision(settings: EncodeSettings) -> type[np.floating[Any]]:
    return np.float16 if settings.half else np.float32


def _encode_frames(
    unit: Unit, keys: dict[Variant, str], encoders: Encoders, shard: _Shard, settings: EncodeSettings
) -> tuple[dict[Variant, dict[str, Any]], np.ndarray | None]:
    """Put variants of a unit's frames into the shard, in one pass over the unit; what is unusable is recorded.

    Without the cache the unit is only decoded, to see that it can be and how many frames it holds.

    Returns:
        The variants' results, and the first frame.
    """
    parts = {variant: _Parts(variant, unit, settings) for variant in keys}
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
        results[variant] = {
            "skipped": None,
            "sequence_frames": count,
            "starts": sorted(start for start in part.starts if start < count),
            "crop": part.crop,
        }
        if settings.cache:
            shard.add(KIND, key, part.tensors(), results[variant])
        else:
            shard.root.record(KIND, key, results[variant])
    return results, parts[next(iter(keys))].first


class _Parts:
    """The tensors of one variant, filled chunk by chunk."""

    def __init__(self, variant: Variant, unit: Unit, settings: EncodeSettings) -> None:
        self.variant, self.size, self.precision = variant, unit.size, _precision(settings)
        self.starts = set(spread(unit.sequence.frames, unit.starts))
        self.arrays: dict[str, list[np.ndarray]] = {"mean": [], "logvar": [], "images": []}
        self.pictures: dict[int, np.ndarray] = {}
        self.first: np.ndarray | None = None
        self.crop: tuple[float, ...] | None = None

    def take(self, chunk: list[np.ndarray], count: int, encoders: Encoders | None) -> None:
        if encoders is None and self.first is not None:
            return
        frames_FHWC = np.stack([fit_frame(rgb, *self.size, self.variant.place, self.variant.flipped) for rgb in chunk])
        if self.first is None:
            height, width = chunk[0].shape[:2]
            self.first, self.crop = frames_FHWC[0], crop_shares(height, width, *self.size, self.variant.place)
        if encoders is None:
            return
        mean_FCHW, logvar_FCHW = encoders.moments(frames_FHWC)
        self.arrays["mean"].append(mean_FCHW.astype(self.precision))
        self.arrays["logvar"].append(logvar_FCHW.astype(self.precision))
        self.arrays["images"].append(encoders.images(frames_FHWC).astype(np.float32))
        places = [count + i for i in range(len(chunk)) if count + i in self.starts]
        self.pictures |= {place: pack_picture(frames_FHWC[place - count]) for place in places}

    def tensors(self) -> dict[str, np.ndarray]:
        whole = {name: np.concatenate(values) for name, values in self.arrays.items()}
        return whole | {picture_name(place): data for place, data in self.pictures.items()}


def _unreadable(error: str, keys: dict[Variant, str], shard: _Shard) -> dict[Variant, dict[str, Any]]:
    result = {"skipped": "unreadable", "error": error}
    for key in keys.values():
        shard.root.record(KIND, key, result)
    return dict.fromkeys(keys, result)


def _reason(unit: Unit, result: dict[str, Any] | None) -> str | None:
    """Why a unit gives no sample, if it does not."""
    if result is None:
        return "too_short"
    if result["skipped"]:
        return str(result["skipped"])
    return None if unit.fits(result["sequence_frames"]) else "ends_early"


def _row(unit: Unit, variant: Variant, key: str, result: dict[str, Any]) -> dict[str, Any]:
    frames, stride = unit.window
    window = choose_window(result["sequence_frames"], result["starts"], frames, stride, 0.5)
    return {
        **unit.row,
        "sample_id": f"{key}-{variant.number:02d}",
        "clip_id": unit.unit_id,
        "captions": unit.captions,
        "shard_uri": result.get("shard_uri"),
        "tensor_prefix": key,
        "height": unit.size[0],
        "width": unit.size[1],
        "layout": FRAMES,
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


def _report(
    step: str,
    title: str,
    settings: EncodeSettings,
    units: list[Unit],
    rows: list[dict[str, Any]],
    reasons: Counter[str],
    shown: list[tuple[np.ndarray, str]],
    root: DataRoot,
) -> StepReport:
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
    what = _WHAT[step]
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
