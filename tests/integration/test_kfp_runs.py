"""`svdflow runs`: what it shows of a run's tasks, how it ends, and what it does when the server is away."""

import io
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from svdflow.common.cluster.kinds import MANAGED_LABEL, MANAGER
from svdflow.common.cluster.owners import Workflow
from svdflow.common.errors import BadInputError
from svdflow.pipelines.cluster import access, release, runs
from svdflow.pipelines.cluster.client import Client, NoAnswer, Refused
from svdflow.pipelines.cluster.graph import Task, states_of, tasks_of
from svdflow.pipelines.cluster.watch import watch
from svdflow.pipelines.registry import compiled_path, pipeline_spec
from tests.fakes.kfp_api import FakePipelines
from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_rules import TRAINJOBS, WORKFLOWS
from tests.integration.kfp_runs import TOKEN, environment_file, hurried_while, quick_client, started, svdflow
from tests.train_job_site import kubeconfig, role

CONSOLE = "system:serviceaccount:svdflow:console"


@pytest.fixture
def fake() -> Iterator[FakePipelines]:
    with FakePipelines(token=TOKEN) as server:
        yield server


@pytest.fixture
def env(tmp_path: Path, fake: FakePipelines) -> str:
    return environment_file(tmp_path, fake)


@pytest.fixture
def client(fake: FakePipelines) -> Client:
    return quick_client(fake)


@pytest.fixture
def run_id(fake: FakePipelines) -> str:
    return started(fake)


