"""The whole way with real workers: a stage trained as a TrainJob of two nodes, each a torchrun of its own."""

import json
import os
import signal
import threading

import pytest

from svdflow.training.train.build_ops import worker_environment
from svdflow.training.train.endings import TrainingFailed
from svdflow.training.train.train import train_stage
from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_controllers import Controllers
from tests.fakes.kube_kubelet import Container, as_process
from tests.fakes.kube_rules import TRAINJOBS
from tests.fakes.kube_store import wait_for
from tests.holding import Point, holding
from tests.ports import free_port
from tests.train_job_site import kubeconfig
from tests.training_runs import make_autoencoder, make_samples, settings_for


def nodes_here(container: Container) -> int:
    """A node of a TrainJob as processes of this machine: torchrun finds its peers on loopback."""
    job = container.pod["metadata"]["labels"]["jobset.sigs.k8s.io/jobset-name"]
    here = {**worker_environment(), "GLOO_SOCKET_IFNAME": "lo", "PET_MASTER_ADDR": "127.0.0.1"}
    here |= {"PET_MASTER_PORT": str(PORTS.setdefault(job, free_port())), "PET_LOCAL_ADDR": "127.0.0.1"}
    given = {v["name"]: v["value"] for v in container.spec["env"] if "value" in v}
    container.spec["env"] = [{"name": name, "value": value} for name, value in {**given, **here}.items()]
    assert container.spec["command"][0] == "torchrun"
    container.spec["command"] = ["python", "-m", "torch.distributed.run", *container.spec["command"][1:]]
    return as_process(container)


PORTS: dict[str, int] = {}


@pytest.mark.slow
def test_a_stage_is_trained_on_two_nodes_and_goes_on_after_a_failure(tmp_path, monkeypatch):
    root, samples = make_samples(tmp_path / "work")
    settings = settings_for(make_autoencoder(tmp_path / "work" / "vae"), steps=8, checkpoint_every=1)
    cluster = {"work": str(tmp_path / "work"), "processes_per_node": 1, "gpu_resource": ""}
    monkeypatch.setenv("SVDFLOW_TRAINJOB", json.dumps(cluster))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with KubeAPI() as api, Controllers(api.store, nodes_here) as site:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(api, tmp_path / "kubeconfig")))
        checkpoints = root.scratch("training")
        hold = holding(tmp_path / "hold", Point(r"/checkpoints/step_\d+$", after=1))
        for name, value in hold.environment.items():
            monkeypatch.setenv(name, value)

        def kill_a_node() -> None:
            wait_for(lambda: any(checkpoints.glob("*/checkpoints/step_*")), 1200)
            pid = int(next(checkpoints.glob("*/attempts/*/beat-1.txt")).read_text().split()[0])
            os.kill(pid, signal.SIGKILL)
            hold.go_on.touch()

        thread = threading.Thread(target=kill_a_node, daemon=True)
        thread.start()
        with pytest.raises(TrainingFailed, match="TrainJob train-image-[0-9a-f]{16}: "):
            train_stage("image", samples, None, tmp_path / "broken", root, settings, {})
        thread.join()
        report = train_stage("image", samples, None, tmp_path / "out", root, settings, {})
        told = report.summary["training"]["image"]
        assert (told["steps"], told["world_size"]) == (8, 2) and told["resumed_from"] >= 1
        made = [r.body for r in api.asked("POST", "trainjobs") if r.status == 201]
        assert [b["spec"]["trainer"]["numNodes"] for b in made] == [2, 2]
        assert made[1]["metadata"]["name"] == made[0]["metadata"]["name"] + "-2"
        wait_for(lambda: not [o for o in api.store.objects(TRAINJOBS) if o["metadata"]["name"].endswith("-2")])
        assert site is not None
    assert (tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert not any(root.scratch("training").iterdir()), "what was kept on the work volume is cleared up"
    again = train_stage("image", samples, None, tmp_path / "again", root, settings, {})
    assert (again.done, again.reused) == (0, 1), "found, with no cluster there any more"
