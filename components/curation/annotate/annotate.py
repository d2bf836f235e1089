"""Annotate clips: every result is kept under its clip's content, annotator, version and settings, and found again.

Of the clips that a manifest names, memory holds a few numbers each: what is to be done and what was found lies on
disk, in the order of the manifest, and goes from there into the annotations manifest.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from ...common.errors import BadInputError
from ...common.fanout import (
    Executor,
    Limits,
    LocalProcesses,
    Outcome,
    chosen_executor,
    default_workers,
    in_pods,
    machine_memory_bytes,
    map_units,
)
from ...common.identity import file_sha256, identity
from ...common.manifest_views import alone_in, joined, open_views
from ...common.manifests import ROW_GROUP, SCHEMAS, write_in_order
from ...common.report import StepReport
from ...common.storage import DataRoot
from .annotator import Annotator, late_axes, load
from .measure import Measured, measure_clip, measure_unit
from .model_process import ModelProcess
from .results import ClipResult, ClipWork, Results
from .settings import AnnotateSettings
from .shelf import Shelf
from .show import Tally

_WHOLE = 0.8  # share of a video from which on a clip is the whole of it
_LOOK_UPS = 16  # at once: each is a request where the data root lies in S3
_BATCH = 4096  # clips looked up, or made into rows, together
_MEMORY_SHARE = 0.8  # of this machine, for the workers and the process of the models together
_CLIPS = """
    SELECT clip_id, video_id, start_s, end_s, shard_uri, "offset", bytes, name, description, duration_s
    FROM clips LEFT JOIN (SELECT video_id, min(name) AS name, min(description) AS description,
                                 min(duration_s) AS duration_s
                          FROM videos WHERE status = 'ok' GROUP BY video_id) USING (video_id)
    ORDER BY clip_id"""


def annotate_clips(videos: Path, clips: Path, out: Path, root: DataRoot, settings: AnnotateSettings) -> StepReport:
    """Annotate every clip of a manifest and write the annotations manifest.

    A clip or annotator that fails leaves null columns and is counted, the others go on; only when an annotator
    fails on every clip (a missing model, a dead endpoint) does the step fail.

    Raises:
        BadInputError: a manifest cannot be used, or an annotator failed on every clip.
        ConfigError: an axis names no annotator, or lacks a setting.
    """
    annotators = load(settings)
    kept = Results(root, annotators)
    name = identity(out=str(Path(out).resolve()))
    with alone_in(root.scratch("annotate") / name) as scratch:
        pending = _Pending(root, settings, Shelf(scratch))
        results = Shelf(scratch)
        failed: dict[str, tuple[int, str]] = {}  # axis to how often, and the first reason
        with ThreadPoolExecutor(_LOOK_UPS) as look_ups:
            for works in _in_order(videos, clips, scratch, pending):
                for work, found in zip(works, look_ups.map(kept.whole, works), strict=True):
                    if found is None:
                        pending.add(work.number)
                    else:
                        results.put(work.number, vars(found))
        inputs = identity(videos=file_sha256(Path(videos)), clips=file_sha256(Path(clips)), annotators=kept.identity)
        executor = chosen_executor(root, "annotate", inputs, together=annotate_together)
        for number, result in _annotated(pending, annotators, kept, settings, executor):
            results.put(number, vars(result))
            for axis, reason in result.failed.items():
                count, first = failed.get(axis, (0, reason))
                failed[axis] = count + 1, first
        _refuse_when_all_failed(annotators, failed, pending.clips)
        tally = Tally(annotators)
        write_in_order("annotations", _row_groups(pending, results, tally), out)

        def shown(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
            return pending.clip(number), results.get(number)["columns"]

        return tally.report(shown, root)


class _Pending(Sequence[ClipWork]):
    """The clips of the manifest by number, and as a sequence those that are to be measured."""

    def __init__(self, root: DataRoot, settings: AnnotateSettings, shelf: Shelf) -> None:
        self.clips = 0
        self._root, self._settings, self._shelf = root.location, settings, shelf
        self._numbers = array("q")

    def known(self, clip: dict[str, Any]) -> ClipWork:
        """The next clip of the manifest, as work."""
        self._shelf.put(self.clips, clip)
        self.clips += 1
        return self._work(self.clips - 1, clip)

    def add(self, number: int) -> None:
        """One of them is to be measured."""
        self._numbers.append(number)

    def clip(self, number: int) -> dict[str, Any]:
        """A clip by its number."""
        return self._shelf.get(number)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> ClipWork: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ClipWork]: ...
    def __getitem__(self, index: int | slice) -> ClipWork | Sequence[ClipWork]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        number = self._numbers[index]
        return self._work(number, self.clip(number))

    def _work(self, number: int, clip: dict[str, Any]) -> ClipWork:
        return ClipWork(self._root, self._settings, clip, _description(clip), number)


def _in_order(videos: Path, clips: Path, scratch: Path, pending: _Pending) -> Iterator[list[ClipWork]]:
    """The clips of a manifest by their ids, some at a time."""
    shards = {"videos": Path(videos), "clips": Path(clips)}
    with open_views("annotate", shards, scratch, memory_limit="512MB", threads=1) as connection:
        for batch in connection.sql(_CLIPS).to_arrow_reader(_BATCH):
            yield [pending.known(clip) for clip in batch.to_pylist()]


def _description(clip: Mapping[str, Any]) -> str | None:
    """The caption that came with a clip's video, if the clip is nearly all of it: it may not fit one shot of many."""
    if not clip["description"] or not clip["duration_s"]:
        return None
    return clip["description"] if clip["end_s"] - clip["start_s"] >= _WHOLE * clip["duration_s"] else None


