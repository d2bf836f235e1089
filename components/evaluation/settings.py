"""Settings of evaluation and of the promotion gate. Cheap to import."""

from __future__ import annotations

from pydantic import Field

from ..common.config import Settings


class EvaluateSettings(Settings):
    """What is generated for the evaluation and how. [P] is the SVD paper."""

    samples: int = Field(256, ge=2)  # ours: held-out clips, chosen evenly; the paper's UCF-101 protocol needs labels
    steps: int = Field(25, ge=1)  # the released sampler's default for 14 frames; the paper is silent
    guidance_min: float = Field(1.0, ge=0)  # released default; rises linearly over the frames [P, D.4.1]
    guidance_max: float = Field(3.0, ge=0)
    noise_aug: float = Field(0.02, ge=0)  # released default
    metrics: tuple[str, ...] = ("psnr", "first_frame", "frechet", "motion", "text_similarity")  # names in metrics.py
    features: str = ""  # TorchScript network of the metric "fvd", as i3d_torchscript.pt
    features_sha256: str = ""  # of that file; empty for StyleGAN-V's I3D, which is pinned
    videos_shown: int = Field(6, ge=0)  # clips with their videos in the report
    untrained_baseline: bool = True  # ours: the same architecture with random weights
    seed: int = 0  # of the sampling noise (plus the sample's number) and of the untrained weights


class InterpolationSettings(Settings):
    """How an interpolation model is measured. All of it is ours: the paper shows no figures of it."""

    samples: int = Field(256, ge=2)  # held-out windows, chosen evenly over the clips
    fps: float | None = Field(None, gt=0)  # of a window's five frames; None: the rate that the model was trained at
    steps: int = Field(25, ge=1)
    guidance_min: float = Field(1.0, ge=0)  # at the first frame of a window
    guidance_max: float = Field(1.0, ge=0)  # at the last one
    noise_aug: float = Field(0.02, ge=0)  # of the given frames' latents
    untrained_baseline: bool = True  # the same architecture with random weights
    sheets: int = Field(6, ge=0)  # windows shown in the report
    seed: int = 0


class GateSettings(Settings):
    """What a model must reach to be exported. All of it is ours: the paper promotes by eye and by votes [P, D.3].

    Of interpolation only kind, samples, the gain over untrained weights and ``max_blend_loss_db`` are asked for.
    """

    kinds: tuple[str, ...] = ("image_to_video", "interpolation")
    min_samples: int = Field(64, ge=1)  # fewer held-out clips say too little
    min_psnr_gain_db: float | None = 1.0  # over untrained weights
    max_psnr_loss_db: float | None = 1.0  # against the first frame repeated, which still footage favours
    max_blend_loss_db: float | None = 1.0  # of interpolation: against the given frames blended, which PSNR favours
    min_frechet_ratio: float | None = 2.0  # untrained distance over the model's
    min_first_frame_psnr_db: float | None = 20.0  # of the generated first frame to the conditioning frame
