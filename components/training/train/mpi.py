"""Kubeflow Trainer's MPI runtime: mpirun starts the training processes of all nodes, over ssh.

    python -m svdflow.training.train.mpi launch mpirun …       what the launcher's container runs
    python -m svdflow.training.train.mpi serve SSHD_CONFIG     what a node's container runs
    python -m svdflow.training.train.mpi session               what sshd runs for who comes in, whatever they ask for

Told to end, mpirun tells the processes of one node after another, and kills those of the first before the last have
been told: no checkpoint, which takes all of them, can come of it. SIGUSR2 it hands on to all at once, so that is sent,
and what has not ended then is left to mpirun.

sshd gives a session an environment of its own, without what the container was given: where the object store is and its
credentials, where scratch is, variables of NCCL. They are handed on through a file in shared memory, which only this
container's user can read; sshd's own environment cannot be read, it writes its title over it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...common.errors import ConfigError, SvdflowError

HANDED_ON = Path("/dev/shm/svdflow-environment.json")
_GRACE_S = 35.0  # processes end within 30 s of being told, unless they hang; mpirun takes 20 s more with those
_SYSTEM = "/usr/local/sbin:/usr/sbin:/sbin"


def launch(command: Sequence[str], grace_s: float = _GRACE_S) -> int:
    """Run mpirun to its end, SIGTERM first as SIGUSR2; returns its exit status."""
    running: list[subprocess.Popen[bytes]] = []
    told: list[int] = []

    def tell(*_: object) -> None:
        told.append(signal.SIGUSR2)
        for process in running:
            process.send_signal(signal.SIGUSR2)
            later = threading.Timer(grace_s, process.send_signal, [signal.SIGTERM])
            later.daemon = True
            later.start()

    signal.signal(signal.SIGTERM, tell)
    running.append(process := subprocess.Popen(command))
    if told:
        tell()
    status = process.wait()
    return status if status >= 0 else 128 - status


def serve(config: str, place: Path = HANDED_ON) -> None:
    """Become sshd, in the foreground.

    Raises:
        ConfigError: there is no sshd in this image.
    """
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:{_SYSTEM}")
    if program is None:
        raise ConfigError("there is no sshd in this image; svdflow/training has one")
    keep_environment(os.environ, place)
    os.execv(program, [program, "-D", "-e", "-f", config])  # it starts itself again, so by its full path


def session(place: Path = HANDED_ON) -> None:
    """Become what the one who came in asks for, with the container's environment.

    Raises:
        ConfigError: nothing was asked for: there is no shell to be had.
    """
    asked = os.environ.get("SSH_ORIGINAL_COMMAND")
    if not asked:
        raise ConfigError("no command: mpirun starts processes here, and nobody else")
    os.execve("/bin/sh", ["/bin/sh", "-c", asked], {**os.environ, **json.loads(place.read_text())})


def keep_environment(environment: Mapping[str, str], place: Path) -> None:
    """Write an environment where sessions find it, for this user alone."""
    place.unlink(missing_ok=True)
    with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(dict(environment), file)


def main(arguments: Sequence[str]) -> int:
    """See the top; returns mpirun's exit status, or 2 where something is wrong."""
    try:
        match arguments:
            case ["launch", _, *_]:
                return launch(arguments[1:])
            case ["serve", config]:
                serve(config)
            case ["session"]:
                session()
            case _:
                raise ConfigError("usage: mpi launch COMMAND, mpi serve SSHD_CONFIG, or mpi session")
    except (SvdflowError, OSError) as error:
        print(f"svdflow: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