def watched(client: Client, run_id: str, **options) -> tuple[int, list[str]]:
    """Exit status, and the lines without their times."""
    console = Console(file=io.StringIO(), width=200)
    status = watch(client, run_id, console, interval_s=0.01, **options)
    return status, [line[10:].rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_tasks_come_in_an_order_in_which_each_follows_those_it_waits_for():
    spec = pipeline_spec(compiled_path("svd"))
    tasks = tasks_of(spec)
    seen: set[str] = set()
    for task in tasks:
        assert set(task.after) <= seen
        seen.add(task.key)
    by_key = {task.key: task for task in tasks}
    assert len(tasks) == 22 and by_key["train-3"].name == "train image to video"
    assert set(by_key["train-2"].after) == {"encode", "train", "version"}
    assert tasks[-1].key == "report" and {"serve", "measure-multiview"} <= set(by_key["report"].after)


def test_a_run_is_shown_from_start_to_end(fake, client, run_id):
    fake.script(
        run_id,
        lambda: None,
        lambda: fake.at(run_id, "ingest", "RUNNING"),
        lambda: fake.at(run_id, "ingest", "SUCCEEDED"),
        lambda: fake.at(run_id, "split", "DRIVEN"),
        lambda: fake.at(run_id, "split", "RUNNING"),
        lambda: fake.at(run_id, "split", "RUNNING", attempts=2),
        lambda: (fake.at(run_id, "split", "SUCCEEDED", attempts=2), fake.end(run_id, "SUCCEEDED")),
    )
    status, lines = watched(client, run_id)
    assert status == 0
    assert lines[0] == f"run {run_id}  {fake.runs[run_id].body['display_name']}"
    seen = [line for line in lines if line.startswith(("ingest", "split into"))]
    assert seen == [
        "ingest: running",
        "ingest: succeeded",
        "split into clips: starting",
        "split into clips: running",
        "split into clips: succeeded, attempt 2",
    ]
    assert lines[-2:] == [
        "not run: annotate, validate, filter, validate selection, version, report",
        "succeeded",
    ]


@pytest.mark.parametrize(("state", "status"), [("FAILED", 1), ("CANCELED", 130), ("SKIPPED", 0), ("SUCCEEDED", 0)])
def test_every_end_state_is_known(fake, client, run_id, state, status):
    fake.script(run_id, lambda: fake.at(run_id, "ingest", "RUNNING"), lambda: fake.end(run_id, state))
    assert watched(client, run_id)[0] == status


def test_a_failure_is_told_with_its_cause_and_where_to_read_on(fake, client, run_id):
    fake.at(run_id, "ingest", "FAILED", error="main: Error (exit code 1)")
    fake.end(run_id, "FAILED", "the run failed")
    status, lines = watched(client, run_id)
    assert status == 1
    assert "ingest: failed: main: Error (exit code 1)" in lines
    assert lines[-1] == f"failed: the run failed; see: svdflow runs logs {run_id} 'ingest'"


def test_a_node_that_reads_failed_while_its_pod_runs_does_not_end_the_watching(fake, client, run_id):
    def torn() -> None:
        fake.at(run_id, "ingest", "RUNNING")
        fake.at(run_id, "report", "FAILED")

    fake.script(run_id, torn, lambda: None, lambda: fake.end(run_id, "SUCCEEDED"))
    status, lines = watched(client, run_id)
    assert status == 0 and "report: failed" in lines
    run = runs.get_run(client, run_id)
    nodes = {node.display_name: node for node in run.run_details.task_details}
    nodes["ingest"].state, nodes["executor(0)"].state, run.state = "FAILED", "RUNNING", "RUNNING"
    spec = runs.spec_of(client, run)
    shown = {state.task.key: state.state for state in states_of([t for t in tasks_of(spec) if t.key == "ingest"], run)}
    assert shown == {"ingest": "RUNNING"}


def test_a_task_whose_driver_failed_is_failed(fake, client, run_id):
    fake.at(run_id, "ingest", "DRIVER FAILED")
    fake.end(run_id, "FAILED")
    assert "ingest: failed" in watched(client, run_id)[1]


@pytest.mark.parametrize("how", ["503", "drop", "hang"])
def test_watching_outlasts_a_server_that_is_away(fake, client, run_id, how):
    fake.script(run_id, lambda: fake.at(run_id, "ingest", "RUNNING"), lambda: fake.end(run_id, "SUCCEEDED"))
    client = hurried_while(fake, quick_client(fake))
    run = runs.get_run(client, run_id)
    assert run.state == "RUNNING"
    fake.script(run_id)
    original, looks = client.once, []

    def away(call, *arguments, **named):
        looks.append(call)
        if len(looks) == 3:  # the server goes after the first looks, and comes back
            fake.fault("GET /apis/v2beta1/runs/", how, times=2)
        return original(call, *arguments, **named)

    client.once = away  # type: ignore[method-assign]
    status, lines = watched(client, run_id)
    assert status == 0 and len([line for line in lines if "the run goes on, trying again" in line]) <= 1


def test_watching_gives_up_after_its_patience(fake, client, run_id):
    fake.at(run_id, "ingest", "RUNNING")
    watching = quick_client(fake)
    spec = runs.spec_of(watching, runs.get_run(watching, run_id))
    assert spec["pipelineInfo"]["name"] == "curation"
    fake.script(run_id, lambda: fake.fault("GET /apis/v2beta1/runs/", "503", times=10_000))
    with pytest.raises(NoAnswer):
        watched(watching, run_id, patience_s=0.1)


def test_watching_ends_when_the_credentials_do(fake, client, run_id):
    fake.script(run_id, lambda: setattr(fake, "token", "another"))
    with pytest.raises(Refused, match="401"):
        watched(client, run_id)


def test_a_terminal_shows_the_graph_with_live_states(fake, client, run_id):
    fake.script(
        run_id,
        lambda: fake.at(run_id, "ingest", "RUNNING"),
        lambda: (fake.at(run_id, "ingest", "SUCCEEDED"), fake.at(run_id, "split", "FAILED", error="no space")),
        lambda: fake.end(run_id, "FAILED"),
    )
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    assert watch(client, run_id, console, interval_s=0.01) == 1
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"▸\s+ingest", drawn) and re.search(r"✓\s+ingest\s+1:05\s+succeeded", drawn)
    assert re.search(r"✗\s+split into clips\s+1:05\s+failed: no space", drawn)
    assert re.search(r"·\s+annotate\s+after split into clips", drawn) and "1 of 8 tasks" in drawn


