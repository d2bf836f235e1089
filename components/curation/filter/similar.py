"""Groups of rows that are alike: connected components of cosine similarity above a bound, in bounded memory.

Exact up to a number of rows: every pair is looked at, in blocks. The time is held down by a bound that never loses a
pair: of the leading principal directions and the length of what remains, Cauchy and Schwarz give an upper limit of the
cosine, and only the few pairs that reach it are computed in full.

Beyond that number, rows are compared within clusters (as SemDeDup does, arXiv 2303.09540), here within the two nearest
clusters of each. A pair whose members share neither is missed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_BLOCK = 2048  # rows of a block of comparisons
_LEAD = 64  # principal directions of the bound
_SLACK = 1e-4  # of single precision, so that the bound loses no pair
_SAMPLE = 20_000  # rows that principal directions are taken from
_PAIRS = 8192  # pairs that are computed in full at once
_CLUSTER = 4096  # rows of a cluster, on average
_ITERATIONS = 10  # of k-means


class Groups:
    """Disjoint groups of rows; each is named by its lowest row."""

    def __init__(self, rows: int) -> None:
        self._parent = np.arange(rows)

    def find(self, rows: np.ndarray) -> np.ndarray:
        """The names of the rows' groups."""
        names = self._parent[rows]
        while True:
            up = self._parent[names]
            if np.array_equal(up, names):
                self._parent[rows] = names
                return names
            names = up

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Join the groups of each pair of rows."""
        while True:
            one, other = self.find(one), self.find(other)
            apart = one != other
            one, other = one[apart], other[apart]
            if not len(one):
                return
            np.minimum.at(self._parent, np.maximum(one, other), np.minimum(one, other))

    def names(self) -> np.ndarray:
        """The name of every row's group."""
        return self.find(np.arange(len(self._parent)))


def join_alike(groups: Groups, vectors: np.ndarray, cosine: float, exact_up_to: int) -> bool:
    """Join the rows whose cosine reaches a bound; a row of zeros is like nothing.

    Args:
        groups: of the rows; changed.
        vectors: [N, D], any float type, perhaps a memory map; need not be of unit length.
        cosine: the bound, above 0.
        exact_up_to: rows up to which every pair is looked at.

    Returns:
        Whether every pair was.
    """
    search = _Search(groups, vectors, cosine)
    rows = len(vectors)
    if rows <= exact_up_to:
        search.compare(np.arange(rows))
        return True
    for members in _clusters(vectors, max(2, -(-rows // _CLUSTER))):
        search.compare(members)
    return False


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length, float32; zeros stay, and what is not finite becomes zeros."""
    rows = np.asarray(rows, dtype=np.float32)
    rows = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


class _Search:
    """Compares rows with one another, and joins those that are alike."""

    def __init__(self, groups: Groups, vectors: np.ndarray, cosine: float) -> None:
        self.groups, self.vectors, self.cosine = groups, vectors, cosine
        some = unit(vectors[:: max(1, len(vectors) // _SAMPLE)])
        # the leading directions of the rows themselves, not around their mean: it is cosines that they bound
        self.lead = np.linalg.eigh(some.T @ some)[1][:, -_LEAD:] if vectors.shape[1] > 2 * _LEAD else None

    def compare(self, members: np.ndarray) -> None:
        """Every pair of the given rows."""
        leads = np.concatenate([self._leading(unit(self.vectors[m])) for m in _blocks(members)])
        for start in range(0, len(members), _BLOCK):
            left, left_leads = members[start : start + _BLOCK], leads[start : start + _BLOCK]
            for other in range(start, len(members), _BLOCK):
                right, right_leads = members[other : other + _BLOCK], leads[other : other + _BLOCK]
                reach = left_leads @ right_leads.T >= self.cosine - _SLACK
                if other == start:
                    np.fill_diagonal(reach, False)
                if not (count := np.count_nonzero(reach)):
                    continue
                if count > reach.size // 64:  # too many to be gathered: the block in full
                    reach = unit(self.vectors[left]) @ unit(self.vectors[right]).T >= self.cosine
                    self.groups.join(*self._rows(left, right, np.flatnonzero(reach)))
                    continue
                one, two = self._rows(left, right, np.flatnonzero(reach))
                for at in range(0, count, _PAIRS):
                    a, b = one[at : at + _PAIRS], two[at : at + _PAIRS]
                    close = np.einsum("nd,nd->n", unit(self.vectors[a]), unit(self.vectors[b])) >= self.cosine
                    self.groups.join(a[close], b[close])

    @staticmethod
    def _rows(left: np.ndarray, right: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows that places in a flattened block stand for."""
        return left[at // len(right)], right[at % len(right)]

    def _leading(self, rows: np.ndarray) -> np.ndarray:
        """[N, _LEAD + 1]: along the leading directions, and the length of the rest; as they are when they are short."""
        if self.lead is None:
            return rows
        along = rows @ self.lead
        rest = np.maximum((rows * rows).sum(axis=1) - (along * along).sum(axis=1), 0)
        return np.concatenate([along, np.sqrt(rest)[:, None]], axis=1)


def _clusters(vectors: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Rows of each cluster of spherical k-means; every row is in the two nearest. The same for the same vectors."""
    chosen = np.random.default_rng(0).choice(len(vectors), min(len(vectors), count * 64), replace=False)
    some = unit(vectors[np.sort(chosen)])
    centres = some[:: max(1, len(some) // count)][:count].copy()
    for _ in range(_ITERATIONS):
        nearest = np.concatenate([(block @ centres.T).argmax(axis=1) for block in _blocks(some)])
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, some)
        centres = np.where(np.any(sums, axis=1, keepdims=True), unit(sums), centres)
    homes = np.concatenate([np.argpartition(unit(b) @ centres.T, -2, axis=1)[:, -2:] for b in _blocks(vectors)])
    order = np.argsort(homes.ravel(), kind="stable")
    ends = np.searchsorted(homes.ravel()[order], np.arange(len(centres) + 1))
    for start, end in zip(ends, ends[1:], strict=False):
        yield order[start:end] // 2


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _BLOCK):
        yield rows[start : start + _BLOCK]
