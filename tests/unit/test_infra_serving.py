"""How models are served: two tracks behind a gateway that asks for a token."""

import re

import pytest
import yaml

from tests.rendered import INFRA, label


def test_the_two_tracks_serve_what_the_overlay_names_and_the_gateway_knows_both(rendered):
    for name in ("dev", "production", "gke", "airgapped"):
        by_label = {label(m): m for m in rendered[name]}
        for track in ("stable", "canary"):
            pod = by_label[f"Deployment/triton-{track}"]["spec"]["template"]
            assert pod["metadata"]["annotations"]["svdflow/release"] != "none"
            for container in pod["spec"]["initContainers"]:
                (release,) = (e["valueFrom"] for e in container["env"] if e["name"] == "MODEL_RELEASE")
                assert release["fieldRef"]["fieldPath"] == "metadata.annotations['svdflow/release']"
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
