"""Which checkpoint a run goes on from, agreed on by its processes."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ...common.errors import SvdflowError
from .checkpoint import Checkpoint, newest_sound, read_checkpoint, read_state
from .checkpoint_store import CheckpointStore
from .heartbeat import Heartbeat


def agree_on_checkpoint(
    folder: Path, store: CheckpointStore | None, rank: int, device: torch.device, beat: Heartbeat
) -> Checkpoint | None:
    """The newest sound checkpoint, here or in the store, the same for all; fetched where it is not yet.

    Args:
        folder: of the run's checkpoints.
        store: their copies, if there are any.
        rank: of this process.
        device: where tensors lie that are sent between processes.
        beat: takes signs of life.

    Raises:
        SvdflowError: the machine of this process can get no sound copy.
    """
    step = -1
    if rank == 0:
        found, damaged = newest_sound(folder)
        if damaged:
            print(f"damaged checkpoints passed over: {', '.join(damaged)}", flush=True)
        step = found.step if found else -1
        for copy in store.steps() if store else []:
            if copy <= step:
                break
            beat.at(f"fetching the checkpoint of step {copy}")
            if store and store.fetch(copy):
                step = copy
                break
        if store:
            _fetch_best(_directory(folder, step), store, beat)
    chosen = torch.tensor([step], dtype=torch.int64, device=device)
    torch.distributed.broadcast(chosen, 0)
    step = int(chosen)
    if step < 0:
        return None
    directory = _directory(folder, step)
    if rank and os.environ.get("LOCAL_RANK") == "0" and read_checkpoint(directory) is None:  # another machine
        if not store or not store.fetch(step):
            raise SvdflowError(f"{directory}: this machine has no sound copy of the checkpoint, nor has the store")
    torch.distributed.barrier()
    state = read_state(directory)
    return Checkpoint(directory, step, state) if state else None


def _fetch_best(newest: Path, store: CheckpointStore, beat: Heartbeat) -> None:
    """Bring the best weights so far to this machine, that they be kept here and in the store."""
    best = ((read_state(newest) or {}).get("kept") or {}).get("best")
    if best and read_checkpoint(_directory(newest.parent, best["step"])) is None:
        beat.at(f"fetching the checkpoint of step {best['step']}")
        store.fetch(best["step"])


def _directory(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"