def test_the_command_ends_as_the_run_does(fake, env, run_id):
    fake.end(run_id, "FAILED")
    assert svdflow("runs", "watch", run_id, "--env", env).exit_code == 1
    fake.runs[run_id].body["state"] = "CANCELED"
    assert svdflow("runs", "watch", "latest", "--env", env).exit_code == 130


def test_submit_can_stay_until_the_end(fake, env):
    create = fake.create_run

    def short(body):
        made = create(body)
        fake.script(made["run_id"], lambda: fake.end(made["run_id"], "SUCCEEDED"))
        return made

    fake.create_run = short  # type: ignore[method-assign]
    result = svdflow("submit", "curation", "--env", env, "--watch")
    assert result.exit_code == 0 and "succeeded" in result.output


def test_runs_are_listed_newest_first(fake, env, run_id):
    second = started(fake)
    fake.end(run_id, "FAILED")
    lines = svdflow("runs", "list", "--env", env).output.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [second, run_id] and "failed" in lines[2]
    assert len(svdflow("runs", "list", "-n", "1", "--env", env).output.splitlines()) == 2
    assert run_id in svdflow("runs", "list", "--experiment", "svdflow", "--env", env).output
    result = svdflow("runs", "list", "--experiment", "other", "--env", env)
    assert isinstance(result.exception, BadInputError)


def test_a_run_is_found_by_id_beginning_name_or_latest(fake, client, env, run_id):
    name = fake.runs[run_id].body["display_name"]
    for wanted in (run_id, run_id[:13], name, "latest"):
        assert runs.find_run(client, wanted).run_id == run_id
    with pytest.raises(BadInputError, match="no run of the newest"):
        runs.find_run(client, "nothing")
    started(fake)
    with pytest.raises(BadInputError, match="2 runs"):
        runs.find_run(client, "")


def test_the_log_is_that_of_the_failed_task_or_the_one_named(fake, env, run_id):
    fake.at(run_id, "ingest", "SUCCEEDED")
    fake.at(run_id, "split", "FAILED", attempts=2)
    fake.logs = {
        fake.pod(run_id, "ingest"): b"ingested\n",
        fake.pod(run_id, "split", 0): b"first try\n",
        fake.pod(run_id, "split", 1): b"second try\n",
    }
    assert svdflow("runs", "logs", run_id, "--env", env).output == "second try\n"
    assert svdflow("runs", "logs", run_id, "split into clips", "--attempt", "1", "--env", env).output == "first try\n"
    assert svdflow("runs", "logs", run_id, "ingest", "--env", env).output == "ingested\n"
    for arguments, says in (
        (["annotate"], "is WAITING and has no pod"),
        (["nonsense"], "tasks are ingest, split into clips"),
        (["split", "--attempt", "3"], "has had 2"),
    ):
        result = svdflow("runs", "logs", run_id, *arguments, "--env", env)
        assert isinstance(result.exception, BadInputError) and says in str(result.exception)


def test_a_log_that_is_gone_says_where_else_to_look(fake, env, run_id):
    fake.at(run_id, "ingest", "FAILED")
    result = svdflow("runs", "logs", run_id, "--env", env)
    assert isinstance(result.exception, BadInputError) and "steps/RUN" in str(result.exception)


def test_a_log_is_followed_over_attempts_and_each_line_comes_once(fake, client, run_id):
    first, second = fake.pod(run_id, "ingest", 0), fake.pod(run_id, "ingest", 1)

    def grow(pod: str, text: bytes) -> None:
        fake.logs[pod] = fake.logs.get(pod, b"") + text

    fake.script(
        run_id,
        lambda: (fake.at(run_id, "ingest", "RUNNING"), grow(first, b"one\n")),
        lambda: grow(first, b"two\n"),
        lambda: (fake.at(run_id, "ingest", "RUNNING", attempts=2), grow(second, b"three\n")),
        lambda: fake.at(run_id, "ingest", "SUCCEEDED", attempts=2),
    )
    assert b"".join(runs.follow_log(client, run_id, "ingest", pause_s=0.01)) == b"one\ntwo\nthree\n"


