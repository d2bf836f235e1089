"""A tiny interpolation model with random weights, for tests of what uses one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svdflow.diffusion.motion import MotionCalibration

CALIBRATION = MotionCalibration((0.0, 10.0), (0.0, 200.0), "px")
HEIGHT, WIDTH = 32, 48


def write_interpolation_model(directory: Path, **card: Any) -> Path:
    """Save one that was trained, as its card says, at 32x48 px and 8 frames a second."""
    import torch

    from svdflow.diffusion.autoencoder import load_autoencoder
    from svdflow.diffusion.conditioning import build_feature_extractor, build_image_encoder
    from svdflow.diffusion.model_directory import VideoModel, save_model
    from svdflow.diffusion.settings import TINY_UNET
    from svdflow.diffusion.unet import build_video_unet

    sizes = TINY_UNET.model_copy(update={"cross_attention_dim": 32, "num_frames": 5})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = build_video_unet(sizes, "interpolation")
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
    told = {
        "configuration": {"frames": 5, "height": HEIGHT, "width": WIDTH},
        "conditioning": {"fps": 8.0},
        "motion_calibration": CALIBRATION.to_dict(),
    }
    parts = (unet.eval(), load_autoencoder(), build_image_encoder(32), build_feature_extractor(), None, told | card)
    save_model(VideoModel("interpolation", *parts), directory)
    return directory
