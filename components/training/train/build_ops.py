"""Compile DeepSpeed's communication op before anyone waits for it: ``python -m svdflow.training.train.build_ops``.

DeepSpeed compiles it on the first use, which takes a minute or more; workers that start together would wait for one
another.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

_STALE_LOCK_S = 15.0  # who builds has begun to compile in the folder by then
_LOOK_S = 0.2


def extensions_dir() -> Path:
    """Where compiled ops lie: ``SVDFLOW_TORCH_EXTENSIONS``, or ``.cache/torch_extensions`` of the checkout."""
    told = os.environ.get("SVDFLOW_TORCH_EXTENSIONS")
    return Path(told) if told else Path(__file__).resolve().parents[3] / ".cache" / "torch_extensions"


def worker_environment() -> dict[str, str]:
    """The environment of every training process: this one's, with DeepSpeed's own settings for the device at hand."""
    environment = dict(os.environ)
    environment["TORCH_EXTENSIONS_DIR"] = str(extensions_dir())
    # The console scripts beside the interpreter (ninja) are found although no virtual environment is activated.
    environment["PATH"] = str(Path(sys.executable).parent) + os.pathsep + environment.get("PATH", "")
    if not _has_gpu():
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return environment


def clear_stale_locks(directory: Path | None = None) -> list[Path]:
    """Remove the build locks that nobody holds.

    A process killed while it compiled leaves one, and all later ones would wait for ever.

    A lock is stale when no running process has the op's folder open or as its working directory and the lock is older
    than 15 s; a younger one that nobody seems to hold is waited for. Returns the locks removed.
    """
    removed = []
    for lock in (directory or extensions_dir()).glob("*/**/lock"):
        while _is_young(lock) and not _being_built(lock.parent):
            time.sleep(_LOOK_S)
        if lock.exists() and not _being_built(lock.parent):
            lock.unlink(missing_ok=True)
            removed.append(lock)
    return removed


def _is_young(lock: Path) -> bool:
    try:
        return time.time() - lock.stat().st_mtime < _STALE_LOCK_S
    except FileNotFoundError:
        return False


def build() -> Path:
    """Compile the op unless that is done. Returns the folder of compiled ops."""
    directory = extensions_dir()
    directory.mkdir(parents=True, exist_ok=True)
    clear_stale_locks(directory)
    code = "from deepspeed.ops.op_builder import ShareMemCommBuilder as B; B().load(verbose=False)"
    if _has_gpu():
        return directory  # collective operations go through NCCL there
    subprocess.run([sys.executable, "-c", code], env=worker_environment(), check=True, stdout=subprocess.DEVNULL)
    return directory


def _being_built(folder: Path) -> bool:
    import psutil

    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            if process.pid != os.getpid() and (process.cwd() == str(folder) or str(folder) in words):
                return True
        except (psutil.Error, OSError):
            continue
    return False


def gpu_count() -> int:
    """How many GPUs this machine shows, told without torch."""
    if shutil.which("nvidia-smi") is None:
        return 0
    return sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*"))


def _has_gpu() -> bool:
    return gpu_count() > 0


if __name__ == "__main__":
    print(build())
