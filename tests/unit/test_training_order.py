"""Batches are of one bucket, every sample is seen once an epoch, and datasets have the shares of their weights."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svdflow.common.errors import BadInputError
from svdflow.training.train.draws import Plan
from svdflow.training.train.order import Order
from svdflow.training.train.settings import stage_settings

WIDE, TALL, STILL = (14, 320, 576), (14, 576, 320), (1, 320, 576)


def places(*counts, dataset=0):
    """Samples of several buckets, well mixed."""
    rows = [(dataset, bucket) for count, bucket in zip(counts, (WIDE, TALL, STILL), strict=False) for _ in range(count)]
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


def batches(order, steps, first=0):
    return [[order.row(step, i) for i in range(order.batch)] for step in range(first, first + steps)]


@given(
    counts=st.tuples(st.integers(1, 40), st.integers(0, 25), st.integers(0, 9)),
    split=st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2), (4, 2), (3, 1)]),
    micro=st.integers(1, 4),
    seed=st.integers(0, 3),
)
@settings(max_examples=60)
def test_an_epoch_sees_every_sample_once_however_batches_are_cut(counts, split, micro, seed):
    processes, accumulation = split
    batch = processes * accumulation * micro
    rows = places(*counts)
    plan = Plan(
        stage_settings("video", {"batch": batch, "processes": processes, "accumulation": accumulation, "seed": seed}),
        rows,
    )
    seen: Counter[int] = Counter()
    by_bucket: Counter[tuple] = Counter()
    epochs = batch  # after so many, every bucket's samples fill whole batches: nothing is left over
    for step in range(epochs * len(rows) // batch):
        drawn = [
            [draw.row for draw in plan.micro_batch(step, index, rank, processes)]
            for index in range(accumulation)
            for rank in range(processes)
        ]
        assert all(len(one) == micro for one in drawn)
        (bucket,) = {rows[row][1] for one in drawn for row in one}
        by_bucket[bucket] += batch
        seen.update(row for one in drawn for row in one)
        for name in by_bucket:  # at any time, all samples of a bucket have been seen equally often but for one
            times = {seen[row] for row, (_, other) in enumerate(rows) if other == name}
            assert max(times) - min(times) <= 1
    assert set(seen.values()) == {epochs} and len(seen) == len(rows)


@given(counts=st.tuples(st.integers(1, 60), st.integers(1, 30), st.integers(1, 9)), batch=st.integers(1, 16))
@settings(max_examples=30)
def test_after_any_epoch_only_left_overs_smaller_than_a_batch_wait_for_the_next_one(counts, batch):
    rows = places(*counts)
    order = Order(rows, batch, 0)
    steps = [sum(epoch * count // batch for count in counts) for epoch in range(4)]
    for epoch, (begin, end) in enumerate(zip(steps, steps[1:], strict=False)):
        seen = Counter(row for drawn in batches(order, end) for row in drawn)
        for bucket in (WIDE, TALL, STILL):
            of_bucket = [row for row, (_, name) in enumerate(rows) if name == bucket]
            waiting = sum(epoch + 1 - seen[row] for row in of_bucket if seen[row] < epoch + 1)
            assert 0 <= waiting < batch and max(seen[row] for row in of_bucket) <= epoch + 1
        assert begin <= end


def test_buckets_take_turns_within_an_epoch_and_epochs_differ():
    order = Order(places(300, 100), 4, 0)
    epochs = [[order._batch(100 * epoch + step)[0] for step in range(100)] for epoch in range(2)]
    assert all(Counter(labels) == {1: 75, 0: 25} for labels in epochs) or all(
        Counter(labels) == {0: 75, 1: 25} for labels in epochs
    )
    assert epochs[0] != epochs[1]
    longest = max(len(run) for run in "".join(map(str, epochs[0])).replace("0", " ").split())
    assert longest < 30


def test_a_step_does_not_depend_on_what_was_asked_before():
    rows = places(37, 11, 5) + places(20, 8, dataset=1)
    order = Order(rows, 6, 3, (1.0, 2.0))
    later = batches(order, 3, first=70_000)
    batches(order, 2)
    assert batches(order, 3, first=70_000) == later == batches(Order(rows, 6, 3, (1.0, 2.0)), 3, first=70_000)
    assert batches(Order(rows, 6, 4, (1.0, 2.0)), 3, first=70_000) != later


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (0.1, 0.9)])
def test_the_shares_of_datasets_are_their_weights_whatever_their_sizes(weights):
    rows = places(200, 40) + places(6, 3, 1, dataset=1)
    order, steps = Order(rows, 8, 0, weights), 3000
    drawn = [row for one in batches(order, steps) for row in one]
    share = sum(rows[row][0] == 0 for row in drawn) / len(drawn)
    assert share == pytest.approx(weights[0] / sum(weights), abs=0.015)
    for dataset, size in ((0, 240), (1, 10)):  # within a dataset, all samples have equal shares
        counts = Counter(row for row in drawn if rows[row][0] == dataset)
        assert len(counts) == size
        expected = sum(counts.values()) / size
        assert all(abs(count - expected) < 0.25 * expected + 2 for count in counts.values())
    for step in range(300):
        assert len({rows[row][1] for row in drawn[8 * step : 8 * step + 8]}) == 1


def test_samples_of_a_dataset_are_seen_equally_often_but_for_one_in_a_mix_too():
    rows = places(23) + places(7, dataset=1)
    order = Order(rows, 5, 0, (1.0, 1.0))
    seen: Counter[int] = Counter()
    for one in batches(order, 400):
        seen.update(one)
        for dataset in (0, 1):
            times = [seen[row] for row in range(len(rows)) if rows[row][0] == dataset]
            assert max(times) - min(times) <= 1


def test_a_dataset_without_a_usable_sample_is_refused():
    with pytest.raises(BadInputError, match="dataset 1 of the mix holds no training sample"):
        Order(places(5), 2, 0, (1.0, 1.0))
