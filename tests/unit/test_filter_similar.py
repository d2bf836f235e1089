"""Near-duplicate groups against SciPy's connected components of all pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from svdflow.curation.filter import similar
from svdflow.curation.filter.similar import Groups, join_alike


def scenes(seed: int, rows: int, size: int, scenes: int, noise: float) -> np.ndarray:
    """Vectors around some directions, as embeddings are: a common part, a few strong directions, and noise."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(scenes, size)) * np.geomspace(3, 0.3, size) + 0.5
    return (centres[rng.integers(scenes, size=rows)] + noise * rng.normal(size=(rows, size))).astype(np.float16)


def by_all_pairs(vectors: np.ndarray, cosine: float) -> np.ndarray:
    rows = vectors.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    one, two = np.nonzero(rows @ rows.T >= cosine)
    labels = connected_components(coo_matrix((np.ones(len(one)), (one, two)), [len(rows)] * 2), directed=False)[1]
    first = {label: n for n, label in reversed(list(enumerate(labels)))}
    return np.array([first[label] for label in labels])


def names(vectors: np.ndarray, cosine: float, exact_up_to: int = 10**9) -> tuple[np.ndarray, bool]:
    groups = Groups(len(vectors))
    exact = join_alike(groups, vectors, cosine, exact_up_to)
    return groups.names(), exact


@hypothesis_settings(max_examples=60, deadline=None)
@given(edges=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60), parts=st.integers(1, 5))
def test_groups_are_connected_components_named_by_their_lowest_row(edges, parts) -> None:
    groups = Groups(30)
    for part in np.array_split(np.array(edges, int).reshape(-1, 2), parts):
        groups.join(part[:, 0], part[:, 1])
    one, two = np.array(edges, int).reshape(-1, 2).T
    labels = connected_components(coo_matrix((np.ones(len(one)), (one, two)), (30, 30)), directed=False)[1]
    expected = [int(np.flatnonzero(labels == label)[0]) for label in labels]
    assert groups.names().tolist() == expected


@pytest.mark.parametrize(
    ("size", "noise", "cosine"), [(16, 0.3, 0.95), (300, 0.4, 0.95), (300, 0.5, 0.9), (768, 0.4, 0.9)]
)
def test_every_pair_is_found_though_most_are_never_computed_in_full(size, noise, cosine, monkeypatch) -> None:
    monkeypatch.setattr(similar, "_BLOCK", 128)
    vectors = scenes(1, 900, size, 250, noise)
    found, exact = names(vectors, cosine)
    expected = by_all_pairs(vectors, cosine)
    assert exact and 20 < len(set(expected)) < 899  # neither all apart nor all one
    assert np.array_equal(found, expected)


def test_flat_and_broken_rows_are_like_nothing() -> None:
    vectors = scenes(2, 40, 200, 40, 0.0)
    vectors[[3, 9]] = 0
    vectors[[4, 8]] = np.nan
    vectors[20] = vectors[11]
    found, _ = names(vectors, 0.99)
    assert [n for n in (3, 9, 4, 8) if found[n] != n] == [] and found[20] == found[11]


def test_many_equal_rows_are_one_group(monkeypatch) -> None:
    monkeypatch.setattr(similar, "_BLOCK", 64)
    found, _ = names(np.ones((1000, 256), np.float16), 0.99)
    assert not found.any()


def test_clusters_find_nearly_every_pair_and_none_that_is_not_there(monkeypatch) -> None:
    monkeypatch.setattr(similar, "_CLUSTER", 200)
    vectors = scenes(3, 3000, 128, 1200, 0.25)
    found, exact = names(vectors, 0.95, exact_up_to=100)
    expected = by_all_pairs(vectors, 0.95)
    assert not exact
    joined, should = found != np.arange(3000), expected != np.arange(3000)
    assert should.sum() > 500 and joined.sum() > 0.97 * should.sum()
    assert all(len(set(expected[found == name])) == 1 for name in set(found))  # a part of the true groups
    assert np.array_equal(found, names(vectors, 0.95, exact_up_to=100)[0])  # the same again
