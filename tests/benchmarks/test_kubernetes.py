"""How soon a step has its TrainJob, and what pods of others cost a watch."""

import json
import os
import subprocess
import sys
import time

import yaml

from svdflow.common.cluster.api import Cluster
from svdflow.common.cluster.kinds import PODS
from svdflow.common.cluster.watch import Watches
from tests.fakes import kube_rules
from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_store import wait_for
from tests.training_runs import make_autoencoder, make_samples, settings_for

CREATION_S = 2.0
OTHERS = 10_000
STEP = """
import json, sys
from svdflow.common.storage import DataRoot
from svdflow.training.train.settings import stage_settings
from svdflow.training.train.train import train_stage
samples, root, settings, out = sys.argv[1:]
settings = stage_settings("image", json.loads(settings))
train_stage("image", Path(samples), None, Path(out), DataRoot.open(root), settings, {})
"""


def test_from_a_steps_start_to_the_created_train_job(tmp_path):
    root, samples = make_samples(tmp_path)
    settings = settings_for(make_autoencoder(tmp_path / "vae"))
    given = settings.model_dump(mode="json", exclude_defaults=True)
    took = []
    for turn in range(5):
        with KubeAPI() as api:
            user = {"name": "u", "user": {"token": api.token}}
            context = {"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "svdflow"}}
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [context],
                "users": [user],
            }
            config["clusters"] = [{"name": "k", "cluster": {"server": api.url}}]
            (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
            where = json.dumps({"work": str(tmp_path), "processes_per_node": 2})
            environment = {**os.environ, "SVDFLOW_TRAINJOB": where, "KUBECONFIG": str(tmp_path / "kubeconfig")}
            environment.pop("KUBERNETES_SERVICE_HOST", None)
            command = [sys.executable, "-c", STEP, str(samples), root.location, json.dumps(given | {"seed": turn})]
            began = time.monotonic()
            process = subprocess.Popen([*command, str(tmp_path / "out")], env=environment, stdout=subprocess.DEVNULL)
            wait_for(lambda: api.asked("POST", "trainjobs") and api.asked("POST", "trainjobs")[0].status == 201, 60)  # noqa: B023
            took.append(api.asked("POST", "trainjobs")[0].at - began)
            process.kill()
            process.wait()
    print(f"\nfrom the step's start to the created TrainJob: {', '.join(f'{s:.2f}' for s in took)} s")
    assert sorted(took)[len(took) // 2] < CREATION_S


def watched(others: int) -> tuple[int, int]:
    """Watch one's own pod amid others that come and change: bytes sent to it, and events."""
    pod = {"spec": {"containers": [{"name": "main"}]}}
    with KubeAPI(bookmark_s=3600) as api, Cluster(api.configuration, "svdflow") as cluster:
        for number in range(others):
            api.store.create(kube_rules.PODS, "svdflow", {"metadata": {"name": f"other-{number}"}, **pod})
        labels = {"jobset.sigs.k8s.io/jobset-name": "mine"}
        api.store.create(kube_rules.PODS, "svdflow", {"metadata": {"name": "mine", "labels": labels}, **pod})
        with Watches(cluster, (PODS, "jobset.sigs.k8s.io/jobset-name=mine", "")) as watches:
            events = [watches.next(30), watches.next(30)]
            for number in range(others):
                api.store.set_status(kube_rules.PODS, "svdflow", f"other-{number}", phase="Running")
            for number in range(20):
                api.store.set_status(kube_rules.PODS, "svdflow", "mine", phase="Running", message=str(number))
                events.append(watches.next(30))
            while (event := watches.next(0.3)) is not None:
                events.append(event)
        sent = sum(r.sent for r in api.asked("GET", "/pods"))
    return sent, len(events)


def test_pods_of_others_add_no_work_to_a_watch():
    alone, amid = watched(0), watched(OTHERS)
    print(f"\nbytes sent and events: {alone[0]}, {alone[1]} alone; {amid[0]}, {amid[1]} amid {OTHERS:,} other pods")
    assert alone[1] == amid[1] == 22
    assert abs(alone[0] - amid[0]) < 22 * 10, "nothing but longer version numbers"
