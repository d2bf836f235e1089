"""Encoding what is not encoded yet: here, or where ``SVDFLOW_FANOUT`` is set in pods that decode and encode.

A unit counts as done when the shard that holds it is written: only then are its results recorded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from textwrap import shorten
from typing import Any

import numpy as np

from ...common.errors import ConfigError, ServiceError, StorageError, SvdflowError
from ...common.fanout import Executor, Limits, LocalProcesses, Outcome, chosen_executor, in_pods, map_units
from ...common.picture import shrink
from ...common.pixels import Pixels
from ...common.progress import track
from ...common.storage import DataRoot
from .encoders import Encoders
from .sequence_tensors import SequenceTensors, precision
from .settings import EncodeSettings
from .shard_writer import ShardWriter
from .units import Unit
from .variants import Variant

KIND, TEXT_KIND = "encode", "encode_text"
_CHUNK = 8  # frames that are decoded, and go through the encoders, at once
_UNIT_S = 3600.0  # for one unit tried alone, models loaded included


@dataclass(frozen=True)
class EncodeWork:
    """What is missing of a unit.

    Attributes:
        root: the data root's location.
        settings: of the step.
        encoders: identities of the encoders, as the step has them.
        unit: what is encoded.
        variants: of its picture, with the key of each one's result.
        text_key: of its captions' states; None when they are there, or not wanted.
        usable: whether a variant that is there already gives a sample.
        show: whether the report shows it.
    """

    root: str
    settings: EncodeSettings
    encoders: dict[str, str]
    unit: Unit
    variants: list[tuple[Variant, str]]
    text_key: str | None
    usable: bool
    show: bool

    @property
    def title(self) -> str:
        """A word on it, for the report."""
        return shorten(self.unit.captions[0], 60, placeholder=" …") if self.unit.captions else self.unit.unit_id[:8]


@dataclass(frozen=True)
class Encoded:
    """What comes back from a pod beside what is recorded: the first frame, made small, of a unit to be shown."""

    picture: Pixels | None = None


@dataclass
class Made:
    """What became of units: results by key, first frames with a word on each, and why some were lost."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    shown: list[tuple[np.ndarray, str]] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)


def encode_missing(works: Sequence[EncodeWork], root: DataRoot, encoders: Encoders, inputs: str, what: str) -> Made:
    """Encode units where the environment says.

    Args:
        works: what is missing, in the order in which shards hold it.
        root: where clips lie and shards go.
        encoders: for work that is done here.
        inputs: identity of all that the step encodes, missing or not.
        what: a unit is, for the progress display.

    Raises:
        ConfigError, ServiceError: see ``IndexedJobs.run``; also ServiceError when every unit was lost.
    """
    executor = chosen_executor(root, "encode", inputs, together=encode_together)
    if not isinstance(executor, LocalProcesses):
        return _encode_in_pods(works, root, executor, what)
    made = Made()
    encoding = Encoding(root, encoders)
    for work in track(works, what):
        first = encoding.take(work)
        if work.show and first is not None:
            made.shown.append((first, work.title))
    encoding.shard.close()
    made.results = encoding.results | encoding.shard.stored  # now with their shard
    return made


class Encoding:
    """Takes units one by one and fills shards.

    Attributes:
        results: by key, of what was taken; those in a shard without its URI.
        shard: where tensors go.
    """

    def __init__(self, root: DataRoot, encoders: Encoders) -> None:
        settings = encoders.settings
        self.results: dict[str, dict[str, Any]] = {}
        self.shard = ShardWriter(root, settings.samples_per_shard, settings.shard_mib << 20)
        self._encoders, self._settings = encoders, settings

    def take(self, work: EncodeWork) -> np.ndarray | None:
        """Encode what is missing of a unit; the first frame, if its frames were missing and there is one."""
        first, usable = None, work.usable
        if work.variants:
            made, first = _encode_frames(work.unit, dict(work.variants), self._encoders, self.shard, self._settings)
            self.results |= made
            usable = usable or any(not result["skipped"] for result in made.values())
        if usable and work.text_key is not None:
            states = self._encoders.texts(work.unit.captions).astype(precision(self._settings))
            self.shard.add(TEXT_KIND, work.text_key, {"text": states}, {})
        self.shard.close_if_full()
        return first


