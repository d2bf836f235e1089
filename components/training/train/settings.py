"""What a training stage can be told.

The paper's numbers of each stage are the files of ``training/stages``; a profile's section lies on top.

The defaults here are what the stages share. Where the paper is silent, the field says "ours".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ...common.config import Settings, fault_of, load_profile, merge, validate_settings
from ...common.errors import ConfigError
from ...diffusion.settings import INTERPOLATED_FRAMES, DecoderLosses, LoraSettings
from .presets import KINDS, load_preset


class MixedSamples(Settings):
    """Other samples that a stage trains on: a dataset version, or a samples manifest."""

    dataset: str | None = Field(None, pattern=r"^[^@/\s]+(@[^@/\s]+)?$")  # name@v1.2.3, or shorter; pipelines encode it
    samples: str | None = None  # path of the manifest; its shards lie in the same data root
    weight: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _named(self) -> MixedSamples:
        if not (self.dataset or self.samples):
            raise ValueError("names neither a dataset version (dataset) nor a samples manifest (samples)")
        return self

    @property
    def name(self) -> str:
        """What a reader is told."""
        return self.dataset or str(self.samples)


class StageSettings(Settings):
    """Settings of one stage; [P] is the paper's section."""

    preset: str | None = None  # a file of training/stages; the stage's own name by default

    # what is trained, and on what
    frames: int | None = Field(None, ge=1)  # of a window; None takes the samples' reference windows
    height: int | None = Field(None, ge=8)  # samples of another size than this are refused; None takes all as buckets
    width: int | None = Field(None, ge=8)
    trainable: Literal["all", "time_embedding"] = "all"  # [P D.2]: the first image stage trains the time embedding only
    lora: LoraSettings | None = (
        None  # an adapter learns and all else stays; the adapter is kept beside the merged model
    )
    # the image stage's start, as --init: a diffusers directory or a hub's repository (SD 2.1); None: fresh, by ``unet``
    base: str | None = None
    unet: dict[str, Any] = Field(
        default_factory=dict
    )  # sizes of a freshly built U-Net (diffusion.settings.UNetSettings)
    autoencoder: str = "shipped"  # of a new image model: "shipped", or a diffusers directory
    text_encoder: str = "local"  # of a new image model: "local", or a directory with tokenizer/ and text_encoder/
    image_encoder: str = "local"  # of a new image-to-video model: "local", or a transformers directory

    # data
    mix: tuple[MixedSamples, ...] = ()  # other datasets, of clips or images: each has the share of its weight. Ours
    weight: float = Field(1.0, gt=0)  # of the stage's own samples among them
    images: float = Field(1.0, gt=0)  # of the pictures of encode_images among them, where a stage takes single frames
    fps: tuple[float, ...] | None = None  # rates of windows, one drawn for each; None: the reference windows'. Ours
    # lengths for samples that do not hold ``frames``; 1 takes images in, without the temporal layers. Ours
    short_frames: tuple[int, ...] = ()
    latent: Literal["sample", "mean"] = "sample"  # of the autoencoder's posterior; sampled as in the released code

    refit_motion: bool = False  # give motion buckets a new meaning, by these samples; else the start's is inherited
    cache_gib: float = Field(20.0, gt=0)  # on local disk, of shards that lie in an object store. Ours

    readers: int = Field(2, ge=0, le=64)  # threads that read coming batches; 0 reads each in its own step. Ours

    # optimisation
    steps: int = Field(150_000, ge=0)  # 0 hands on the weights that the stage starts from: an untrained baseline
    batch: int = Field(1536, ge=1)  # global: over all processes and accumulated micro-batches
    accumulation: int = Field(1, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"  # AdamW [P D.2]; plain SGD is for comparing runs
    lr: float = Field(1e-4, gt=0)  # [P D.2]
    warmup: int = Field(0, ge=0)  # ours: the paper is silent
    betas: tuple[float, float] = (0.9, 0.999)  # ours: the paper is silent
    weight_decay: float = Field(0.01, ge=0)  # ours: the paper is silent
    clip: float = Field(1.0, ge=0)  # gradient norm; 0 switches it off. Ours: the paper is silent
    ema: float | None = Field(None, gt=0, lt=1)  # decay; None keeps no average. 0.9999 at high resolution [P D.3, D.4]
    precision: Literal["fp32", "bf16"] = "bf16"  # ours: the paper is silent. fp32 is the faster one on CPUs

    # noise and conditioning
    # ln sigma ~ N(p_mean, p_std^2) [P D.1]; or Stable Diffusion's 1000 timesteps, drawn evenly, as the ablation models
    # have them [P E.2.1], where p_mean and p_std are not looked at
    noise_schedule: Literal["continuous", "discrete"] = "continuous"
    prediction: Literal["v_prediction", "epsilon"] = "v_prediction"  # of a discrete schedule [P E.2.1]
    offset_noise: float = Field(0.0, ge=0)  # deviation of it, discrete schedules alone; 0 is none. [P E.2.1]: no figure
    p_mean: float = -1.2  # ln sigma ~ N(p_mean, p_std^2) [P D.2]
    p_std: float = Field(1.0, gt=0)
    text_dropout: float = Field(0.15, ge=0, le=1)  # [P D.2]
    # of embedding and frame together: each by itself and both, so often each, so a third at most. Ours: not published
    image_dropout: float = Field(0.1, ge=0, le=1 / 3)
    embedding_dropout: float | None = Field(None, ge=0, le=1)  # one of these set: each is dropped by itself at its own
    frame_dropout: float | None = Field(
        None, ge=0, le=1
    )  # rate (unset: 0), and ``image_dropout`` is not looked at. Ours
    caption_weights: tuple[float, float, float] = (0.5, 0.25, 0.25)  # image, video, summary caption [P E.2.2]
    # noise on conditioning frames: ln sigma ~ N(-3, 0.5^2), in pixel space [P D.4], in interpolation on latents [P D.5]
    augment_mean: float = -3.0
    augment_std: float = Field(0.5, ge=0)

    # the decoder's finetuning
    losses: DecoderLosses = Field(default_factory=DecoderLosses)

    # how it runs
    processes: int = Field(8, ge=1)  # ours: as many as there are GPUs
    zero_stage: Literal[0, 1, 2, 3] = 2  # ours
    offload_optimizer: bool = False  # fp32 weights, moments and running average in main memory; at stages 1 to 3
    gradient_checkpointing: bool = False  # activations are computed again in the backward pass, not kept
    compile: bool = False  # torch.compile of the U-Net's blocks, each kind and size of block once
    attention: Literal["auto", "memory_efficient"] = "auto"  # the latter refuses kernels that hold all scores at once
    seed: int = Field(0, ge=0)
    timeout_s: float = Field(7 * 86400.0, gt=0)
    hang_timeout_s: float = Field(1800.0, gt=0)  # ours: a process without a sign of life for so long ends the run
    grace_s: float = Field(30.0, gt=0, le=30)  # from being told to end to a checkpoint; torchrun waits no longer

    # checkpoints
    checkpoint_every: int = Field(1000, ge=1)  # ours, in steps
    checkpoint_minutes: float | None = Field(None, gt=0)  # beside it, for long steps
    keep_checkpoints: int = Field(3, ge=1)  # ours: so many of the last, and the best by held-out loss
    upload_checkpoints: bool = True  # to the object store, where the data root lies in one

    # what is looked at while it trains
    validate_every: int | None = Field(None, ge=1)  # held-out loss of the running average, in steps; None: at the ends
    sample_every: int | None = Field(None, ge=1)  # pictures or videos of the running average, in steps; None: none
    sample_count: int = Field(4, ge=1)  # of held-out samples
    sample_steps: int = Field(25, ge=1)  # of the sampler
    diverged_ratio: float = Field(100.0, gt=1)  # ours: loss or gradient norm above so many times its median, see below
    diverged_steps: int = Field(5, ge=1)  # ours: for so many steps in a row

    # the held-out loss, before and after: fixed noise levels, fixed noise
    held_out_samples: int = Field(64, ge=0)  # ours; 0 leaves it out
    held_out_levels: int = Field(5, ge=1)  # noise levels, at equal steps of the training distribution's mass
    held_out_seeds: int = Field(2, ge=1)  # noise draws per sample and level
    hand_on: Literal["last", "best"] = "last"  # best: the weights with the lowest held-out loss of all looked at. Ours

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp16(cls, value: Any) -> Any:
        if value in ("fp16", "float16", "half"):
            raise ValueError("fp16 is not offered: CPUs refuse it and the noise weights overflow it; take bf16 or fp32")
        return value

    @field_validator("lora")
    @classmethod
    def _adapter_alone(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("trainable") != "all":
            raise ValueError("an adapter learns alone; leave trainable at all")
        return value

    @field_validator("offload_optimizer")
    @classmethod
    def _offload_needs_zero(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("zero_stage") == 0:
            raise ValueError("the optimizer's state can be offloaded where ZeRO holds it: set zero_stage to 1, 2 or 3")
        return value

    @field_validator("compile")
    @classmethod
    def _compiles_whole_weights(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("zero_stage") == 3:
            raise ValueError("at zero_stage 3 every layer gathers its weights, which torch.compile cannot follow")
        return value

    @field_validator("prediction", "offset_noise")
    @classmethod
    def _only_discrete(cls, value: Any, info: ValidationInfo) -> Any:
        if value not in ("v_prediction", 0.0) and info.data.get("noise_schedule") == "continuous":
            raise ValueError("is of discrete noise schedules; set noise_schedule to discrete, or leave this out")
        return value

    @field_validator("hand_on")
    @classmethod
    def _best_is_measured(cls, value: str, info: ValidationInfo) -> str:
        if value == "best" and not (info.data.get("validate_every") and info.data.get("held_out_samples")):
            raise ValueError("the best weights are known by their held-out loss: set validate_every, held_out_samples")
        return value

    @model_validator(mode="after")
    def _splits_evenly(self) -> StageSettings:
        share = self.processes * self.accumulation
        if self.batch % share:
            raise fault_of(
                "batch",
                f"a batch of {self.batch} does not split over {self.processes} processes x {self.accumulation} "
                f"accumulated micro-batches; take a multiple of {share}",
            )
        if abs(sum(self.caption_weights) - 1) > 1e-6 or min(self.caption_weights) < 0:
            raise fault_of("caption_weights", f"{self.caption_weights} must not be negative and must add up to 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise fault_of("betas", f"{self.betas} must lie in [0, 1)")
        if self.short_frames and (
            self.frames is None or not 1 <= min(self.short_frames) <= max(self.short_frames) < self.frames
        ):
            raise fault_of("short_frames", f"{self.short_frames} must be fewer than frames, which is {self.frames}")
        if self.fps is not None and not (self.fps and min(self.fps) > 0):
            raise fault_of("fps", f"{self.fps} must be one or more positive rates, or null for the samples' own")
        return self

    def learns(self, name: str) -> bool:
        """Whether a parameter of the U-Net learns, by its name."""
        if self.lora:
            return ".lora_" in name
        return self.trainable == "all" or name.startswith("time_embedding.")

    def takes_images(self, stage: str) -> bool:
        """Whether single frames can be trained on: in an image stage, or jointly with videos."""
        return stage == "image" or 1 in self.short_frames

    @property
    def micro_batch(self) -> int:
        """Samples that one process takes through the model at once."""
        return self.batch // (self.processes * self.accumulation)


OPERATIONAL = (
    "processes",
    "zero_stage",
    "offload_optimizer",
    "gradient_checkpointing",
    "compile",
    "attention",
    "timeout_s",
    "hang_timeout_s",
    "grace_s",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "upload_checkpoints",
    "validate_every",
    "sample_every",
    "sample_count",
    "sample_steps",
    "diverged_ratio",
    "diverged_steps",
    "preset",
    "cache_gib",
    "readers",
)
"""Settings that do not change what is learned (up to rounding), and so are no part of a result's identity."""


def stage_settings(stage: str, values: Mapping[str, Any], section: str | None = None) -> StageSettings:
    """Settings of a stage: the defaults, the paper's numbers of its preset, then ``values``.

    Raises:
        ConfigError: no such stage or preset, an unknown field, or values that contradict each other.
    """
    if stage not in KINDS:
        raise ConfigError(f"there is no training stage {stage!r}; the stages are {', '.join(KINDS)}")
    section = section or f"train_{stage}"
    preset = load_preset(values.get("preset") or stage, f"{section}.preset")
    if preset.kind != stage:
        raise ConfigError(f"{section}.preset: {preset.name} trains a model of kind {preset.kind}, not {stage}")
    settings = validate_settings(StageSettings, section, merge(preset.values, values))
    if settings.noise_schedule == "discrete" and stage not in ("image", "video"):
        raise ConfigError(
            f"{section}.noise_schedule: a discrete schedule is for the stages image and video; a model that starts "
            "from a picture has continuous noise levels"
        )
    if stage == "interpolation" and (settings.frames != INTERPOLATED_FRAMES or settings.short_frames):
        field, five = "frames" if settings.frames != INTERPOLATED_FRAMES else "short_frames", INTERPOLATED_FRAMES
        raise ConfigError(
            f"{section}.{field}: interpolation is learned on windows of {five} frames, the first and the last of them "
            f"given; leave frames at {five} and short_frames empty"
        )
    if stage == "decoder":
        _refuse_for_decoder(settings, section)
    if settings.frames == 1 and stage != "image":
        raise ConfigError(
            f"{section}.frames: windows of one frame teach the temporal layers nothing; take more, and put 1 into "
            f"{section}.short_frames to train on images too"
        )
    return settings


def _refuse_for_decoder(settings: StageSettings, section: str) -> None:
    """What the decoder's finetuning has no use for, or cannot do."""
    reasons: dict[str, tuple[bool, str]] = {
        "lora": (settings.lora is not None, "adapters are for U-Nets; leave it at null"),
        "compile": (settings.compile, "is for U-Nets; leave it at false"),
        "zero_stage": (settings.zero_stage == 3, "the discriminator is looked through, whole, twice a step; take 2"),
        "short_frames": (bool(settings.short_frames), "windows are of one length; leave it empty"),
        "trainable": (settings.trainable != "all", "the whole decoder learns; leave it at all"),
    }
    for name, (wrong, why) in reasons.items():
        if wrong:
            raise ConfigError(f"{section}.{name}: {why}")


def load_stage_settings(stage: str, profile: str, overrides: Mapping[str, Any] | None = None) -> StageSettings:
    """Settings of a stage under a profile, whose section is ``train_<stage>``.

    Raises:
        ConfigError: as ``stage_settings`` and ``load_profile``.
    """
    return stage_settings(stage, load_profile(profile, overrides).get(f"train_{stage}") or {})
