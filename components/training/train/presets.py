"""The stages that ship: one YAML file each in ``training/stages``, with the paper's numbers.

A file's ``about`` says what the stage is and which of its values the paper does not give; all else are settings. Cheap
to import: the command line makes a command of each stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ...common.errors import ConfigError

STAGES = Path(__file__).resolve().parents[1] / "stages"
KINDS = ("image", "video", "image_to_video", "multi_view", "interpolation", "decoder")
# the kind of model that a stage of each kind trains, and the kind that it grows out of its own where it starts from one
MODEL_KIND = {kind: kind for kind in KINDS if kind != "decoder"} | {"video": "text_to_video"}
GROWN_FROM = {
    "video": "image",
    "image_to_video": "text_to_video",
    "multi_view": "image_to_video",
    "interpolation": "text_to_video",
}
# of the stage decoder, which trains a part of a model that makes videos of clips, and leaves it of the kind that it is
WITH_DECODER = ("text_to_video", "image_to_video", "interpolation")
_ABOUT = {"title", "kind", "row", "after", "source", "ours", "implied"}
_REQUIRED = {"title", "kind", "row", "source"}


@dataclass(frozen=True)
class Preset:
    """One shipped stage.

    Attributes:
        name: of its file.
        title: one line.
        kind: what it trains: one of KINDS.
        row: the stage in the paper's order, as II-b.
        after: the preset whose model it starts from; None for the first.
        source: section of the paper.
        ours: field to the reason, for values that the paper does not give.
        implied: field to the reason, for values that the paper implies and does not state.
        values: settings of the stage.
    """

    name: str
    title: str
    kind: str
    row: str
    after: str | None
    source: str
    ours: Mapping[str, str]
    implied: Mapping[str, str]
    values: Mapping[str, Any]


def load_preset(name: str, field: str = "preset") -> Preset:
    """A shipped stage by name.

    Args:
        name: of a file in ``training/stages``, without its ending.
        field: what an error says was wrong.

    Raises:
        ConfigError: there is no such file, or its ``about`` is not in order.
    """
    if name not in preset_names():
        raise ConfigError(f"{field}: there is no stage file {name!r}; the shipped ones are {', '.join(preset_names())}")
    return _read(STAGES / f"{name}.yaml")


def preset_names() -> list[str]:
    """Names of the shipped stages, sorted."""
    return sorted(path.stem for path in STAGES.glob("*.yaml"))


def all_presets() -> list[Preset]:
    """The shipped stages in the order of the chain: what a stage starts from comes before it."""
    presets = {name: load_preset(name) for name in preset_names()}

    def depth(preset: Preset) -> int:
        return 0 if preset.after is None else 1 + depth(presets[preset.after])

    return sorted(presets.values(), key=lambda preset: (depth(preset), KINDS.index(preset.kind), preset.name))


def kind_of(stage: str) -> str:
    """The kind of model that a stage trains, by the name of a kind or of a preset.

    Raises:
        ConfigError: it is neither.
    """
    return stage if stage in KINDS else load_preset(stage, "stage").kind


def may_start(kind: str) -> tuple[str, ...]:
    """Kinds of model that a stage of a kind may start from."""
    return WITH_DECODER if kind == "decoder" else (MODEL_KIND[kind], GROWN_FROM.get(kind, "image"))


def stage_overrides(stage: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides for the section ``train_<kind>`` of a stage named by its preset; a kind takes its section's own."""
    return dict(overrides) if stage in KINDS else {**overrides, f"train_{kind_of(stage)}.preset": stage}


@cache
def _read(path: Path) -> Preset:
    values = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    about = values.pop("about", None) or {}
    if wrong := (_REQUIRED - set(about)) | (set(about) - _ABOUT):
        raise ConfigError(f"{path}: about.{min(wrong)} is missing or unknown; it takes {', '.join(sorted(_ABOUT))}")
    if about["kind"] not in KINDS:
        raise ConfigError(f"{path}: about.kind {about['kind']!r} is none of {', '.join(KINDS)}")
    marked = {mark: dict(about.get(mark) or {}) for mark in ("ours", "implied")}
    if strange := sorted({*marked["ours"], *marked["implied"]} - set(values)):
        raise ConfigError(f"{path}: about marks {strange[0]}, which the stage does not set")
    return Preset(
        path.stem, about["title"], about["kind"], about["row"], about.get("after"), about["source"],
        marked["ours"], marked["implied"], values,
    )  # fmt: skip
