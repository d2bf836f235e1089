"""Starts ``tests.engine_runs`` in several processes and reads what it found."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from svdflow.training.train.build_ops import worker_environment

REPOSITORY = Path(__file__).resolve().parent.parent


def run_in_processes(
    processes: int, cases: dict, folder: Path, timeout_s: float = 1800, stage: str = "video"
) -> dict[str, dict[str, torch.Tensor]]:
    """Run cases (see ``engine_runs.run_cases``) in one torchrun of so many processes."""
    folder.mkdir(parents=True, exist_ok=True)
    request = {"folder": str(folder), "out": str(folder / "found.safetensors"), "cases": cases, "stage": stage}
    (folder / "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone",
               "--local-addr=127.0.0.1", "-m", "tests.engine_runs", str(folder / "request.json")]  # fmt: skip
    environment = worker_environment() | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in load_file(folder / "found.safetensors").items():
        name, _, what = key.rpartition("|")
        found.setdefault(name, {})[what] = value
    return found
