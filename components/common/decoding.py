"""Decoding that a step needs beside its main work (a picture for a report, the truth that a model is held against).

Where ``SVDFLOW_FANOUT`` is set it is done in pods, as the main work is: the step's own process holds a token of the
cluster and opens no file that others made. What pods give back are plain values and pixels. Elsewhere it is done at
once, in the step.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import ConfigError, StorageError, SvdflowError
from .fanout import Outcome, in_pods, map_units
from .pixels import Pixels
from .storage import DataRoot

if TYPE_CHECKING:
    from .fanout_manifest import FanoutSettings

UnitT = TypeVar("UnitT")
ValueT = TypeVar("ValueT")

_UNIT_S = 600.0
_REPORT_WAIT_S = 900.0  # for quota, an image, or an API server that is away; without pictures a report is a report


def in_cluster() -> bool:
    """Whether the environment wants decoding to be done in pods."""
    return bool(os.environ.get("SVDFLOW_FANOUT", "").strip())


def decode_each(
    function: Callable[[UnitT], ValueT],
    units: Sequence[UnitT],
    root: DataRoot,
    what: str,
    needed: bool = True,
    foreign: bool = True,
) -> list[Outcome[UnitT, ValueT]]:
    """Apply a function that decodes to each unit; the outcomes come in the order of the units.

    Args:
        function: marked ``in_pods``; raises SvdflowError for a unit that cannot be used.
        units: plain values.
        root: through it pods get units and give outcomes.
        what: kind of work, for names: "truth".
        needed: whether the step fails where pods cannot be had; else every unit fails, with that reason.
        foreign: whether anything in the files comes from others; else they are opened here.

    Raises:
        ConfigError, ServiceError: see ``IndexedJobs.run``; only when it is needed.
        StorageError: the data root cannot be read or written; also only then.
    """
    if not (foreign and in_cluster()):
        return [_here(function, unit, needed) for unit in units]
    try:
        found = {id(outcome.unit): outcome for outcome in _in_pods(function, units, root, what, needed)}
    except SvdflowError as error:
        if needed:
            raise
        print(f"svdflow: no {what} for the report: {error}", file=sys.stderr, flush=True)
        return [Outcome(unit, None, str(error), 0.0) for unit in units]
    return [found[id(unit)] for unit in units]


def pictures(outcomes: Sequence[Outcome[Any, Pixels]]) -> Iterator[tuple[int, Any]]:
    """Place and picture (uint8 [H, W, 3]) of the outcomes that have one."""
    for place, outcome in enumerate(outcomes):
        if outcome.value is not None:
            try:
                yield place, outcome.value.array()
            except SvdflowError:
                continue


@dataclass(frozen=True)
class ClipPlace:
    """Where a clip lies: the data root's location, the shard's URI, and which of its bytes."""

    root: str
    uri: str
    offset: int
    length: int

    @staticmethod
    def of(row: Mapping[str, Any], root: DataRoot) -> ClipPlace:
        """Of a row of the clips manifest."""
        return ClipPlace(root.location, row["shard_uri"], row["offset"], row["bytes"])

    def read(self) -> bytes:
        """The clip.

        Raises:
            StorageError: it is not there, or the store does not answer.
        """
        return DataRoot.open(self.root).read_range(self.uri, self.offset, self.length)


@dataclass(frozen=True)
class ClipFrame:
    """A frame of a clip that is wanted: its display index, and height and width to bring it to (None: small)."""

    clip: ClipPlace
    frame: int
    size: tuple[int, int] | None = None


@in_pods
def clip_frame(wanted: ClipFrame) -> Pixels:
    """A frame of a clip.

    Raises:
        BadInputError: the clip does not decode, or has no such frame.
    """
    from .frames import fit_frame
    from .picture import shrink
    from .video import read_frames

    rgb = read_frames(wanted.clip.read(), [wanted.frame])[0]
    return Pixels.of(shrink(rgb) if wanted.size is None else fit_frame(rgb, *wanted.size))


def _here(function: Callable[[UnitT], ValueT], unit: UnitT, needed: bool) -> Outcome[UnitT, ValueT]:
    try:
        return Outcome(unit, function(unit), None, 0.0)
    except SvdflowError as error:
        if needed and isinstance(error, StorageError):
            raise
        return Outcome(unit, None, str(error), 0.0)


def _in_pods(
    function: Callable[[UnitT], ValueT], units: Sequence[UnitT], root: DataRoot, what: str, needed: bool
) -> Iterator[Outcome[UnitT, ValueT]]:
    from .fanout_jobs import IndexedJobs
    from .fanout_plan import unit_ids

    if not units:
        return
    executor = IndexedJobs(root, what, unit_ids(function, units).hex(), pods_that_decode(needed))
    yield from map_units(function, units, what, timeout_s=_UNIT_S, executor=executor)


def pods_that_decode(needed: bool = True) -> FanoutSettings:
    """What the environment says of pods, without GPUs; what is not needed is not waited for long."""
    from .fanout_manifest import FanoutSettings

    settings = FanoutSettings.from_environment()
    assert settings is not None
    changed: dict[str, Any] = {}
    if settings.gpus:  # their queue and nodes are those of the step's main work
        fields = FanoutSettings.model_fields
        changed = {name: fields[name].get_default() for name in ("gpus", "queue", "cpu", "memory")}
        changed["node_selector"] = {}
    if not needed:
        waits = {name: getattr(settings, name) for name in ("deadline_s", "quota_wait_s", "image_wait_s", "patience_s")}
        changed |= {name: min(type(wait)(_REPORT_WAIT_S), wait) for name, wait in waits.items()}
    return settings.model_copy(update=changed)


def require_on_volume(folder: Path) -> None:
    """See that pods find a folder of files under its own path.

    Raises:
        ConfigError: ``SVDFLOW_FANOUT`` names no volume that holds it.
    """
    from .fanout_manifest import FanoutSettings

    settings = FanoutSettings.from_environment()
    if settings is None or not (settings.claim and folder.is_relative_to(settings.claim_path)):
        raise ConfigError(
            f"{folder}: pods of a fan-out, which open its files, do not see this folder; put it on a volume and name "
            "that in SVDFLOW_FANOUT (claim, claim_path)"
        )
