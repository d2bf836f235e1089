"""One training stage: samples and a model in, a model out. What was trained before is found."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import BadInputError, SvdflowError
from ...common.files import link_tree
from ...common.identity import file_sha256, identity, tree_sha256
from ...common.report import StepReport, curves, images, small_jpeg, table, text, videos
from ...common.storage import DataRoot
from ...diffusion.hub import resolve_model
from .checkpoint_store import CheckpointStore
from .datasets import Datasets, manifests_of, read_datasets, resolve_mix
from .job import SMALL_GRID, Job
from .launcher import launch, workspace
from .settings import KINDS, OPERATIONAL, StageSettings
from .start import check_motion_unit, check_start

VERSION = "2"
_TITLES = {
    "image": "Train: image",
    "video": "Train: text to video",
    "image_to_video": "Train: image to video",
    "multi_view": "Train: multi-view",
    "interpolation": "Train: frame interpolation",
}


def train_stage(
    stage: str,
    samples: Path,
    init: Path | None,
    out: Path,
    root: DataRoot,
    settings: StageSettings,
    dataset: dict[str, Any],
) -> StepReport:
    """Train a stage, or find it trained; write its model directory.

    Args:
        stage: one of ``presets.KINDS``.
        samples: samples manifest.
        init: model directory to start from; None for the image stage.
        out: the model directory to write.
        root: where shards lie, and where checkpoints and the result are kept.
        settings: of the stage, see ``settings.stage_settings``.
        dataset: what the samples were made of (name, tag, revision; all else is ignored), for the model's card.

    Raises:
        BadInputError: samples or init cannot be used.
        TrainingInterrupted: told to stop; a checkpoint is kept, run again to go on.
        TrainingFailed: a training process failed.
    """
    if stage not in KINDS:
        raise BadInputError(f"there is no training stage {stage!r}; the stages are {', '.join(KINDS)}")
    if not samples.is_file():
        raise BadInputError(f"{samples}: there is no samples manifest here; run the encode step first")
    if init is None and stage == "image" and settings.base:
        init = resolve_model(settings.base)
    if init is not None and not init.is_dir():
        how = f"; `svdflow convert {init} DIRECTORY` makes one of this file" if init.is_file() else ""
        raise BadInputError(f"{init}: there is no model directory here to start from{how}")
    if stage != "image" and init is None:
        raise BadInputError(f"stage {stage} needs a model to start from (init)")
    check_start(stage, init, settings)
    settings = resolve_mix(stage, settings)  # refuses versions that nobody has encoded
    datasets = read_datasets(samples, stage, settings)
    check_motion_unit(stage, init, settings, datasets.motion_unit)
    if settings.hand_on == "best" and not datasets.held_out:
        raise BadInputError(
            f"train_{stage}.hand_on: {samples} holds out no sample by which the best weights could be known; set it to "
            "last, or hold out some clips"
        )
    mix = [part.model_copy(update={"samples": str(path.resolve())})
           for part, path in zip(settings.mix, manifests_of(samples, settings)[1:], strict=True)]  # fmt: skip
    settings = settings.model_copy(update={"mix": tuple(mix)})
    learned = settings.model_dump(exclude=set(OPERATIONAL))
    if settings.hand_on == "best":  # then these decide which weights there are to choose from
        learned |= {name: getattr(settings, name) for name in ("validate_every", "checkpoint_every")}
    mixed = manifests_of(samples, settings)[1:]
    learned["mix"] = [{"samples": file_sha256(path), "weight": part.weight}
                      for path, part in zip(mixed, settings.mix, strict=True)]  # fmt: skip
    dataset = {name: dataset[name] for name in ("name", "tag", "revision") if name in dataset}  # not where its store is
    init_tree = tree_sha256(init) if init else None
    # the samples are what is learned from; the version that they were registered as goes into the card alone
    key = identity(version=VERSION, stage=stage, samples=file_sha256(samples), init=init_tree, settings=learned)
    found = root.find("train", key)
    if found is None:
        found = _train(stage, samples, init, init_tree, root, settings, dataset, key, learned)
        fresh = True
    else:
        fresh = False
    link_tree(root.fetch_tree(found["tree"]), out)
    return _report(stage, settings, found, fresh, root, datasets)


def _train(
    stage: str,
    samples: Path,
    init: Path | None,
    init_tree: str | None,
    root: DataRoot,
    settings: StageSettings,
    dataset: dict[str, Any],
    key: str,
    learned: dict[str, Any],
) -> dict[str, Any]:
    folder = workspace(root, key)
    job = Job(
        stage=stage,
        settings=settings,
        samples=samples.resolve(),
        root=root.location,
        init=init.resolve() if init else None,
        checkpoints=folder / "checkpoints",
        store=key if _keeps_copies(root, settings) else None,
        logs=folder / "tensorboard",
        samples_out=folder / "samples",
        out=folder / "model",
        card={
            "dataset": dataset,
            "mixed": {part.dataset: part.weight for part in settings.mix if part.dataset},
            "configuration": learned,
            "init": init_tree,
            "samples": file_sha256(samples),
        },
    )
    try:
        result = launch(job, folder, key)
        kept = {name: root.put_tree(path) for name, path in (("logs", job.logs), ("samples", job.samples_out))
                if path.is_dir()}  # fmt: skip
        found = {"tree": root.put_tree(job.out), "result": result, **kept}
    except (SvdflowError, OSError):
        recorded = root.find("train", key)  # another run may have waited for the same job, and been faster
        if recorded is None:
            raise
        return recorded
    # Another run may have waited for the same job and be clearing up: what was stored here could lack files by that.
    if (recorded := root.find("train", key)) is not None:
        return recorded
    root.record("train", key, found)
    # Not before: until here a run that is killed goes on from its checkpoints.
    shutil.rmtree(folder, ignore_errors=True)
    if _keeps_copies(root, settings):
        CheckpointStore(root, key, folder, print).remove()
    return found


def _keeps_copies(root: DataRoot, settings: StageSettings) -> bool:
    """Whether checkpoints go to the object store too: a data root in a directory is on this machine's disk itself."""
    return settings.upload_checkpoints and root.location.startswith("s3://")


