"""Checkpoints of a training run: per-parameter tensors in safetensors, written whole or not at all.

A checkpoint knows nothing of ZeRO or of the number of processes: it holds the fp32 weights, the Adam moments and the
running average under the parameters' names. So a run can go on at another ZeRO stage and on another number of GPUs. No
generator's state is kept: what a step draws follows from its number.

    step_00000050/  model.safetensors  exp_avg.safetensors  exp_avg_sq.safetensors  [ema.safetensors]  state.json (sums,
    written last)
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import StorageError
from ...common.identity import file_sha256

if TYPE_CHECKING:
    import torch

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A sound checkpoint on disk."""

    directory: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, torch.Tensor] | None:
        """The tensors of one part ("model", "exp_avg", "exp_avg_sq", "ema"), or None when there is no such part."""
        from safetensors.torch import load_file

        path = self.directory / f"{name}.safetensors"
        return load_file(path) if path.name in self.state["sha256"] else None


def save_checkpoint(
    folder: Path, step: int, parts: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Write a checkpoint: into a folder aside, flushed to disk, then renamed; and remove the oldest beyond ``keep``.

    Args:
        folder: of the run's checkpoints.
        step: steps done.
        parts: part to parameter name to tensor.
        state: plain values to keep with it (the loss curve so far).
        keep: how many to keep.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target, partial = folder / f"step_{step:08d}", folder / f".partial-{uuid.uuid4().hex}"
    try:
        partial.mkdir(parents=True)
        sums = {}
        for name, tensors in parts.items():
            path = partial / f"{name}.safetensors"
            save_file({key: value.contiguous() for key, value in tensors.items()}, path)
            sums[path.name] = file_sha256(path)
            _flush(path)
        (partial / "state.json").write_text(json.dumps({**state, "format": FORMAT, "step": step, "sha256": sums}))
        _flush(partial / "state.json")
        _flush(partial)
        shutil.rmtree(
            target, ignore_errors=True
        )  # a damaged one of the same step: sound ones are resumed from, not rewritten
        partial.rename(target)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(
            f"{folder}: the checkpoint of step {step} cannot be written ({error}); free some space and "
            "run again, training goes on from the last checkpoint"
        ) from error
    ahead = [
        old for old in _directories(folder) if old.name > target.name
    ]  # damaged, or the run would have gone on from them
    for old in ahead + [old for old in _directories(folder) if old not in ahead][keep:]:
        shutil.rmtree(old, ignore_errors=True)
    for leftover in folder.glob(".partial-*"):  # of a process that was killed while it wrote
        shutil.rmtree(leftover, ignore_errors=True)
    return target


def newest_sound(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose every byte is as written, and the names of newer ones that are damaged."""
    damaged: list[str] = []
    for directory in _directories(folder):
        state = _verified_state(directory)
        if state is not None:
            return Checkpoint(directory, state["step"], state), damaged
        damaged.append(directory.name)
    return None, damaged


def _directories(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("step_*") if p.is_dir()), reverse=True)


def _verified_state(directory: Path) -> dict[str, Any] | None:
    try:
        state = json.loads((directory / "state.json").read_text())
        if state["format"] != FORMAT or directory.name != f"step_{state['step']:08d}":
            return None
        sound = all(file_sha256(directory / name) == digest for name, digest in state["sha256"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if sound and "model.safetensors" in state["sha256"] else None


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
