"""Settings of ingest. Loads no media library: a machine that only submits runs checks them too."""

from __future__ import annotations

from pydantic import Field

from ..common.config import Settings
from .examine import ProbeSettings
from .fetch import FetchSettings
from .sources import ListSettings


class FootageSettings(Settings):
    """The size of generated videos; all ours, the paper has none."""

    width: int = 320
    height: int = 192
    fps: float = 12.0
    min_s: float = 2.0
    max_s: float = 3.0
    gop: int = 12  # frames between key frames: short, so that cutting at key frames keeps most of a shot


class IngestSettings(Settings):
    """What is taken in. The paper does not tell where its videos come from: all of this is ours."""

    generated_clips: int = 0  # short videos made by svdflow and added to the source, labelled "generated"
    generated_seed: int = 0
    footage: FootageSettings = FootageSettings()
    licence: str | None = None  # of files that come without one
    licences_allowed: tuple[str, ...] = ()  # if any are named, no other licence is; "*" stands for anything
    licences_refused: tuple[str, ...] = ()
    lists: ListSettings = ListSettings()
    fetch: FetchSettings = FetchSettings()
    probe: ProbeSettings = ProbeSettings()
    workers: int | None = Field(default=None, ge=1)  # at once; all cores by default, more help with slow servers
    timeout_s: float = Field(default=600.0, gt=0)  # for probing one file
