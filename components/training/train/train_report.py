"""The report of one training stage: curves, samples, the held-out loss beside its baselines, how it ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...common.report import StepReport, curves, images, small_jpeg, table, text, videos
from ...common.storage import DataRoot
from .datasets import Datasets
from .job import SMALL_GRID
from .settings import StageSettings

_TITLES = {
    "image": "Train: image",
    "video": "Train: text to video",
    "image_to_video": "Train: image to video",
    "multi_view": "Train: multi-view",
    "interpolation": "Train: frame interpolation",
    "decoder": "Train: temporal decoder",
}
_OF_DECODER = {
    "mean": "loss: absolute error, and LPIPS by its weight",
    "absolute": "absolute error, of a range of 2",
    "psnr_db": "PSNR, dB",
    "frame_difference": "error of differences between frames, levels of 255",
}


def train_report(
    stage: str, settings: StageSettings, found: dict[str, Any], fresh: bool, root: DataRoot, datasets: Datasets
) -> StepReport:
    """What a stage's training has to show.

    Args:
        stage: its kind.
        settings: of the stage.
        found: the result that is recorded: "result", "tree", and "samples" where there are any.
        fresh: whether it was trained just now.
        root: where its files lie.
        datasets: what it was trained on.
    """
    result = found["result"]
    before, after = result["before"], result["after"]
    blind = {"mean": None, "zero_network_mean": None, "zero_output_mean": None} | (after or {})
    summary = {
        "steps": result["steps"],
        "handed_on_step": result["handed_on"],
        "held_out_loss_before": before["mean"] if before else None,
        "held_out_loss_after": blind["mean"],
        "zero_predictor_loss": blind["zero_network_mean"],  # of a network that returns zero: the harder one to beat
        "zero_output_loss": blind["zero_output_mean"],  # of a denoised latent of zero
        "world_size": result["world_size"],
        "zero_stage": result["zero_stage"],
        "samples_per_second": round(result["samples_per_second"], 3),
        "waiting_share": round(result["waiting_share"], 4),
        "resumed_from": result["resumed_from"],
        "parameters": result["parameters"],
        **({"held_out": {"before": before, "after": after}} if stage == "decoder" else {}),
        "samples_left_out": dict(sorted(datasets.left_out.items())),
    }
    steps = [float(i + 1) for i in range(len(result["loss"]))]
    series = {
        "each step": (steps, result["loss"]),
        "running mean": (steps, _smooth(result["loss"], max(5, len(steps) // 20))),
    }
    sections = [curves("Training loss", series, "step", _loss(stage), note=f"global batch {settings.batch}")]
    if steps:
        norms = {"gradient, before clipping": "gradient_norm", "parameters": "parameter_norm"}
        sections.append(
            curves("Norms", {name: (steps, result[key]) for name, key in norms.items()}, "step", "L2 norm", log_y=True)
        )
    if validation := _validation(result):
        note = "with the running average" if settings.ema else ""
        sections.append(curves("Held-out loss while it trained", validation, "step", _loss(stage), note=note))
    if "samples" in found:
        sections += _samples(root.fetch_tree(found["samples"]), stage)
    sections += _held_out(stage, before, after)
    sections.append(
        table(
            "How it ran",
            ["", ""],
            [
                ["parameters", result["parameters"]],
                ["processes", result["world_size"]],
                ["ZeRO stage", result["zero_stage"]],
                ["samples per second", summary["samples_per_second"]],
                ["of a step, waiting for data", f"{100 * result['waiting_share']:.1f} %"],
                ["went on from step", result["resumed_from"] or "the start"],
                ["precision", settings.precision],
                ["weights handed on", f"of step {result['handed_on']}"],
                ["best checkpoint by held-out loss", result["best_checkpoint"] or "none was kept with one"],
                ["copies of checkpoints that failed", (result["uploads"] or {"failed": "none are kept"})["failed"]],
                ["learning rate", settings.lr],
                ["running average", settings.ema or "none"],
                ["LPIPS by its weight", settings.losses.perceptual_weight or "not taken"]
                if stage == "decoder"
                else ["ln sigma", f"N({settings.p_mean:g}, {settings.p_std:g}²)"],
            ],
        )
    )
    if settings.mix:
        total = sum(datasets.weights)
        shares: list[list[Any]] = [
            [str(path), samples, f"{100 * weight / total:.1f} %"]
            for path, samples, weight in zip(
                ("the stage's own", *(part.name for part in settings.mix)),
                np.bincount(datasets.dataset, minlength=len(datasets.weights)).tolist(),
                datasets.weights,
                strict=True,
            )
        ]
        sections.append(table("Datasets", ["samples manifest", "training samples", "share of draws"], shares))
    if datasets.left_out:
        left_out: list[list[Any]] = [[reason, count] for reason, count in sorted(datasets.left_out.items())]
        sections.append(table("Samples left out", ["reason", "samples"], left_out))
    return StepReport(
        f"train_{stage}",
        _TITLES[stage],
        done=int(fresh),
        reused=int(not fresh),
        counts={
            "training samples": result["train_samples"],
            "held-out samples": result["held_out_samples"],
            "steps": result["steps"],
        },
        summary={"training": {stage: summary}},
        sections=sections,
        versions=result.get("versions", {}),
    )


def _held_out(stage: str, before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The held-out loss by noise level beside its baselines; of the decoder, what its frames are measured by."""
    if not (before and after):
        return [text("Held-out loss", "not measured: there is no held-out sample")]
    if stage == "decoder":
        figures: list[list[Any]] = [[title, before[name], after[name]] for name, title in _OF_DECODER.items()]
        note = f"{after['samples']} held-out clips, encoded and decoded; of PSNR alone, more is better"
        return [table("Held-out clips", ["", "before", "after"], figures, note=note)]
    levels = [f"{sigma:.3g}" for sigma in after["sigmas"]]
    rows = [
        [
            level,
            *(values[i] for values in (before["loss"], after["loss"], after["zero_network"], after["zero_output"])),
        ]
        for i, level in enumerate(levels)
    ]
    rows.append(["mean", before["mean"], after["mean"], after["zero_network_mean"], after["zero_output_mean"]])
    levels_x = {
        name: (after["sigmas"], values)
        for name, values in (
            ("before", before["loss"]),
            ("after", after["loss"]),
            ("network says 0", after["zero_network"]),
        )
    }
    return [
        table(
            "Held-out loss by noise level",
            ["sigma", "before", "after", "network says 0", "denoised is 0"],
            rows,
            note=f"{after['samples']} held-out samples, {after['draws']} draws at fixed noise; lower is better",
        ),
        curves("Held-out loss by noise level", levels_x, "sigma", "weighted loss"),
    ]