def _report(
    stage: str, settings: StageSettings, found: dict[str, Any], fresh: bool, root: DataRoot, datasets: Datasets
) -> StepReport:
    result = found["result"]
    before, after = result["before"], result["after"]
    zero = after or {"mean": None, "zero_network_mean": None, "zero_output_mean": None}
    summary = {
        "steps": result["steps"],
        "handed_on_step": result["handed_on"],
        "held_out_loss_before": before["mean"] if before else None,
        "held_out_loss_after": zero["mean"],
        "zero_predictor_loss": zero["zero_network_mean"],  # of a network that returns zero: the harder one to beat
        "zero_output_loss": zero["zero_output_mean"],  # of a denoised latent of zero
        "world_size": result["world_size"],
        "zero_stage": result["zero_stage"],
        "samples_per_second": round(result["samples_per_second"], 3),
        "waiting_share": round(result["waiting_share"], 4),
        "resumed_from": result["resumed_from"],
        "parameters": result["parameters"],
        "samples_left_out": dict(sorted(datasets.left_out.items())),
    }
    steps = [float(i + 1) for i in range(len(result["loss"]))]
    series = {
        "each step": (steps, result["loss"]),
        "running mean": (steps, _smooth(result["loss"], max(5, len(steps) // 20))),
    }
    sections = [curves("Training loss", series, "step", "weighted loss", note=f"global batch {settings.batch}")]
    if steps:
        norms = {"gradient, before clipping": "gradient_norm", "parameters": "parameter_norm"}
        sections.append(
            curves("Norms", {name: (steps, result[key]) for name, key in norms.items()}, "step", "L2 norm", log_y=True)
        )
    if validation := _validation(result):
        note = "with the running average" if settings.ema else ""
        sections.append(curves("Held-out loss while it trained", validation, "step", "weighted loss", note=note))
    if "samples" in found:
        sections += _samples(root.fetch_tree(found["samples"]), stage)
    if before and after:
        levels = [f"{sigma:.3g}" for sigma in after["sigmas"]]
        rows = [
            [
                level,
                *(values[i] for values in (before["loss"], after["loss"], after["zero_network"], after["zero_output"])),
            ]
            for i, level in enumerate(levels)
        ]
        rows.append(["mean", before["mean"], after["mean"], after["zero_network_mean"], after["zero_output_mean"]])
        sections.append(
            table(
                "Held-out loss by noise level",
                ["sigma", "before", "after", "network says 0", "denoised is 0"],
                rows,
                note=f"{after['samples']} held-out samples, {after['draws']} draws at fixed noise; lower is better",
            )
        )
        levels_x = {
            name: (after["sigmas"], values)
            for name, values in (
                ("before", before["loss"]),
                ("after", after["loss"]),
                ("network says 0", after["zero_network"]),
            )
        }
        sections.append(curves("Held-out loss by noise level", levels_x, "sigma", "weighted loss"))
    else:
        sections.append(text("Held-out loss", "not measured: there is no held-out sample"))
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
                ["ln sigma", f"N({settings.p_mean:g}, {settings.p_std:g}²)"],
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
    row = ": the frames given, those made, the true ones" if stage == "interpolation" else ""
    note = f"a row per held-out sample{row}"
    shown = [images("Samples while it trained", grids, note=note, height_px=160)] if grids else []
    return shown + ([videos("Samples at the end", last)] if last else [])


def _smooth(values: list[float], window: int) -> list[float]:
    out, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        out.append(total / min(index + 1, window))
    return out