def test_a_large_log_passes_in_pieces(fake, client, run_id):
    fake.at(run_id, "ingest", "SUCCEEDED")
    fake.logs[fake.pod(run_id, "ingest")] = b"x" * 3_000_000
    pieces = list(runs.read_log(client, run_id, fake.pod(run_id, "ingest")))
    assert sum(map(len, pieces)) == 3_000_000 and max(map(len, pieces)) <= 64 * 1024


def test_in_a_pod_no_environment_has_to_be_named(fake, run_id, tmp_path, monkeypatch):
    """As at infra's console: the endpoint from a variable, the namespace from the pod's own files."""
    fake.several_users = True
    console = {"KF_PIPELINES_ENDPOINT": fake.url}
    refused = svdflow("runs", "list", **console)
    assert refused.exit_code == 1 and "a namespace is needed" in str(refused.exception)
    (tmp_path / "namespace").write_text("svdflow")
    monkeypatch.setattr(access, "OWN_NAMESPACE", tmp_path / "namespace")
    listed = svdflow("runs", "list", **console)
    assert listed.exit_code == 0 and run_id in listed.output
    assert svdflow("schedule", "list", **console).exit_code == 0


def test_stop_ends_the_run_then_releases_what_it_holds(fake, client, run_id):
    fake.at(run_id, "ingest", "RUNNING")
    order: list[str] = []

    held = [["TrainJob image-1a2b: deleted"], ["TrainJob image-1a2b-2: deleted"]]

    def release_jobs(run: release.Stopped) -> list[str]:
        order.append(f"{run.run_id} {run.workflow} {run.namespace} {fake.runs[run_id].body['state']}")
        return held[len(order) - 1]

    state, released = runs.stop(client, run_id, pause_s=0.01, release=release_jobs)
    assert state == "CANCELED" and released == [line for lines in held for line in lines]
    workflow = fake.pod(run_id, "ingest").partition("-system-")[0]
    assert order == [f"{run_id} {workflow} svdflow {told}" for told in ("CANCELING", "CANCELED")], (
        "once the workflow was told to end, and what a step has started until it did"
    )


def test_stop_finds_the_releases_that_are_registered(fake, env, run_id, monkeypatch):
    fake.at(run_id, "ingest", "RUNNING")
    monkeypatch.setattr(release, "RELEASES", ("tests.integration.test_kfp_runs:told_release",))
    result = svdflow("runs", "stop", run_id, "--env", env)
    assert result.exit_code == 0 and f"released for {run_id} in svdflow" in result.output
    assert f"run {run_id}: canceled" in result.output


@pytest.mark.parametrize("others", [[], ["another"]], ids=["alone", "adopted by another run"])
def test_stop_deletes_the_jobs_that_no_other_run_owns(fake, env, run_id, tmp_path, monkeypatch, others):
    fake.at(run_id, "ingest", "RUNNING")
    workflow = fake.pod(run_id, "ingest").partition("-system-")[0]
    with KubeAPI() as api:
        owners = [api.store.create(WORKFLOWS, "svdflow", {"metadata": {"name": name}}) for name in (workflow, *others)]
        metadata = {"name": "train-image-1a2b", "labels": {MANAGED_LABEL: MANAGER}}
        metadata["ownerReferences"] = [
            Workflow(o["metadata"]["name"], o["metadata"]["uid"]).reference() for o in owners
        ]
        api.store.create(
            TRAINJOBS, "svdflow", {"metadata": metadata, "spec": {"runtimeRef": {"name": "svdflow-torch"}}}
        )
        # as the console, with what infra lets it do
        api.tokens[api.token] = (CONSOLE, float("inf"))
        api.grants[CONSOLE] = {"svdflow": role("run-stopper")}
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(api, tmp_path / "kubeconfig")))
        result = svdflow("runs", "stop", run_id, "--env", env)
        left = [job["metadata"]["name"] for job in api.store.objects(TRAINJOBS)]
    assert result.exit_code == 0, result.output
    said = "left to another run" if others else "deleted"
    assert f"TrainJob train-image-1a2b: {said}" in result.output
    assert left == (["train-image-1a2b"] if others else [])


