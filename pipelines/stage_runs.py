"""Runs of one stage (`svdflow train STAGE`): what can be checked is checked before anything starts; then it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdflow.common.config import load_profile, merge, parse_override, validate_settings
from svdflow.common.errors import BadInputError, ConfigError
from svdflow.curation.version.checkout import find_version, open_registry, require_long_clips
from svdflow.curation.version.registry import Registry
from svdflow.curation.version.settings import VersionSettings
from svdflow.diffusion.hub import resolve_model
from svdflow.training.encode.settings import EncodeImagesSettings, EncodeSettings, with_image_section
from svdflow.training.train.presets import Preset, load_preset, may_start, stage_overrides
from svdflow.training.train.settings import StageSettings, stage_settings
from svdflow.training.train.start import check_adapter, check_start

from .datasets import last_settings
from .local.run import RunResult, run_pipeline
from .registry import STAGE_OF, resolve_settings

if TYPE_CHECKING:
    from svdflow.training.train.forecast import Forecast

_SIZES = ("frames", "height", "width")
_CARRIED = ("name", "registry", "store", "origin", "remote")  # of a work directory's dataset versions


def train_stage(
    stage: str,
    workdir: Path,
    profile: str,
    sets: Sequence[str],
    dataset: str,
    init: Path | None,
    pipeline: str = "train",
) -> tuple[RunResult, Path]:
    """Train one stage; returns how the run ended, and where the model lies.

    Args:
        stage: a preset.
        workdir: holds the registry, unless the settings name another; made data, reports and models lie there.
        profile: see ``svdflow.common.config``.
        sets: ``step.setting=value``.
        dataset: ``name@v1.2.3`` or shorter; "" is the newest version.
        init: the model directory to start from, or a repository of a hub.
        pipeline: ``train``, or one of ``registry.STAGE_OF``, which goes on with the model.

    Raises:
        ConfigError: settings that are unknown, impossible or contradict each other; names the field.
        BadInputError: there is no such version or model, or they do not fit the stage.
    """
    preset = load_preset(stage)
    if preset.kind == "multi_view":
        raise ConfigError(
            f"the stage {stage} trains on rendered orbits, not on a dataset of clips: `svdflow run svd` renders and "
            "trains them"
        )
    asked = _checked_settings(preset, profile, sets)
    start = _checked_init(preset, init)
    settings, overrides = resolve_stage(preset, profile, asked, start)
    check_start(preset.kind, start, settings)
    tag, overrides = dataset_to_train_on(workdir, dataset, profile, overrides, (preset.kind,))
    arguments = {"dataset": tag, "init": str(start or "")} | ({} if pipeline in STAGE_OF else {"stage": stage})
    result = run_pipeline(pipeline, workdir, profile, overrides, arguments)
    return result, result.workdir / "models" / stage


def resolve_stage(
    preset: Preset, profile: str, asked: Sequence[tuple[str, Any]], init: Path | None, weights: bool = True
) -> tuple[StageSettings, dict[str, Any]]:
    """A stage's settings, and the overrides that a run takes: samples of its size and rate, by its start's encoders.

    Args:
        preset: of the stage.
        profile: see ``svdflow.common.config``.
        asked: dotted settings with their values.
        init: the model directory to start from; None for what the settings name, if they do.
        weights: whether those of a repository that the settings name are needed.

    Raises:
        ConfigError: names the field.
        BadInputError: there is no such model.
    """
    given = dict(asked)
    overrides = stage_overrides(preset.name, given)
    sections = load_profile(profile, overrides)
    settings = stage_settings(preset.kind, sections.get(f"train_{preset.kind}") or {})
    if init is None and preset.kind == "image" and settings.base:
        init = resolve_model(settings.base, weights)
    for name in _SIZES:
        wanted = getattr(settings, name)
        if wanted is None:  # the stage takes what the section `encode` makes
            continue
        found = given.get(f"encode.{name}", wanted)
        if found != wanted and not (name == "frames" and wanted == 1):  # single frames are drawn out of any sample
            raise ConfigError(
                f"encode.{name}: the stage {preset.name} asks for {wanted}, not {found}; set train_{preset.kind}.{name}"
            )
        overrides[f"encode.{name}"] = found
    if preset.kind == "decoder":  # learns from frames, which the cache does not keep
        overrides["encode.cache"] = given.get("encode.cache", False)
    limit = (sections.get("encode") or {}).get("max_fps")
    if settings.fps and limit and limit < max(settings.fps):  # no window is faster than the frames that are encoded
        faster = dict.fromkeys(("encode.max_fps", "encode.fps"), max(settings.fps))  # a reference window has to fit too
        overrides |= {name: rate for name, rate in faster.items() if name not in given}
    return settings, {**_encoders(init), **overrides}


def dataset_to_train_on(
    workdir: Path,
    dataset: str | None,
    profile: str,
    overrides: Mapping[str, Any],
    kinds: Sequence[str] = ("image", "video", "image_to_video"),
) -> tuple[str, dict[str, Any]]:
    """The full tag of a dataset version that training can use, and the overrides with where its registry is.

    Versions that the stages of these kinds mix in get their full tags too, and are checked out beside it.

    Raises:
        ConfigError: a setting is wrong.
        BadInputError: there is no such version, or no clip of it is long enough for a sample; or pictures are given
            that no stage takes.
    """
    sections = load_profile(profile, overrides)
    kept = {name: value for name, value in last_settings(workdir).items() if name in _CARRIED and value}
    version = merge(kept, sections.get("version") or {})
    settings = validate_settings(VersionSettings, "version", version)
    registry = open_registry(Path(settings.registry or workdir / "registry").absolute(), settings)
    tag = find_version(registry, dataset or "")
    encode = validate_settings(EncodeSettings, "encode", sections.get("encode") or {})
    require_long_clips(registry, tag, encode.frames, encode.fps)
    carried = {f"version.{name}": value for name, value in kept.items() if name not in (sections.get("version") or {})}
    mixes = {kind: _full_tags(registry, kind, sections) for kind in kinds}
    carried |= {f"train_{kind}.mix": mix for kind, mix in mixes.items() if mix}
    if tags := sorted({part["dataset"] for mix in mixes.values() for part in mix if part.get("dataset")}):
        carried["version.mix"] = tags
    if source := _pictures(kinds, sections):
        carried["encode_images.source"] = str(source)
    return str(tag), {**overrides, **carried}


def _full_tags(registry: Registry, kind: str, sections: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A stage's mix, every dataset version of it by its full tag.

    Raises:
        ConfigError: a setting is wrong.
        BadInputError: there is no such version.
    """
    settings = stage_settings(kind, sections.get(f"train_{kind}") or {})
    mix = [part.model_dump(exclude_none=True) for part in settings.mix]
    for index, part in enumerate(mix):
        if path := part.get("samples"):
            if not Path(path).is_file():
                raise BadInputError(f"train_{kind}.mix.{index}.samples: {path}: there is no samples manifest here")
            part["samples"] = str(Path(path).absolute())
        if name := part.get("dataset"):
            try:
                part["dataset"] = str(find_version(registry, name))
            except BadInputError as error:
                raise BadInputError(f"train_{kind}.mix.{index}.dataset: {error}") from None
    return mix


