"""Settings of the export and serve steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..common.config import Settings
from ..diffusion.settings import SamplingSettings
from .request import MAX_EVALUATIONS

_SAMPLING = SamplingSettings()


class ExportSettings(Settings):
    """What the Triton model repository asks of its server, and what it lets a client ask for."""

    version: int | None = Field(
        default=None, ge=1
    )  # version folder of the model; None: the one with equal content, else the next free
    frames: int | None = Field(default=None, ge=1)  # of a video; None: as the model was trained
    height: int | None = Field(default=None, ge=8)
    width: int | None = Field(default=None, ge=8)
    placement: Literal["auto", "gpu", "cpu"] = (
        "auto"  # instance kind; auto: a GPU when the server has one. Production: gpu
    )
    gpus: list[int] | None = None  # device numbers for placement gpu; None: all that the server sees
    instances: int = Field(default=1, ge=1, le=64)  # copies of the model per device
    warm_up: bool = True  # one denoising step when the model is loaded, so that the first client does not wait for it
    max_queue: int = Field(default=32, ge=1)  # requests that wait; further ones are refused at once. Ours
    queue_timeout_s: float = Field(default=300.0, gt=0)  # a request that waited longer is refused. Ours

    # What a request that says nothing gets: the released scripts' figures.
    seed: int = Field(default=0, ge=0)
    fps: int = Field(default=_SAMPLING.fps, ge=1)
    motion_bucket: int = Field(default=_SAMPLING.motion_bucket, ge=0)
    noise_aug: float = Field(default=_SAMPLING.noise_aug, ge=0)
    steps: int = Field(default=_SAMPLING.steps, ge=1)
    guidance: tuple[float, float] = (_SAMPLING.guidance_min, _SAMPLING.guidance_max)  # first frame to last

    # Bounds of a request, so that one client cannot take the server for itself. Ours.
    max_steps: int = Field(default=100, ge=1)
    max_fps: int = Field(default=30, ge=1)
    max_motion_bucket: int = Field(default=255, ge=1)  # above it the released script warns
    max_noise_aug: float = Field(default=10.0, gt=0)
    max_guidance: float = Field(default=20.0, gt=0)
    max_image_pixels: int = Field(default=4096 * 4096, ge=1)

    # A model of kind interpolation beside it in the repository: its directory, and its own metrics with a verdict.
    interpolation: str | None = None
    interpolation_metrics: str | None = None
    interpolation_guidance: tuple[float, float] = (1.0, 1.0)  # the paper is silent. Ours
    max_key_frames: int = Field(default=64, ge=2)  # of a request. Ours; the paper's longest video has 28
    max_video_pixels: int = Field(default=64 << 20, ge=1)  # of all frames of a request together. Ours
    # Pairs of frames times model evaluations of each, one a denoising step and two with guidance: what a request may
    # take of the gateway's 600 s. 28 frames at 25 steps, as the paper's longest video, are 675. Ours: set it by what an
    # evaluation takes on the server's device at the model's size, and below queue_timeout_s for those that wait. As the
    # two above it is raised to what the release's own videos need, see ``model_config.raise_bounds``.
    max_evaluations: int = Field(default=MAX_EVALUATIONS, ge=1)

    @model_validator(mode="after")
    def _judged(self) -> ExportSettings:
        if self.interpolation and not self.interpolation_metrics:
            raise ValueError("interpolation needs interpolation_metrics: what its evaluation measured, with a verdict")
        return self


class ServeSettings(Settings):
    """The serving check: which server, how many requests, with which parameters."""

    url: str = ""  # host:port (gRPC) of a server that already serves the repository; empty: start one on loopback
    images: int = Field(default=8, ge=2)  # input images, each from another clip
    seed: int = Field(default=0, ge=0)
    fps: int | None = None  # None: the repository's defaults
    motion_bucket: int | None = None
    noise_aug: float | None = None
    steps: int | None = None
    guidance: tuple[float, float] | None = None
    threads: int = Field(default=1, ge=1)  # compute threads of the server and of the comparison in process
    compare: int = Field(default=2, ge=0)  # videos that are made again in process and compared
    tolerance: int = Field(
        default=0, ge=0
    )  # levels of 255 by which they may differ; more than 0 only for a server on another device
    device: str = "cpu"  # torch's name of where the comparison runs
    start_timeout_s: float = Field(default=600.0, gt=0)  # until the model is loaded and warm
    request_timeout_s: float = Field(default=600.0, gt=0)
