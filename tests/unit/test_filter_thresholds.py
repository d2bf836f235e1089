"""Cuts on whole sets against NumPy, and what must hold for any set."""

import math

import duckdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from svdflow.common.config import validate_settings
from svdflow.common.errors import ConfigError
from svdflow.common.manifests import AXES
from svdflow.curation.filter.settings import FilterSettings
from svdflow.curation.filter.thresholds import DROPS_ABOVE, find_cut, value_sql

FEW_VALUES = st.sampled_from([0.0, 0.25, 0.5, 1.0])  # many ties
VALUES = st.lists(st.one_of(st.none(), FEW_VALUES, st.floats(-5, 5, width=32)), min_size=1, max_size=60)
PERCENTS = st.sampled_from([0.0, 5.0, 12.5, 25.0, 50.0, 99.0])
QUICK = hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NO_LIMITS = {"text_max_area": None}


@pytest.fixture(scope="module")
def connection():
    with duckdb.connect() as opened:
        opened.execute("SET threads = 1")
        yield opened


def cut_of(connection, axis: str, values: list, **asked):
    rows = ", ".join(f"({'NULL' if v is None else f'{v!r}'}::DOUBLE)" for v in values)
    connection.execute(f"CREATE OR REPLACE TEMP TABLE scored AS SELECT * FROM (VALUES {rows}) t({axis}_value)")
    return find_cut(connection, axis, FilterSettings(**{**NO_LIMITS, **asked}))


def dropped_by(cut, values: list) -> np.ndarray:
    array = np.array([np.nan if v is None else v for v in values])
    if cut.value is None:
        return np.zeros(len(array), bool)
    return array > cut.value if cut.above else array < cut.value


@QUICK
@given(values=VALUES, percent=PERCENTS, axis=st.sampled_from(AXES))
def test_the_cut_comes_as_close_to_what_was_asked_as_values_alone_can(connection, values, percent, axis) -> None:
    cut = cut_of(connection, axis, values, **{f"{axis}_percent": percent})
    there = np.array([v for v in values if v is not None])
    dropped = int(dropped_by(cut, values).sum())
    assert (cut.dropped, cut.missing) == (dropped, len(values) - len(there))
    assert cut.realised_percent == pytest.approx(100 * dropped / len(there) if len(there) else 0)
    wanted = math.floor(len(there) * percent / 100 + 1e-9)
    sign = -1 if DROPS_ABOVE[axis] else 1
    possible = sorted({int((sign * there < v).sum()) for v in sign * there}) or [
        0
    ]  # every way to drop the worst, keeping some
    best = min(possible, key=lambda count: (abs(count - wanted), count))
    assert dropped == (best if percent else 0)


@QUICK
@given(values=st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=80, unique=True), percent=PERCENTS)
def test_without_ties_the_share_is_numpys(connection, values, percent) -> None:
    cut = cut_of(connection, "motion", values, motion_percent=percent)
    wanted = math.floor(len(values) * percent / 100 + 1e-9)
    assert sorted(np.array(values)[dropped_by(cut, values)]) == sorted(values)[:wanted]


@QUICK
@given(values=VALUES, seed=st.integers(0, 9), percent=PERCENTS)
def test_the_order_of_the_rows_does_not_matter(connection, values, seed, percent) -> None:
    shuffled = [values[i] for i in np.random.default_rng(seed).permutation(len(values))]
    assert cut_of(connection, "aesthetic", values, aesthetic_percent=percent) == cut_of(
        connection, "aesthetic", shuffled, aesthetic_percent=percent
    )


def test_a_limit_and_a_percentage_join_to_the_stricter(connection) -> None:
    areas = [0.0, 0.01, 0.02, 0.03, 0.08, 0.09, 0.10, 0.11]
    assert cut_of(connection, "text", areas, text_percent=25, text_max_area=0.07).value == 0.07
    assert cut_of(connection, "text", areas, text_percent=62.5, text_max_area=0.07).value == 0.02
    assert cut_of(connection, "text", areas, text_percent=0, text_max_area=None).value is None
    assert cut_of(connection, "motion", areas, motion_percent=0, motion_min=0.05).dropped == 4


def test_exactly_seven_percent_of_text_is_kept(connection) -> None:
    assert cut_of(connection, "text", [0.07, math.nextafter(0.07, 1)], text_percent=0, text_max_area=0.07).dropped == 1


@pytest.mark.parametrize(
    ("reduce", "captions", "expected"),
    [("mean", "mean", (0.2 + 0.5 + 0.6) / 3), ("min", "max", 0.6), ("max", "min", 0.3), ("max", "max", 0.6)],
)
def test_frames_and_captions_are_reduced_as_asked_and_nan_is_no_value(connection, reduce, captions, expected) -> None:
    settings = FilterSettings(similarity_reduce=reduce, similarity_caption_reduce=captions)
    frames = {"image": "0.1, 0.2, 0.3", "video": "'nan'::DOUBLE, 0.5, NULL", "summary": "0.6, 0.6, 0.6"}
    row = "SELECT " + ", ".join(f"[{values}]::DOUBLE[3] AS similarity_{caption}" for caption, values in frames.items())
    assert connection.execute(f"SELECT {value_sql('similarity', settings)} FROM ({row})").fetchone()[
        0
    ] == pytest.approx(expected)


def test_a_clip_with_no_finite_value_has_none(connection) -> None:
    row = (
        "SELECT ['nan'::DOUBLE, NULL, 'inf'] AS text_area, NULL::DOUBLE[3] AS aesthetic, 'nan'::DOUBLE AS motion_score"
    )
    for axis in ("text", "aesthetic", "motion"):
        assert connection.execute(f"SELECT {value_sql(axis, FilterSettings())} FROM ({row})").fetchone()[0] is None


def test_the_defaults_are_the_papers() -> None:
    s = FilterSettings()
    assert (s.motion_percent, s.aesthetic_percent, s.similarity_percent, s.text_percent, s.text_max_area) == (
        25,
        25,
        50,
        25,
        0.07,
    )
    with pytest.raises(ConfigError, match="filter.motion_percent"):
        validate_settings(FilterSettings, "filter", {"motion_percent": 100})


def test_independent_axes_leave_a_fifth_as_the_papers_shares_multiply(connection) -> None:
    """0.75 * 0.75 * 0.50 * 0.75 = 21 %: each cut is made on the unfiltered set, the masks are joined."""
    rng = np.random.default_rng(0)
    kept = np.ones(4000, bool)
    for axis in AXES:
        values = rng.normal(size=4000).tolist()
        kept &= ~dropped_by(cut_of(connection, axis, values), values)
    assert kept.mean() == pytest.approx(0.75 * 0.75 * 0.5 * 0.75, abs=0.02)
