"""The promotion gate: a model goes on to export only if its metrics say that it learnt something and is fit to be seen.

In the paper people decide, by eye and by votes. This gate is the part that a machine can decide; it refuses loudly.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common.errors import BadInputError, GateRefused
from ..common.files import write_atomic
from ..common.report import StepReport, table
from .metric_frechet import FIGURE as FRECHET
from .settings import GateSettings


@dataclass(frozen=True)
class Criterion:
    """One thing asked of a model: what, what was found, what is needed, whether it holds."""

    name: str
    found: str
    needed: str
    holds: bool


def check_gate(metrics: Path, settings: GateSettings, verdict: Path | None = None) -> StepReport:
    """Hold a model's metrics against the criteria.

    Args:
        metrics: the JSON file that evaluation wrote.
        settings: the criteria; one that is null is not asked for.
        verdict: where to write the metrics with the gate's verdict, under ``gate``; only a promoted model has one.

    Raises:
        BadInputError: the file is no metrics file, or lacks a figure that a criterion needs.
        GateRefused: at least one criterion does not hold; the message names each with its values.
    """
    try:
        content = json.loads(metrics.read_text())
        criteria = judge(content, settings)
        model_sha256 = content["model"]["sha256"]
    except FileNotFoundError:
        raise BadInputError(f"{metrics}: there are no metrics here; run the evaluation") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInputError(
            f"{metrics}: not a metrics file of this version ({type(error).__name__}: {error}); run the evaluation again"
        ) from error
    if failed := [c for c in criteria if not c.holds]:
        reasons = "; ".join(f"{c.name} is {c.found}, needed {c.needed}" for c in failed)
        raise GateRefused(
            f"the model is not promoted: {reasons}. Train longer or on more data, or change the gate's settings"
        )
    if verdict is not None:
        outcome = {
            "passed": True,
            "reasons": [],
            "criteria": [asdict(c) for c in criteria],
            "settings": settings.model_dump(mode="json"),
        }
        write_atomic(verdict, json.dumps({**content, "gate": outcome}, indent=2, sort_keys=True).encode())
    report = StepReport("gate", "Promotion gate")
    report.counts = {"criteria": len(criteria), "held": len(criteria)}
    report.summary = {
        "gate": {"passed": True, "model_sha256": model_sha256, "criteria": {c.name: c.found for c in criteria}}
    }
    report.sections.append(
        table("Criteria", ["criterion", "found", "needed"], [[c.name, c.found, c.needed] for c in criteria])
    )
    return report


def judge(metrics: dict[str, Any], settings: GateSettings) -> list[Criterion]:
    """The criteria that are asked for, each with its outcome.

    Raises:
        KeyError: the metrics lack a figure that is needed.
    """
    kind, count, figures = metrics["model"]["kind"], metrics["protocol"]["samples"], metrics["figures"]
    between = kind == "interpolation"
    criteria = [
        Criterion("kind of model", kind, " or ".join(settings.kinds), kind in settings.kinds),
        _at_least("held-out samples", count, settings.min_samples, ""),
    ]
    if settings.min_psnr_gain_db is not None:
        gain = _value(figures, "psnr_db", "model") - _value(figures, "psnr_db", "untrained")
        criteria.append(_at_least("PSNR gain over untrained weights", gain, settings.min_psnr_gain_db, " dB"))
    if settings.max_blend_loss_db is not None and between:
        gain = _value(figures, "psnr_db", "model") - _value(figures, "psnr_db", "blend")
        criteria.append(_at_least("PSNR gain over the given frames blended", gain, -settings.max_blend_loss_db, " dB"))
    if settings.max_psnr_loss_db is not None and not between:
        gain = _value(figures, "psnr_db", "model") - _value(figures, "psnr_db", "first_frame_repeated")
        criteria.append(_at_least("PSNR gain over the first frame repeated", gain, -settings.max_psnr_loss_db, " dB"))
    if settings.min_frechet_ratio is not None and not between:
        ratio = _value(figures, FRECHET, "untrained") / max(_value(figures, FRECHET, "model"), 1e-9)
        criteria.append(
            _at_least(
                "Fréchet distance (EfficientNet-Lite0 features) of untrained weights over the model's",
                ratio,
                settings.min_frechet_ratio,
                "",
            )
        )
    if settings.min_first_frame_psnr_db is not None and not between:
        fidelity = _value(figures, "first_frame_psnr_db", "model")
        criteria.append(_at_least("PSNR of the first frame", fidelity, settings.min_first_frame_psnr_db, " dB"))
    return criteria


def _at_least(name: str, found: float, needed: float, unit: str) -> Criterion:
    # "not found >= needed" for a NaN as well
    return Criterion(name, f"{found:.4g}{unit}", f"at least {needed:.4g}{unit}", bool(found >= needed))


def _value(figures: dict[str, Any], figure: str, column: str) -> float:
    value = figures[figure][column]
    if not isinstance(value, (int, float)):
        raise ValueError(f"{figure} of {column} is {value!r}")
    return float(value)