def _annotated(
    pending: Sequence[ClipWork],
    annotators: Sequence[Annotator],
    kept: Results,
    settings: AnnotateSettings,
    executor: Executor,
) -> Iterator[tuple[int, ClipResult]]:
    """Number and result of each clip, measured here or in pods."""
    if isinstance(executor, LocalProcesses):
        for measured in _measured(pending, annotators, kept, settings):
            yield measured.work.number, measured.result
        return
    for outcome in map_units(annotate_alone, pending, "clips", timeout_s=settings.clip_timeout_s, executor=executor):
        result = outcome.value or _given_up(outcome.unit, outcome.error or "", annotators, kept).result
        yield outcome.unit.number, result


@in_pods
def annotate_alone(work: ClipWork) -> ClipResult:
    """One clip from its bytes to all its columns, the models included, in one process."""
    measured = measure_clip(work)
    return measured.result if measured.view is None else measure_unit([measured])[0].result


@in_pods
def annotate_together(works: Sequence[ClipWork], workers: int | None, limits: Limits) -> Iterator[Outcome]:
    """The clips of one pod: processes decode them, one process of models takes them by the unit, as in a step."""
    settings = works[0].settings.model_copy(update={"workers": workers, "clip_timeout_s": limits.timeout_s})
    annotators = load(settings)
    here = {work.number: work for work in works}
    for measured in _measured(works, annotators, Results(DataRoot.open(works[0].root), annotators), settings):
        yield Outcome(here[measured.work.number], measured.result, None, 0.0)


def _measured(
    pending: Sequence[ClipWork], annotators: Sequence[Annotator], kept: Results, settings: AnnotateSettings
) -> Iterator[Measured]:
    """Clips, measured: worker processes decode them, one process of models takes those that are ready by the unit."""
    late = late_axes(annotators, settings.unit_clips)
    ready: list[Measured] = []
    ready_bytes = 0
    worker_bytes, models_bytes = _memory(settings, bool(late))
    with ExitStack() as stack:
        models: ModelProcess | None = None
        if late:
            models = stack.enter_context(ModelProcess(sorted(late), settings.clip_timeout_s, models_bytes))
        for outcome in map_units(
            measure_clip, pending, "clips", settings.workers, settings.clip_timeout_s, memory_bytes=worker_bytes
        ):
            measured = outcome.value or _given_up(outcome.unit, outcome.error or "", annotators, kept)
            if models is None or measured.view is None:
                yield measured
                continue
            size = measured.view.bytes
            if ready and ready_bytes + size > settings.unit_mb * 1e6:
                models.submit(ready)
                ready, ready_bytes = [], 0
            ready.append(measured)
            ready_bytes += size
            if len(ready) == settings.unit_clips:
                models.submit(ready)
                ready, ready_bytes = [], 0
            yield from models.measured(wait=False)
        if models is not None:
            if ready:
                models.submit(ready)
            yield from models.measured(wait=True)


def _memory(settings: AnnotateSettings, models: bool) -> tuple[int | None, int]:
    """Private memory that one worker and the process of the models may take; all together a share of the machine."""
    whole = int(_MEMORY_SHARE * machine_memory_bytes())
    if not models:
        return None, 0
    of_models = settings.models_memory_mb * 10**6 if settings.models_memory_mb else whole // 2
    return max(whole - of_models, whole // 4) // (settings.workers or default_workers()), of_models


def _given_up(work: ClipWork, reason: str, annotators: Sequence[Annotator], kept: Results) -> Measured:
    """A clip whose worker crashed or hung, or that does not decode: what was kept of it before stays."""
    content = kept.content(work)
    result = kept.parts(work, content) if content else ClipResult()
    result.failed = {a.axis: reason for a in annotators if not result.settled(a.axis)}
    return Measured(work, content or "", result)


def _refuse_when_all_failed(annotators: Sequence[Annotator], failed: Mapping[str, tuple[int, str]], clips: int) -> None:
    for annotator in annotators:
        count, first = failed.get(annotator.axis, (0, ""))
        if count and count == clips:
            raise BadInputError(
                f"annotator {annotator.name} ({annotator.axis}) failed on all {count} clips, first: {first}"
            )


def _row_groups(pending: _Pending, results: Shelf, tally: Tally) -> Iterator[pa.Table]:
    """The annotations manifest, in the order of the clips; each clip is told to the tally."""
    schema = SCHEMAS["annotations"]
    loose = pa.schema([field.with_nullable(True) for field in schema])
    for start in range(0, pending.clips, ROW_GROUP):
        tables = []
        for first in range(start, min(start + ROW_GROUP, pending.clips), _BATCH):
            rows = []
            for number in range(first, min(first + _BATCH, start + ROW_GROUP, pending.clips)):
                clip, result = pending.clip(number), ClipResult(**results.get(number))
                tally.add(clip, result)
                rows.append({**result.columns, "clip_id": clip["clip_id"], "annotators": tally.versions})
            if unknown := {name for row in rows for name in row} - set(schema.names):
                raise BadInputError(f"annotations manifest: unknown columns {sorted(unknown)}; see {schema.names}")
            try:
                tables.append(pa.Table.from_pylist(rows, schema=loose).cast(schema))
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise BadInputError(f"annotations manifest: {error}") from error
        yield joined(tables)
