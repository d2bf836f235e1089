"""Checkpoints of a training run: per-parameter tensors in safetensors, written whole or not at all.

A checkpoint knows nothing of ZeRO or of the number of processes: it holds the fp32 weights, the Adam moments and the
running average under the parameters' names. So a run can go on at another ZeRO stage and on another number of GPUs. No
generator's state is kept: what a step draws follows from its number.

    step_00000050/  model.safetensors  exp_avg.safetensors  exp_avg_sq.safetensors  [ema.safetensors]  state.json (sums,
    written last)
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import StorageError
from ...common.identity import file_sha256

if TYPE_CHECKING:
    import torch

FORMAT = 1
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A sound checkpoint on disk."""

    directory: Path
    step: int
    state: dict[str, Any]

    @property
    def parts(self) -> set[str]:
        """What it holds: "model", "exp_avg", "exp_avg_sq", "ema"."""
        return {name.removesuffix(".safetensors") for name in self.state["sha256"]}

    @contextmanager
    def reading(self, part: str) -> Iterator[Callable[[str], torch.Tensor]]:
        """Gives a function that reads one tensor of a part by its parameter's name."""
        from safetensors import safe_open

        with safe_open(self.directory / f"{part}.safetensors", framework="pt") as opened:
            yield opened.get_tensor


class _TensorFile:
    """A safetensors file that is written tensor by tensor: the header needs the shapes alone."""

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
        self._expected = list(shapes)
        header, end = {}, 0
        for name, shape in shapes.items():
            begin, end = end, end + 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._digest = hashlib.sha256()
        self._stream = open(path, "wb")
        self._put(len(text).to_bytes(8, "little") + text)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if name != self._expected.pop(0):
            raise ValueError(f"{name} is not the tensor that comes next")
        self._put(tensor.contiguous().float().numpy().data.cast("B") if tensor.numel() else b"")

    def close(self) -> str:
        """Flush to disk; returns the file's sha256."""
        if self._expected:
            raise ValueError(f"{len(self._expected)} tensors are missing, first {self._expected[0]}")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        try:
            self._stream.close()
        except OSError:  # the last bytes find no room either
            pass

    def _put(self, data: Any) -> None:
        self._stream.write(data)
        self._digest.update(data)


def save_checkpoint(
    folder: Path,
    step: int,
    layout: Mapping[str, Mapping[str, Sequence[int]]],
    tensors: Iterable[tuple[str, str, torch.Tensor]],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint: into a folder aside, flushed to disk, then renamed; and remove old ones.

    Args:
        folder: of the run's checkpoints.
        step: steps done.
        layout: part to parameter name to shape.
        tensors: part, name and fp32 tensor in the layout's order. Gone through to its end whatever happens, since other
            processes may be sending them.
        state: plain values to keep with it (the loss curve so far; ``held_out``, by which the best one is known).
        keep: how many of the last ones to keep, beside the best.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    target, partial = folder / f"step_{step:08d}", folder / f".partial-{uuid.uuid4().hex}"
    pending = iter(tensors)
    try:
        partial.mkdir(parents=True)
        sums = _write_parts(partial, layout, pending)
        (partial / STATE).write_text(json.dumps({**state, "format": FORMAT, "step": step, "sha256": sums}))
        _flush(partial / STATE)
        _flush(partial)
        if target.exists():
            shutil.rmtree(target)  # a damaged one of the same step: sound ones are resumed from, not rewritten
        partial.rename(target)
        _flush(folder)
    except OSError as error:
        for _ in pending:
            pass
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(
            f"{folder}: the checkpoint of step {step} cannot be written ({error}); free some space and "
            "run again, training goes on from the last checkpoint"
        ) from error
    _remove_old(folder, target, keep)
    return target


def newest_sound(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose every byte is as written, and the names of newer ones that are damaged."""
    damaged: list[str] = []
    for directory in directories(folder):
        found = read_checkpoint(directory)
        if found is not None:
            return found, damaged
        damaged.append(directory.name)
    return None, damaged


def read_checkpoint(directory: Path) -> Checkpoint | None:
    """The checkpoint in a directory, or None when a byte of it is not as written."""
    state = read_state(directory)
    try:
        sound = state and all(file_sha256(directory / name) == digest for name, digest in state["sha256"].items())
    except (OSError, AttributeError):
        return None
    return Checkpoint(directory, state["step"], state) if state and sound else None


def read_state(directory: Path) -> dict[str, Any] | None:
    """What a checkpoint tells of itself, its tensors not yet looked at."""
    try:
        state = json.loads((directory / STATE).read_text())
        if state["format"] != FORMAT or directory.name != f"step_{state['step']:08d}":
            return None
        return state if "model.safetensors" in state["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def best_by_held_out_loss(folder: Path) -> Path | None:
    """The checkpoint with the lowest held-out loss, of those that were written when one was measured."""
    found = [(state["held_out"], directory) for directory in directories(folder)
             if (state := read_state(directory)) and state.get("held_out") is not None]  # fmt: skip
    return min(found, key=lambda pair: pair[0])[1] if found else None


def best_sound(folder: Path) -> Checkpoint | None:
    """The sound checkpoint with the lowest held-out loss, of those that were written when one was measured."""
    measured = [(state["held_out"], directory) for directory in directories(folder)
                if (state := read_state(directory)) and state.get("held_out") is not None]  # fmt: skip
    for _, directory in sorted(measured):
        if (found := read_checkpoint(directory)) is not None:
            return found
    return None


def directories(folder: Path) -> list[Path]:
    """The checkpoints of a run, sound or not, the newest first."""
    return sorted((p for p in folder.glob("step_*") if p.is_dir()), reverse=True)


def _write_parts(
    partial: Path, layout: Mapping[str, Mapping[str, Sequence[int]]], tensors: Iterator[tuple[str, str, torch.Tensor]]
) -> dict[str, str]:
    sums = {}
    for part, shapes in layout.items():
        file = _TensorFile(partial / f"{part}.safetensors", shapes)
        try:
            for name in shapes:
                told, of, tensor = next(tensors)
                if told != part or tuple(tensor.shape) != tuple(shapes[name]):
                    raise ValueError(f"{told} {of} {list(tensor.shape)} does not come next")
                file.add(of, tensor)
            sums[f"{part}.safetensors"] = file.close()
        except BaseException:
            file.abandon()
            raise
    return sums


def _remove_old(folder: Path, written: Path, keep: int) -> None:
    there = directories(folder)
    ahead = [old for old in there if old.name > written.name]  # damaged, or the run would have gone on from them
    best = best_by_held_out_loss(folder)
    for old in ahead + [old for old in there if old not in ahead][keep:]:
        if old != best or old in ahead:
            shutil.rmtree(old, ignore_errors=True)
    for leftover in folder.glob(".partial-*"):  # of a process that was killed while it wrote
        shutil.rmtree(leftover, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
