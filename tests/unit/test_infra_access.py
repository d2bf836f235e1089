"""Who may do what: namespace, accounts, roles, tokens and secrets."""

import re

from svdflow.common.cluster.api import SERVICE_ACCOUNT
from tests.rendered import INFRA, containers, label, pod_templates, reach


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
