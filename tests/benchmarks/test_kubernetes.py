"""How soon a step has its TrainJob, and what pods of others cost a watch."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from svdflow.common.cluster.api import Cluster
from svdflow.common.cluster.kinds import PODS
from svdflow.common.cluster.watch import Watches
from tests.fakes import kube_rules
from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_store import wait_for
from tests.train_job_site import kubeconfig
from tests.training_runs import UNET, make_samples, settings_for

CREATION_S = 2.0
OTHERS = 10_000
STEP = """
import json, sys
from pathlib import Path
from svdflow.common.storage import DataRoot
from svdflow.training.train.settings import stage_settings
from svdflow.training.train.train import train_stage
samples, root, settings, out = sys.argv[1:]
settings = stage_settings("image", json.loads(settings))
train_stage("image", Path(samples), None, Path(out), DataRoot.open(root), settings, {})
"""


def test_from_a_steps_start_to_the_created_train_job(tmp_path):
    root, samples = make_samples(tmp_path)
    given = settings_for(Path("shipped"), unet=UNET | {"latent_channels": 8}).model_dump(mode="json")
    took = [_creation(tmp_path, [str(samples), root.location], given | {"seed": turn}) for turn in range(5)]
    shown = ", ".join(f"{wall:.2f} ({cpu:.2f} of a processor)" for wall, cpu in took)
    load = f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
    print(f"\nfrom the step's start to the created TrainJob: {shown} s; load {load}")
    assert sorted(took)[len(took) // 2][0] < CREATION_S


def _creation(folder: Path, inputs: list[str], settings: dict) -> tuple[float, float]:
    """Seconds from the start of a step's process until its TrainJob is there, and those a processor spent on it."""
    with KubeAPI() as api:
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig(api, folder / "kubeconfig"))}
        environment["SVDFLOW_TRAINJOB"] = json.dumps({"work": str(folder), "processes_per_node": 2})
        environment.pop("KUBERNETES_SERVICE_HOST", None)
        command = [sys.executable, "-c", STEP, *inputs, json.dumps(settings), str(folder / "out")]
        began = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        made = lambda: [r for r in api.asked("POST", "trainjobs") if r.status == 201]  # noqa: E731
        wait_for(lambda: made() or process.poll(), 120)
        took = made()[0].at - began
        process.kill()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
    return took, usage.ru_utime + usage.ru_stime


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
