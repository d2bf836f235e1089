"""How clips are measured: each where it is decoded, then by models over several, in a process of theirs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ...common.errors import StorageError, SvdflowError
from ...common.storage import DataRoot
from .annotator import Annotator, ClipView, ModelAnnotator, late_axes, load
from .look import look
from .results import ClipResult, ClipWork, Results
from .settings import AnnotateSettings


@dataclass
class Measured:
    """How far one clip has come; picklable.

    Attributes:
        work: the clip.
        content: sha256 of its bytes.
        result: what is known of it.
        view: what the annotators still to come took of its frames; None when none is to come.
    """

    work: ClipWork
    content: str = ""
    result: ClipResult = field(default_factory=ClipResult)
    view: ClipView | None = None


def measure_clip(work: ClipWork) -> Measured:
    """Decode a clip once and measure whatever is not known of it yet, but for what models measure over several.

    Raises:
        SvdflowError: the clip's bytes cannot be read or decoded.
    """
    annotators, results = _of_this_process(work.settings, work.root)
    late = late_axes(annotators, work.settings.unit_clips)
    started = time.monotonic()
    content, mp4 = results.content(work), b""
    if content is None:
        mp4, content = results.read(work)
    result = results.parts(work, content)
    todo = [a for a in annotators if not result.settled(a.axis)]
    if not todo:
        results.close(work, result)
        return Measured(work, content, result)
    mp4 = mp4 or results.read(work)[0]
    watchers = {a.axis: watcher for a in todo if (watcher := a.watcher())}
    keys, small = look(mp4, watchers.values(), spread=max(a.spread for a in todo))
    looked_s = (time.monotonic() - started) / len(todo)
    view = ClipView(work.clip_id, work.description, keys, small, dict(watchers), result.columns)
    measured = Measured(work, content, result, view)
    for annotator in todo:
        started = time.monotonic()
        _guarded(measured, annotator, lambda a=annotator: a.prepare(view))  # type: ignore[misc]
        if annotator.axis not in late and not result.settled(annotator.axis):
            _measure(results, annotator, [measured])
        if annotator.axis in result.computed:
            result.computed[annotator.axis] += time.monotonic() - started + looked_s
    if all(result.settled(a.axis) for a in annotators):
        results.close(work, result)
        measured.view = None
    else:
        measured.view = view.without_frames()
    return measured


def measure_unit(unit: Sequence[Measured]) -> list[Measured]:
    """What is left of several clips, each annotator over all of them at once."""
    annotators, results = _of_this_process(unit[0].work.settings, unit[0].work.root)
    for annotator in annotators:
        left = [m for m in unit if not m.result.settled(annotator.axis)]
        started = time.monotonic()
        _measure(results, annotator, left)
        computed = [m.result.computed for m in left if annotator.axis in m.result.computed]
        for seconds in computed:
            seconds[annotator.axis] += (time.monotonic() - started) / len(computed)
    for measured in unit:
        results.close(measured.work, measured.result)
        measured.view = None
    return list(unit)


def _measure(results: Results, annotator: Annotator, clips: Sequence[Measured]) -> None:
    """One annotator on clips; a fault of one clip costs its own result alone."""
    todo = [m for m in clips if not results.take(annotator, m.content, m.work, m.result)]  # what an ended run left

    def keep(measured: Measured, found: dict[str, Any] | SvdflowError) -> None:
        if isinstance(found, SvdflowError):
            raise found
        results.keep(annotator, measured.content, measured.work, found, measured.result)
        measured.result.computed[annotator.axis] = 0.0

    if isinstance(annotator, ModelAnnotator) and len(todo) > 1:
        try:
            together = annotator.measure([_view(m) for m in todo])
        except StorageError:
            raise
        except Exception:  # which clip it was shows when each is measured without the others
            together = []
        for measured, found in zip(todo, together, strict=False):
            _guarded(measured, annotator, lambda m=measured, f=found: keep(m, f))  # type: ignore[misc]
        todo = todo[len(together) :]
    for measured in todo:
        _guarded(measured, annotator, lambda m=measured: keep(m, annotator.annotate(_view(m))))  # type: ignore[misc]


def _view(measured: Measured) -> ClipView:
    assert measured.view is not None
    return measured.view


def _guarded(measured: Measured, annotator: Annotator, act: Callable[[], None]) -> None:
    try:
        act()
    except StorageError:
        raise
    except Exception as error:  # a fault of one annotator costs its own result alone; it is told, and counted
        measured.result.failed[annotator.axis] = _reason(error)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, SvdflowError) else f"{type(error).__name__}: {error}"


@lru_cache(maxsize=2)
def _of_this_process(settings: AnnotateSettings, root: str) -> tuple[list[Annotator], Results]:
    import cv2

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    cv2.setNumThreads(1)  # as many processes as cores work already
    annotators = load(settings)
    return annotators, Results(DataRoot.open(root), annotators)
