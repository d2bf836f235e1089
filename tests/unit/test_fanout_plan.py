"""What a fan-out over pods writes down: units and values come back as they were, and nothing else comes in."""

import json
import math
from pathlib import Path

import pytest

from svdflow.common.errors import BadInputError, ConfigError
from svdflow.common.fanout import Limits, LocalProcesses, chosen_executor
from svdflow.common.fanout_files import remove_files
from svdflow.common.fanout_plan import (
    MAX_INDEXES,
    Part,
    Plan,
    load_function,
    name_of,
    read_part,
    read_plan,
    read_units,
    write_part,
    write_plan,
)
from svdflow.common.storage import DataRoot
from tests.fanout_work import Done, Task, Taste, square, squares_together, unmarked


@pytest.fixture(autouse=True)
def let_in(monkeypatch):
    monkeypatch.setenv("SVDFLOW_FANOUT_PACKAGES", "tests")


@pytest.fixture
def root(tmp_path) -> DataRoot:
    return DataRoot.open(tmp_path / "data")


def tasks(count: int) -> list[Task]:
    return [Task(n, f"na\n{n} ü", "/tmp", Taste(sizes=(n,)), ratio=n / 3 if n % 2 else None) for n in range(count)]


def planned(root: DataRoot, units: list[Task], per_index: int = 3) -> Plan:
    return write_plan(root, "squares", square, squares_together, units, per_index, 2, Limits(5.0, None, 2))[0]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_the_indexes_units_put_together_are_all_units_as_they_were(root, count):
    units = tasks(count)
    plan = planned(root, units)
    assert [unit for index in range(plan.indexes) for unit in read_units(root, plan, index)] == units
    assert read_plan(root, plan.name) == plan


def test_parts_are_even_and_there_are_never_more_than_the_api_server_takes():
    plan = Plan("a", "b", None, 123_457, MAX_INDEXES, 1, {}, "")
    sizes = [len(plan.part(index)) for index in range(plan.indexes)]
    assert sum(sizes) == 123_457 and max(sizes) - min(sizes) == 1
    assert all(a.stop == b.start for a, b in zip(map(plan.part, range(99)), map(plan.part, range(1, 100)), strict=True))


def test_many_units_go_to_at_most_so_many_indexes(root, monkeypatch):
    monkeypatch.setattr("svdflow.common.fanout_plan.MAX_INDEXES", 4)
    assert planned(root, tasks(20)).indexes == 4


def test_equal_units_have_one_plan_and_other_units_another(root):
    assert planned(root, tasks(4)).name == planned(root, tasks(4)).name != planned(root, tasks(5)).name


def test_outcomes_come_back_as_they_were(root):
    plan = planned(root, tasks(3))
    outcomes = {
        0: (Done(4, b"\x00\xff\n\t", math.inf, 1), None, 0.25),
        2: (None, "refused: \n not a video", 1.5),
    }
    write_part(root, plan, 0, Part(outcomes, begun=2))
    assert read_part(root, plan, 0) == Part(outcomes, begun=2)
    assert read_part(root, planned(root, tasks(9)), 2) == Part({})


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\x80\x04K\x01.",
        b"[]",
        b'{"begun": 1, "done": true, "storage_error": null}\n[99, null, 0]\t[1]',
        b'{"begun": 1, "done": true, "storage_error": null}\n[0, null, 0]\t[{"square": "many"}]',
        b'{"begun": 1, "done": true, "storage_error": null}\n[0, 3, 0]\t',
        b'{"begun": 1}\n',
    ],
)
def test_outcomes_that_no_pod_of_ours_writes_are_refused(root, text):
    plan = planned(root, tasks(3))
    root.put_named(plan.outcomes_uri(0), text)
    with pytest.raises(BadInputError, match="no outcomes that can be read"):
        read_part(root, plan, 0)


def test_outcomes_without_end_are_refused(root, monkeypatch):
    monkeypatch.setattr("svdflow.common.fanout_plan._MAX_OUTCOMES_BYTES", 100)
    plan = planned(root, tasks(3))
    root.put_named(plan.outcomes_uri(0), b" " * 101)
    with pytest.raises(BadInputError, match="more than"):
        read_part(root, plan, 0)


@pytest.mark.parametrize(
    "path", ["os:system", "subprocess:run", "svdflow.common.fanout:absent", "tests.fanout_work:Task.taste", "x", ""]
)
def test_a_plan_names_no_function_but_ours(path):
    with pytest.raises(ConfigError):
        load_function(path)


def test_a_function_has_to_be_marked_and_its_package_let_in(monkeypatch):
    assert load_function(name_of(square)) is square
    with pytest.raises(ConfigError, match="mark it"):
        name_of(unmarked)
    monkeypatch.delenv("SVDFLOW_FANOUT_PACKAGES")
    with pytest.raises(ConfigError, match="names no function of svdflow"):
        name_of(square)


def test_a_plan_of_another_version_is_refused_and_one_that_is_gone_is_none(root):
    plan = planned(root, tasks(3))
    raw = json.loads(root.read(plan.uri("plan.json")))
    root.put_named(plan.uri("plan.json"), json.dumps({**raw, "svdflow": "0.0.1"}).encode())
    with pytest.raises(ConfigError, match="written by svdflow 0.0.1"):
        read_plan(root, plan.name)
    root.put_named(plan.uri("plan.json"), b"[]")
    with pytest.raises(ConfigError, match="no plan"):
        read_plan(root, plan.name)
    remove_files(root, plan.name)
    assert read_plan(root, plan.name) is None and list(root.list(plan.uri(""))) == []
    with pytest.raises(ConfigError):
        read_plan(root, "../results")


def test_where_units_are_worked_on_is_chosen_by_the_environment(root, monkeypatch):
    assert isinstance(chosen_executor(root, "squares", "key"), LocalProcesses)
    monkeypatch.setenv("SVDFLOW_FANOUT", "kubernetes")
    with pytest.raises(ConfigError, match="SVDFLOW_FANOUT: has to be a mapping"):
        chosen_executor(root, "squares", "key")
    monkeypatch.setenv("SVDFLOW_FANOUT", "{}")
    assert chosen_executor(root, "squares", "key").settings.queue == "fan-out"
    monkeypatch.setenv("SVDFLOW_FANOUT", "{image: registry.example/curation:1, node_selector: {svdflow/gpu: a100}}")
    chosen = chosen_executor(root, "squares", "key")
    assert chosen.settings.node_selector == {"svdflow/gpu": "a100"}
    monkeypatch.setenv("SVDFLOW_FANOUT", "{memory: lots, gpu: 1}")
    with pytest.raises(ConfigError, match=r"SVDFLOW_FANOUT.memory: .*SVDFLOW_FANOUT.gpu: "):
        chosen_executor(root, "squares", "key")


def test_the_steps_functions_can_be_called_in_pods():
    from svdflow.common.fanout_plan import adapters
    from svdflow.curation.split.split import _split_video

    for function in (_split_video,):
        assert load_function(name_of(function)) is function
        adapters(function)


def test_files_of_a_plan_lie_below_one_prefix(root):
    plan = planned(root, tasks(3))
    assert sorted(Path(uri).name for uri in root.list(f"fanout/{plan.name}")) == ["ids", "plan.json", "units"]