def _pictures(kinds: Sequence[str], sections: Mapping[str, Any]) -> Path | None:
    """The folder of pictures to mix in, absolute, if there is one.

    Raises:
        ConfigError: a setting is wrong, or no stage of these kinds takes pictures.
        BadInputError: there is no such folder.
    """
    values = with_image_section(sections)["encode_images"]
    source = validate_settings(EncodeImagesSettings, "encode_images", values).source
    if not source:
        return None
    if not Path(source).is_dir():
        raise BadInputError(f"encode_images.source: {source}: there is no folder of pictures here")
    if not any(stage_settings(kind, sections.get(f"train_{kind}") or {}).takes_images(kind) for kind in kinds):
        raise ConfigError(
            f"encode_images.source: the stage takes no pictures; put 1 into train_{kinds[0]}.short_frames to train on "
            "images and videos jointly"
        )
    return Path(source).absolute()


def _checked_settings(preset: Preset, profile: str, sets: Sequence[str]) -> list[tuple[str, Any]]:
    """What is asked for on top of a profile, all of it known; before a model is fetched for it.

    Raises:
        ConfigError: names the field.
    """
    asked = [parse_override(text) for text in sets]
    resolve_settings(profile, stage_overrides(preset.name, dict(asked)))
    for dotted, _ in asked:
        section, _, field = dotted.partition(".")
        own = f"train_{preset.kind}"
        if section.startswith("train_") and section != own and not field.startswith("unet"):
            raise ConfigError(f"{dotted}: is of another stage; the settings of {preset.name} are {own}")
    return asked


