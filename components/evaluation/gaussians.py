"""Gaussians fitted to features that come a few rows at a time, and the Fréchet distance between two of them.

All in float64; memory does not grow with the number of rows. Legend: N rows, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """What is kept of rows that were seen: their number, mean [D], and sum of squared deviations from it [D, D]."""

    count: int
    mean_D: np.ndarray
    scatter_DD: np.ndarray

    @staticmethod
    def of(rows_ND: np.ndarray) -> Moments:
        """Of rows that are there at once.

        Raises:
            ValueError: it is no matrix, has no row, or a feature is not finite.
        """
        rows = np.asarray(rows_ND, np.float64)
        if rows.ndim != 2 or not len(rows):
            raise ValueError(f"features must be rows [N, D], not {list(rows.shape)}")
        if not np.isfinite(rows).all():
            raise ValueError("moments of features that are not finite")
        mean = rows.mean(0)
        centred = rows - mean
        return Moments(len(rows), mean, centred.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        """Of the rows of both: the update of Chan, Golub and LeVeque (1979), which subtracts no large squares.

        Raises:
            ValueError: they are of features of different widths.
        """
        if self.mean_D.shape != other.mean_D.shape:
            raise ValueError(f"moments of {len(self.mean_D)} features and of {len(other.mean_D)} do not add up")
        count = self.count + other.count
        apart = other.mean_D - self.mean_D
        scatter = self.scatter_DD + other.scatter_DD + np.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, self.mean_D + apart * (other.count / count), scatter)

    @property
    def covariance_DD(self) -> np.ndarray:
        """The scatter over N, not N - 1: so does StyleGAN-V, whose FVD the paper takes."""
        return self.scatter_DD / self.count


def distance_between(a: Moments, b: Moments) -> float:
    """Fréchet distance between the Gaussians with these means and covariances.

    Raises:
        ValueError: fewer than two rows on a side, or features of different widths.
    """
    if a.count < 2 or b.count < 2:
        raise ValueError(f"a Fréchet distance needs two videos on each side, not {a.count} and {b.count}")
    if a.mean_D.shape != b.mean_D.shape:
        raise ValueError(f"a Fréchet distance between {len(a.mean_D)} features and {len(b.mean_D)}")
    return gaussian_distance(a.mean_D, _root(a.covariance_DD), b.mean_D, _root(b.covariance_DD))


def gaussian_distance(mean_a_D: np.ndarray, x_KD: np.ndarray, mean_b_D: np.ndarray, y_LD: np.ndarray) -> float:
    """|mean_a - mean_b|² + tr(A + B - 2 (A B)^½) for covariances A = xᵀx and B = yᵀy.

    The trace of the root is the sum of the singular values of x yᵀ. That is exact for any number of rows in x and y,
    without the imaginary parts that a matrix root of singular covariances brings.
    """
    root_trace = np.linalg.svd(x_KD @ y_LD.T, compute_uv=False).sum()
    distance = ((mean_a_D - mean_b_D) ** 2).sum() + (x_KD**2).sum() + (y_LD**2).sum() - 2 * root_trace
    return float(max(distance, 0.0))


def _root(covariance_DD: np.ndarray) -> np.ndarray:
    """A matrix x with xᵀx the covariance; what rounding made of zero variances is left out."""
    values, vectors = np.linalg.eigh(covariance_DD)
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
