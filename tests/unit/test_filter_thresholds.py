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
from svdflow.curation.filter import thresholds
from svdflow.curation.filter.settings import FilterSettings
from svdflow.curation.filter.thresholds import find_cut
from svdflow.curation.filter.values import ANNOTATED, DROPS_ABOVE, value_sql

NAN = float("nan")
FEW_VALUES = st.sampled_from([0.0, 0.25, 0.5, 1.0, NAN])  # many ties
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
    rows = ", ".join("(NULL::DOUBLE)" if v is None else f"('{v!r}'::DOUBLE)" for v in values)
    connection.execute(f"CREATE OR REPLACE TEMP TABLE scored AS SELECT * FROM (VALUES {rows}) t({axis}_value)")
    return find_cut(connection, axis, FilterSettings(**{**NO_LIMITS, **asked}))


def dropped_by(cut, values: list) -> np.ndarray:
    array = np.array([np.nan if v is None else v for v in values])
    if cut.value is None:
        return np.zeros(len(array), bool)
    return array > cut.value if cut.above else array < cut.value


@QUICK
@given(values=VALUES, percent=PERCENTS, axis=st.sampled_from(ANNOTATED))
def test_the_cut_comes_as_close_to_what_was_asked_as_values_alone_can(connection, values, percent, axis) -> None:
    cut = cut_of(connection, axis, values, **{f"{axis}_percent": percent})
    there = np.array([v for v in values if v is not None and not math.isnan(v)])
    dropped = int(dropped_by(cut, values).sum())
    assert (cut.dropped, cut.missing) == (dropped, values.count(None))
    assert cut.nan == len(values) - len(there) - cut.missing
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


@QUICK
@given(values=st.lists(st.one_of(FEW_VALUES, st.floats(allow_infinity=False)), min_size=2, max_size=80), data=st.data())
def test_every_rank_is_numpys_however_the_values_are_spread(connection, values, data) -> None:
    """The search by bins, on sets too large to sort: here, of more than three."""
    there = np.sort([v for v in values if not math.isnan(v)])
    rank = data.draw(st.integers(0, max(len(there) - 1, 0)))
    cut = cut_of(connection, "motion", values)
    if len(there):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(thresholds, "_SORTED", 3)
            patch.setattr(thresholds, "_BINS", 4)
            found = thresholds._Values(connection, "motion_value", False, len(there), cut.low, cut.high)._at(rank)
        assert found == there[rank]


@QUICK
@given(values=VALUES, top=st.integers(1, 70), axis=st.sampled_from(ANNOTATED))
def test_so_many_of_the_best_are_kept_but_for_ties(connection, values, top, axis) -> None:
    cut = cut_of(connection, axis, values, **{f"{a}_percent": 0 for a in ANNOTATED} | {f"{axis}_top": top})
    there = np.array([v for v in values if v is not None and not math.isnan(v)])
    kept = len(there) - int(dropped_by(cut, values).sum())
    sign = -1 if DROPS_ABOVE[axis] else 1
    possible = {int((sign * there >= v).sum()) for v in sign * there} or {0}
    wanted = min(top, len(there))
    assert abs(kept - wanted) == min(abs(count - wanted) for count in possible)


def test_a_limit_and_a_percentage_join_to_the_stricter(connection) -> None:
    areas = [0.0, 0.01, 0.02, 0.03, 0.08, 0.09, 0.10, 0.11]
    assert cut_of(connection, "text", areas, text_percent=25, text_max_area=0.07).value == 0.07
    assert cut_of(connection, "text", areas, text_percent=62.5, text_max_area=0.07).value == 0.02
    assert cut_of(connection, "text", areas, text_percent=0, text_max_area=None).value is None
    assert cut_of(connection, "motion", areas, motion_percent=0, motion_min=0.05).dropped == 4


def test_exactly_seven_percent_of_text_is_kept(connection) -> None:
    assert cut_of(connection, "text", [0.07, math.nextafter(0.07, 1)], text_percent=0, text_max_area=0.07).dropped == 1


REDUCED = {"mean": np.nanmean, "min": np.nanmin, "max": np.nanmax}


@QUICK
@given(
    frames=st.lists(
        st.lists(st.one_of(st.just(NAN), st.floats(-1, 1)), min_size=3, max_size=3), min_size=3, max_size=3
    ),
    reduce=st.sampled_from(["mean", "min", "max"]),
    captions=st.sampled_from(["mean", "min", "max"]),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_frames_and_captions_are_reduced_as_numpy_does_to_the_last_bit(connection, frames, reduce, captions) -> None:
    settings = FilterSettings(similarity_reduce=reduce, similarity_caption_reduce=captions, text_reduce=reduce)
    lists = {
        name: ", ".join(f"'{v!r}'" for v in row)
        for name, row in zip(("image", "video", "summary"), frames, strict=True)
    }
    row = "SELECT " + ", ".join(f"[{values}]::DOUBLE[3] AS similarity_{caption}" for caption, values in lists.items())
    row += f", [{lists['image']}]::DOUBLE[3] AS text_area"
    expected = REDUCED[captions]([REDUCED[reduce](f) for f in frames]), REDUCED[reduce](frames[0])
    for axis, value in zip(("similarity", "text"), expected, strict=True):
        found = connection.execute(f"SELECT {value_sql(axis, settings)} FROM ({row})").fetchone()[0]
        assert found == value or (math.isnan(found) and math.isnan(value))


@pytest.mark.parametrize("axis", ANNOTATED)
def test_what_was_not_annotated_is_null_and_what_is_no_number_is_nan(connection, axis) -> None:
    columns = [
        "text_area",
        "aesthetic",
        "watermark",
        "nsfw",
        *(f"similarity_{c}" for c in ("image", "video", "summary")),
    ]

    def value(motion: str, frames: str):
        row = f"SELECT {motion}::DOUBLE AS motion_score, " + ", ".join(f"{frames}::DOUBLE[3] AS {c}" for c in columns)
        return connection.execute(f"SELECT {value_sql(axis, FilterSettings())} FROM ({row})").fetchone()[0]

    assert value("NULL", "NULL") is None and value("NULL", "[NULL, NULL, NULL]") is None
    assert math.isnan(value("'nan'", "['nan', NULL, 'inf']")) and math.isnan(value("'-inf'", "[NULL, NULL, 'inf']"))
    assert value("0.5", "['nan', '0.5', NULL]") == 0.5


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
    for axis in ANNOTATED:
        values = rng.normal(size=4000).tolist()
        kept &= ~dropped_by(cut_of(connection, axis, values), values)
    assert kept.mean() == pytest.approx(0.75 * 0.75 * 0.5 * 0.75, abs=0.02)
