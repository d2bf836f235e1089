"""What every training process runs: ``torchrun --nproc_per_node=N -m svdflow.training.train.worker JOB.json``.

Rank 0 writes checkpoints, the model directory and ``result.json``; a process that fails leaves one line in
``error-<rank>.txt`` beside the job. SIGTERM leads to a checkpoint at the end of the step and exit status 75, SIGUSR1 to
a checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from ...common.errors import SvdflowError
from ...common.files import write_atomic
from ...common.processes import die_with_parent
from .endings import INTERRUPTED, line_of
from .heartbeat import Heartbeat
from .job import Job
from .signals import Asked


def main(path: str) -> int:
    """Run the job file at ``path``; returns the exit status."""
    die_with_parent()
    take_ranks_from_mpi()
    asked = Asked()
    folder, rank = Path(path).parent, int(os.environ.get("RANK", "0"))
    for old in (f"error-{rank}.txt", f"error-z{rank}.txt", *(["result.json"] if rank == 0 else [])):
        (folder / old).unlink(missing_ok=True)  # where a cluster has started all processes again
    beat, job = Heartbeat(folder, rank), None
    try:
        job = Job.read(Path(path))
        asked.within(job.settings.grace_s)
        from .prometheus_metrics import served
        from .trainer import Trainer  # torch and all that: signs of life come first

        trainer = Trainer(job, asked, beat)
        with served(trainer):
            result = trainer.run()
    except SvdflowError as error:
        (folder / f"error-{rank}.txt").write_text(str(error))
        return 1
    except Exception as error:
        traceback.print_exc()
        # An error of the network is most often the echo of another process's failure: its line is read last.
        echo = any(word in str(error) for word in ("onnection", "gloo", "NCCL"))
        (folder / (f"error-z{rank}.txt" if echo else f"error-{rank}.txt")).write_text(
            line_of(error, job.stage if job else "")
        )
        return 1
    if result is None:
        return INTERRUPTED
    if rank == 0:
        write_atomic(folder / "result.json", json.dumps(result).encode())
    return 0


def take_ranks_from_mpi() -> None:
    """Under Open MPI's ``mpirun``, say what torchrun would have said: who this process is among all of them."""
    names = {"RANK": "RANK", "WORLD_SIZE": "SIZE", "LOCAL_RANK": "LOCAL_RANK", "LOCAL_WORLD_SIZE": "LOCAL_SIZE"}
    for name, theirs in names.items():
        told = os.environ.get(f"OMPI_COMM_WORLD_{theirs}")
        if told is not None:
            os.environ.setdefault(name, told)


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # gloo's threads and DeepSpeed's exit hooks can outlive their use by seconds
