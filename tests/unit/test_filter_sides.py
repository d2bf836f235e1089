"""Train and held out: what is decided stays, both sides are there, near-duplicates never straddle."""

import hashlib

import duckdb
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from svdflow.common.storage import DataRoot
from svdflow.curation.filter import sides as module
from svdflow.curation.filter.settings import FilterSettings
from svdflow.curation.filter.sides import bar_from_training, below, deal, divide, draw, link, read_record, write_record

QUICK = hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
NAMES = [f"v{n:02d}" for n in range(40)]
SOURCES = {name: "footage" if n % 3 else "generated" for n, name in enumerate(NAMES)}
STAGES = st.lists(st.sets(st.sampled_from(NAMES), min_size=1, max_size=15), min_size=1, max_size=6)
PAIRS = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=12)


def groups_of(pairs, videos) -> dict[str, str]:
    """Groups of near-duplicates among the videos there are; a pair is alike, whatever else is there."""
    return link([(video, n) for n, pair in enumerate(pairs) if set(pair) <= set(videos) for video in pair])


@QUICK
@given(
    stages=STAGES, pairs=PAIRS, fraction=st.sampled_from([0.05, 0.2, 0.5, 0.9]), seed=st.sampled_from(["svdflow", "b"])
)
def test_videos_that_come_flip_no_side_whatever_they_join(stages, pairs, fraction, seed) -> None:
    """A set grows stage by stage, and what is new may link groups that were apart: nothing decided changes."""
    videos: set[str] = set()
    recorded: dict[str, str] = {}
    for coming in stages:
        videos |= coming
        dealt = deal({v: SOURCES[v] for v in videos}, groups_of(pairs, videos), recorded, fraction, seed)
        assert set(dealt) == videos
        assert all(dealt[video] == side for video, side in recorded.items())
        if len(set(dealt.values())) > 1:
            recorded = dealt


@QUICK
@given(videos=st.sets(st.sampled_from(NAMES), min_size=1), pairs=PAIRS, fraction=st.sampled_from([0.01, 0.2, 0.9]))
def test_a_first_division_has_both_sides_of_each_kind_and_parts_no_group(videos, pairs, fraction) -> None:
    groups = groups_of(pairs, videos)
    sources = {v: SOURCES[v] for v in videos}
    dealt = deal(sources, groups, {}, fraction, "svdflow")
    for group in set(groups.values()):
        assert len({dealt[v] for v in videos if groups.get(v) == group}) == 1
    by_kind: dict[str, set[str]] = {}
    for group in {groups.get(v, v) for v in videos}:
        members = [v for v in videos if groups.get(v, v) == group]
        by_kind.setdefault(min(sources[v] for v in members), set()).add(group)
    for found in by_kind.values():
        there = {dealt[v] for v in videos if groups.get(v, v) in found}
        assert there == ({"train", "held_out"} if len(found) > 1 else {"train"})


@QUICK
@given(
    stages=STAGES,
    kept=st.data(),
)
def test_sides_stay_when_the_clips_that_are_kept_change_too(stages, kept) -> None:
    """Cuts move when clips come: a video may leave the selection and return, to the side it was on."""
    videos: set[str] = set()
    recorded: dict[str, str] = {}
    for coming in stages:
        videos |= coming
        left = kept.draw(st.sets(st.sampled_from(sorted(videos))))
        dealt = deal({v: SOURCES[v] for v in left}, {}, recorded, 0.2, "svdflow")
        assert all(side == recorded.get(video, side) for video, side in dealt.items())
        if len(set(dealt.values())) > 1:
            recorded = dealt | recorded


def test_the_share_comes_out_and_depends_on_the_seed() -> None:
    sources = {f"v{n}": "footage" for n in range(4000)}
    one, other = deal(sources, {}, {}, 0.2, "one"), deal(sources, {}, {}, 0.2, "other")
    for dealt in (one, other):
        assert sum(side == "held_out" for side in dealt.values()) / 4000 == pytest.approx(0.2, abs=0.03)
    assert 0.6 < sum(one[v] == other[v] for v in sources) / 4000 < 0.76  # .8² + .2²


def test_a_larger_share_holds_out_those_that_a_smaller_one_does() -> None:
    assert draw("svdflow", "a") == hashlib.sha256(b"svdflow\0a").hexdigest()[:16]
    assert below(0.05) < below(0.1) < below(0.5) == "8000000000000000"
    assert deal({"one": "footage"}, {}, {}, 0.5, "seed") == {"one": "train"}


