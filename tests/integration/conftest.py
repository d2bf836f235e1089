"""Fixtures of the integration tests."""

from tests.dataset_bench import bench, store  # noqa: F401
