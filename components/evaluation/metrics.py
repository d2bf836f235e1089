"""The registry of metrics: a new one is a module with a METRIC, listed here."""

from __future__ import annotations

from collections.abc import Sequence

from ..common.errors import ConfigError
from . import metric_first_frame, metric_frechet, metric_motion, metric_psnr, metric_text_similarity
from .metric import Metric

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


def choose_metrics(names: Sequence[str]) -> list[Metric]:
    """The metrics of these names, in this order.

    Raises:
        ConfigError: there is none of a name.
    """
    if unknown := [name for name in names if name not in METRICS]:
        raise ConfigError(f"evaluate.metrics: there is no metric {unknown[0]!r}; there are {', '.join(METRICS)}")
    return [METRICS[name] for name in names]
