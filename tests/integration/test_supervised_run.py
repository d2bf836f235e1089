"""The local runner with small pipelines of its own: nothing outlives the command, every failure is one line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from kfp import compiler, dsl

from svdflow.pipelines.local import supervisor
from tests.waiting import wait_for

MARK = "svdflow-test-grandchild"


@dsl.component(base_image="svdflow/test:0", install_kfp_package=False)
def lingering(workdir: str, run_id: str, profile: str, overrides: dict):
    """A step with children in sessions of their own that ignore SIGTERM."""
    import subprocess
    import sys
    import time
    from pathlib import Path

    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(3600)"
    for _ in range(2):
        command = [sys.executable, "-c", script, "svdflow-test-grandchild", workdir]
        child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
        child.stdout.readline()  # from now on it ignores SIGTERM
    Path(workdir, "started").touch()
    time.sleep(3600)


@dsl.component(base_image="svdflow/test:0", install_kfp_package=False)
def failing(workdir: str, run_id: str, profile: str, overrides: dict):
    """A step that meets a bad input."""
    from svdflow.common.errors import BadInputError
    from svdflow.common.steps import run_step

    with run_step("failing", workdir, run_id, profile, overrides):
        raise BadInputError("clip 7: is not a clip; leave it out")


@dsl.component(base_image="svdflow/test:0", install_kfp_package=False)
def fine(workdir: str, run_id: str, profile: str, overrides: dict):
    """A step that does its work."""
    from svdflow.common.report import StepReport
    from svdflow.common.steps import run_step

    with run_step("fine", workdir, run_id, profile, overrides) as step:
        step.finish(StepReport("fine", "Fine", done=3, summary={"clips": {"count": 3}}))


@dsl.component(base_image="svdflow/test:0", install_kfp_package=False)
def looking(workdir: str, run_id: str, profile: str, overrides: dict):
    """A step that writes down who claims the data root."""
    import os
    from pathlib import Path

    from svdflow.common.report import StepReport
    from svdflow.common.steps import run_step

    with run_step("looking", workdir, run_id, profile, overrides) as step:
        claims = Path(os.environ["SVDFLOW_DATA_ROOT"], "svdflow", "claims", "adding")
        Path(workdir, "claims").write_text("".join(path.read_text() for path in claims.iterdir()))
        step.finish(StepReport("looking", "Looking"))


def compiled(tmp_path: Path, *steps) -> Path:
    from svdflow.report.component import report

    @dsl.pipeline(name="small")
    def small(workdir: str, profile: str = "test", overrides: dict = {}):  # noqa: B006
        common = {
            "workdir": workdir,
            "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            "profile": profile,
            "overrides": overrides,
        }
        with dsl.ExitHandler(report(**common)):
            before = None
            for step in steps:
                task = step(**common)
                before = task.after(before) if before else task

    compiler.Compiler().compile(small, str(tmp_path / "small.yaml"))
    return tmp_path / "small.yaml"


def command(ir: Path, workdir: Path) -> subprocess.Popen:
    script = (
        "import sys; from pathlib import Path; from svdflow.pipelines.local import run\n"
        "from svdflow.common.errors import SvdflowError\n"
        "run.resolve_settings = lambda profile, overrides: {}\n"  # the small pipelines have no settings
        "try:\n r = run.run_pipeline('small', Path(sys.argv[2]), 'test', {}, {}, ir=Path(sys.argv[1]))\n"
        " print(r.errors); sys.exit(r.status)\n"
        "except SvdflowError as e:\n sys.exit('svdflow: ' + str(e))"
    )
    arguments = [sys.executable, "-c", script, str(ir), str(workdir)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_processes(workdir: Path) -> list[int]:
    """Processes that name this work directory on their command line or in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.status() != psutil.STATUS_ZOMBIE
                and process.pid != os.getpid()
                and str(workdir) in " ".join(process.cmdline())
            ):
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_a_data_root_of_several_work_directories_is_claimed_while_a_run_uses_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SVDFLOW_DATA_ROOT", str(tmp_path / "shared"))
    process = command(compiled(tmp_path, looking), tmp_path / "run")
    assert process.wait(300) == 0, process.communicate()
    assert f"running small in {tmp_path}/run" in (tmp_path / "run" / "claims").read_text()
    assert not [path for path in (tmp_path / "shared" / "svdflow").rglob("*") if path.is_file()]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_once_the_command_is_ended_no_process_of_the_run_is_left(tmp_path, signum):
    assert supervisor.GRACE_S <= 5, "of the ten seconds that it may take; the rest is for the machine"
    workdir = tmp_path / "work dir"
    process = command(compiled(tmp_path, lingering), workdir)
    assert wait_for(lambda: (workdir / "started").exists() or process.poll() is not None, 300)
    assert len(run_processes(workdir)) >= 4
    process.send_signal(signum)
    assert wait_for(lambda: not run_processes(workdir), 120), run_processes(workdir)
    assert process.wait(120) == (-9 if signum == signal.SIGKILL else 130)


def test_a_second_run_in_a_busy_work_directory_is_refused_and_the_first_goes_on(tmp_path):
    workdir, ir = tmp_path / "busy", compiled(tmp_path, lingering)
    first = command(ir, workdir)
    try:
        assert wait_for((workdir / "started").exists, 300)
        second = command(ir, workdir)
        assert second.wait(300) == 1
        assert "another run is using this work directory" in second.stderr.read()
        assert first.poll() is None
    finally:
        first.terminate()
        first.wait(120)


def test_a_failed_step_gives_one_line_and_the_run_still_ends_in_a_report(tmp_path):
    workdir = tmp_path / "failed"
    process = command(compiled(tmp_path, fine, failing, fine), workdir)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "failing: clip 7: is not a clip; leave it out" in out
    assert "Traceback" not in err
    html = (workdir / "report.html").read_text()
    assert "clip 7: is not a clip" in html and "failed" in html
    assert '"count": 3' in (workdir / "summary.json").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_read_only_work_directory_gives_one_line(tmp_path):
    place = tmp_path / "mount"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(place)], capture_output=True
    ).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        process = command(compiled(tmp_path, fine), place / "run")
        _, err = process.communicate(timeout=600)
        assert process.returncode == 1
        assert "cannot be used as work directory" in err and err.count("\n") == 1
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_gives_one_line_before_any_work_is_done(tmp_path):
    place = tmp_path / "mount"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        process = command(compiled(tmp_path, fine), place / "run")
        _, err = process.communicate(timeout=600)
        assert process.returncode == 1
        assert "MB are free" in err and err.count("\n") == 1
    finally:
        subprocess.run(["umount", str(place)], check=True)
