"""A fake cluster with a work volume, and steps that train on it: what tests of the TrainJob launcher share."""

import importlib.util
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from svdflow.common.cluster.api import Cluster
from svdflow.common.cluster.owners import Workflow
from svdflow.common.errors import SvdflowError
from svdflow.training.train.heartbeat import beat_path
from svdflow.training.train.job import Job
from svdflow.training.train.settings import stage_settings
from svdflow.training.train.trainjob import launch
from svdflow.training.train.trainjob.settings import TrainJobSettings
from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_controllers import Controllers
from tests.fakes.kube_kubelet import Behaviour, Container, until_told
from tests.fakes.kube_rules import RUNTIMES, TRAINJOBS, WORKFLOWS
from tests.fakes.kube_store import Object, wait_for

NS = "svdflow"
KEY = "0123456789abcdef0123456789abcdef"
NAME = f"train-image-{KEY[:16]}"
REPOSITORY = Path(__file__).resolve().parents[1]
RECORDINGS = REPOSITORY.parent / "shared" / "transcripts"
CHECKER = REPOSITORY.parent / "shared" / "tools" / "check_manifests.py"
STEP = "system:serviceaccount:svdflow:pipeline-runner"


def role(name: str = "pipeline-runner") -> list[Object]:
    """What infra lets an account do; by default a step, and the launcher has to manage with it."""
    documents = yaml.safe_load_all((REPOSITORY / "infra" / "base" / "roles.yaml").read_text())
    found = next(d for d in documents if d["kind"] == "Role" and d["metadata"]["name"] == name)
    return found["rules"]


def attempt_folder(container: Container) -> Path:
    return Path(container.spec["args"][-1]).parent


def trains(container: Container) -> int:
    """What the workers of a node leave when all goes well."""
    container.log(f"node {container.index} trains", "done")
    if container.index == 0:
        (attempt_folder(container) / "result.json").write_text(json.dumps({"steps": 7}))
    return 0


def trains_when_begun_again(begun: list[str]) -> Behaviour:
    """The first two pods work until they are told to end, those after them to the end; ``begun`` gets their names."""

    def behaviour(container: Container) -> int:
        begun.append(container.name)
        return until_told(container) if len(begun) <= 2 else trains(container)

    return behaviour


class Step:
    """One step of a run that trains, in a thread."""

    def __init__(self, site: "Site", workflow: str | None, settings: TrainJobSettings, **stage: Any) -> None:
        self.lines: list[str] = []
        self.result: dict[str, Any] | None = None
        self.error: BaseException | None = None
        self.cluster = Cluster(lambda: site.api.configuration("step"), NS, patience_s=settings.patience_s)
        self.job, self.settings = site.job(**stage), settings
        self._thread = threading.Thread(target=self._run, args=(site, workflow, settings), daemon=True)
        self._thread.start()

    def _run(self, site: "Site", workflow: str | None, settings: TrainJobSettings) -> None:
        try:
            with self.cluster, site.as_step_of(workflow):
                self.result = launch.run(
                    self.job, site.folder, KEY, settings, self.cluster, self.lines.append, tick_s=0.01
                )
        except BaseException as error:
            self.error = error

    def join(self, seconds: float = 120) -> "Step":
        self._thread.join(seconds)
        assert not self._thread.is_alive(), self.lines
        return self

    def impatient_once(self, seen: Callable[[], object] | str, **waits: float) -> "Step":
        """Let its waits be so long from when something was seen on; by default a line of its own with these words.

        What a step has not seen yet when its patience ends it cannot name, and how soon it sees it is the machine's
        business.
        """
        wait_for(seen if callable(seen) else lambda: any(seen in line for line in self.lines))
        self.settings.__dict__.update(waits)  # settings do not change, but here
        return self

    def kill(self) -> None:
        """As when its pod goes: nothing of it answers any more."""
        self.cluster.close()
        self.cluster.patience_s = 0


