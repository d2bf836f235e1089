"""What an annotator is, and the registry of all there are.

A new one is one file: a subclass under ``register``, its module named in ``_MODULES``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from ...common.errors import ConfigError
from ...common.identity import identity, tree_sha256
from ...common.video import VideoFrame
from .settings import AnnotateSettings

_MODULES = (
    "captioners",
    "captions_local",
    "clip",
    "endpoint",
    "heuristics",
    "motion",
    "text_regions",
    "word_similarity",
)
T = TypeVar("T")


@dataclass
class ClipView:
    """What annotators see of one clip, after its single decode. Only these frames are held.

    Attributes:
        clip_id: of the manifest.
        duration_s: end minus start.
        description: the caption that came with the video, if any.
        key_frames: first, middle and last frame, uint8 RGB [H, W, 3], with their times in s.
        spread_frames: uint8 RGB frames spread evenly over the clip, short side at most 224 px.
        watched: axis to what the annotator's watcher found.
        columns: columns of the annotators that ran before.
    """

    clip_id: str
    duration_s: float
    description: str | None = None
    key_frames: list[VideoFrame] = field(default_factory=list)
    spread_frames: list[np.ndarray] = field(default_factory=list)
    watched: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    _shared: dict[str, Any] = field(default_factory=dict)

    def pictures(self) -> list[np.ndarray]:
        """The three key frames' pixels."""
        return [frame.rgb for frame in self.key_frames]

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What several annotators of this clip need and one computes, as image embeddings."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]


class Watcher(ABC):
    """Sees a clip's frames one at a time, for what needs more of them than can be held."""

    @abstractmethod
    def see(self, frame: VideoFrame) -> None:
        """One frame, in display order."""


class Annotator(ABC):
    """Measures one axis of a clip.

    Attributes:
        name: what it is, as it stands in the manifest.
        version: raise it when results change; then this annotator alone is run again.
        axis: which setting chooses it.
        columns: columns of the annotations manifest it fills.
        needs: columns of other annotators that it reads.
        uses_description: whether the caption that came with the video enters its result.
        spread: frames wanted in ``ClipView.spread_frames``.
        stand_in_for: what a production run would use, when this is a stand-in.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    axis: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    needs: ClassVar[tuple[str, ...]] = ()
    uses_description: ClassVar[bool] = False
    stand_in_for: ClassVar[str] = ""
    spread: int = 0

    def __init__(self, settings: AnnotateSettings) -> None:
        """Cheap: models are loaded on first use.

        Raises:
            ConfigError: a setting it needs is missing.
        """
        self.settings = settings

    def config(self) -> dict[str, Any]:
        """The settings (and weights) its result depends on, and no others."""
        return {}

    def watcher(self) -> Watcher | None:
        """A fresh watcher for one clip, if it wants to see the frames go by."""
        return None

    @abstractmethod
    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Plain values for its columns.

        Raises:
            SvdflowError: this clip cannot be measured.
        """

    def store(self, columns: dict[str, Any], root: Any) -> dict[str, Any]:
        """Put arrays into the data root and their URIs in their place; most have none."""
        return columns

    def key(self, clip_id: str, description: str | None, known: Mapping[str, Any]) -> str:
        """Names this annotator's result on one clip: changes with its version, its settings and its inputs."""
        inputs = {name: known.get(name) for name in self.needs}
        return identity(
            clip=clip_id,
            axis=self.axis,
            name=self.name,
            version=self.version,
            config=self.config(),
            inputs=inputs,
            description=description if self.uses_description else None,
        )


_REGISTRY: dict[tuple[str, str], type[Annotator]] = {}
AnnotatorT = TypeVar("AnnotatorT", bound=type[Annotator])


def register(annotator: AnnotatorT) -> AnnotatorT:
    """Class decorator: makes an annotator known under its axis and name."""
    _REGISTRY[annotator.axis, annotator.name] = annotator
    return annotator


def load(settings: AnnotateSettings) -> list[Annotator]:
    """The chosen annotators, in the order in which they run.

    Raises:
        ConfigError: an axis names an annotator that there is not.
    """
    for module in _MODULES:
        import_module(f".{module}", __package__)
    chosen = []
    for axis, name in settings.chosen().items():
        if (axis, name) not in _REGISTRY:
            known = ", ".join(sorted(n for a, n in _REGISTRY if a == axis))
            raise ConfigError(f"annotate.{axis}: there is no annotator {name!r}; there are: {known}")
        chosen.append(_REGISTRY[axis, name](settings))
    return chosen


def weights_identity(model: str, revision: str | None) -> str:
    """What names a model's weights: the content of a local directory, or a hub id with its revision."""
    return tree_sha256(Path(model)) if Path(model).is_dir() else f"{model}@{revision or 'main'}"