def _validation(result: dict[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """Held-out loss over steps, overall and at each noise level."""
    points = result["validation"]
    if not points or not result["after"]:
        return {}
    points = [{"step": 0, **result["before"]}, *points, {"step": result["steps"], **result["after"]}]
    steps = [float(point["step"]) for point in points]
    by_level = {f"sigma {sigma:.3g}": (steps, [point["loss"][level] for point in points])
                for level, sigma in enumerate(result["after"]["sigmas"])}  # fmt: skip
    return {"mean": (steps, [point["mean"] for point in points]), **by_level}


def _samples(tree: Path, stage: str) -> list[dict[str, Any]]:
    """The grids over the steps, and the last step's videos."""
    folders = sorted(tree.iterdir())
    small = [(folder / SMALL_GRID, folder.name) for folder in folders if (folder / SMALL_GRID).is_file()]
    grids = [(jpeg, name) for path, name in small if (jpeg := small_jpeg(path.read_bytes())) is not None]
    last: list[tuple[Path | bytes, str]] = (
        [(path, path.stem) for path in sorted(folders[-1].glob("*.mp4"))] if folders else []
    )
    rows = {"interpolation": ": the frames given, those made, the true ones", "decoder": ": the true frames, and below "
            "them the decoded ones"}  # fmt: skip
    row = rows.get(stage, "")
    note = f"a row per held-out sample{row}"
    shown = [images("Samples while it trained", grids, note=note, height_px=160)] if grids else []
    return shown + ([videos("Samples at the end", last)] if last else [])


def _loss(stage: str) -> str:
    return "error of decoded frames" if stage == "decoder" else "weighted loss"


def _smooth(values: list[float], window: int) -> list[float]:
    out, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        out.append(total / min(index + 1, window))
    return out
