"""A job's files, put where the training pods see them: they have the work volume, not the step's own disk."""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

from ....common.errors import ConfigError
from ....common.files import link_tree
from ..job import Job

_MODELS = ("base", "autoencoder", "text_encoder", "image_encoder")  # settings that may name a directory
_LPIPS = ("lpips_backbone", "lpips_heads")  # that name files


def shared(job: Job, folder: Path, work: Path) -> Job:
    """The job with its inputs on the work volume: those elsewhere are copied into ``folder``.

    Args:
        job: as the step has it: Kubeflow Pipelines hands artifacts over on a disk of the step's own.
        folder: of the run, on the work volume.
        work: where that is mounted, in the step and in the training pods alike.

    Raises:
        ConfigError: the data root or a model that a setting names lies where no training pod sees it, or there is no
            work volume.
    """
    if not work.is_dir():
        raise ConfigError(f"{work}: there is no work volume here; the step's task settings have to mount one")
    if not job.root.startswith("s3://") and not _inside(Path(job.root), work):
        raise ConfigError(
            f"data root {job.root}: training pods do not see it; take one below {work}, or s3:// (SVDFLOW_DATA_ROOT)"
        )
    named = {name: getattr(job.settings, name) for name in _MODELS}
    if job.stage == "decoder":
        named |= {f"losses.{name}": getattr(job.settings.losses, name) for name in _LPIPS}
    for name, value in named.items():
        if value and Path(value).exists() and not _inside(Path(value), work):
            raise ConfigError(
                f"train_{job.stage}.{name}: {value} is not on the work volume {work}: training pods do not see it"
            )
    mix = tuple(
        part.model_copy(update={"samples": str(_put(Path(part.samples), folder, work, f"mix-{at}.parquet"))})
        for at, part in enumerate(job.settings.mix)
        if part.samples  # all have: a job's settings are resolved
    )
    settings = job.settings.model_copy(update={"mix": mix})
    init = _put(job.init, folder, work, "init") if job.init else None
    return replace(job, settings=settings, samples=_put(job.samples, folder, work, "samples.parquet"), init=init)


def _inside(path: Path, work: Path) -> bool:
    return path.resolve().is_relative_to(work.resolve())


def _put(path: Path, folder: Path, work: Path, name: str) -> Path:
    """A path that training pods see. Two runs with equal inputs may copy at once: what is there is equal, and whole."""
    if _inside(path, work):
        return path
    target = folder / "inputs" / name
    if target.exists():
        return target
    partial = target.with_name(f".{name}.{uuid.uuid4().hex}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        link_tree(path, partial) if path.is_dir() else shutil.copyfile(path, partial)
        try:
            os.rename(partial, target)
        except OSError:
            if not target.exists():  # else the other one was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)
    return target
