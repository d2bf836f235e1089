"""What runs: pods, their rights, resources and images, as kustomize renders them."""

import re

import yaml

from tests.rendered import FIRST, INFRA, MIRROR, containers, label, pod_templates, selects


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
