"""Fixtures of the unit tests: the manifests of infra/."""

import pytest

from tests import rendered as infra
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
