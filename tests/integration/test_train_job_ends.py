"""How a TrainJob ends or waits, on a fake cluster over real HTTP and as recorded: causes told apart, trouble borne."""

import json
import threading
from collections.abc import Iterator

import pytest

from svdflow.common.cluster.errors import ClusterError
from svdflow.training.train.endings import TrainingFailed, TrainingInterrupted
from tests.fakes.kube_kubelet import Container, Ending, until_told
from tests.fakes.kube_replay import replaying
from tests.fakes.kube_rules import EVENTS, TRAINJOBS, WORKFLOWS
from tests.fakes.kube_store import wait_for
from tests.train_job_site import (
    NAME,
    NS,
    RECORDINGS,
    Site,
    attempt_folder,
    beats_until,
    failed,
    make_site,
    site,
    trains,
    trains_when_begun_again,
    watching,
)


@pytest.fixture
def make(tmp_path, monkeypatch):
    yield from make_site(tmp_path, monkeypatch)


# ends


def test_a_workers_own_line_comes_back(make):
    def breaks(container: Container) -> int:
        (attempt_folder(container) / "error-0.txt").write_text("latents have 4 channels, the model takes 8")
        return 1 if container.index == 0 else until_told(container)

    site = make(breaks)
    text = failed(site.step(), TrainingFailed, "latents have 4 channels, the model takes 8", "train.log")
    assert "memory" not in text
    assert site.train_jobs()[NAME], "it stays to be looked at, until its run's Workflow goes"
    site.api.store.delete(WORKFLOWS, NS, "run-a")
    assert site.train_jobs() == {}


def test_out_of_memory_is_told_with_the_pod_and_what_to_do(make):
    site = make(lambda c: Ending(137, "OOMKilled") if c.index == 1 else until_told(c))
    failed(site.step(), TrainingFailed, f"{NAME}-node-0-1-", "on node gpu-0", "more memory than it may", "accumulation")


def test_an_evicted_pod_is_no_fault_of_the_job_and_its_peers_echo_is_not_taken_for_the_cause(make):
    def peer(container: Container) -> int:
        container.told.wait(120)
        if container.index == 0:
            (attempt_folder(container) / "error-z0.txt").write_text("Connection closed by peer")
        return 1

    site = make(peer, ignore_disruption=False)
    step = site.step()
    watching(step)
    site.cluster.evict(site.running()[1])
    failed(step, TrainingInterrupted, "was evicted (EvictionByEvictionAPI: Eviction API: evicting)", "goes on from")


def test_a_drained_node_costs_a_restart_and_no_more(make):
    begun: list[str] = []
    site = make(trains_when_begun_again(begun))
    step = site.step()
    watching(step)
    site.cluster.drain(site.running())
    assert step.join().result == {"steps": 7} and len(begun) == 4


def test_a_lost_node_is_named(make):
    site = make(until_told, ignore_disruption=False)
    step = site.step()
    watching(step)
    site.cluster.lose_node(site.running()[1])
    failed(step, TrainingInterrupted, "node gpu-0 of pod", "was lost (DeletionByTaintManager")


def test_workers_that_were_told_to_end_have_left_a_checkpoint(make):
    failed(make(lambda c: 75).step(), TrainingInterrupted, "told to end", "goes on from its last checkpoint")


def test_a_job_that_somebody_deletes_is_told_as_such(make):
    site = make(until_told)
    step = site.step()
    watching(step)
    site.running()
    site.api.store.delete(TRAINJOBS, NS, NAME)
    failed(step, TrainingFailed, "somebody has deleted it")
    again = site.step("run-a")
    site.cluster.kubelet.behaviour = trains
    assert again.join(), "the next step begins it anew, once the pods of the old one have gone"


def test_what_takes_too_long_is_ended_by_the_cluster_itself(make):
    site = make(until_told, second=60.0)
    step = site.step(timeout_s=20)
    assert site.running() and site.train_jobs()[NAME]["spec"]["activeDeadlineSeconds"] == 20
    site.cluster.second = 0.0  # its time is over
    failed(step, TrainingInterrupted, "it took longer than it may")


def test_a_hanging_process_on_any_node_is_named_and_the_job_ended(make):
    site = make(lambda c: beats_until(c, moves=10 if c.index else 11))
    failed(site.step(hang_timeout_s=2.0), TrainingFailed, "training process 2 (pid 3) has got nothing done", "step 10")
    assert site.train_jobs() == {}


# waiting


def test_quota_that_is_never_granted_ends_with_the_queues_own_words(make):
    site = make(gpus=4)
    site.cluster.free = 1
    step = site.step("run-a")
    words = "insufficient unused quota for nvidia.com/gpu in flavor h100, 3 more needed"
    step.impatient_once(words, quota_wait_s=0.3)
    failed(step, TrainingFailed, "queue research has not admitted it for 0.3 s", "WaitingForQuota", words, "deleted")
    assert site.train_jobs() == {}
    assert any(words in line for line in step.lines), "told while it waits, too"


