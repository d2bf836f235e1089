"""Moments that come in parts, and the distance of two Gaussians, held against scipy and against closed forms."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from svdflow.evaluation.gaussians import Moments, distance_between


def in_parts(rows: np.ndarray, cuts: list[int]) -> Moments:
    parts = [part for part in np.split(rows, sorted(cuts)) if len(part)]
    total = Moments.of(parts[0])
    for part in parts[1:]:
        total += Moments.of(part)
    return total


@settings(max_examples=60)
@given(st.integers(2, 60), st.integers(1, 8), st.lists(st.integers(0, 60), max_size=6), st.integers(0, 2**31))
def test_moments_of_parts_are_those_of_the_whole_wherever_it_is_cut(
    count: int, width: int, cuts: list[int], seed: int
) -> None:
    rows = np.random.default_rng(seed).normal(size=(count, width)) * 3 + 1
    found = in_parts(rows, [cut for cut in cuts if cut < count])
    assert found.count == count and found.scatter_DD.shape == (width, width)
    np.testing.assert_allclose(found.mean_D, rows.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.covariance_DD, np.atleast_2d(np.cov(rows.T, ddof=0)), rtol=1e-10, atol=1e-12)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    """The sum of squares less the square of the sum, as it is often written, loses all of them here."""
    rows = np.random.default_rng(0).normal(size=(400, 3))
    moved = in_parts(rows + 1e8, list(range(10, 400, 10)))
    naive = ((rows + 1e8).T @ (rows + 1e8)) / 400 - np.outer((rows + 1e8).mean(0), (rows + 1e8).mean(0))
    expected = np.cov(rows.T, ddof=0)
    assert np.abs(moved.covariance_DD - expected).max() < 1e-6 < np.abs(naive - expected).max()


def by_matrix_root(a: np.ndarray, b: np.ndarray) -> float:
    """As StyleGAN-V has it: covariances over N, scipy's root of their product."""
    first, second = np.cov(a.T, ddof=0), np.cov(b.T, ddof=0)
    root = np.real(scipy.linalg.sqrtm(first @ second))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root))


@pytest.mark.parametrize("width", [5, 80])
def test_the_distance_is_that_of_scipys_matrix_root(width: int) -> None:
    rng = np.random.default_rng(width)
    for _ in range(3):
        a = rng.normal(size=(700, width)) @ rng.normal(size=(width, width))
        b = rng.normal(size=(500, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)
        found = distance_between(in_parts(a, [1, 8, 300]), in_parts(b, [64, 128]))
        assert found == pytest.approx(by_matrix_root(a, b), rel=1e-8)


def test_gaussians_that_commute_have_a_closed_form() -> None:
    """With the same axes it is the squared distance of the means and of the standard deviations."""
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))
    deviations, means = np.array([[1.0, 2.0, 0.5, 3.0], [2.0, 2.0, 0.1, 1.0]]), np.array([[0.0] * 4, [1.0, -2, 0, 0.5]])
    a, b = (Moments(7, m, 7 * turn @ np.diag(s**2) @ turn.T) for m, s in zip(means, deviations, strict=True))
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert distance_between(a, b) == pytest.approx(expected, rel=1e-12)
    assert distance_between(a, a) == pytest.approx(0, abs=1e-10)


def test_fewer_videos_than_features_are_no_trouble() -> None:
    rows = np.random.default_rng(2).normal(size=(6, 40))
    same = distance_between(Moments.of(rows), Moments.of(rows[::-1]))
    moved = distance_between(Moments.of(rows), Moments.of(rows + 3))
    assert same == pytest.approx(0, abs=1e-5) and moved == pytest.approx(9 * 40, rel=1e-6)


def test_what_cannot_be_compared_says_so() -> None:
    with pytest.raises(ValueError, match="two videos on each side, not 1 and 2"):
        distance_between(Moments.of(np.zeros((1, 3))), Moments.of(np.zeros((2, 3))))
    with pytest.raises(ValueError, match="between 3 features and 4"):
        distance_between(Moments.of(np.zeros((2, 3))), Moments.of(np.zeros((2, 4))))
    with pytest.raises(ValueError, match="do not add up"):
        Moments.of(np.zeros((2, 3))) + Moments.of(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="not finite"):
        Moments.of(np.array([[np.nan]]))
    with pytest.raises(ValueError, match="rows"):
        Moments.of(np.zeros((0, 3)))