def test_stop_without_a_way_to_the_cluster_says_what_becomes_of_the_jobs(fake, env, run_id, tmp_path, monkeypatch):
    fake.at(run_id, "ingest", "RUNNING")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    result = svdflow("runs", "stop", run_id, "--env", env)
    assert result.exit_code == 0 and "its jobs were not looked at" in result.output


def told_release(run: release.Stopped) -> list[str]:
    return [f"released for {run.run_id} in {run.namespace}"]


def test_stop_is_heard_when_its_answer_is_lost_and_of_a_run_that_has_ended(fake, client, run_id):
    fake.at(run_id, "ingest", "RUNNING")
    fake.fault(":terminate", "lose")
    assert runs.stop(client, run_id, pause_s=0.01)[0] == "CANCELED"
    assert runs.stop(client, run_id, pause_s=0.01)[0] == "CANCELED"
    assert fake.count(":terminate") == 2


def test_stop_says_when_the_run_has_not_ended_in_time(fake, client, run_id):
    fake.at(run_id, "ingest", "RUNNING")
    fake.script(run_id, *[lambda: None] * 1000)
    assert runs.stop(client, run_id, wait_s=0.05, pause_s=0.01)[0] == "CANCELING"


def test_a_failed_run_is_tried_again_and_another_is_not(fake, env, run_id):
    fake.at(run_id, "ingest", "SUCCEEDED")
    fake.at(run_id, "split", "FAILED")
    result = svdflow("runs", "retry", run_id, "--env", env)
    assert isinstance(result.exception, BadInputError) and "is RUNNING" in str(result.exception)
    fake.end(run_id, "FAILED")
    assert svdflow("runs", "retry", run_id, "--env", env).exit_code == 0
    assert fake.runs[run_id].body["state"] == "RUNNING" and list(fake.runs[run_id].tasks) == ["ingest"]


def test_a_backend_that_lists_tasks_themselves_is_understood(client, fake, run_id):
    """Without drivers and executors between: newer backends keep tasks, under their display names."""
    fake.at(run_id, "ingest", "RUNNING")
    run = runs.get_run(client, run_id)
    node = run.run_details.task_details[0]
    run.run_details.task_details = [node]
    node.display_name, node.state, node.pod_name, node.child_tasks = "split into clips", "RUNNING", "pod-7", None
    (state,) = states_of([Task("split", "split into clips", ())], run)
    assert (state.state, state.pods) == ("RUNNING", ("pod-7",))


def test_ctrl_c_ends_the_watching_and_not_the_run(fake, run_id):
    fake.at(run_id, "ingest", "RUNNING")
    environ = {"PATH": f"{sys.prefix}/bin", "SVDFLOW_KFP_ENDPOINT": fake.url, "SVDFLOW_KFP_TOKEN": TOKEN}
    with subprocess.Popen(["svdflow", "runs", "watch", run_id], env=environ, stderr=subprocess.PIPE) as process:
        assert process.stderr
        shown = [process.stderr.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read().decode()
        assert process.wait(120) == 130
    assert b"ingest: running" in shown[1] and f"svdflow runs stop {run_id}" in rest and "Traceback" not in rest
    assert fake.count(":terminate") == 0 and fake.runs[run_id].body["state"] == "RUNNING"
