"""Fixtures of the integration tests."""

from tests.dataset_bench import bench, store  # noqa: F401
from tests.fanout_lab import lab  # noqa: F401
