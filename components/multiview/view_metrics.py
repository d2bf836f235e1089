"""How near generated views are to the true ones: the three figures of the paper's figure 10a.

PSNR is always there, LPIPS and CLIP-S where their weights are given. Which networks the paper took is not known: the
names of those that are taken go into every result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.clip_encoder import clip_encoder, clip_identity
from ..common.errors import ConfigError
from ..common.pretrained import weights_file
from ..common.psnr import psnr_db
from .settings import MeasureSettings

_MEANS = "mean over views, then over orbits"
Views = Mapping[str, np.ndarray]  # whose views: uint8 [V, H, W, 3]


@dataclass(frozen=True)
class ViewMetric:
    """One figure of an orbit.

    Attributes:
        name: in ``summary.json``, before whose orbit it is.
        title: as the report calls it.
        better: "higher" or "lower".
        protocol: what a reader must know to compare it.
        measure: (true views, views by name) to the mean over views by name; the input view is not among them.
        weights: what names the networks it stands on; empty where it stands on none.
    """

    name: str
    title: str
    better: str
    protocol: str
    measure: Callable[[np.ndarray, Views], dict[str, float]]
    weights: str = ""


def view_metrics(settings: MeasureSettings) -> list[ViewMetric]:
    """The figures that the settings have weights for. Networks are loaded when first measured with.

    Raises:
        ConfigError: of LPIPS one file is named and the other is not.
        BadInputError: a file is missing.
    """
    metrics = [ViewMetric("psnr", "PSNR (dB)", "higher", f"8-bit RGB, peak 255, {_MEANS}", _psnr)]
    if bool(settings.lpips_backbone) != bool(settings.lpips_heads):
        raise ConfigError(
            "multiview.lpips_backbone and multiview.lpips_heads: LPIPS needs both, or neither for no LPIPS"
        )
    if settings.lpips_backbone:
        metrics.append(_lpips(settings))
    if settings.clip_model:
        metrics.append(_clip(settings))
    return metrics


def _psnr(truth_VHWC: np.ndarray, made: Views) -> dict[str, float]:
    return {name: float(psnr_db(truth_VHWC, views).mean()) for name, views in made.items()}


def _lpips(settings: MeasureSettings) -> ViewMetric:
    from ..common.lpips import load_lpips
    from ..diffusion.device import default_device

    network = load_lpips(settings.lpips_backbone, settings.lpips_heads, default_device())

    def measure(truth_VHWC: np.ndarray, made: Views) -> dict[str, float]:
        return {name: float(network.distances(truth_VHWC, views).mean()) for name, views in made.items()}

    return ViewMetric(
        f"lpips_{network.name}",
        f"LPIPS ({network.title})",
        "lower",
        f"version 0.1, views at their own size, {_MEANS}; which network the paper took is not known",
        measure,
        f"{weights_file(settings.lpips_backbone)}+{weights_file(settings.lpips_heads)}",
    )


def _clip(settings: MeasureSettings) -> ViewMetric:
    model, revision = settings.clip_model, settings.clip_revision

    def measure(truth_VHWC: np.ndarray, made: Views) -> dict[str, float]:
        from ..diffusion.device import default_device

        encoder = clip_encoder(model, revision, str(default_device()), "multiview.clip_model")

        def vectors(views_VHWC: np.ndarray) -> np.ndarray:
            rows: Any = encoder.images(encoder.pixels(list(views_VHWC)), len(views_VHWC))
            return rows.astype(np.float64)

        true_VD = vectors(truth_VHWC)
        return {name: float((true_VD * vectors(views)).sum(1).mean()) for name, views in made.items()}

    return ViewMetric(
        "clip_s",
        f"CLIP-S ({model})",
        "higher",
        f"cosine of the embeddings of a generated and the true view, {_MEANS}; which CLIP the paper took is not known",
        measure,
        clip_identity(model, revision, "multiview.clip_model"),
    )
