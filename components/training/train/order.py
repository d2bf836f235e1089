"""The order of a stage's samples: batches of one bucket each, every sample once an epoch, datasets by weight.

Everything here is a function of the seed, the global batch size and the number of the step, so that it does not matter
how a batch is split, and a resumed run needs its step number only.

* Each bucket of each dataset is an endless stream: its samples in one order, then in another, and so on. A batch takes
  the next of a stream; what is left over at the end of an epoch begins the next one's first batch. Nothing is dropped,
  and at any time the samples of a stream have been seen equally often, but for one.
* An epoch is as many batches as the samples fill: bucket b with r_b batches' worth of samples an epoch, in general no
  whole number, has had floor(e r_b) batches after e epochs. Within an epoch the buckets' batches are shuffled.
* With several datasets of weights w_j, bucket b has the share sum_j w_j n_jb / n_j of the batches, and within a batch
  the dataset of each sample is drawn: the share of a dataset in the long run is its weight, whatever its size, and
  within it every bucket has the share of its samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from ...common.errors import BadInputError

_ORDER, _BATCHES, _MIX = 1, 6, 7  # streams of random numbers, apart from those of ``draws``
_BLOCK = 1 << 16  # draws of datasets that are made at once

Place = tuple[int, Any]  # dataset and bucket of a sample


class Order:
    """Which sample stands where in which batch.

    Args:
        places: dataset and bucket of each sample.
        batch: global batch size.
        seed: of all choices.
        weights: of the datasets; equal for all by default.

    Raises:
        BadInputError: there are no samples, or none of a dataset.
    """

    def __init__(self, places: Sequence[Place], batch: int, seed: int, weights: Sequence[float] = (1.0,)) -> None:
        if not places:
            raise BadInputError("the samples manifest holds no training sample: loosen the filter or add footage")
        self.batch, self.seed = batch, seed
        groups: dict[tuple[Any, int], list[int]] = {}
        for row, (dataset, bucket) in enumerate(places):
            groups.setdefault((bucket, dataset), []).append(row)
        names = sorted({bucket for bucket, _ in groups})
        sizes = [sum(len(rows) for (_, d), rows in groups.items() if d == dataset) for dataset in range(len(weights))]
        if 0 in sizes:
            raise BadInputError(
                f"dataset {sizes.index(0)} of the mix holds no training sample that the stage can use; leave it out"
            )
        total = sum(map(Fraction, weights))
        self._streams: list[_Bucket] = []
        self._rates: list[Fraction] = []  # batches of each bucket an epoch
        for index, name in enumerate(names):
            shares = {
                dataset: Fraction(weights[dataset]) / total * len(rows) / sizes[dataset]
                for (bucket, dataset), rows in sorted(groups.items(), key=lambda item: item[0][1])
                if bucket == name
            }
            self._rates.append(sum(shares.values(), Fraction(0)) * len(places) / batch)
            alone = len(groups) == 1
            streams = {
                dataset: _Stream(groups[name, dataset], (seed,), () if alone else (index + 1, dataset + 1))
                for dataset in shares
            }
            self._streams.append(_Bucket(streams, shares, (seed, index)))
        self._epoch, self._labels = -1, np.empty(0, np.int64)
        self._step, self._found = -1, (0, 0)

    def row(self, step: int, place: int) -> int:
        """The sample at a place of a step's global batch."""
        if step != self._step:
            self._step, self._found = step, self._batch(step)
        bucket, number = self._found
        return self._streams[bucket].row(number * self.batch + place)

    def _batch(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and how many batches of that bucket come before."""
        if len(self._streams) == 1:
            return 0, step
        epoch = int(step / sum(self._rates))
        while self._before(epoch) > step:
            epoch -= 1
        while self._before(epoch + 1) <= step:
            epoch += 1
        if epoch != self._epoch:
            counts = [math.floor((epoch + 1) * rate) - math.floor(epoch * rate) for rate in self._rates]
            labels = np.repeat(np.arange(len(counts)), counts)
            self._epoch, self._labels = epoch, generator(_BATCHES, self.seed, epoch).permutation(labels)
        place = step - self._before(epoch)
        bucket = int(self._labels[place])
        earlier = int(np.count_nonzero(self._labels[:place] == bucket))
        return bucket, math.floor(epoch * self._rates[bucket]) + earlier

    def _before(self, epoch: int) -> int:
        return sum(math.floor(epoch * rate) for rate in self._rates)


class _Stream:
    """The samples of one bucket of one dataset, over and over, each time in another order."""

    def __init__(self, rows: Sequence[int], seed: tuple[int, ...], name: tuple[int, ...]) -> None:
        self.rows, self.seed, self.name = np.asarray(rows), seed, name
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def row(self, position: int) -> int:
        epoch, place = divmod(position, len(self.rows))
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = generator(_ORDER, *self.seed, epoch, *self.name).permutation(len(self.rows))
        return int(self.rows[self._permutation[place]])


class _Bucket:
    """The streams of one bucket, mixed by their shares."""

    def __init__(self, streams: dict[int, _Stream], shares: dict[int, Fraction], key: tuple[int, ...]) -> None:
        self.streams, self.key = list(streams.values()), key
        total = sum(shares.values(), Fraction(0))
        self.bounds = np.cumsum([float(share / total) for share in shares.values()])
        self._before = [np.zeros(len(self.streams), np.int64)]  # draws of each stream before each block
        self._block, self._drawn = -1, np.empty(0, np.int64)

    def row(self, position: int) -> int:
        if len(self.streams) == 1:
            return self.streams[0].row(position)
        block, place = divmod(position, _BLOCK)
        while len(self._before) <= block:  # what came before is counted once, from the start
            last = self._draws(len(self._before) - 1)
            self._before.append(self._before[-1] + np.bincount(last, minlength=len(self.streams)))
        drawn = self._draws(block)
        stream = int(drawn[place])
        return self.streams[stream].row(int(self._before[block][stream] + np.count_nonzero(drawn[:place] == stream)))

    def _draws(self, block: int) -> np.ndarray:
        if block != self._block:
            numbers = generator(_MIX, *self.key, block).random(_BLOCK)
            drawn = np.searchsorted(self.bounds, numbers, side="right")
            self._block, self._drawn = block, np.minimum(drawn, len(self.streams) - 1)
        return self._drawn


def generator(*key: int) -> np.random.Generator:
    """Random numbers that are a function of the key."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
