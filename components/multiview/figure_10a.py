"""The paper's multi-view measurement (figure 10a) on a folder of objects: rendered, generated, compared."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..common.identity import tree_sha256
from ..common.report import StepReport, table
from ..common.storage import DataRoot
from .measure import AFTER, measure_orbits
from .render import render_orbits
from .settings import MeasureSettings, RenderSettings
from .view_metrics import view_metrics

FIGURE_10A = {  # [P, figure 10a], on 50 objects of Google Scanned Objects: LPIPS, PSNR in dB, CLIP-S
    "Zero123": (0.18, 14.87, 0.87),
    "Zero123XL": (0.20, 14.51, 0.87),
    "SyncDreamer": (0.18, 15.29, 0.88),
    "Scratch-MV": (0.22, 14.20, 0.76),
    "SD2.1-MV": (0.18, 15.06, 0.83),
    "SVD-MV": (0.14, 16.83, 0.89),
}


def measure_objects(
    model: Path,
    before: Path | None,
    objects: Path,
    workdir: Path,
    root: DataRoot,
    render: RenderSettings,
    settings: MeasureSettings,
) -> tuple[dict[str, Any], list[StepReport]]:
    """Render every object of a folder, generate orbits from one view, and compare them.

    Args:
        model: directory of a multi-view model.
        before: of the model that its training started from; None for no such column.
        objects: folder of GLB and OBJ files; the models must not have been trained on any of them.
        workdir: where the orbits' manifest is written.
        root: where views and generated orbits are kept.
        render: how objects are rendered; those that it holds out are measured.
        settings: how many orbits (None: of all that were rendered), sampler, weights of LPIPS and CLIP.

    Returns:
        The figures with their protocol, as plain values; and the accounts of both steps, for the page.

    Raises:
        BadInputError: a model is of another kind, a file of weights cannot be read, or no object can be rendered.
    """
    metrics = view_metrics(settings)  # before anything takes long
    manifest = workdir / "manifests" / "orbits.parquet"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    rendered = render_orbits(str(objects), manifest, root, render)
    rendered.seconds = time.monotonic() - started
    measured = measure_orbits(model, before, manifest, root, settings)
    measured.seconds = time.monotonic() - started - rendered.seconds
    summary = dict(measured.summary["multiview"])
    counts = {name: summary.pop(name) for name in ("measured_objects", "measured_orbits", "views")}
    by_start = {metric.name.split("_")[0]: f"{metric.name}_{AFTER}" for metric in metrics}
    own = [summary.get(by_start.get(name, "")) for name in ("lpips", "psnr", "clip")]
    rows: list[list[Any]] = [[who, *figures, "the paper's"] for who, figures in FIGURE_10A.items()]
    rows.append(["this model", *own, f"measured here, on {counts['measured_objects']} objects"])
    note = (
        "Which 50 objects, which views of them and which networks of LPIPS and CLIP-S the paper took is not known: "
        "compare models that were measured in the same way, and these rows in their order alone."
    )
    columns = ["model", "LPIPS ↓", "PSNR (dB) ↑", "CLIP-S ↑", "source"]
    measured.sections.insert(0, table("Beside the paper's figure 10a", columns, rows, note=note))
    result = {
        "format": 1,
        "model": {"sha256": tree_sha256(model)},
        "figures": summary,
        "published": {
            "figures": {
                who: dict(zip(("lpips", "psnr", "clip_s"), row, strict=True)) for who, row in FIGURE_10A.items()
            },
            "source": "arXiv 2311.15127, figure 10a",
        },
        "protocol": {
            **counts,
            "views_compared": "all but the input view",
            "metrics": {m.name: {"title": m.title, "protocol": m.protocol, "weights": m.weights} for m in metrics},
            "render": render.model_dump(mode="json"),
            "settings": settings.model_dump(mode="json"),
        },
    }
    return result, [rendered, measured]
