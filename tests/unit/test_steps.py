import errno
import json
import os
import tracemalloc
from pathlib import Path

import pytest

from svdflow.common.errors import BadInputError, ConfigError, StorageError
from svdflow.common.report import StepReport
from svdflow.common.steps import Step, run_step, steps_directory


def report_of(workdir, name):
    return json.loads((steps_directory(str(workdir), "r1") / f"{name}.json").read_text())


def test_a_step_leaves_its_report_with_its_time(tmp_path):
    with run_step("split", str(tmp_path), "r1", "test") as step:
        step.finish(StepReport("split", "Split", done=2))
    assert report_of(tmp_path, "split")["done"] == 2
    assert report_of(tmp_path, "split")["seconds"] >= 0


def test_an_expected_error_is_one_line_exit_status_one_and_told_in_the_report(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended, run_step("split", str(tmp_path), "r1", "test"):
        raise BadInputError("clip 7 is no clip")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "svdflow split: clip 7 is no clip\n"
    assert report_of(tmp_path, "split")["error"] == "clip 7 is no clip"


def test_a_fault_of_ours_keeps_its_traceback_and_is_told_too(tmp_path):
    with pytest.raises(ZeroDivisionError), run_step("split", str(tmp_path), "r1", "test"):
        1 / 0  # noqa: B018
    assert "ZeroDivisionError" in report_of(tmp_path, "split")["error"]


def test_a_step_without_a_report_is_a_fault(tmp_path):
    with pytest.raises(RuntimeError, match="without a report"), run_step("split", str(tmp_path), "r1", "test"):
        pass


def test_a_kept_directory_replaces_what_an_earlier_run_kept_there_and_nothing_else(tmp_path):
    step = Step("evaluate", str(tmp_path / "work"), "r1", "test", {})
    for run, names in (("one", ("a", "b")), ("two", ("b", "c"))):
        (tmp_path / run / "deep").mkdir(parents=True)
        for name in names:
            (tmp_path / run / "deep" / name).write_text(run)
        step.keep("generated/held_out", tmp_path / run)
        step.keep("generated/served.mp4", tmp_path / run / "deep" / "b")
    kept = {p.name: p.read_text() for p in (tmp_path / "work" / "generated").rglob("*") if p.is_file()}
    assert kept == {"b": "two", "c": "two", "served.mp4": "two"}


def test_what_is_kept_is_copied_piece_by_piece_and_whole_or_not_at_all(tmp_path, monkeypatch):
    step = Step("split", str(tmp_path / "work"), "r1", "test", {})
    manifest = tmp_path / "clips.parquet"
    manifest.write_bytes(os.urandom(32 << 20))
    tracemalloc.start()
    step.keep("manifests/clips.parquet", manifest)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    kept = tmp_path / "work" / "manifests" / "clips.parquet"
    assert kept.read_bytes() == manifest.read_bytes()

    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(StorageError, match="the disk is full"):
        step.keep("manifests/clips.parquet", manifest)
    assert kept.read_bytes() == manifest.read_bytes() and [p.name for p in kept.parent.iterdir()] == [kept.name]


def test_a_work_directory_in_s3_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match="SVDFLOW_DATA_ROOT"):
        Step("split", "s3://bucket/run", "r1", "test", {})