def _checked_init(preset: Preset, init: Path | None, weights: bool = True) -> Path | None:
    """The model directory to start from, absolute; fetched when it is a repository of a hub.

    Raises:
        ConfigError: the stage needs one.
        BadInputError: it is none, or of a kind that the stage cannot start from.
    """
    if init is None:
        if preset.kind == "image":
            return None
        raise ConfigError(
            f"--init: the stage {preset.name} starts from a model of {preset.after or 'Stable Diffusion 2.1'} or of "
            "its own kind; name its directory"
        )
    init = resolve_model(init, weights)
    if init.is_file():
        raise BadInputError(
            f"--init {init}: is a single file; `svdflow convert {init} DIRECTORY` makes a model directory of it"
        )
    card = init / "svdflow.json"
    if not card.is_file():
        if not (init / "unet" / "config.json").is_file():
            raise BadInputError(f"--init {init}: is no model directory: it has no svdflow.json and no unet/config.json")
        return init
    try:
        kind = json.loads(card.read_text())["kind"]
    except (ValueError, KeyError, TypeError):
        raise BadInputError(f"--init {init}: svdflow.json is damaged; it tells no kind") from None
    if kind not in (may := set(may_start(preset.kind))):
        raise BadInputError(
            f"--init {init}: a model of kind {kind} cannot start the stage {preset.name}, which takes "
            f"{' or '.join(sorted(may))}"
        )
    return init


def _encoders(init: Path | None) -> dict[str, Any]:
    """Samples must be encoded as the model that learns from them sees its conditions: by its own encoders."""
    found = {}
    for setting, part in (("autoencoder", "vae"), ("image_encoder", "image_encoder")):
        if init and (init / part / "config.json").is_file():
            found[f"encode.{setting}"] = str(init / part)
    if init and all((init / part).is_dir() for part in ("tokenizer", "text_encoder")):
        found["encode.text_encoder"] = str(init)
    return found


def forecast(
    stage: str, profile: str, sets: Sequence[str], init: Path | None, mfu: float, peak_tflops: float
) -> Forecast:
    """What a stage would take under these settings; nothing is read but them and the start's configuration.

    Raises:
        ConfigError, BadInputError: as ``train_stage``; a start is not asked for.
    """
    from svdflow.training.train.forecast import TEXT_TOKENS, forecast_stage, unet_settings_of

    preset = load_preset(stage)
    if preset.kind == "decoder":
        raise ConfigError("--dry-run: predicts what U-Nets take; for the decoder there is no forecast")
    asked = _checked_settings(preset, profile, sets)
    start = _checked_init(preset, init, weights=False) if init else None
    settings, overrides = resolve_stage(preset, profile, asked, start, weights=False)
    if settings.lora:
        check_adapter(preset.kind, start, settings)
    sections = load_profile(profile, overrides)
    section = "encode_orbits" if preset.kind == "multi_view" else "encode"
    encode = validate_settings(EncodeSettings, section, sections.get(section) or {})
    size = tuple(getattr(settings, name) or getattr(encode, name) for name in _SIZES)
    frames = 1 if preset.kind == "image" else size[0]
    unet = unet_settings_of(start, sections, preset.kind)
    return forecast_stage(preset.kind, settings, unet, (frames, *size[1:]), TEXT_TOKENS, mfu, peak_tflops)
