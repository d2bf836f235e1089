"""What an annotator is, and the registry of all there are.

A new one is one file: a subclass under ``register``, its module named in ``_MODULES`` (or, outside this package, in
``annotate.plugins``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar, TypeVar

import numpy as np

from ...common.errors import BadInputError, ConfigError, SvdflowError
from ...common.identity import identity
from ...common.video import VideoFrame
from .settings import AnnotateSettings

_MODULES = (
    "captioners",
    "captions_local",
    "classifiers",
    "clip",
    "coca",
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
        clip_id: of the manifest; names the clip in messages, no result may depend on it.
        description: the caption that came with the video, if any.
        key_frames: first, middle and last frame, uint8 RGB [H, W, 3], with their times in s.
        spread_frames: uint8 RGB frames spread evenly over the clip, short side at most 224 px.
        watched: axis to the annotator's watcher, after the last frame.
        columns: columns of the annotators that ran before.
        taken: what annotators took of the frames (see ``once``); goes along to the process of the models.
    """

    clip_id: str
    description: str | None = None
    key_frames: list[VideoFrame] = field(default_factory=list)
    spread_frames: list[np.ndarray] = field(default_factory=list)
    watched: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    taken: dict[str, Any] = field(default_factory=dict)

    def pictures(self) -> list[np.ndarray]:
        """The three key frames' pixels.

        Raises:
            BadInputError: the frames are gone, since the clip was handed on to the process of the models.
        """
        if not self.key_frames:
            raise BadInputError("the clip's frames are gone: an annotator that runs late takes them in prepare()")
        return [frame.rgb for frame in self.key_frames]

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What several annotators of this clip need and one computes, as CLIP's image embeddings."""
        if name not in self.taken:
            self.taken[name] = make()
        return self.taken[name]

    @property
    def bytes(self) -> int:
        """Size of what annotators took."""
        return _size(self.taken)

    def without_frames(self) -> ClipView:
        """What is handed on to the process of the models."""
        return ClipView(self.clip_id, self.description, columns=self.columns, taken=self.taken)


def _size(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_size, value)) if isinstance(value, (list, tuple)) else 8


class Watcher(ABC):
    """Sees the frames it asks for one at a time, for what needs more of them than can be held."""

    @abstractmethod
    def wants(self, times_s: np.ndarray) -> Sequence[int]:
        """Indices of the frames to see, out of a clip's frames with these times (s from the first, rising)."""

    @abstractmethod
    def see(self, frame: VideoFrame) -> None:
        """One of them, in display order."""


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
        """A fresh watcher for one clip, if it wants more frames than first, middle and last."""
        return None

    def prepare(self, clip: ClipView) -> None:  # noqa: B027 (most have nothing to do)
        """Take what will be needed of the frames (``ClipView.once``), before they are let go.

        Called in the process that decoded the clip; the annotator itself may run later, in the process of the models.
        """

    @abstractmethod
    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Plain values for its columns; for a column ``…_uri``, arrays by name, which go into the data root.

        Raises:
            SvdflowError: this clip cannot be measured.
        """

    def store(self, columns: dict[str, Any], root: Any) -> dict[str, Any]:
        """Arrays into the data root, in a safetensors file, and its URI in their place."""
        from safetensors.numpy import save

        about = {"annotator": f"{self.name}@{self.version}"}  # one entry: safetensors writes several in a random order
        stored = dict(columns)
        for column, value in columns.items():
            if column.endswith("_uri") and isinstance(value, dict):
                arrays = {name: np.ascontiguousarray(array) for name, array in value.items()}
                stored[column] = root.put_bytes(save(arrays, metadata=about))
        return stored

    def identity(self) -> str:
        """Names the annotator, its version and its settings."""
        return identity(axis=self.axis, name=self.name, version=self.version, config=self.config())

    def key(self, content: str, description: str | None, known: Mapping[str, Any]) -> str:
        """Names this annotator's result on one clip: changes with its version, its settings and its inputs.

        Args:
            content: sha256 of the clip's bytes; all results on one clip begin with it.
            description: the caption that came with the video.
            known: columns of the annotators before.
        """
        inputs = {name: known.get(name) for name in self.needs}
        said = description if self.uses_description else None
        return f"{content[:32]}-{identity(annotator=self.identity(), inputs=inputs, description=said)}"


class ModelAnnotator(Annotator):
    """One that is faster over several clips at once: a model on an accelerator, a server.

    Its result on a clip must not depend on the other clips: see ``batching``.
    """

    @abstractmethod
    def measure(self, clips: Sequence[ClipView]) -> Sequence[dict[str, Any] | SvdflowError]:
        """What ``annotate`` gives, for each clip; an error in place of a result costs that clip alone."""

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Its columns for one clip."""
        (found,) = self.measure([clip])
        if isinstance(found, SvdflowError):
            raise found
        return found


_REGISTRY: dict[tuple[str, str], type[Annotator]] = {}
AnnotatorT = TypeVar("AnnotatorT", bound=type[Annotator])


def register(annotator: AnnotatorT) -> AnnotatorT:
    """Class decorator: makes an annotator known under its axis and name."""
    _REGISTRY[annotator.axis, annotator.name] = annotator
    return annotator


def load(settings: AnnotateSettings) -> list[Annotator]:
    """The chosen annotators, in the order in which they run.

    Raises:
        ConfigError: an axis names an annotator that there is not, or a plugin cannot be imported.
    """
    for module in _MODULES:
        import_module(f".{module}", __package__)
    for plugin in settings.plugins:
        try:
            import_module(plugin)
        except ImportError as error:
            raise ConfigError(f"annotate.plugins: {plugin!r} cannot be imported: {error}") from None
    chosen = []
    for axis, name in settings.chosen().items():
        if (axis, name) not in _REGISTRY:
            known = ", ".join(sorted(n for a, n in _REGISTRY if a == axis))
            raise ConfigError(f"annotate.{axis}: there is no annotator {name!r}; there are: {known}")
        chosen.append(_REGISTRY[axis, name](settings))
    return chosen


def late_axes(annotators: Sequence[Annotator], unit_clips: int) -> set[str]:
    """Axes that are measured in the process of the models: those over several clips, and what reads their results."""
    late: set[str] = set()
    columns: set[str] = set()
    for annotator in annotators:
        if (unit_clips > 1 and isinstance(annotator, ModelAnnotator)) or columns & set(annotator.needs):
            late.add(annotator.axis)
            columns |= set(annotator.columns)
    return late
