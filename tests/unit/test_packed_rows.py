"""Rows of a samples manifest read like the list of dictionaries that they would make, in a fraction of its memory."""

import gc
import weakref

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svdflow.training.train.packed_rows import PackedRows, only

SCHEMA = pa.schema({"clip_id": pa.string(), "starts": pa.list_(pa.int32()), "score": pa.float64()})
ROWS = [{"clip_id": f"c{n}", "starts": list(range(n % 3)), "score": n / 2 if n % 2 else None} for n in range(10_000)]


def packed(rows):
    return PackedRows(pa.Table.from_pylist(rows, SCHEMA))


def test_they_are_the_rows_in_their_order_singly_and_together():
    rows = packed(ROWS)
    assert len(rows) == 10_000 and list(rows) == ROWS
    assert [rows[n] for n in (0, 4095, 4096, 9999, -1)] == [ROWS[n] for n in (0, 4095, 4096, 9999, -1)]
    assert list(rows[2:5]) == ROWS[2:5] and not rows[5:5]
    with pytest.raises(IndexError):
        rows[10_000]
    assert list(rows.only("score"))[:2] == [{"score": None}, {"score": 0.5}] and only(ROWS, "score") is ROWS


@given(st.lists(st.lists(st.booleans(), max_size=20), min_size=1, max_size=4))
def test_a_choice_of_several_is_that_of_lists(wanted):
    parts = [ROWS[: len(choice)] for choice in wanted]
    joined = PackedRows.joined([packed(part).where(choice) for part, choice in zip(parts, wanted, strict=True)])
    assert list(joined) == [
        row for part, choice in zip(parts, wanted, strict=True) for row, keep in zip(part, choice, strict=True) if keep
    ]


def test_what_nobody_holds_any_more_goes_at_once():
    gc.disable()
    try:
        rows = packed(ROWS)
        rows[3]
        gone = weakref.ref(rows.table)
        del rows
        assert gone() is None
    finally:
        gc.enable()
