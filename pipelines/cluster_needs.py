"""What runs on a cluster need there, by name: of infra's manifests, and of what has to be installed beside them."""

from __future__ import annotations

from dataclasses import dataclass

_KFP = "install Kubeflow Pipelines 2.15 to 2.17"
_KUEUE = "install a Kueue that serves v1beta2, with its TrainJob and batch/job integrations on"


@dataclass(frozen=True)
class Api:
    """Kinds of one API that have to be served."""

    what: str
    group: str
    version: str
    plurals: tuple[str, ...]
    remedy: str
    needed: bool = True

    @property
    def path(self) -> str:
        """Where the API lists them."""
        return f"/apis/{self.group}/{self.version}"


APIS = (
    Api("Jobs", "batch", "v1", ("jobs",), "upgrade the cluster"),
    Api(
        "Kubeflow Trainer", "trainer.kubeflow.org", "v1alpha1", ("trainjobs", "clustertrainingruntimes"),
        "install Kubeflow Trainer 2.2 or newer",
    ),
    Api("JobSet", "jobset.x-k8s.io", "v1alpha2", ("jobsets",), "install JobSet; Kubeflow Trainer comes with it"),
    Api(
        "Kueue", "kueue.x-k8s.io", "v1beta2", ("localqueues", "clusterqueues", "resourceflavors", "workloads"), _KUEUE
    ),
    Api("Argo Workflows", "argoproj.io", "v1alpha1", ("workflows",), _KFP),
    Api("KServe", "serving.kserve.io", "v1beta1", ("inferenceservices",), "only overlays/kserve uses it", False),
    Api(
        "Prometheus operator", "monitoring.coreos.com", "v1", ("podmonitors", "prometheusrules"),
        "install it for dashboards, alerts and autoscaling", False,
    ),
    Api("KEDA", "keda.sh", "v1alpha1", ("scaledobjects",), "install it for autoscaled servers", False),
)  # fmt: skip

RUNTIME = "svdflow-torch"
RUNTIMES = {RUNTIME: "training", "svdflow-mpi": "training with starter: mpirun"}
QUEUES = {"research": "training", "fan-out": "per-clip work"}
PRIORITIES = ("svdflow-backfill", "svdflow-normal", "svdflow-release")

# name to whether nothing works without it, and what to do
SECRETS = {
    "svdflow-object-store": (False, "kubectl create secret generic …, unless workload identity does it (infra/README)"),
    "svdflow-registry-git": (False, "for dataset tags that are pushed to a git server"),
    "svdflow-captioning": (False, "for captions from an endpoint"),
    "svdflow-gateway-tls": (False, "for serving: kubectl create secret tls …"),
    "svdflow-image-pull": (False, "if the registry wants it"),
}
CONFIG_MAPS = {
    "svdflow-object-store": (True, "kubectl apply -k infra/overlays/… (base): where the object store is"),
    "svdflow-gateway-jwks": (False, "for serving: the keys that sign clients' tokens"),
    "svdflow-training": (False, "NCCL and RDMA variables, if the cluster needs them"),
}

# name to whether its pods are to have a token of the API
SERVICE_ACCOUNTS = {"pipeline-runner": True, "training": False, "fan-out": False, "serving": False}
RUNNER = "pipeline-runner"

# API group and resource to what the launchers do with it: the Role pipeline-runner
VERBS = {
    ("trainer.kubeflow.org", "trainjobs"): ("create", "get", "list", "watch", "patch", "delete"),
    ("batch", "jobs"): ("create", "get", "list", "watch", "patch", "delete"),
    ("", "pods"): ("get", "list", "watch"),
    ("", "pods/log"): ("get",),
    ("", "events"): ("list", "watch"),
    ("kueue.x-k8s.io", "workloads"): ("get", "list", "watch"),
    ("kueue.x-k8s.io", "localqueues"): ("get", "list", "watch"),
    ("argoproj.io", "workflows"): ("get",),
}
# what `svdflow runs stop` does at the console: the Role run-stopper
STOPPING = {
    ("trainer.kubeflow.org", "trainjobs"): ("get", "list", "patch", "delete"),
    ("batch", "jobs"): ("get", "list", "patch", "delete"),
}
