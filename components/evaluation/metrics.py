"""The registry of metrics: a new one is a module with a METRIC, listed here; FVD is made of the network it is given."""

from __future__ import annotations

from ..common.errors import ConfigError
from . import metric_first_frame, metric_frechet, metric_fvd, metric_motion, metric_psnr, metric_text_similarity
from .metric import Metric
from .settings import EvaluateSettings

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        metric_psnr.METRIC,
        metric_first_frame.METRIC,
        metric_frechet.METRIC,
        metric_motion.METRIC,
        metric_text_similarity.METRIC,
    )
}


def choose_metrics(settings: EvaluateSettings) -> list[Metric]:
    """The metrics that the settings name, in this order.

    Raises:
        ConfigError: there is none of a name, or it lacks a setting.
        BadInputError: it lacks a file.
    """
    known = (*METRICS, metric_fvd.NAME)
    if unknown := [name for name in settings.metrics if name not in known]:
        raise ConfigError(f"evaluate.metrics: there is no metric {unknown[0]!r}; there are {', '.join(known)}")
    return [metric_fvd.metric_of(settings) if name == metric_fvd.NAME else METRICS[name] for name in settings.metrics]
