"""Training as a TrainJob, on a fake cluster over real HTTP: found or created, shared by runs, attempted anew."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from svdflow.common.cluster.api import Cluster
from svdflow.common.cluster.owners import release_all
from svdflow.common.errors import ConfigError
from svdflow.training.train.endings import TrainingFailed
from svdflow.training.train.trainjob import attempts, launch
from svdflow.training.train.trainjob.budget import Budget
from tests.fakes.kube_kubelet import TERM, until_told
from tests.fakes.kube_rules import PODS, TRAINJOBS, WORKFLOWS
from tests.fakes.kube_store import wait_for
from tests.train_job_site import (
    CHECKER,
    NAME,
    NS,
    Site,
    failed,
    make_site,
    owners,
    strict_checker,
    trains,
)


@pytest.fixture
def make(tmp_path, monkeypatch):
    yield from make_site(tmp_path, monkeypatch)


# what goes well


def test_a_job_is_created_watched_and_its_result_and_log_come_back(make):
    go = threading.Event()
    site = make(lambda c: trains(c) if go.wait(120) else 1)
    step = site.step()
    wait_for(lambda: any("runs on gpu-0" in line for line in step.lines))
    go.set()
    step.join()
    assert step.error is None and step.result == {"steps": 7}
    assert site.train_jobs() == {}, "a job that ended well goes, unless told otherwise"
    log = next(site.folder.glob("attempts/*/train.log")).read_text()
    assert log == "node 0 trains\ndone\n", "node 0's alone"
    assert [line for line in step.lines if line in log.splitlines()] == log.splitlines()


def test_the_job_asks_for_what_was_told(make):
    site = make(until_told)
    more = {"queue": "product", "priority": "svdflow-release", "image": "registry.example/training@sha256:0",
            "node_selector": {"svdflow/gpu": "h100"}, "environment": {"NCCL_DEBUG": "INFO"}, "memory": "64Gi",
            "resources": {"rdma/hca": "2"}, "labels": {"team": "vision"}, "image_pull_secrets": ["pull"]}  # fmt: skip
    step = site.step("run-a", site.settings(**more))
    site.running()
    job = site.train_jobs()[NAME]
    labels, spec = job["metadata"]["labels"], job["spec"]
    assert labels["kueue.x-k8s.io/queue-name"] == "product"
    assert labels["kueue.x-k8s.io/priority-class"] == "svdflow-release" and labels["team"] == "vision"
    assert labels["app.kubernetes.io/managed-by"] == "svdflow"
    assert spec["runtimeRef"]["name"] == "svdflow-torch" and spec["activeDeadlineSeconds"] == 7 * 86400
    trainer = spec["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 2)
    limits = {"nvidia.com/gpu": "2", "memory": "64Gi", "rdma/hca": "2"}
    assert trainer["resourcesPerNode"] == {"limits": limits, "requests": limits}
    assert {"name": "NCCL_DEBUG", "value": "INFO"} in trainer["env"] and "command" not in trainer
    told = json.loads(Path(trainer["args"][0]).read_text())
    assert told["settings"]["processes"] == 4 and told["samples"].startswith(str(site.work))
    patch = next(p for p in spec["runtimePatches"] if p["manager"] == "svdflow/launcher")
    pod = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert pod["spec"]["nodeSelector"] == {"svdflow/gpu": "h100"} and pod["metadata"]["labels"]["team"] == "vision"
    step.kill()


def test_every_object_that_is_created_holds_its_schema_strictly(make):
    check = strict_checker()
    if check is None:
        pytest.skip(f"{CHECKER} is not there")
    site = make()
    site.step("run-a", site.settings(keep="always", node_selector={"svdflow/gpu": "a100"}, cpu="4")).join()
    site.cluster.kubelet.behaviour = lambda c: 1
    shutil.rmtree(site.folder / "attempts")
    site.step("run-b", site.settings(starter="mpirun", image_pull_secrets=["pull"], labels={"team": "x"})).join()
    created = site.created()
    assert len(created) == 2
    for body in created:
        assert check(body) == []


def test_a_complete_job_is_found_and_what_it_made_is_asked_for_once(make):
    site = make()
    site.step("run-a", site.settings(keep="always")).join()
    again = site.step("run-b", site.settings(keep="always")).join()
    assert again.result == {"steps": 7} and len(site.created()) == 1
    shutil.rmtree(site.folder / "attempts")  # removed on purpose: the job is no proof that there is a model
    anew = site.step("run-c", site.settings(keep="always")).join()
    assert anew.result == {"steps": 7} and set(site.train_jobs()) == {NAME, f"{NAME}-2"}


# two runs, one job


def test_two_runs_with_equal_inputs_share_one_job_and_both_succeed(make):
    go = threading.Event()
    site = make(lambda c: trains(c) if go.wait(120) else 1)
    steps = [site.step("run-a"), site.step("run-b")]
    site.running()
    wait_for(lambda: sorted(owners(site)) == ["run-a", "run-b"])
    go.set()
    for step in steps:
        step.join()
        assert step.error is None and step.result == {"steps": 7}, step.lines
    assert len(site.created()) == 1 and site.train_jobs() == {}


def test_a_job_that_another_run_makes_just_before_is_adopted_and_its_pods_are_not_waited_for(make, monkeypatch):
    go, looked = threading.Event(), threading.Event()
    site = make(lambda c: trains(c) if go.wait(120) else 1)
    without_pods = attempts._without_pods

    def late(run, attempt):
        if run.workflow.name == "run-b":  # it has seen no job; now the other one makes it, and its pods start
            looked.set()
            site.running()
        else:
            looked.wait(120)
        return without_pods(run, attempt)

    monkeypatch.setattr(attempts, "_without_pods", late)
    steps = [site.step("run-b"), site.step("run-a")]
    site.running()
    wait_for(lambda: sorted(owners(site)) == ["run-a", "run-b"])
    go.set()
    assert [step.join().result for step in steps] == [{"steps": 7}] * 2 and len(site.created()) == 1


def test_stopping_one_of_two_runs_leaves_the_job_to_the_other(make):
    go = threading.Event()
    site = make(lambda c: trains(c) if go.wait(120) else 1)
    first, second = site.step("run-a"), site.step("run-b")
    site.running()
    wait_for(lambda: sorted(owners(site)) == ["run-a", "run-b"])
    with Cluster(site.api.configuration, NS) as cluster:  # what `svdflow runs stop` does
        assert release_all(cluster, "run-a") == {f"TrainJob {NAME}": "kept"}
    first.kill()
    assert owners(site) == ["run-b"] and len(site.running()) == 2
    go.set()
    assert second.join().result == {"steps": 7}


def test_stopping_the_only_run_frees_the_gpus(make):
    site = make(until_told)
    step = site.step("run-a")
    site.running()
    assert site.cluster.free == site.cluster.gpus - 4
    with Cluster(site.api.configuration, NS) as cluster:
        assert release_all(cluster, "run-a") == {f"TrainJob {NAME}": "deleted"}
    wait_for(lambda: site.cluster.free == site.cluster.gpus and not site.api.store.objects(PODS))
    failed(step, TrainingFailed, "deleted")


def test_deleting_one_workflow_leaves_the_job_to_the_other(make):
    site = make(until_told)
    steps = [site.step("run-a"), site.step("run-b")]
    site.running()
    wait_for(lambda: sorted(owners(site)) == ["run-a", "run-b"])
    site.api.store.delete(WORKFLOWS, NS, "run-a")
    assert owners(site) == ["run-b"]
    site.api.store.delete(WORKFLOWS, NS, "run-b")
    wait_for(lambda: not site.api.store.objects(PODS))
    for step in steps:
        failed(step, TrainingFailed, "somebody has deleted it")


# the step's own end


STEP = """
import signal, sys
from pathlib import Path
from svdflow.common.cluster.api import Cluster
from svdflow.common.cluster.owners import Workflow
from svdflow.training.train.job import Job
from svdflow.training.train.trainjob import launch
from svdflow.training.train.trainjob.settings import TrainJobSettings
from kubernetes.client import Configuration
url, work, folder, job, uid = sys.argv[1:]
def configure():
    configuration = Configuration()
    configuration.host, configuration.api_key["authorization"] = url, "Bearer step"
    return configuration
