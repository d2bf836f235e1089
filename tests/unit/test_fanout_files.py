"""What fan-outs leave behind in the data root goes once nobody can wait for it any more."""

import os
import time

import pytest

from svdflow.common.fanout import Limits
from svdflow.common.fanout_files import remove_files, resting
from svdflow.common.fanout_manifest import FanoutSettings, files_of, indexed_job
from svdflow.common.fanout_plan import KEEP_S, Part, Plan, read_part, read_plan, write_part, write_plan
from svdflow.common.storage import DataRoot
from tests.fanout_work import Done, Task, square

HOUR = 3600.0


@pytest.fixture
def root(tmp_path, monkeypatch) -> DataRoot:
    monkeypatch.setenv("SVDFLOW_FANOUT_PACKAGES", "tests")
    return DataRoot.open(tmp_path / "data")


def planned(root: DataRoot, label: str = "squares", per_index: int = 3, keep_s: float = 10 * HOUR) -> Plan:
    units = [Task(number, "a", "/tmp") for number in range(6)]
    return write_plan(root, label, square, None, units, per_index, 2, Limits(5.0, None, 2), keep_s)[0]


def written(root: DataRoot, plan: Plan, hours_ago: float, *files: str) -> None:
    at = time.time() - hours_ago * HOUR
    for uri in [plan.uri(name) for name in files] or list(root.list(f"fanout/{plan.name}/")):
        os.utime(root.fetch(uri), (at, at))


def test_a_fan_out_rests_when_nothing_was_written_for_as_long_as_its_plan_lets_it_wait(root):
    waits, lost = planned(root, "waits", keep_s=60 * HOUR), planned(root, "lost", keep_s=10 * HOUR)
    written(root, waits, 40)
    written(root, lost, 40)
    assert resting(root, time.time()) == [lost.name]
    assert resting(root, time.time() + 30 * HOUR) == sorted([lost.name, waits.name])


def test_one_outcome_shows_that_somebody_still_works(root):
    plan = planned(root)
    written(root, plan, 40)
    write_part(root, plan, 1, Part({0: (Done(1, b"", None, 1), None, 0.1)}, 1))
    assert resting(root, time.time()) == []
    written(root, plan, 11)
    assert resting(root, time.time()) == [plan.name]


def test_a_grace_that_is_longer_than_the_plan_s_own_counts_and_a_shorter_one_does_not(root):
    plan = planned(root)
    written(root, plan, 40)
    assert resting(root, time.time(), at_least_s=50 * HOUR) == []
    written(root, plan, 5)
    assert resting(root, time.time(), at_least_s=0.0) == []


@pytest.mark.parametrize("broken", [b"", b"[]", b"{}", b'{"keep_s": "long"}', None])
def test_a_plan_that_does_not_tell_may_rest_for_two_days(root, broken):
    plan = planned(root)
    root.remove(plan.uri("plan.json")) if broken is None else root.put_named(plan.uri("plan.json"), broken)
    written(root, plan, KEEP_S / HOUR - 1)
    assert resting(root, time.time()) == []
    assert resting(root, time.time() + 2 * HOUR) == [plan.name]


def test_a_fan_out_that_has_just_been_written_never_rests(root):
    plan = planned(root, keep_s=0.0)
    assert resting(root, time.time()) == [] and resting(root, time.time() + 2 * HOUR) == [plan.name]


def test_two_plans_of_the_same_units_have_files_of_their_own(root):
    """Two runs that begin at once, with other settings: neither writes over the other's plan, or removes it."""
    one, other = planned(root, per_index=3), planned(root, per_index=2)
    assert one.indexes == 2 and other.indexes == 3 and planned(root, per_index=3) == one
    remove_files(root, other.name)
    assert read_plan(root, one.name) == one and read_plan(root, other.name) is None
    assert read_part(root, one, 0) == Part({})


def test_a_job_tells_where_its_files_are(root):
    plan = planned(root)
    job = indexed_job(FanoutSettings(image="i"), plan, "squares-1", "key", 1, "s3://bucket/data", None)
    other = {"metadata": {"name": "x"}, "spec": {"template": {"spec": {"containers": [{"name": "worker"}]}}}}
    assert files_of([other, job]) == [("s3://bucket/data", plan.name)]