def tables(connection, videos: dict[str, str], places: dict[str, str]) -> None:
    """A clip of each video, kept; ``places``: video to the group of its clip."""
    connection.execute("CREATE TABLE sources (video BIGINT, video_id VARCHAR, source VARCHAR)")
    rows = [(n, name, kind) for n, (name, kind) in enumerate(sorted(videos.items()))]
    connection.executemany("INSERT INTO sources VALUES (?, ?, ?)", rows)
    connection.execute("CREATE TABLE judged AS SELECT video AS clip, video, true AS keep FROM sources")
    connection.execute("CREATE TABLE per_video AS SELECT video, 1 AS clips, 1 AS kept FROM sources")
    connection.execute('CREATE TABLE places (clip BIGINT, "group" VARCHAR, place BIGINT, barred BOOLEAN)')
    for n, name, _ in rows:
        if name in places:
            connection.execute("INSERT INTO places VALUES (?, ?, 0, false)", [n, places[name]])


def sides_in(connection) -> dict[str, str]:
    return dict(connection.execute("SELECT video_id, side FROM sides").fetchall())


def test_a_large_set_is_divided_by_the_hash_alone_and_still_heeds_the_record(root: DataRoot, monkeypatch) -> None:
    monkeypatch.setattr(module, "SMALL", 50)
    videos = {f"v{n}": "footage" for n in range(300)}
    settings = FilterSettings(held_out_fraction=0.2, split_seed="ü'; --")
    write_record(root, settings.split_seed, 0.2, {"v7": "held_out", "v8": "train", "gone": "held_out"})
    write_record(root, "another", 0.2, {"v9": "held_out"})
    with duckdb.connect() as connection:
        tables(connection, videos, {})
        found = divide(connection, root, settings)
        by_hash = {v: "held_out" if draw(settings.split_seed, v) < below(0.2) else "train" for v in videos}
        assert sides_in(connection) == by_hash | {"v7": "held_out", "v8": "train"}
        assert (found.recorded, found.decided) == (2, 0)


def test_a_small_set_is_recorded_and_grown_without_a_flip_through_the_data_root(root: DataRoot, monkeypatch) -> None:
    before: dict[str, str] = {}
    monkeypatch.setattr(module, "SMALL", 60)
    for count in (1, 2, 5, 20, 60, 200):  # the last is large: the hash alone decides on what is new
        with duckdb.connect() as connection:
            tables(connection, {f"v{n:03d}": "footage" for n in range(count)}, {})
            found = divide(connection, root, FilterSettings(held_out_fraction=0.1))
            now = sides_in(connection)
        assert all(now[video] == side for video, side in before.items())
        assert found.recorded == len(before) and not found.empty
        before = now if count > 1 else {}  # one video is no set to divide: nothing was decided
    assert len(read_record(root, "svdflow", 0.1)) == 60


def test_groups_that_a_new_video_links_stay_apart_and_the_training_clips_between_are_dropped(root: DataRoot) -> None:
    settings = FilterSettings(held_out_fraction=0.3)
    write_record(root, settings.split_seed, 0.3, {"a": "train", "b": "held_out", "c": "train"})
    with duckdb.connect() as connection:
        tables(connection, dict.fromkeys("abcde", "footage"), {"a": "g", "b": "g", "d": "g", "c": "h", "e": "h"})
        divide(connection, root, settings)
        sides = sides_in(connection)
        assert (sides["a"], sides["b"], sides["c"], sides["d"], sides["e"]) == ("train", "held_out", *["train"] * 3)
        assert bar_from_training(connection) == 2
        barred = connection.execute("SELECT clip FROM places WHERE barred ORDER BY clip").fetchall()
        assert barred == [(0,), (3,)]  # a and d are like b, which is held out


def test_two_runs_at_once_lose_no_record(root: DataRoot) -> None:
    write_record(root, "s", 0.1, {"a": "train", "b": "held_out"})
    write_record(root, "s", 0.1, {"a": "held_out", "c": "train"})
    assert read_record(root, "s", 0.1) == {"a": "held_out", "b": "held_out", "c": "train"}
    assert read_record(root, "s", 0.2) == {}