def test_more_than_the_queue_has_and_a_queue_that_is_not_there_are_told_apart(make):
    site = make(gpus=2)
    step = site.step("run-a").impatient_once("maximum capacity (2)", quota_wait_s=0.2)
    failed(step, TrainingFailed, "ExceedsMaxQuota", "maximum capacity (2)")
    missing = site.step("run-a", site.settings(queue="nobodys"))
    missing.impatient_once("LocalQueue nobodys", quota_wait_s=0.2)
    failed(missing, TrainingFailed, "Misconfigured", "LocalQueue nobodys doesn't exist")


def test_waiting_out_a_time_does_not_take_the_job_from_another_run(make):
    site = make(gpus=4)
    site.cluster.free = 0
    patient = site.step("run-b")
    wait_for(lambda: site.train_jobs())
    failed(site.step("run-a", site.settings(quota_wait_s=0.3)), TrainingFailed, "left to another run")
    site.cluster.free = 4
    assert patient.join().result == {"steps": 7}


def test_an_image_that_cannot_be_had_and_a_pod_that_no_node_takes_are_told_apart(make):
    site = make(until_told)
    site.cluster.kubelet.image_error = ("ImagePullBackOff", 'Back-off pulling image "registry.example/train:1"')
    step = site.step("run-a").impatient_once("the image of pod", start_wait_s=0.3)
    text = failed(step, TrainingFailed, "the image of pod", "ImagePullBackOff: Back-off pulling")
    assert "waited for 0.3 s" in text
    site.cluster.kubelet.image_error = None
    site.cluster.kubelet.unschedulable = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
    step = site.step("run-a").impatient_once("no node takes pod", start_wait_s=0.3)
    failed(step, TrainingFailed, "no node takes pod", "2 Insufficient nvidia.com/gpu")
    assert site.train_jobs() == {}


def test_a_job_that_gives_its_quota_back_waits_again_and_goes_on(make):
    site = make(trains_when_begun_again([]))
    step = site.step()
    watching(step)
    site.running()
    site.cluster.preempt(site.train_jobs()[NAME])
    assert step.join().result == {"steps": 7}
    assert len([line for line in step.lines if "waits for its queue" in line]) >= 1


# the API


def test_a_step_rides_out_an_api_server_that_is_away(make):
    go = threading.Event()
    site = make(lambda c: trains(c) if go.wait(120) else 1)
    step = site.step()
    site.running()
    with site.api.away():
        go.set()
        wait_for(lambda: all(p["status"]["phase"] == "Succeeded" for p in site.cluster.pods(NAME)))
    assert step.join().result == {"steps": 7}


def test_credentials_that_expire_half_way_are_renewed(make):
    go = threading.Event()
    site = make(lambda c: trains(c) if go.wait(120) else 1)
    step = site.step()
    site.running()
    step.cluster._configure = lambda: site.api.configuration("renewed")
    site.api.tokens["renewed"] = site.api.tokens["step"]
    site.api.expire("step")
    site.api.cut_streams()
    go.set()
    assert step.join().result == {"steps": 7}
    assert any(r.status == 401 for r in site.api.requests)


def test_broken_connections_and_a_lost_answer_change_nothing_and_no_log_line_is_lost_or_doubled(make):
    go, said = threading.Event(), threading.Event()

    def behaviour(container: Container) -> int:
        for number in range(60):
            container.log(f"{container.index}: step {number}")
            if number == 30:
                said.set()
                go.wait(120)
        return trains(container)

    site = make(behaviour)
    site.api.fail("POST", "trainjobs", lose="answer")
    step = site.step()
    assert said.wait(120)
    wait_for(lambda: any("step 30" in line for line in step.lines))
    for _ in range(3):
        site.api.cut_streams()
    site.api.store.compact()
    go.set()
    assert step.join().result == {"steps": 7}
    assert len(site.train_jobs()) + len(site.created()) <= 1
    log = next(site.folder.glob("attempts/*/train.log")).read_text().splitlines()
    assert log == [f"0: step {n}" for n in range(60)] + ["node 0 trains", "done"]


