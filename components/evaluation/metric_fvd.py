"""Fréchet distance on the features of a video network that the settings name: FVD where that is I3D."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..common.errors import ConfigError
from .gaussians import Moments, distance_between
from .metric import Clip, Metric, Videos
from .settings import EvaluateSettings
from .video_network import NetworkFile, VideoNetwork

NAME = "fvd"


def metric_of(settings: EvaluateSettings) -> Metric:
    """The metric on the network of the settings.

    Raises:
        ConfigError: they name none, or its digest is none.
        BadInputError: there is no such file, or it may not be loaded.
    """
    if not settings.features:
        raise ConfigError(
            "evaluate.features: the metric fvd needs the path of a TorchScript network, as i3d_torchscript.pt; "
            "without one take the metric frechet"
        )
    file = NetworkFile.of(settings.features, settings.features_sha256, "evaluate.features_sha256")
    file.check()  # before videos are made for it
    loaded: list[VideoNetwork] = []
    known: list[tuple[Videos, Moments]] = []  # the truth is compared with every column

    def moments(videos: Videos) -> Moments:
        for seen, of_seen in known:
            if seen is videos:
                return of_seen
        if not loaded:
            from ..diffusion.device import default_device

            loaded.append(file.load(default_device()))
        rows_ND = np.concatenate([loaded[0].features(video[None]) for video in videos.frames])
        known.append((videos, Moments.of(rows_ND)))
        return known[-1][1]

    def measure(clips: Sequence[Clip], truth: Videos, generated: Videos) -> dict[str, float | None]:
        return {file.figure: distance_between(moments(truth), moments(generated))}

    return Metric(
        name=NAME,
        title=f"Fréchet distance ({file.name})",
        measure=measure,
        units={file.figure: ""},
        better={file.figure: "lower"},
        protocol="features of whole videos at their own size, rescaled and resized by the network; Gaussians over "
        "videos, covariances over N. Biased by the number of videos: compare only models that were measured on the "
        "same clips.",
        features={file.name: file.sha256},
    )
