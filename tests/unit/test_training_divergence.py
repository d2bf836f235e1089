"""A run that goes astray is stopped; one bad batch is not taken for that."""

import math

import pytest

from svdflow.training.train.divergence import Divergence


def after(values, ratio=100.0, steps=3, norms=None):
    watch = Divergence(ratio, steps)
    for index, value in enumerate(values):
        if wrong := watch.look(value, norms[index] if norms else 1.0):
            return index, wrong
    return None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_ends_the_run_at_once(value):
    assert after([1.0, 1.0, value]) == (2, "the loss is not a number")
    assert after([1.0] * 3, norms=[1.0, value, 1.0]) == (1, "the gradient norm is not a number")


def test_a_loss_that_stays_far_above_its_median_ends_the_run():
    index, wrong = after([1.0, 1.2, 0.8] * 10 + [500.0, 600.0, 700.0])
    assert index == 32 and "the loss is 700, its median was 1, for 3 steps in a row" in wrong


def test_one_bad_batch_a_slow_rise_and_a_rough_start_do_not():
    assert after([1.0] * 20 + [500.0, 500.0, 1.0] * 10) is None
    assert after([1.0 + 0.2 * i for i in range(400)]) is None
    assert after([1e6, 1.0, 1e5, 1.0, 1.0] + [1.0] * 20) is None


def test_no_checkpoint_is_due_while_it_looks_bad():
    watch = Divergence(100, 3)
    for _ in range(20):
        watch.look(1.0, 1.0)
    assert not watch.suspicious
    watch.look(1000.0, 1.0)
    assert watch.suspicious
    watch.look(1.0, 1.0)
    assert not watch.suspicious


def test_a_run_that_goes_on_is_judged_by_what_was_usual_before():
    fresh, resumed = Divergence(100, 3), Divergence(100, 3)
    resumed.remember([1e4] + [1.0] * 300 + [500.0] + [1.0] * 20, [1.0] * 322)
    assert not resumed.suspicious
    for watch, ends in ((fresh, None), (resumed, "the loss is 700, its median was 1, for 3 steps in a row")):
        assert [watch.look(value, 1.0) for value in (500.0, 600.0, 700.0)] == [None, None, ends]