def test_what_is_not_allowed_says_which_role_to_look_at(make):
    site = make()
    site.api.grants = {user: {NS: rules["svdflow"][1:]} for user, rules in site.api.grants.items()}
    failed(site.step(), ClusterError, 'cannot list resource "trainjobs"', "Role pipeline-runner")


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_a_job_that_cannot_be_deleted_at_the_end_costs_neither_the_result_nor_the_reason(make, ends):
    go = threading.Event()
    site = make(lambda c: trains(c) if go.wait(120) else 1, gpus=4)
    site.cluster.free = 4 if ends == "well" else 0
    for rules in site.api.grants.values():
        for rule in rules[NS]:
            rule["verbs"] = [verb for verb in rule["verbs"] if verb != "delete"]
    step = site.step("run-a", site.settings(quota_wait_s=0.3 if ends == "badly" else 60))
    go.set()
    if ends == "well":
        assert step.join().result == {"steps": 7}
        assert any("was left there, for it could not be deleted" in line for line in step.lines)
    else:
        failed(step, TrainingFailed, "has not admitted it for 0.3 s", "it was left there", "cannot delete")


def test_a_runtime_that_is_not_there_is_told_and_nothing_is_left(make):
    site = make()
    failed(site.step("run-a", site.settings(runtime="none")), ClusterError, '"none" not found')
    assert site.train_jobs() == {}


# recordings of real controllers


@pytest.fixture
def played(tmp_path, monkeypatch) -> Iterator[Site]:
    """A cluster without controllers: recordings take their place."""
    if not RECORDINGS.is_dir():
        pytest.skip(f"there are no recordings of real controllers here ({RECORDINGS})")
    with site(tmp_path, monkeypatch) as made:
        made.cluster.__exit__(None, None, None)
        yield made


@pytest.mark.parametrize(
    ("recording", "name", "error", "says"),
    [
        ("trainjob_complete", "svd-a", None, ""),
        ("trainjob_quota_wait", "svd-c", None, ""),
        ("trainjob_failed_exit1", "", TrainingFailed, "exit status 1"),
        ("trainjob_failed_oomkilled", "", TrainingFailed, "more memory than it may"),
        ("trainjob_failed_then_restarted", "", None, ""),
        ("trainjob_evicted", "svd-e", TrainingInterrupted, "was evicted (EvictionByEvictionAPI"),
        ("trainjob_node_tainted_recovers", "", None, ""),
        ("trainjob_pod_deleted", "", None, ""),
        ("trainjob_preempted", "", None, ""),
        ("trainjob_deactivated", "", None, ""),
        ("trainjob_unschedulable", "svd-u", None, ""),
        ("trainjob_image_pull_backoff", "svd-i", TrainingFailed, "the image of pod"),
        ("trainjob_delete_background", "", TrainingFailed, "somebody has deleted it"),
        ("trainjob_delete_foreground", "", TrainingFailed, "somebody has deleted it"),
    ],
)
def test_what_real_controllers_wrote_is_understood(played, recording, name, error, says):
    path = RECORDINGS / f"{recording}.jsonl"
    if not name:
        lines = map(json.loads, path.read_text().splitlines())
        name = next(
            line["event"]["object"]["metadata"]["name"]
            for line in lines
            if line.get("event") and line["event"]["object"]["kind"] == "TrainJob"
        )
    with replaying(played.api.store, path, name, deleted=says != "the image of pod"):
        step = played.step("run-a")
        if error is None:
            wait_for(lambda: played.train_jobs())
            (played.folder / "attempts" / NAME / "result.json").write_text('{"steps": 7}')
        if says == "the image of pod":
            step.impatient_once(says, start_wait_s=0.05)
        step.join()
    if error is None:
        assert step.result == {"steps": 7}, (step.error, step.lines)
    else:
        assert type(step.error) is error and says in str(step.error), (step.error, step.lines)


@pytest.mark.parametrize(
    ("recording", "name", "says"),
    [
        (
            "trainjob_never_admitted",
            "svd-toobig",
            ("has not admitted it for 1 s", "ExceedsMaxQuota", "maximum capacity (4)"),
        ),
        ("trainjob_never_admitted", "svd-noqueue", ("has not admitted it for 1 s", "LocalQueue missing doesn't exist")),
        ("trainjob_never_admitted", "svd-held", ("has not admitted it for 1 s", "ClusterQueue gpu is inactive")),
        ("trainjob_blocked_by_snapshot", "svd-del", ("Trainer has made no pods", "owned by another object")),
    ],
)
def test_a_job_that_never_starts_is_given_up_with_what_the_controllers_said(played, recording, name, says):
    def told() -> bool:
        """By the queue, in the step's own lines, or in an event, at which it looks at the end."""
        events = [event.get("message", "") for event in played.api.store.objects(EVENTS)]
        return any(says[-1] in line for line in (*step.lines, *events))

    waits = {"quota_wait_s": 1.0} if "admitted" in says[0] else {"start_wait_s": 0.01}
    with replaying(played.api.store, RECORDINGS / f"{recording}.jsonl", name, deleted=False):
        step = played.step("run-a")
        failed(step.impatient_once(told, **waits), TrainingFailed, *says)
    assert played.train_jobs() == {}