class Site:
    """A cluster, its work volume and its runs."""

    def __init__(self, api: KubeAPI, cluster: Controllers, work: Path) -> None:
        self.api, self.cluster, self.work = api, cluster, work
        self.folder = work / "training" / KEY
        self.folder.mkdir(parents=True)
        self._local = threading.local()
        api.tokens["step"] = (STEP, float("inf"))
        api.grants[STEP] = {NS: role()}
        api.runtimes_must_exist = True
        for name in ("svdflow-torch", "svdflow-mpi"):
            api.store.create(RUNTIMES, "", {"metadata": {"name": name}})
        (work / "samples.parquet").write_bytes(b"samples")

    def settings(self, **values: Any) -> TrainJobSettings:
        given = {"work": self.work, "processes_per_node": 2, "patience_s": 120.0, **values}
        return TrainJobSettings(**given)

    def job(self, **values: Any) -> Job:
        settings = stage_settings("image", {"processes": 4, "batch": 8, "steps": 7, **values})
        return Job(
            stage="image", settings=settings, samples=self.work / "samples.parquet", root=str(self.work / "data"),
            init=None, checkpoints=self.folder / "checkpoints", store=None, logs=self.folder / "logs",
            samples_out=self.folder / "samples", out=self.folder / "model", card={},
        )  # fmt: skip

    def workflow(self, name: str) -> Workflow:
        found = [w for w in self.api.store.objects(WORKFLOWS) if w["metadata"]["name"] == name]
        made = found[0] if found else self.api.store.create(WORKFLOWS, NS, {"metadata": {"name": name}, "spec": {}})
        return Workflow(name, made["metadata"]["uid"])

    def step(self, workflow: str | None = "run-a", settings: TrainJobSettings | None = None, **stage: Any) -> Step:
        return Step(self, workflow, settings or self.settings(), **stage)

    @contextmanager
    def as_step_of(self, workflow: str | None) -> Iterator[None]:
        """Be in the pod of a run's step: only this thread is."""
        if workflow is None:
            self._local.workflow = None
        else:
            self._local.workflow = self.workflow(workflow)
        yield

    def this_workflow(self, cluster: Cluster) -> Workflow | None:
        return self._local.workflow

    def train_jobs(self) -> dict[str, Object]:
        return {o["metadata"]["name"]: o for o in self.api.store.objects(TRAINJOBS)}

    def running(self, name: str = NAME, pods: int = 2) -> list[Object]:
        return wait_for(
            lambda: (
                [p for p in found if p["status"]["phase"] == "Running"]
                if len(found := self.cluster.pods(name)) == pods
                and all(p["status"]["phase"] == "Running" and "deletionTimestamp" not in p["metadata"] for p in found)
                else None
            )
        )

    def created(self) -> list[Object]:
        """The bodies of all objects that were created through the API."""
        return [r.body for r in self.api.asked("POST") if r.status == 201]


@contextmanager
def site(tmp_path: Path, monkeypatch: Any, behaviour: Behaviour = trains, **how: Any) -> Iterator[Site]:
    work = tmp_path / "work"
    work.mkdir()
    with KubeAPI() as api, Controllers(api.store, behaviour, **how) as cluster:
        made = Site(api, cluster, work)
        monkeypatch.setattr(launch, "this_workflow", made.this_workflow)
        yield made


def strict_checker() -> Callable[[Object], list[str]] | None:
    """Holds an object against the schema of its kind; None where the schemas are not at hand."""
    if not CHECKER.is_file():
        return None
    spec = importlib.util.spec_from_file_location("check_manifests", CHECKER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = CHECKER.parent.parent / "crds" / "trainer.kubeflow.org_trainjobs.yaml"
    crd = next(d for d in yaml.load_all(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if d)
    schema = module.strict(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    validator = module.jsonschema.Draft202012Validator(schema)
    return lambda obj: [f"{list(e.path)}: {e.message[:200]}" for e in validator.iter_errors(obj)]


def beats_until(container: Container, moves: int) -> None:
    """Give signs of life as the workers of a node do, and hang after ``moves`` moves."""
    processes = int(next(v["value"] for v in container.spec["env"] if v["name"] == "PET_NPROC_PER_NODE"))
    ranks = range(container.index * processes, (container.index + 1) * processes)
    handles = {rank: os.open(beat_path(attempt_folder(container), rank), os.O_WRONLY | os.O_CREAT) for rank in ranks}
    beats = 0
    while not container.told.wait(0.01):
        beats += 1
        for rank, handle in handles.items():
            done = min(beats, moves)
            os.pwrite(handle, f"{rank + 1} {beats} {done} in step {done}".ljust(99).encode() + b"\n", 0)


def kubeconfig(api: KubeAPI, path: Path) -> Path:
    """A file for the official client, whose current context is the fake cluster."""
    user = {"name": "u", "user": {"token": api.token}}
    context = {"name": "c", "context": {"cluster": "k", "user": "u", "namespace": NS}}
    config = {"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [context], "users": [user]}
    config["clusters"] = [{"name": "k", "cluster": {"server": api.url}}]
    path.write_text(yaml.safe_dump(config))
    return path


def make_site(tmp_path: Path, monkeypatch: Any) -> Iterator[Callable[..., "Site"]]:
    """For a fixture: gives what makes a cluster whose containers behave in some way."""
    with ExitStack() as entered:
        yield lambda behaviour=trains, **how: entered.enter_context(site(tmp_path, monkeypatch, behaviour, **how))


def failed(step: Step, error: type[SvdflowError], *says: str) -> str:
    step.join()
    assert type(step.error) is error, (step.error, step.lines)
    text = str(step.error)
    assert "\n" not in text
    for part in says:
        assert part in text
    return text


def watching(step: Step) -> None:
    """Wait until the step itself has seen all pods run: what happens before that it cannot know."""
    wait_for(lambda: any("runs on" in line for line in step.lines))


def owners(site: Site, name: str = NAME) -> list[str]:
    return [o["name"] for o in site.train_jobs()[name]["metadata"].get("ownerReferences", [])]
