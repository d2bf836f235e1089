"""One training stage: samples and a model in, a model out. What was trained before is found."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ...common.errors import BadInputError, SvdflowError
from ...common.files import link_tree
from ...common.identity import file_sha256, identity, tree_sha256
from ...common.report import StepReport
from ...common.storage import DataRoot
from ...diffusion.hub import resolve_model
from .checkpoint_store import CheckpointStore
from .datasets import manifests_of, read_datasets, resolve_mix
from .job import Job
from .launcher import launch, workspace
from .settings import KINDS, OPERATIONAL, StageSettings
from .start import check_motion_unit, check_start
from .train_report import train_report

VERSION = "2"


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
    learned = settings.model_dump(exclude={*OPERATIONAL, *(() if stage == "decoder" else ("losses",))})
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
    return train_report(stage, settings, found, fresh, root, datasets)


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
