"""Fixtures of the unit tests: the manifests of infra/, and a cluster's API server."""

from collections.abc import Iterator

import pytest

from svdflow.common.cluster.api import Cluster
from tests import rendered as infra
from tests.cluster_objects import NS
from tests.fakes.kube_api import KubeAPI
from tests.rendered import JOBS, OVERLAYS, Manifest


@pytest.fixture
def rendered() -> dict[str, list[Manifest]]:
    """Every overlay and job as kustomize renders it."""
    return infra.rendered()


@pytest.fixture(params=[*OVERLAYS, *JOBS])
def manifests(request: pytest.FixtureRequest, rendered: dict[str, list[Manifest]]) -> list[Manifest]:
    return rendered[request.param]


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest, rendered: dict[str, list[Manifest]]) -> list[Manifest]:
    return rendered[request.param]


@pytest.fixture
def api() -> Iterator[KubeAPI]:
    with KubeAPI() as server:
        yield server


@pytest.fixture
def cluster(api) -> Iterator[Cluster]:
    with Cluster(api.configuration, NS, patience_s=120) as connection:
        yield connection
