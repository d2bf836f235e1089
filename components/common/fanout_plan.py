"""What a fan-out over pods writes down: the units, and what became of them, as plain JSON in the data root.

    fanout/<name>/plan.json              which function, how many units and indexes, limits
    fanout/<name>/units                  where each unit begins (little-endian int64, one more than there are), then
                                         the units, one JSON text after the other: a pod reads its part by range
    fanout/<name>/ids                    16 bytes for each unit, of its content: by these a restarted step knows them
    fanout/<name>/outcomes/<index>.json  written by the pod of an index: after units, and when it is done

No text names a type: a unit is read as what the function's argument is annotated with, a value as what it returns, so
that whoever can write here chooses neither class nor code. A function is taken only when it is marked ``in_pods`` and
its module belongs to a package that is let in.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import sys
import tempfile
import typing
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BadInputError, ConfigError, StorageError
from .fanout import IN_PODS, Limits

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from .storage import DataRoot

FORM = 2  # of these files
MAX_INDEXES = 10_000
KEEP_S = 172_800.0
ID_BYTES = 16
_MAX_OUTCOMES_BYTES = 64 << 20  # of one index: what a pod wrote is not to be trusted with the step's memory
_PATH = re.compile(r"(?P<module>[a-zA-Z_]\w*(\.[a-zA-Z_]\w*)*):(?P<name>[a-zA-Z_]\w*)")


@dataclass(frozen=True)
class Plan:
    """One fan-out.

    Attributes:
        name: below ``fanout/`` in the data root; of all the rest: another plan never writes over this one's files.
        function: ``package.module:function``, applied to each unit.
        together: a function that works on many units at once in a pod, in place of processes with ``function``.
        units: how many there are.
        indexes: over how many pods' work they are spread.
        workers: processes in a pod.
        limits: of a unit.
        svdflow: the version that wrote it: a pod of another version refuses it.
        keep_s: for so long nothing may be written while somebody waits for it; see ``fanout_files``.
    """

    name: str
    function: str
    together: str | None
    units: int
    indexes: int
    workers: int
    limits: dict[str, Any]
    svdflow: str
    keep_s: float = KEEP_S
    form: int = FORM

    def part(self, index: int) -> range:
        """The units of an index: even parts, in order."""
        return range(index * self.units // self.indexes, (index + 1) * self.units // self.indexes)

    def uri(self, what: str) -> str:
        """Where a file of it lies in the data root."""
        return f"fanout/{self.name}/{what}"

    def outcomes_uri(self, index: int) -> str:
        """Where the outcomes of an index lie."""
        return self.uri(f"outcomes/{index:05d}.json")


@dataclass(frozen=True)
class Part:
    """What is known of an index: the units' places in it to value, error, seconds; how often it was begun."""

    outcomes: dict[int, tuple[Any, str | None, float]]
    begun: int = 0
    done: bool = False
    storage_error: str | None = None


def packages() -> tuple[str, ...]:
    """Whose functions pods may call: svdflow's, and what SVDFLOW_FANOUT_PACKAGES names besides, as ``mycompany``."""
    return ("svdflow", *filter(None, os.environ.get("SVDFLOW_FANOUT_PACKAGES", "").split(",")))


def name_of(function: Callable[..., Any]) -> str:
    """``package.module:function`` of a function that pods may call.

    Raises:
        ConfigError: it is not one.
    """
    module = function.__module__
    path = f"{module}:{function.__qualname__}"
    if load_function(path) is not function:
        raise ConfigError(f"{path}: pods cannot find this function again; it has to stand at its module's top")
    return path


def load_function(path: str) -> Callable[..., Any]:
    """The function that a plan names.

    Raises:
        ConfigError: there is none, or pods may not call it.
    """
    found = _PATH.fullmatch(path)
    if found is None or found["module"].split(".")[0] not in packages():
        raise ConfigError(f"{path!r}: names no function of {', '.join(packages())}")
    try:
        function = getattr(importlib.import_module(found["module"]), found["name"])
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{path}: this image has no such function ({error}); use the step's own version") from None
    if not getattr(function, IN_PODS, False):
        raise ConfigError(f"{path}: pods may not call this function; mark it with in_pods")
    return function


@lru_cache(maxsize=8)
def adapters(function: Callable[..., Any]) -> tuple[TypeAdapter[Any], TypeAdapter[Any]]:
    """Readers and writers of a function's unit and of its value, each as a tuple of one."""
    from pydantic import ConfigDict, TypeAdapter

    hints = typing.get_type_hints(function)
    value = hints.pop("return", None)
    if len(hints) != 1 or value is None:
        raise ConfigError(f"{function.__qualname__}: pods call functions of one annotated argument that return a value")
    # floats that are no number are kept as such, bytes as base64; a tuple, as the types themselves take no settings
    plain = ConfigDict(ser_json_inf_nan="constants", ser_json_bytes="base64", val_json_bytes="base64")
    (unit,) = hints.values()
    one: Any = tuple
    return TypeAdapter(one[unit], config=plain), TypeAdapter(one[value], config=plain)


