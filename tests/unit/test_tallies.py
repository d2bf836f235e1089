"""What a report keeps of many items: the same in whatever order they come, and no more with more of them."""

import random

from svdflow.common.tallies import Least, Seconds


def test_the_least_are_kept_in_any_order_and_no_more_than_twice_as_many_are_held():
    for seed in range(5):
        least = Least[str](10)
        for key in random.Random(seed).sample(range(1000), 1000):
            least.add(key, f"item {key}")
            assert len(least._kept) < 20
        assert list(least) == [f"item {key}" for key in range(10)] and least.seen == 1000


def test_a_sum_of_seconds_does_not_depend_on_the_order():
    lengths = [random.Random(1).uniform(0, 20) for _ in range(1000)]
    sums = set()
    for seed in range(5):
        total = Seconds()
        for length in random.Random(seed).sample(lengths, 1000):
            total.add(length)
        sums.add(total.value)
    assert len(sums) == 1 and abs(sums.pop() - sum(lengths)) < 1e-3
