"""What Trainer's MPI runtime runs: a launcher that tells all processes to end, and sshd with infra's configuration."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from svdflow.training.train import mpi
from tests.fakes.kube_store import wait_for
from tests.ports import free_port

RUNTIME = Path(__file__).resolve().parents[2] / "infra" / "components" / "training-runtime"
SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin"
SSHD = shutil.which("sshd", path=SBIN) and (os.geteuid() != 0 or "\nsshd:" in Path("/etc/passwd").read_text())
needs_sshd = pytest.mark.skipif(not SSHD, reason="no sshd here, or not installed for root: openssh-server")


def test_sigterm_to_the_launcher_is_sigusr2_to_what_it_runs_and_its_exit_status_comes_back(tmp_path):
    child = "import signal, sys, pathlib, time\n"
    child += "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75))\n"
    child += f"pathlib.Path({str(tmp_path / 'up')!r}).touch()\ntime.sleep(600)\n"
    launcher = subprocess.Popen([sys.executable, "-m", mpi.__name__, "launch", sys.executable, "-c", child])
    wait_for((tmp_path / "up").exists)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(120) == 75


def test_what_hangs_is_left_to_mpirun_after_the_grace(tmp_path):
    child = "import signal, pathlib, time\nsignal.signal(signal.SIGUSR2, signal.SIG_IGN)\n"
    child += f"pathlib.Path({str(tmp_path / 'up')!r}).touch()\ntime.sleep(600)\n"
    code = f"import sys\nfrom svdflow.training.train.mpi import launch\ncommand = {[sys.executable, '-c', child]}\n"
    code += "sys.exit(launch(command, 0.3))"
    launcher = subprocess.Popen([sys.executable, "-c", code])
    wait_for((tmp_path / "up").exists)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(120) == 128 + signal.SIGTERM


def test_what_cannot_be_started_is_told_in_a_line():
    done = subprocess.run([sys.executable, "-m", mpi.__name__, "launch", "/no/mpirun"], capture_output=True, text=True)
    assert done.returncode == 2 and "/no/mpirun" in done.stderr and "Traceback" not in done.stderr


def test_a_session_has_the_container_s_environment_and_nobody_else_can_read_it(tmp_path, monkeypatch):
    place = tmp_path / "environment.json"
    mpi.keep_environment({"SVDFLOW_S3_ENDPOINT": "http://store", "PATH": os.environ["PATH"]}, place)
    assert place.stat().st_mode & 0o777 == 0o600
    code = f"from pathlib import Path\nfrom svdflow.training.train.mpi import session\nsession(Path({str(place)!r}))"
    asked = {**os.environ, "SSH_ORIGINAL_COMMAND": "echo $SVDFLOW_S3_ENDPOINT $SSH_CONNECTION", "SSH_CONNECTION": "me"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=asked, timeout=600)
    assert done.stdout == "http://store me\n"
    monkeypatch.delenv("SSH_ORIGINAL_COMMAND", raising=False)
    assert mpi.main(["session"]) == 2, "no shell"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Path]:
    """A node's sshd as infra configures it, on a port of its own; gives the folder with ``ssh_config``."""
    keys = tmp_path / "keys"
    keys.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "521", "-N", "", "-f", keys / "id_rsa"], check=True)
    shutil.copy(keys / "id_rsa.pub", keys / "authorized_keys")
    port = free_port()
    start = f"import sys, pathlib, svdflow.training.train.mpi as mpi\nplace = pathlib.Path({str(tmp_path / 'env')!r})\n"
    (tmp_path / "session").write_text(f"#!{sys.executable}\n{start}mpi.session(place)\n")
    (tmp_path / "session").chmod(0o755)
    for name in ("ssh_config", "sshd_config"):
        text = (RUNTIME / name).read_text().replace("/etc/svdflow/mpi-key", str(keys))
        text = re.sub(r"Port \d+", f"Port {port}", text)
        text = re.sub(r"ForceCommand .*", f"ForceCommand {tmp_path / 'session'}", text)
        if os.geteuid() == 0:  # in tests, perhaps; in pods it is user 1000
            text = text.replace("PermitRootLogin no", "PermitRootLogin yes")
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-c", f"{start}mpi.serve({str(tmp_path / 'sshd_config')!r}, place)"]
    environment = {**os.environ, "SECRET_OF_THE_CONTAINER": "s3 key"}
    sshd = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert sshd.stderr and "listening" in sshd.stderr.readline()
    yield tmp_path
    sshd.terminate()
    sshd.wait(120)


def ssh(node: Path, *command: str) -> subprocess.CompletedProcess[str]:
    asked = ["ssh", "-F", node / "ssh_config", "127.0.0.1", *command]
    return subprocess.run(asked, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)


@needs_sshd
def test_the_launcher_comes_in_with_the_job_s_key_and_finds_the_container_s_environment(node):
    done = ssh(node, "echo", "$SECRET_OF_THE_CONTAINER")
    assert (done.returncode, done.stdout) == (0, "s3 key\n"), done.stderr
    assert "s3 key" in json.loads((node / "env").read_text()).values()
    done = ssh(node)
    assert done.returncode and "nobody else" in done.stderr, "no shell"


@needs_sshd
def test_nobody_comes_in_with_another_key_and_no_other_host_is_taken_for_a_node(node):
    keys = node / "keys"
    public = (keys / "id_rsa.pub").read_text()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", node / "other"], check=True)
    (keys / "id_rsa.pub").write_text((node / "other.pub").read_text())  # what this host is known by
    done = ssh(node, "true")
    assert done.returncode == 255 and "verification failed" in done.stderr
    (keys / "id_rsa.pub").write_text(public)
    (keys / "authorized_keys").write_text((node / "other.pub").read_text())
    done = ssh(node, "true")
    assert done.returncode == 255 and "Permission denied" in done.stderr
