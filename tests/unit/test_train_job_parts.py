"""The TrainJob launcher's parts by themselves: settings, shape, manifest, what pods tell, log, budget, ranks."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from svdflow.common.cluster.api import Cluster
from svdflow.common.cluster.kinds import PODS, TRAINJOBS
from svdflow.common.cluster.owners import Workflow
from svdflow.common.cluster.pods import read_pod
from svdflow.common.cluster.watch import Event
from svdflow.common.errors import ConfigError
from svdflow.training.train import launcher, train, worker
from svdflow.training.train.endings import TrainingFailed, error_line, last_line
from svdflow.training.train.settings import stage_settings
from svdflow.training.train.trainjob.budget import Budget
from svdflow.training.train.trainjob.log import LogFollower
from svdflow.training.train.trainjob.manifest import Shape, leader, shape_of, train_job
from svdflow.training.train.trainjob.settings import VARIABLE, TrainJobSettings
from svdflow.training.train.trainjob.state import Known
from tests.fakes import kube_rules
from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_store import Object, wait_for

KEY = "0123456789abcdef" * 2
COMPONENTS = Path(__file__).resolve().parents[2] / "components"


# settings


def test_without_the_variable_training_stays_on_this_machine(monkeypatch, tmp_path, root):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert TrainJobSettings.from_environment() is None
    assert launcher.workspace(root, KEY) == root.scratch("training", KEY)
    monkeypatch.setenv(VARIABLE, json.dumps({"work": str(tmp_path / "work")}))
    assert launcher.workspace(root, KEY) == tmp_path / "work" / "training" / KEY, "where training pods see it"
    monkeypatch.setenv(VARIABLE, json.dumps({"work": str(root.scratch())}))
    assert launcher.workspace(root, KEY) == root.scratch("training", KEY), "it is on the work volume itself"


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ("{queue: [", "is no YAML"),
        ("queue", "has to be a mapping"),
        ("{gpus: 8}", r"SVDFLOW_TRAINJOB\.gpus: there is no such"),
        ("{processes_per_node: 0}", r"SVDFLOW_TRAINJOB\.processes_per_node"),
        ("{environment: {PET_NNODES: '2'}}", "PET_NNODES: set by torchrun"),
        ("{environment: {AWS_SECRET_ACCESS_KEY: x}}", "AWS_SECRET_ACCESS_KEY: come from the secrets"),
        ("{work: runs}", "has to be an absolute path"),
        ("{keep: sometimes}", r"SVDFLOW_TRAINJOB\.keep"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch, told, says):
    monkeypatch.setenv(VARIABLE, told)
    with pytest.raises(ConfigError, match=says) as error:
        TrainJobSettings.from_environment()
    assert "x}" not in str(error.value), "no value of a secret"


# shape and manifest


@pytest.mark.parametrize(
    ("processes", "per_node", "shape"),
    [(1, 8, (1, 1, 1)), (8, 8, (1, 8, 8)), (6, 8, (1, 6, 6)), (16, 8, (2, 8, 8)), (64, 4, (16, 4, 4))],
)
def test_processes_lie_on_full_nodes_or_on_part_of_one(processes, per_node, shape):
    settings = stage_settings("image", {"processes": processes, "batch": 1536})
    found = shape_of("image", settings, TrainJobSettings(processes_per_node=per_node))
    assert found == Shape(*shape) and found.nodes * found.processes == processes


def test_a_node_half_empty_is_refused_by_name():
    settings = stage_settings("image", {"processes": 12, "batch": 1536})
    with pytest.raises(ConfigError, match=r"train_image\.processes: 12 processes do not fill nodes of 8"):
        shape_of("image", settings, TrainJobSettings())


def manifest(**values) -> Object:
    cluster = TrainJobSettings(**values)
    settings = stage_settings("image_to_video", {"processes": 16, "batch": 768})
    shape = shape_of("image_to_video", settings, cluster)
    job_file = Path("/work/training/k/attempts/n/job.json")
    return train_job("image_to_video", KEY, 3, shape, job_file, 12.5, cluster, Workflow("run-a", "uid-a"))


def test_a_manifest_has_what_the_policies_and_queues_of_infra_go_by():
    obj = manifest()
    meta, spec = obj["metadata"], obj["spec"]
    assert meta["name"] == f"train-image-to-video-{KEY[:16]}-3"
    assert meta["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert meta["labels"]["svdflow/key"] == KEY[:16] and meta["annotations"]["svdflow/identity"] == KEY
    (owner,) = meta["ownerReferences"]
    assert owner == {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "run-a", "uid": "uid-a"}
    assert spec["activeDeadlineSeconds"] == 13 and spec["runtimeRef"]["name"] == "svdflow-torch"
    assert set(spec["trainer"]) == {"numNodes", "numProcPerNode", "args", "env", "resourcesPerNode"}
    values = [*meta["labels"].values(), *meta["labels"]]
    assert all(re.fullmatch(r"([a-z0-9.-]+/)?[A-Za-z0-9][-\w.]{0,62}", value) for value in values)
    pods = [p["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0] for p in spec["runtimePatches"]]
    assert pods[0]["template"]["spec"]["template"]["metadata"]["labels"] == {"svdflow/key": KEY[:16]}


def test_the_queues_and_priorities_that_are_the_defaults_are_in_infra():
    text = (COMPONENTS.parent / "infra" / "components" / "queues" / "queues.yaml").read_text()
    runtime = (COMPONENTS.parent / "infra" / "components" / "training-runtime" / "runtime.yaml").read_text()
    defaults = TrainJobSettings()
    assert f"name: {defaults.queue}\n" in text and f"name: {defaults.priority}\n" in text
    assert f"name: {defaults.runtime}\n" in runtime and f"mountPath: {defaults.work}}}" in runtime
    assert "command: [torchrun, -m, svdflow.training.train.worker]" in runtime
    mpi = (COMPONENTS.parent / "infra" / "components" / "training-runtime" / "mpi-runtime.yaml").read_text()
    assert f"name: {defaults.mpi_runtime}\n" in mpi and f"mountPath: {defaults.work}}}" in mpi


def test_on_processors_no_gpu_is_asked_for_and_deepspeed_is_told():
    trainer = manifest(gpu_resource="")["spec"]["trainer"]
    assert "resourcesPerNode" not in trainer and {"name": "DS_ACCELERATOR", "value": "cpu"} in trainer["env"]


def test_under_mpirun_every_process_learns_where_rank_0_is():
    spec = manifest(starter="mpirun", image="pinned", environment={"NCCL_IB_HCA": "mlx5"})["spec"]
    command, name = spec["trainer"]["command"], f"train-image-to-video-{KEY[:16]}-3"
    assert command[:4] == ["python", "-m", "svdflow.training.train.mpi", "launch"]
    assert command[4:7] == ["mpirun", "-n", "16"] and command[-3:] == ["python", "-m", "svdflow.training.train.worker"]
    assert {"name": "MASTER_ADDR", "value": f"{name}-launcher-0-0.{name}"} in spec["trainer"]["env"]
    exported = {command[at + 1] for at, word in enumerate(command) if word == "-x"}
    assert exported == {"MASTER_ADDR", "MASTER_PORT", "NCCL_IB_HCA"}
    assert spec["runtimeRef"]["name"] == "svdflow-mpi"
    assert "image" not in spec["trainer"], "the nodes would keep another one"


def test_under_mpirun_launcher_and_nodes_get_the_labels_and_node_0_s_log_is_the_launcher_s():
    job = manifest(starter="mpirun", node_selector={"svdflow/gpu": "h100"})
    (patch,) = job["spec"]["runtimePatches"]
    jobs = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pods = {job["name"]: job["template"]["spec"]["template"] for job in jobs}
    assert set(pods) == {"node", "launcher"} and pods["node"] == pods["launcher"]
    assert pods["node"]["spec"]["nodeSelector"] == {"svdflow/gpu": "h100"}
    assert leader(job) == "launcher" and leader(manifest()) == "node"


def test_on_one_node_mpirun_would_take_a_second_one_so_it_is_torchrun():
    settings = stage_settings("image", {"processes": 8, "batch": 1536})
    cluster = TrainJobSettings(starter="mpirun", image="pinned")
    shape = shape_of("image", settings, cluster)
    spec = train_job("image", KEY, 1, shape, Path("/work/job.json"), 9.0, cluster, None)["spec"]
    assert spec["runtimeRef"]["name"] == "svdflow-torch" and spec["trainer"]["image"] == "pinned"
    assert "command" not in spec["trainer"] and "MASTER_ADDR" not in {v["name"] for v in spec["trainer"]["env"]}


def test_a_worker_takes_its_ranks_from_open_mpi_and_from_torchrun_first(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that what is set below does not outlive this test
        monkeypatch.delenv(name)
    worker.take_ranks_from_mpi()
    assert "RANK" not in worker.os.environ
    for name, value in (("RANK", "9"), ("SIZE", "16"), ("LOCAL_RANK", "1"), ("LOCAL_SIZE", "8")):
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    monkeypatch.setenv("LOCAL_RANK", "5")
    worker.take_ranks_from_mpi()
    told = [worker.os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
    assert told == ["9", "16", "5", "8"]


# what pods tell


def pod(name: str, phase: str = "Running", uid: str = "", **more) -> Object:
    labels = {"batch.kubernetes.io/job-completion-index": name[-1], "jobset.sigs.k8s.io/restart-attempt": "0"}
    labels |= more.pop("labels", {})
    state = {"terminated": more.pop("terminated")} if "terminated" in more else {"running": {}}
    status = {"phase": phase, "containerStatuses": [{"state": state}], "conditions": more.pop("conditions", [])}
    meta = {"name": name, "uid": uid or name, "labels": labels, **more}
    return {"metadata": meta, "spec": {"nodeName": f"gpu-{name[-1]}"}, "status": status}


def ended(code: int, reason: str = "Error", at: str = "2026-11-26T10:00:00Z") -> Object:
    return {"terminated": {"exitCode": code, "reason": reason, "finishedAt": at}, "phase": "Failed"}


def target(reason: str) -> list[Object]:
    return [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "why"}]


def known(*pods: Object, **conditions: tuple[str, str]) -> Known:
    status = [{"type": k, "status": "True", "reason": r, "message": m} for k, (r, m) in conditions.items()]
    job = {"metadata": {"name": "t", "uid": "u"}, "spec": {"suspend": False}, "status": {"conditions": status}}
    found = Known("t", "u", 2, job)
    found.apply(Event("ADDED", TRAINJOBS, job))
    for obj in pods:
        found.apply(Event("MODIFIED", PODS, obj))
    return found


FAILED = {"Failed": ("ReachedMaxRestarts", "jobset failed")}


def test_what_a_pod_told_first_of_its_end_stays():
    story = read_pod(pod("p0", **ended(1)))
    story = read_pod(pod("p0", **ended(143), deletionTimestamp="now"), story)
    assert (story.exit_code, story.failed_by_itself) == (1, True), "deleted afterwards: no excuse"
    told = read_pod(pod("p1", **ended(143), deletionTimestamp="now"), read_pod(pod("p1")))
    assert not told.failed_by_itself, "it was told to end"
    assert read_pod({"metadata": {"name": "p1"}}, told).exit_code == 143


@pytest.mark.parametrize(
    ("pods", "lines", "cause", "says"),
    [
        ([pod("p0", **ended(1)), pod("p1", **ended(143), deletionTimestamp="x")], {"0": "ours"},
         "user_error", "ours (pod p0"),
        ([pod("p0", **ended(1)), pod("p1", **ended(137, "OOMKilled"))], {"0": "ours"},
         "out_of_memory", "pod p1 on node gpu-1"),
        ([pod("p0", **ended(1)), pod("p1", conditions=target("EvictionByEvictionAPI"), **ended(143))], {"z0": "peer"},
         "eviction", "pod p1 was evicted"),
        ([pod("p0", **ended(1)), pod("p1", conditions=target("PreemptionByScheduler"), **ended(143))], {"0": "ours"},
         "user_error", "ours"),
        ([pod("p0", conditions=target("DeletionByTaintManager"))], {}, "node_lost", "node gpu-0 of pod p0 was lost"),
        ([pod("p0", **ended(75)), pod("p1", **ended(75))], {}, "interrupted", "told to end"),
        ([pod("p1", **ended(1, at="2026-11-26T10:00:01Z")), pod("p0", **ended(3, at="2026-11-26T10:00:02Z"))], {},
         "user_error", "exit status 1"),
        ([], {}, "unknown", "ReachedMaxRestarts: jobset failed"),
    ],
)  # fmt: skip
def test_the_cause_is_what_failed_first_and_by_itself(tmp_path, pods, lines, cause, says):
    for name, line in lines.items():
        (tmp_path / f"error-{name}.txt").write_text(line)
    ending = known(*pods, **FAILED).ending(tmp_path, tmp_path / "train.log")
    assert ending.cause == cause and says in ending.line and "\n" not in ending.line


def test_a_deadline_is_told_from_a_failure(tmp_path):
    job = known(pod("p0", **ended(143)), Failed=("DeadlineExceeded", "too long"))
    assert job.ending(tmp_path, tmp_path / "log").cause == "deadline"


def test_what_an_earlier_start_of_the_set_failed_of_is_not_the_cause(tmp_path):
    again = {"jobset.sigs.k8s.io/restart-attempt": "1"}
    pods = [pod("p0", **ended(137, "OOMKilled")), pod("p0", uid="second", labels=again, **ended(2))]
    assert known(*pods, **FAILED).ending(tmp_path, tmp_path / "log").line.startswith("no output (exit status 2)")


def test_pods_from_before_a_preemption_count_no_longer_and_the_order_of_two_watches_does_not_matter():
    job = known(
        pod("p0", creationTimestamp="2026-11-26T10:00:00Z"), pod("p1", creationTimestamp="2026-11-26T10:00:00Z")
    )
    assert job.phase == "running"
    stopped = {"type": "Suspended", "status": "True", "lastTransitionTime": "2026-11-26T10:05:00Z"}
    early = pod("p0", uid="new", creationTimestamp="2026-11-26T10:06:00Z")  # told before its job's own change is
    job.apply(Event("ADDED", PODS, early))
    suspended = {**job.job, "spec": {"suspend": True}, "status": {"conditions": [stopped]}}
    job.apply(Event("MODIFIED", TRAINJOBS, suspended))
    assert job.phase == "queued" and list(job.pods) == ["new"]
    job.apply(Event("MODIFIED", PODS, pod("p1", conditions=target("Preempted"), **ended(143))))
    assert list(job.pods) == ["new"]


def test_a_job_that_a_list_does_not_name_is_gone_and_so_is_one_whose_name_another_bears():
    job = {"metadata": {"name": "t", "uid": "u"}, "spec": {"suspend": True}}
    found = Known("t", "u", 1, job)
    found.apply(Event("LISTED", TRAINJOBS, {}))
    assert found.phase == "deleted"
    found = Known("t", "u", 1, job)
    found.apply(Event("ADDED", TRAINJOBS, {**job, "metadata": {"name": "t", "uid": "another"}}))
    assert found.phase == "deleted"


def test_an_echo_of_anothers_failure_is_told_only_where_there_is_nothing_else(tmp_path):
    assert error_line(tmp_path) is None
    (tmp_path / "error-z0.txt").write_text("Connection closed by peer\n")
    assert error_line(tmp_path) == "Connection closed by peer" and error_line(tmp_path, echoes=False) is None
    (tmp_path / "error-3.txt").write_text("the cause")
    assert error_line(tmp_path) == error_line(tmp_path, echoes=False) == "the cause"


def test_however_long_an_error_or_a_log_is_what_is_told_of_it_is_one_line_of_bounded_length(tmp_path):
    (tmp_path / "error-0.txt").write_text("shapes differ:\n" + "layer 1\n" * 100_000)
    told = error_line(tmp_path) or ""
    assert told.startswith("shapes differ: layer 1 layer 1") and len(told) < 2100 and "\n" not in told
    log = tmp_path / "train.log"
    log.write_bytes(b"step 1\n" * 500_000 + b"\xff the last word\n \n")
    assert last_line(log) == "\ufffd the last word"
    log.write_bytes(b"x" * 500_000)
    assert 0 < len(last_line(log)) <= 2000


# log


@pytest.fixture
def cluster() -> Iterator[tuple[KubeAPI, Cluster]]:
    with KubeAPI() as api, Cluster(api.configuration, "svdflow", patience_s=120, sleep=lambda s: None) as connection:
        for name in ("p0", "p1"):
            obj = {"metadata": {"name": name}, "spec": {"containers": [{"name": "node"}]}}
            api.store.create(kube_rules.PODS, "svdflow", obj)
        yield api, connection


def test_lines_of_one_moment_are_told_once_each_across_a_break_and_the_next_pods_come_after(cluster, tmp_path):
    api, connection = cluster
    lines: list[str] = []
    same = "2026-11-26T10:00:00.500000000Z"
    api.store.log("svdflow", "p0", "early", at="2026-11-26T10:00:00.100000000Z")
    api.store.log("svdflow", "p0", "a", "a", "b", at=same)
    log = LogFollower(connection, tmp_path / "train.log", echo=lines.append)
    log.follow("p0")
    wait_for(lambda: len(lines) == 4)
    api.cut_streams()
    api.store.log("svdflow", "p0", "a", at=same)
    api.store.log("svdflow", "p0", "late", "x" * 10_000, at="2026-11-26T10:00:02.000000000Z")
    api.store.log("svdflow", "p1", "of the next pod")
    log.follow("p1")
    log.follow("p0")
    for name in ("p0", "p1"):
        api.store.log("svdflow", name, end=True)
        log.ended(name)
    wait_for(lambda: "of the next pod" in lines)
    log.close(5)
    assert lines[:6] == ["early", "a", "a", "b", "a", "late"] and len(lines) == 8 and len(lines[6]) < 5000
    assert (tmp_path / "train.log").read_text().splitlines()[6] == "x" * 10_000


def test_a_log_that_cannot_be_read_ends_nothing(cluster, tmp_path, capsys):
    api, connection = cluster
    api.grants["system:admin"] = {"svdflow": []}
    log = LogFollower(connection, tmp_path / "train.log")
    log.follow("p0")
    log.close(5)
    assert "the log of pod p0 cannot be read any further" in capsys.readouterr().err


# budget


def test_a_budget_is_of_all_attempts_and_survives_the_step(tmp_path):
    clock = [0.0]
    for name in ("first", "second"):
        (tmp_path / "attempts" / name).mkdir(parents=True)

    def at(moment: float, budget: Budget, name: str, gpus: int = 4) -> None:
        clock[0] = moment
        budget.count(name, gpus)

    budget = Budget(tmp_path, 1.0, lambda: clock[0])
    at(0, budget, "first")
    at(300, budget, "first")
    budget.pause("first")
    at(9000, budget, "first")  # it waited in between
    at(9100, budget, "first")
    budget.pause("first")
    assert budget.used_s == 1600 and budget.seconds_left(4) == 500
    later = Budget(tmp_path, 1.0, lambda: clock[0])
    at(9200, later, "second", 8)
    at(9450, later, "second", 8)
    later.pause("second")
    assert later.seconds_left(4) == 0
    with pytest.raises(TrainingFailed, match="1 GPU-hours is used up by earlier attempts"):
        Budget(tmp_path, 1.0)
    assert Budget(tmp_path, None).seconds_left(8) == float("inf")


def test_time_in_which_no_step_watched_a_job_counts_once_it_is_adopted(tmp_path):
    (tmp_path / "attempts" / "first").mkdir(parents=True)
    today = [1000.0]

    def budget() -> Budget:
        return Budget(tmp_path, 1.0, lambda: today[0], lambda: today[0])

    seen = budget()
    for moment in (1000.0, 1100.0):
        today[0] = moment
        seen.count("first", 4)
    seen.pause("first")
    today[0] = 1200.0
    later = budget()
    later.catch_up("first", 4, since=990.0)
    assert later.used_s == 4 * 200, "from when the step before was last heard of"
    later.catch_up("first", 4, since=1150.0)
    assert later.used_s == 4 * 200, "it had waited for its queue meanwhile: no less than was known"
    later.catch_up("first", 4, since=float("inf"))
    assert later.used_s == 4 * 200, "its pods do not tell when they began"


# the stage


def test_what_another_run_has_recorded_meanwhile_is_taken_from_it(root, tmp_path, monkeypatch):
    """Two runs waited for one job; the other was faster and has cleared up the folder of the run."""
    samples = tmp_path / "samples.parquet"
    samples.write_bytes(b"samples")

    def beaten(job, folder, key):
        root.record("train", key, {"tree": "theirs"})
        raise TrainingFailed("left no result")

    monkeypatch.setattr(train, "launch", beaten)
    given = ("image", samples, None, None, root, stage_settings("image", {}), {})
    assert train._train(*given, KEY, {}) == {"tree": "theirs"}

    def alone(job, folder, key):
        raise TrainingFailed("left no result")

    monkeypatch.setattr(train, "launch", alone)
    with pytest.raises(TrainingFailed):
        train._train(*given, KEY[::-1], {})


def test_a_model_that_another_run_removes_meanwhile_is_not_recorded_in_place_of_the_whole_one(
    root, tmp_path, monkeypatch
):
    """Both runs have seen the job complete; the other has stored the model and clears up while this one stores it."""
    samples = tmp_path / "samples.parquet"
    samples.write_bytes(b"samples")

    def both(job, folder, key):
        (job.out / "unet").mkdir(parents=True)
        (job.out / "model_index.json").write_text("{}")
        return {"steps": 7}

    def store(directory):
        if directory.name == "model":
            root.record("train", KEY, {"tree": "whole"})
        return "partial"

    monkeypatch.setattr(train, "launch", both)
    monkeypatch.setattr(root, "put_tree", store)
    found = train._train("image", samples, None, None, root, stage_settings("image", {}), {}, KEY, {})
    assert found == root.find("train", KEY) == {"tree": "whole"}


# who knows a cluster


def test_only_the_backends_know_a_cluster():
    """Nothing but the launcher's Kubernetes backend and the fan-out's imports the layer over the Kubernetes API."""
    allowed = (COMPONENTS / "training" / "train" / "trainjob", COMPONENTS / "common" / "cluster")
    for path in COMPONENTS.rglob("*.py"):
        if path.is_relative_to(allowed[0]) or path.is_relative_to(allowed[1]) or path.stem.startswith("fanout"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert "cluster" not in (node.module or "").split("."), path
