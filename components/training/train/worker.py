"""What every training process runs: ``torchrun --nproc_per_node=N -m svdflow.training.train.worker JOB.json``.

The job is plain JSON (see ``Job``). Rank 0 writes checkpoints, the model directory and ``result.json``; a process that
fails leaves one line in ``error-<rank>.txt`` beside the job. SIGTERM leads to a checkpoint at the end of the step and
exit status 75.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...common.errors import SvdflowError
from ...common.processes import die_with_parent
from ...common.progress import Progress
from .launcher import INTERRUPTED
from .settings import StageSettings

_LAST_RESORT_S = 55


@dataclass(frozen=True)
class Job:
    """What is to be trained.

    Attributes:
        stage: one of the stages.
        settings: of the stage, resolved.
        samples: path of the samples manifest.
        root: location of the data root.
        init: model directory to start from, or None for a fresh model.
        checkpoints: folder of the run's checkpoints.
        out: folder for the model directory; not there yet.
        card: plain values for the model's card.
    """

    stage: str
    settings: StageSettings
    samples: Path
    root: str
    init: Path | None
    checkpoints: Path
    out: Path
    card: dict[str, Any]

    @staticmethod
    def read(path: Path) -> Job:
        """Read a job file."""
        values = json.loads(path.read_text())
        init = values["init"]
        return Job(
            values["stage"],
            StageSettings(**values["settings"]),
            Path(values["samples"]),
            values["root"],
            Path(init) if init else None,
            Path(values["checkpoints"]),
            Path(values["out"]),
            values["card"],
        )


class _Stop:
    """Whether this process was told to stop. The processes agree on it at the end of each step."""

    def __init__(self) -> None:
        self.told = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: Any) -> None:
        if not self.told:
            signal.alarm(_LAST_RESORT_S)  # a collective that never ends must not hold this process for ever
        self.told = True


def run(job: Job, stop: _Stop) -> dict[str, Any] | None:
    """Train a job in this process, one of many. Returns rank 0's result, or None when told to stop."""
    import torch

    from .checkpoint import newest_sound, save_checkpoint
    from .engine import Engine, start_processes
    from .held_out import held_out_loss
    from .model import prepare_model, save_trained
    from .objective import Objective

    rank, processes, device = start_processes()
    settings = job.settings
    model, train, held_out, plan = prepare_model(job)
    resume, damaged = newest_sound(job.checkpoints)
    if damaged and rank == 0:
        print(f"damaged checkpoints passed over: {', '.join(damaged)}", flush=True)
    state: dict[str, Any] = dict(resume.state["kept"]) if resume else {"loss": [], "before": None, "trained_s": 0.0}
    torch.distributed.barrier()  # everybody has chosen the same checkpoint before anybody writes another
    engine = Engine(model.unet, settings, resume)
    objective = Objective(model, train, engine.net, device)
    judge = Objective(model, held_out, engine.net, device)
    started_at = engine.step
    if state["before"] is None:
        state["before"] = held_out_loss(judge, settings, rank, processes)
    with Progress("steps", settings.steps) as progress:
        if rank:
            progress.advance = lambda *_, **__: None  # type: ignore[method-assign]
        progress.advance(engine.step)
        while engine.step < settings.steps:
            began = time.monotonic()
            batches = [plan.micro_batch(engine.step, index, rank, processes) for index in range(settings.accumulation)]
            loss = engine.train_step([partial(objective.mean_loss, draws) for draws in batches])
            told = torch.tensor([loss / processes, float(stop.told)], dtype=torch.float64, device=device)
            torch.distributed.all_reduce(told)
            mean, stopping = float(told[0]), bool(told[1] > 0)
            if mean != mean:
                raise SvdflowError(
                    f"stage {job.stage}, step {engine.step}: the loss is not a number; lower train_{job.stage}.lr"
                )
            state["loss"].append(mean)
            state["trained_s"] += time.monotonic() - began
            progress.advance(note=f"loss {mean:.3f}")
            if stopping or (engine.step % settings.checkpoint_every == 0 and engine.step < settings.steps):
                parts = engine.state()
                if rank == 0:
                    save_checkpoint(job.checkpoints, engine.step, parts, {"kept": state}, settings.keep_checkpoints)
                torch.distributed.barrier()
            if stopping:
                return None
    weights = engine.final_weights()
    engine.use_average()
    after = held_out_loss(judge, settings, rank, processes)
    result = {
        "steps": engine.step,
        "resumed_from": started_at or None,
        "world_size": processes,
        "zero_stage": settings.zero_stage,
        "loss": state["loss"],
        "before": state["before"],
        "after": after,
        "samples_per_second": settings.steps * settings.batch / max(state["trained_s"], 1e-9),
        "parameters": sum(value.numel() for value in weights.values()),
        "train_samples": len(train.rows),
        "held_out_samples": len(held_out.rows),
    }
    if rank == 0:
        save_trained(job, model, train, weights, result)
    torch.distributed.barrier()
    return result


def main(path: str) -> int:
    """Run the job file at ``path``; returns the exit status."""
    die_with_parent()
    stop = _Stop()
    folder, rank = Path(path).parent, int(os.environ.get("RANK", "0"))
    try:
        result = run(Job.read(Path(path)), stop)
    except SvdflowError as error:
        (folder / f"error-{rank}.txt").write_text(str(error))
        return 1
    except Exception as error:
        traceback.print_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        # An error of the network is most often the echo of another process's failure: its line is read last.
        name = f"error-z{rank}.txt" if "onnection" in str(error) or "gloo" in str(error) else f"error-{rank}.txt"
        (folder / name).write_text(" ".join(f"{type(error).__name__}: {error} ({where})".split()))
        return 1
    if result is None:
        return INTERRUPTED
    if rank == 0:
        (folder / "result.json").write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # gloo's threads and DeepSpeed's exit hooks can outlive their use by seconds