@in_pods
def encode_alone(work: EncodeWork) -> Encoded:
    """One unit, in a shard of its own.

    Raises:
        ConfigError: the encoders here are others than the step's.
    """
    return next(encode_together([work], None, Limits())).value or Encoded()


@in_pods
def encode_together(
    works: Sequence[EncodeWork], workers: int | None, limits: Limits
) -> Iterator[Outcome[EncodeWork, Encoded]]:
    """The units of a pod; each comes back when its shard is written.

    Raises:
        ConfigError: the encoders here are others than the step's.
    """
    encoding = Encoding(DataRoot.open(works[0].root), _encoders_as_in_step(works[0]))
    waiting: list[Outcome[EncodeWork, Encoded]] = []
    for work in works:
        started = time.monotonic()
        first = encoding.take(work)
        picture = Pixels.of(shrink(first)) if work.show and first is not None else None
        waiting.append(Outcome(work, Encoded(picture), None, time.monotonic() - started))
        if not encoding.shard.samples:
            yield from waiting
            waiting = []
    encoding.shard.close()
    yield from waiting


def _encode_in_pods(works: Sequence[EncodeWork], root: DataRoot, executor: Executor, what: str) -> Made:
    made = Made()
    for outcome in map_units(encode_alone, works, what, timeout_s=_UNIT_S, executor=executor):
        work, value = outcome.unit, outcome.value
        if value is None:
            made.lost[work.unit.unit_id] = outcome.error or ""
            continue
        if value.picture is not None:
            try:
                made.shown.append((value.picture.array(), work.title))
            except SvdflowError:
                pass  # a picture less
        for key in (*(key for _, key in work.variants), *([work.text_key] if work.text_key else [])):
            kind = TEXT_KIND if key == work.text_key else KIND
            if (result := root.find(kind, key)) is not None:
                made.results[key] = result
            elif kind == KIND:
                made.lost[work.unit.unit_id] = "its pod says that it is encoded, and recorded nothing"
    if works and len(made.lost) == len(works):
        raise ServiceError(f"none of {len(works)} {what} could be encoded, first: {next(iter(made.lost.values()))}")
    return made


def _encoders_as_in_step(work: EncodeWork) -> Encoders:
    encoders, names = _encoders(work.settings)
    if names != work.encoders:
        differ = ", ".join(sorted(name for name in names if names[name] != work.encoders.get(name)))
        raise ConfigError(
            f"the encoders here are others than the step's ({differ}); give pods its image and its models"
        )
    return encoders


@lru_cache(maxsize=1)
def _encoders(settings: EncodeSettings) -> tuple[Encoders, dict[str, str]]:
    encoders = Encoders(settings)
    return encoders, encoders.identity()


def _encode_frames(
    unit: Unit, keys: Mapping[Variant, str], encoders: Encoders, shard: ShardWriter, settings: EncodeSettings
) -> tuple[dict[str, dict[str, Any]], np.ndarray | None]:
    """Put variants of a unit's frames into the shard, in one pass over the unit; what is unusable is recorded.

    Without the cache the unit is only decoded, to see that it can be and how many frames it holds.

    Returns:
        The results by key, those in the shard without its URI yet, and the first frame.
    """
    parts = {variant: SequenceTensors(variant, unit, settings) for variant in keys}
    count = 0
    try:
        decoded = unit.source.frames(shard.root)
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


def _unreadable(error: str, keys: Mapping[Variant, str], shard: ShardWriter) -> dict[str, dict[str, Any]]:
    result = {"skipped": "unreadable", "error": error}
    for key in keys.values():
        shard.root.record(KIND, key, result)
    return dict.fromkeys(keys.values(), result)