launch.this_workflow = lambda cluster: Workflow("run-a", uid)
settings = TrainJobSettings(work=work, processes_per_node=2)
try:
    with Cluster(configure, "svdflow") as cluster:
        result = launch.run(Job.read(Path(job)), Path(folder), "0123456789abcdef" * 2, settings, cluster)
        print(result, flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(1)
"""


def step_process(site: Site) -> subprocess.Popen:
    path = site.folder / "given.json"
    site.job().write(path)
    uid = site.workflow("run-a").uid
    arguments = [site.api.url, str(site.work), str(site.folder), str(path), uid]
    command = [sys.executable, "-c", STEP, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_step_killed_right_after_creating_the_job_adopts_it_when_it_is_back(make):
    go = threading.Event()
    site = make(lambda c: trains(c) if go.wait(120) else 1)
    process = step_process(site)
    wait_for(lambda: site.train_jobs())
    process.kill()
    process.wait()
    uid = site.train_jobs()[NAME]["metadata"]["uid"]
    again = site.step("run-a")
    wait_for(lambda: any("adopted" in line for line in again.lines))
    assert site.train_jobs()[NAME]["metadata"]["uid"] == uid and owners(site) == ["run-a"]
    go.set()
    assert again.join().result == {"steps": 7} and len(site.created()) == 1


@pytest.mark.parametrize("stopped", [False, True], ids=["evicted", "stopped"])
def test_sigterm_ends_the_job_if_the_run_was_stopped_and_not_if_the_pod_was_evicted(make, stopped):
    site = make(until_told)
    process = step_process(site)
    wait_for(lambda: site.train_jobs())
    site.running()
    if stopped:
        deadline = {"spec": {"activeDeadlineSeconds": 0}}
        site.api.store.update(WORKFLOWS, NS, "run-a", lambda o: {**o, **deadline})
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    last = output.strip().splitlines()[-1]
    assert process.returncode == 1 and last.startswith("TrainingInterrupted")
    if stopped:
        assert "the run was stopped" in last and "was deleted" in last
        wait_for(lambda: not site.api.store.objects(PODS))
    else:
        assert f"TrainJob {NAME} goes on: run the step again and it is adopted" in last
        assert len(site.running()) == 2


# attempts


def test_after_a_failure_the_next_step_makes_a_new_attempt(make):
    site = make(lambda c: 1)
    failed(site.step(), TrainingFailed)
    site.cluster.kubelet.behaviour = trains
    step = site.step().join()
    assert step.result == {"steps": 7}
    assert set(site.train_jobs()) == {NAME} and [b["metadata"]["name"] for b in site.created()] == [NAME, f"{NAME}-2"]


def test_another_number_of_gpus_is_a_new_attempt_that_waits_for_the_old_ones_pods(make):
    site = make(until_told)
    first = site.step("run-a")
    site.running()
    first.kill()
    site.cluster.kubelet.behaviour = trains
    second = site.step("run-a", processes=2, accumulation=2).join()
    assert second.result == {"steps": 7}, second.error
    assert [b["spec"]["trainer"]["numNodes"] for b in site.created()] == [2, 1]
    assert any("ended, and begun anew as 1x2" in line for line in second.lines)


def test_pods_of_an_earlier_attempt_that_do_not_end_are_named_and_none_is_started_beside_them(make):
    stubborn = threading.Event()
    site = make(lambda c: TERM if stubborn.wait(120) else 0)
    first = site.step("run-a")
    pods = site.running()
    first.kill()
    site.api.store.delete(TRAINJOBS, NS, NAME)
    step = site.step("run-a", site.settings(start_wait_s=0.5))
    failed(step, TrainingFailed, "pods of an earlier attempt have not ended", pods[0]["metadata"]["name"], "--force")
    stubborn.set()
    assert len(site.created()) == 1


def test_a_job_of_the_same_name_that_is_somebody_elses_is_left_alone(make):
    site = make(until_told)
    spec = {"runtimeRef": {"name": "svdflow-torch"}, "suspend": True}
    site.api.store.create(TRAINJOBS, NS, {"metadata": {"name": NAME}, "spec": spec})
    failed(site.step(), TrainingFailed, "that svdflow has not made")
    assert list(site.train_jobs()) == [NAME]


def test_another_runs_job_is_kept_as_it_is_whatever_its_number_of_gpus(make):
    go = threading.Event()
    site = make(lambda c: trains(c) if go.wait(120) else 1)
    first = site.step("run-a")
    site.running()
    second = site.step("run-b", processes=2, accumulation=2)
    wait_for(lambda: sorted(owners(site)) == ["run-a", "run-b"])
    go.set()
    assert first.join().result == second.join().result == {"steps": 7} and len(site.created()) == 1


def test_the_budget_counts_all_attempts_and_steps(make):
    site = make(until_told, second=1000.0)
    hours = 4 * 0.5 / 3600  # half a second of four GPUs
    failed(
        site.step("run-a", site.settings(gpu_hours=hours)), TrainingFailed, "GPU-hours is used up", "raise gpu_hours"
    )
    assert site.train_jobs() == {} and len(site.created()) == 1
    assert site.created()[0]["spec"]["activeDeadlineSeconds"] == 1, "the cluster itself holds it to the budget"
    failed(site.step("run-a", site.settings(gpu_hours=hours)), TrainingFailed, "by earlier attempts")
    assert len(site.created()) == 1


def test_a_budget_runs_on_while_no_step_watches(make, monkeypatch):
    site = make(until_told, second=1000.0)
    settings = site.settings(gpu_hours=4)  # an hour of four GPUs
    first = site.step("run-a", settings)
    site.running()
    first.kill()
    monkeypatch.setattr(launch, "Budget", partial(Budget, calendar=lambda: time.time() + 3601))
    failed(site.step("run-a", settings), TrainingFailed, "GPU-hours is used up")


@pytest.mark.parametrize(
    ("keep", "well", "badly"), [("failed", False, True), ("always", True, True), ("never", False, False)]
)
def test_ended_jobs_are_kept_as_told(make, keep, well, badly):
    site = make(lambda c: 1)
    failed(site.step("run-a", site.settings(keep=keep)), TrainingFailed)
    assert (NAME in site.train_jobs()) == badly
    for name in site.train_jobs():
        site.api.store.delete(TRAINJOBS, NS, name)
    site.cluster.kubelet.behaviour = trains
    site.step("run-a", site.settings(keep=keep)).join()
    assert (NAME in site.train_jobs()) == well


# inputs


def test_what_training_pods_would_not_see_is_copied_or_refused(make, tmp_path):
    site = make(until_told)
    mine = tmp_path / "artifact.parquet"
    mine.write_bytes(b"others")
    init = tmp_path / "model"
    (init / "unet").mkdir(parents=True)
    (init / "unet" / "config.json").write_text("{}")
    from dataclasses import replace

    from svdflow.training.train.trainjob.inputs import shared

    given = replace(site.job(mix=[{"samples": str(mine)}]), samples=mine, init=init)
    job = shared(given, site.folder, site.work)
    for path in (job.samples, job.init, Path(job.settings.mix[0].samples)):
        assert path and path.is_relative_to(site.work)
    assert job.samples.read_bytes() == b"others" and (job.init / "unet" / "config.json").is_file()
    assert shared(given, site.folder, site.work).init == job.init, "a second step finds it there"
    for wrong, says in (
        (replace(given, root=str(tmp_path / "data")), "data root .*: training pods do not see it"),
        (replace(given, settings=site.job(autoencoder=str(init)).settings), "train_image.autoencoder"),
        (
            replace(given, stage="decoder", settings=site.job(losses={"lpips_heads": str(mine)}).settings),
            "train_decoder.losses.lpips_heads: .*not on the work volume",
        ),
    ):
        with pytest.raises(ConfigError, match=says):
            shared(wrong, site.folder, site.work)
    with pytest.raises(ConfigError, match="no work volume"):
        shared(given, site.folder, tmp_path / "nowhere")