def write_plan(
    root: DataRoot,
    label: str,
    function: Callable[..., Any],
    together: Callable[..., Any] | None,
    units: Sequence[Any],
    units_per_index: int,
    workers: int,
    limits: Limits,
    keep_s: float = KEEP_S,
) -> tuple[Plan, bytes]:
    """Write units and plan down; memory holds 24 bytes of each unit. Returns the plan and the units' ids.

    Args:
        root: takes the files.
        label: the name's beginning; the rest is of the units and how they are worked on.
        function: what is applied to each unit.
        together: see ``Plan``.
        units: the work.
        units_per_index: how many units a pod takes; more when there would be too many indexes else.
        workers: see ``Plan``.
        limits: of a unit.
        keep_s: see ``Plan``.
    """
    unit_type, _ = adapters(function)
    ids, starts, at = bytearray(), array("q"), 8 * (len(units) + 1)
    with tempfile.NamedTemporaryFile(dir=root.scratch("fanout"), suffix=".units") as file:
        file.seek(at)
        for place in range(len(units)):
            text = unit_type.dump_json((units[place],))
            ids += unit_id(text)
            starts.append(at)
            at += file.write(text)
        starts.append(at)
        file.seek(0)
        file.write(_little_endian(starts).tobytes())
        file.flush()
        indexes = max(1, min(MAX_INDEXES, math.ceil(len(units) / units_per_index)))
        plan = Plan(
            name="",
            function=name_of(function),
            together=name_of(together) if together else None,
            units=len(units),
            indexes=indexes,
            workers=workers,
            limits=asdict(limits),
            svdflow=version("svdflow"),
            keep_s=keep_s,
        )
        told = json.dumps(asdict(plan), sort_keys=True).encode()
        plan = replace(plan, name=f"{label}-{unit_id(bytes(ids) + told).hex()[:12]}")
        root.put_named(plan.uri("units"), Path(file.name))
    root.put_named(plan.uri("ids"), bytes(ids))
    root.put_named(plan.uri("plan.json"), json.dumps(asdict(plan), sort_keys=True).encode())
    return plan, bytes(ids)


def unit_ids(function: Callable[..., Any], units: Sequence[Any]) -> bytes:
    """The ids that units have in a plan, one after the other."""
    unit_type, _ = adapters(function)
    return b"".join(unit_id(unit_type.dump_json((unit,))) for unit in units)


def read_plan(root: DataRoot, name: str) -> Plan | None:
    """A plan that was written before; None when it is gone.

    Raises:
        ConfigError: it is of another version of svdflow, or none at all.
    """
    if not re.fullmatch(r"[a-z0-9.-]{1,120}", name):
        raise ConfigError(f"{name!r} names no fan-out")
    uri = f"fanout/{name}/plan.json"
    if not root.exists(uri):
        return None
    try:
        values = json.loads(root.read(uri))
        plan = Plan(**values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{uri}: is no plan of a fan-out ({error})") from None
    here = version("svdflow")
    if plan.form != FORM or plan.svdflow != here:
        raise ConfigError(
            f"{uri}: written by svdflow {plan.svdflow}, read by {here}; the images of steps and of fan-out pods differ"
        )
    return plan


def read_units(root: DataRoot, plan: Plan, index: int) -> list[Any]:
    """The units of an index."""
    unit_type, _ = adapters(load_function(plan.function))
    part = plan.part(index)
    if not part:
        return []
    raw = root.read_range(plan.uri("units"), 8 * part.start, 8 * (len(part) + 1))
    starts = _little_endian(array("q", raw)) if len(raw) == 8 * (len(part) + 1) else array("q")
    if not starts:
        raise StorageError(f"{plan.uri('units')}: ends early")
    texts = root.read_range(plan.uri("units"), starts[0], starts[-1] - starts[0])
    cut = [texts[a - starts[0] : b - starts[0]] for a, b in zip(starts, starts[1:], strict=False)]
    return [unit_type.validate_json(text)[0] for text in cut]


def unit_id(text: bytes) -> bytes:
    """Names a unit by its JSON text."""
    return blake2b(text, digest_size=ID_BYTES).digest()


def write_part(root: DataRoot, plan: Plan, index: int, part: Part) -> None:
    """Keep what is known of an index; whole or not at all."""
    _, value_type = adapters(load_function(plan.function))
    head = {"begun": part.begun, "done": part.done, "storage_error": part.storage_error}
    lines = [json.dumps(head).encode()]
    for at, (value, error, seconds) in part.outcomes.items():
        told = json.dumps([at, error, seconds]).encode()
        lines.append(told + b"\t" + (value_type.dump_json((value,)) if error is None else b""))
    root.put_named(plan.outcomes_uri(index), b"\n".join(lines))


def read_part(root: DataRoot, plan: Plan, index: int) -> Part:
    """What a pod kept of an index; nothing when it kept nothing.

    Raises:
        BadInputError: what it wrote is not what a pod writes.
    """
    uri = plan.outcomes_uri(index)
    if not root.exists(uri):
        return Part({})
    raw = root.read_range(uri, 0, _MAX_OUTCOMES_BYTES + 1)
    if len(raw) > _MAX_OUTCOMES_BYTES:
        raise BadInputError(f"its pod wrote outcomes of more than {_MAX_OUTCOMES_BYTES >> 20} MiB")
    _, value_type = adapters(load_function(plan.function))
    head, *lines = raw.split(b"\n")
    places, outcomes = range(len(plan.part(index))), {}
    try:
        told = json.loads(head)
        for line in lines:
            about, _, value = line.partition(b"\t")
            at, error, seconds = json.loads(about)
            if at not in places or not isinstance(error, str | None):
                raise ValueError(f"unit {at}")
            found = value_type.validate_json(value)[0] if error is None else None
            outcomes[int(at)] = (found, error, float(seconds))
        return Part(outcomes, int(told["begun"]), told["done"] is True, told["storage_error"])
    except (ValueError, TypeError, KeyError) as error:  # pydantic's errors are ValueErrors
        raise BadInputError(f"its pod wrote no outcomes that can be read ({str(error).splitlines()[0]})") from None


def _little_endian(numbers: array[int]) -> array[int]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
