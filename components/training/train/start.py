"""What a stage's start must be, told from configuration files alone: checked before any process is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...common.config import validate_settings
from ...common.errors import BadInputError, ConfigError
from ...diffusion.json_files import read_json
from ...diffusion.model_directory import CARD, parameterisation_of
from ...diffusion.settings import SHIPPED_AUTOENCODER, Kind, UNetSettings, kind_in
from .presets import GROWN_FROM, MODEL_KIND, WITH_DECODER
from .settings import StageSettings

if TYPE_CHECKING:
    from ...diffusion.edm import Parameterisation


def check_start(stage: str, init: Path | None, settings: StageSettings) -> None:
    """Refuse a start that the settings do not fit.

    Raises:
        ConfigError: names the setting.
        BadInputError: the start's configuration cannot be read.
    """
    if stage == "decoder":
        _check_decoder(init, settings)
        return
    if settings.lora:
        check_adapter(stage, init, settings)
    if init is None:
        if stage == "image" and not settings.base:
            _check_channels(stage, settings)
        return
    if not settings.refit_motion and _motion_is_unknown(init):
        raise unknown_motion(stage, init)
    if settings.noise_schedule == "discrete":
        config = read_json(init / "scheduler" / "scheduler_config.json")
        parameterisation_to_train(stage, parameterisation_of(config), settings, str(init))


def check_motion_unit(stage: str, init: Path | None, settings: StageSettings, unit: str) -> None:
    """Whether the samples' motion scores can go through the start's map to motion buckets, which is in a unit too.

    Raises:
        BadInputError: they are in another unit.
    """
    if stage in ("image", "decoder") or settings.refit_motion or init is None or not (init / CARD).is_file():
        return
    known = (read_json(init / CARD).get("motion_calibration") or {}).get("unit", "")
    if known and unit and known != unit:
        raise BadInputError(
            f"train_{stage}: the samples' motion scores are in {unit}, and {init} maps scores in {known} to its motion "
            f"buckets; annotate with the same flow settings, or set train_{stage}.refit_motion=true to give the "
            "buckets a new meaning"
        )


def _motion_is_unknown(init: Path) -> bool:
    """Whether a start is a video model of others, as it was released or imported, that nobody has calibrated."""
    if not (init / CARD).is_file():
        return bool(read_json(init / "unet" / "config.json").get("num_frames"))
    card = read_json(init / CARD)
    return card.get("kind") != "image" and "imported" in card and not card.get("motion_calibration")


def unknown_motion(stage: str, init: Path) -> BadInputError:
    """The error for a released model whose map of motion was never published."""
    return BadInputError(
        f"{init}: what its motion buckets stand for is not known. `svdflow train calibrate` estimates it; "
        f"train_{stage}.refit_motion=true gives them a new meaning, by the motion of the training clips"
    )


def _kind_of(init: Path) -> Kind:
    """The kind of a model directory, by its U-Net's configuration: svdflow's or a released one's."""
    path = init / "unet" / "config.json"
    config = read_json(path)
    try:
        return kind_in(config)
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from None


def _check_channels(stage: str, settings: StageSettings) -> None:
    """Fresh weights and the autoencoder beside them must mean the same latents."""
    directory = SHIPPED_AUTOENCODER if settings.autoencoder == "shipped" else Path(settings.autoencoder)
    of_latents = read_json(directory / "config.json").get("latent_channels")
    unet = validate_settings(UNetSettings, f"train_{stage}.unet", settings.unet)
    if of_latents != unet.latent_channels:
        raise ConfigError(
            f"train_{stage}.autoencoder: {settings.autoencoder} has {of_latents} latent channels, and the U-Net would "
            f"take {unet.latent_channels} (train_{stage}.unet.latent_channels). Start from Stable Diffusion 2.1, as "
            f"the paper does (--init or train_{stage}.base), or make the two agree"
        )


def _check_decoder(init: Path | None, settings: StageSettings) -> None:
    """Its losses need LPIPS where they weigh it; and what it starts from needs a decoder that has a use for videos."""
    losses = settings.losses
    if losses.perceptual_weight and not (losses.lpips_backbone and losses.lpips_heads):
        raise ConfigError(
            "train_decoder.losses.lpips_backbone and lpips_heads: name the safetensors files of LPIPS (python -m "
            "svdflow.curation.annotate.convert_weights makes them), or set train_decoder.losses.perceptual_weight=0 "
            "to learn from the absolute error alone"
        )
    for name in ("lpips_backbone", "lpips_heads"):
        if losses.perceptual_weight and not Path(path := getattr(losses, name)).is_file():
            raise ConfigError(f"train_decoder.losses.{name}: {path}: there is no such file")
    if init is not None and (kind := _kind_of(init)) not in WITH_DECODER:
        raise BadInputError(
            f"{init}: a model of kind {kind} cannot start stage decoder, which takes {', '.join(WITH_DECODER)}"
        )


def check_adapter(stage: str, init: Path | None, settings: StageSettings) -> None:
    """An adapter needs the layers that it sits on, in a model that has its inputs already; shapes are enough to tell.

    Raises:
        ConfigError: the stage would grow its start, or the model lacks the layers.
    """
    if init is not None and (kind := _kind_of(init)) == GROWN_FROM.get(stage):
        raise ConfigError(
            f"train_{stage}.lora: {init} is of kind {kind} and has to grow new inputs for this stage. Their weights "
            "start at zero and, where an adapter alone learns, would stay there: what the model is given through them "
            "could never act. Train the stage without lora first, and start the adapter from the model that it leaves "
            f"(kind {MODEL_KIND[stage]})"
        )
    from .forecast import build_unet, unet_settings_of

    build_unet(stage, unet_settings_of(init, {f"train_{stage}": {"unet": settings.unet}}, stage), settings)


def parameterisation_to_train(
    stage: str, start: Parameterisation | None, settings: StageSettings, where: str = ""
) -> Parameterisation:
    """What the model under training predicts, and how it is told the noise level.

    Args:
        stage: its kind.
        start: of the model that it starts from; None for fresh weights.
        settings: of the stage.
        where: names the start in an error.

    Raises:
        ConfigError: a discrete schedule after a continuous one, or another one than the start's.
    """
    from ...diffusion.discrete import DiscreteSchedule
    from ...diffusion.edm import EDM, Parameterisation

    if settings.noise_schedule == "continuous":
        return EDM  # from a discrete start too: that is the paper's first stage (D.2)
    wanted = Parameterisation(settings.prediction, DiscreteSchedule())
    if start is None or start == wanted:
        return wanted
    if start.schedule is None:
        raise ConfigError(
            f"train_{stage}.noise_schedule: {where} knows continuous noise levels, and timesteps would mean nothing to "
            "it; start from Stable Diffusion 2.1 or a model of the discrete schedule, or set it to continuous"
        )
    if start.schedule != wanted.schedule:
        raise ConfigError(
            f"train_{stage}.noise_schedule: {where} has other betas than Stable Diffusion's schedule, which is the one "
            "that is trained; set it to continuous"
        )
    raise ConfigError(
        f"train_{stage}.prediction: {where} predicts {start.prediction}, not {wanted.prediction}; set it to what the "
        "start predicts"
    )
