"""Who owns the job of a fan-out and its files: killed steps, runs that share one, runs that are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from svdflow.common.cluster.owners import release_all
from svdflow.common.errors import ServiceError
from svdflow.common.fanout import Outcome, map_units
from svdflow.common.fanout_files import remove_files
from svdflow.common.fanout_plan import write_plan
from tests.fakes.kube_kubelet import Container
from tests.fakes.kube_rules import WORKFLOWS
from tests.fakes.kube_store import wait_for
from tests.fanout_lab import NAMESPACE, Lab, as_step, at_once, first_only, good, limits, pods_do, workflow_of
from tests.fanout_work import square


def test_a_step_that_was_killed_finds_its_job_and_takes_what_is_done(lab):
    ready = threading.Event()

    def held_back(container: Container) -> Any:
        if container.index == 1:
            ready.wait(120)
        return at_once(container)

    with pods_do(lab, held_back):
        killed = lab.executor().run(square, lab.tasks(*"abcdef"), None, limits())
        assert {next(killed).unit.number for _ in range(3)} == {0, 1, 2}
        # the step is gone without a word: nothing of it is closed. The first three were recorded, three are wanted
        threading.Timer(0.3, ready.set).start()
        found = list(map_units(square, lab.tasks(*"abcdef")[2:], "tasks", executor=lab.executor()))
        assert sorted(outcome.unit.number for outcome in found) == [2, 3, 4, 5] and all(map(good, found))
        assert len(lab.jobs()) == 1 and all(lab.tries(n) == 1 for n in range(6))


def test_two_runs_with_equal_inputs_share_one_job(lab):
    ready = threading.Event()
    workflow = [workflow_of(lab, "run-1"), workflow_of(lab, "run-2")]

    def held_back(container: Container) -> Any:
        ready.wait(120)
        return at_once(container)

    with pods_do(lab, held_back):
        results: list[list[Outcome]] = [[], []]
        first = as_step(lab, "run-1", workflow[0])
        stopped = first.run(square, lab.tasks(*"abcdef"), None, limits())
        threading.Thread(target=lambda: results[0].extend(stopped), daemon=True).start()
        wait_for(lambda: lab.jobs())
        second = as_step(lab, "run-2", workflow[1])
        other = threading.Thread(
            target=lambda: results[1].extend(second.run(square, lab.tasks(*"abcdef"), None, limits())), daemon=True
        )
        other.start()
        wait_for(lambda: len(lab.jobs()[0]["metadata"].get("ownerReferences", [])) == 2)
        ready.set()
        other.join(120)
        wait_for(lambda: len(results[0]) == 6)
        assert len(results[1]) == 6 and all(map(good, [*results[0], *results[1]]))
        assert all(lab.tries(n) == 1 for n in range(6)) and wait_for(lambda: not lab.files())
        assert [request.status for request in lab.api.asked("POST")].count(201) == 1


def test_a_step_that_gives_up_takes_its_job_along_and_leaves_it_when_another_run_owns_it(lab):
    mine, other = workflow_of(lab, "run-1"), workflow_of(lab, "run-2")

    with pods_do(lab, first_only):
        outcomes = as_step(lab, "run-1", mine).run(square, lab.tasks(*"abcdef"), None, limits())
        next(outcomes)
        shared = as_step(lab, "run-2", other).run(square, lab.tasks(*"abcdef"), None, limits())
        next(shared)
        outcomes.close()
        (job,) = lab.jobs()
        assert [o["name"] for o in job["metadata"]["ownerReferences"]] == ["run-2"] and lab.files()
        shared.close()
        wait_for(lambda: not lab.jobs())
        assert lab.files() == []


@pytest.mark.parametrize("stopped", [False, True])
def test_a_step_s_pod_that_is_evicted_leaves_its_job_and_one_of_a_stopped_run_takes_it_along(lab, stopped):
    run = workflow_of(lab, "run-1")

    with pods_do(lab, first_only):
        executor = as_step(lab, "run-1", run)
        with pytest.raises(SystemExit):
            for _ in executor.run(square, lab.tasks(*"abcdef"), None, limits()):
                if stopped:  # as Kubeflow Pipelines does it
                    change = lambda o: {**o, "spec": {"activeDeadlineSeconds": 0}}  # noqa: E731
                    lab.api.store.update(WORKFLOWS, NAMESPACE, "run-1", change)
                signal.raise_signal(signal.SIGTERM)
        assert bool(lab.jobs()) is not stopped and bool(lab.files()) is not stopped
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_api_server_that_refuses_while_a_step_s_pod_is_evicted_does_not_cost_the_job(lab, capsys):
    run = workflow_of(lab, "run-1")
    with pods_do(lab, first_only):
        executor = as_step(lab, "run-1", run)
        with pytest.raises(SystemExit):
            for _ in executor.run(square, lab.tasks(*"abcdef"), None, limits()):
                lab.api.fail("GET", "/workflows", status=403, message="forbidden for now")
                signal.raise_signal(signal.SIGTERM)
        assert lab.jobs() and lab.files()
        assert "could not look at the run" in capsys.readouterr().err


def test_a_step_whose_run_is_stopped_begins_no_other_job_in_place_of_the_deleted_one(lab):
    run = workflow_of(lab, "run-1")
    with pods_do(lab, first_only), lab.connect() as cluster:
        outcomes = as_step(lab, "run-1", run).run(square, lab.tasks(*"abcdef"), None, limits())
        next(outcomes)
        lab.api.store.update(WORKFLOWS, NAMESPACE, "run-1", lambda o: {**o, "spec": {"activeDeadlineSeconds": 0}})
        assert set(release_all(cluster, "run-1").values()) == {"deleted"}  # what `svdflow runs stop` does
        with pytest.raises(ServiceError, match="the run was stopped"):
            list(outcomes)
        assert len([r for r in lab.api.asked("POST", "/jobs") if r.status == 201]) == 1
        assert not lab.jobs() and lab.files() == []


def test_a_job_that_cannot_be_looked_at_when_all_is_done_costs_no_outcome(lab, capsys):
    with pods_do(lab, at_once):
        outcomes = []
        for outcome in lab.executor().run(square, lab.tasks(*"aaa"), None, limits()):
            outcomes.append(outcome)
            if len(outcomes) == 3:
                lab.api.fail("GET", f"/jobs/{lab.jobs()[0]['metadata']['name']}", status=403, message="no more")
    assert all(map(good, outcomes)) and len(outcomes) == 3
    assert "or its files were left there: " in capsys.readouterr().err


@contextmanager
def left_by_a_killed_step(lab: Lab, tmp_path: Path, monkeypatch, *others: str) -> Iterator[Any]:
    """A run whose step is gone without a word while pods work, one of three done; how it is stopped from elsewhere."""
    from svdflow.pipelines.cluster.jobs import release_jobs
    from svdflow.pipelines.cluster.release import Stopped
    from tests.train_job_site import kubeconfig

    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(lab.api, tmp_path / "kubeconfig")))
    with pods_do(lab, first_only):
        steps = [as_step(lab, name, workflow_of(lab, name)) for name in ("run-1", *others)]
        killed = []
        for name, step in zip(("run-1", *others), steps, strict=True):
            os.environ["KFP_POD_NAME"] = f"{name}-step"
            killed.append(step.run(square, lab.tasks(*"abcdefghi"), None, limits()))
            next(killed[-1])
        yield lambda: release_jobs(Stopped("id", "run-1", NAMESPACE))
        for step in steps:
            step._told_to_end = True  # it is gone: nothing of it is to clear up after the test


def test_stopping_a_run_whose_step_is_gone_takes_the_job_and_its_files_along(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("SVDFLOW_DATA_ROOT", lab.root.location)
    with left_by_a_killed_step(lab, tmp_path, monkeypatch) as stop:
        (job,) = lab.jobs()
        name = job["metadata"]["annotations"]["svdflow/fan-out"]
        assert lab.files()
        assert stop() == [
            f"Job {job['metadata']['name']}: deleted",
            f"{lab.root.location}: fan-out {name} removed",
        ]
        assert lab.files() == [] and wait_for(lambda: not lab.jobs())


def test_stopping_a_run_leaves_files_that_another_run_reads(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("SVDFLOW_DATA_ROOT", lab.root.location)
    with left_by_a_killed_step(lab, tmp_path, monkeypatch, "run-2") as stop:
        (told,) = stop()
        assert told.endswith("left to another run") and lab.files() and len(lab.jobs()) == 1


def test_files_of_a_run_stopped_elsewhere_go_with_the_next_fan_out_once_they_rest(lab, tmp_path, monkeypatch, capsys):
    with left_by_a_killed_step(lab, tmp_path, monkeypatch) as stop:
        (job,) = lab.jobs()
        assert [line.split(": ")[1] for line in stop()] == ["deleted"]
        wait_for(lambda: not lab.jobs())
    os.environ["KFP_POD_NAME"] = "of-no-run"
    left = set(lab.files())
    with pods_do(lab, at_once):
        lab.run(("a",), key="another")
        assert set(lab.files()) == left, "somebody may have just begun it"
        rests(lab, left)
        lab.run(("a",), key="a third")
    assert lab.files() == []
    assert f"removed the files of {job['metadata']['annotations']['svdflow/fan-out']}" in capsys.readouterr().err


def test_files_that_rest_stay_as_long_as_there_is_a_job(lab):
    """Its queue has not let it run for days."""
    with pods_do(lab, at_once) as cluster:
        cluster.jobs.hold = True
        waiting = lab.executor().run(square, lab.tasks("a"), None, limits())
        threading.Thread(target=lambda: next(waiting), daemon=True).start()
        wait_for(lab.jobs)
        left = set(lab.files())
        rests(lab, left)
        cluster.jobs.hold = False
        assert good(lab.run(("b",), key="another")[0])
        assert left <= set(lab.files())


def rests(lab: Lab, uris: set[str]) -> None:
    """Nothing was written for four days."""
    for uri in uris:
        os.utime(lab.root.fetch(uri), (0, time.time() - 4 * 86_400))


def test_a_worker_of_a_fan_out_that_was_stopped_writes_nothing_more(lab):
    plan, _ = write_plan(lab.root, "squares", square, None, lab.tasks("a", "hold"), 2, 1, limits())
    environment = {**os.environ, "JOB_COMPLETION_INDEX": "0", "SVDFLOW_DATA_ROOT": lab.root.location}
    worker = subprocess.Popen([sys.executable, "-m", "svdflow.common.fanout_worker", plan.name], env=environment)
    wait_for(lambda: lab.tries(1))
    remove_files(lab.root, plan.name)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(120) == 75
    assert lab.files() == []
