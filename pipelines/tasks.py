"""How a task of any pipeline is set up: its name, the cache off, and the place that an environment gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kfp import dsl

Placement = Callable[["dsl.PipelineTask", str], None]  # the task and its display name

_placement: ContextVar[Placement | None] = ContextVar("placement", default=None)


def named(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
    """Give a task its display name and switch KFP's cache off; an environment in force places it too.

    Reuse comes from identities in the data root: KFP's cache sees neither a folder's content nor our package.
    """
    task.set_display_name(name).set_caching_options(False)
    if place := _placement.get():
        place(task, name)
    return task


@contextmanager
def placing(place: Placement) -> Iterator[None]:
    """While it lasts, pipelines that are traced have their tasks placed by ``place``."""
    token = _placement.set(place)
    try:
        yield
    finally:
        _placement.reset(token)
