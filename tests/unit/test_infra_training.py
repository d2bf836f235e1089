"""Where training runs: the MPI runtime, queues, flavors and the machines behind them."""

import re

from tests.rendered import QUEUE, Manifest, label, pod_templates


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
