"""Distances between sets of samples and between distributions over classes."""

import numpy as np
import scipy.linalg
import scipy.spatial
from jaxtyping import Float

from rtbjax.types import check_shape


def total_variation(p: Float[np.ndarray, " K"], q: Float[np.ndarray, " K"]) -> float:
    """Half the L1 distance of two probability vectors, in [0, 1].

    Raises:
      ValueError: vectors of different lengths.
    """
    check_shape("p", p, ("K",))
    check_shape("q", q, np.shape(p))
    return 0.5 * float(np.abs(np.asarray(p) - np.asarray(q)).sum())


def sliced_w2(
    x: Float[np.ndarray, "N d"], y: Float[np.ndarray, "M d"], *, num_projections: int = 128, seed: int = 0
) -> float:
    """Sliced 2-Wasserstein distance: root mean squared W2 of one-dimensional projections (Bonneel et al. 2015).

    The larger set is cut to the size of the smaller one, so that sorted projections pair up. In the units of x.
    """
    size = min(len(x), len(y))
    directions = np.random.default_rng(seed).normal(size=(x.shape[1], num_projections))
    directions /= np.linalg.norm(directions, axis=0)
    a = np.sort(np.asarray(x[:size], np.float64) @ directions, axis=0)
    b = np.sort(np.asarray(y[:size], np.float64) @ directions, axis=0)
    return float(np.sqrt(np.mean((a - b) ** 2)))


def frechet(x: Float[np.ndarray, "N d"], y: Float[np.ndarray, "M d"]) -> float:
    """Squared Fréchet distance of the normals fitted to two sets of features (Heusel et al. 2017), in float64.

    Biased upwards by the number of samples: compare sets of equal size, beside the distance of two sets that agree.

    Raises:
      ValueError: fewer than 2 samples.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"A Fréchet distance needs at least 2 samples of each kind, got {len(x)} and {len(y)}.")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    cov_x, cov_y = (np.atleast_2d(np.cov(a, rowvar=False)) for a in (x, y))
    # tr sqrt(A B) from the eigenvalues of A^(1/2) B A^(1/2): symmetric, so real, whatever the rank.
    values, vectors = scipy.linalg.eigh(cov_x)
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    cross = np.sqrt(np.maximum(scipy.linalg.eigvalsh(root @ cov_y @ root), 0.0)).sum()
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(cov_x) + np.trace(cov_y) - 2.0 * cross)


def classifier_two_sample(x: Float[np.ndarray, "N d"], y: Float[np.ndarray, "M d"], *, seed: int = 0) -> float:
    """How often nearest neighbours tell which of two sets a point is of (Lopez-Paz & Oquab 2017): 0.5 if they agree.

    By halves, each told by the other, with ``floor(sqrt(n) / 2)`` neighbours of n (odd); coordinates in units of the
    standard deviation of both sets together. The larger set is cut to the size of the smaller one. The standard error
    where the sets agree is about ``0.62 / sqrt(2 N)`` (measured, for 2 to 64 coordinates): points are told by each
    other, and so not independently, which alone would make it ``0.5 / sqrt(2 N)``.

    Raises:
      ValueError: fewer than 2 samples of one kind.
    """
    size = min(len(x), len(y)) // 2 * 2
    if size < 2:
        raise ValueError(f"A two-sample test needs at least 2 samples of each kind, got {len(x)} and {len(y)}.")
    rng = np.random.default_rng(seed)
    both = np.stack([np.asarray(a, np.float64)[rng.permutation(len(a))[:size]] for a in (x, y)])
    spread = both.reshape(2 * size, -1).std(axis=0)
    both /= np.where(spread > 0.0, spread, 1.0)
    halves = both.reshape(2, 2, size // 2, -1).swapaxes(0, 1).reshape(2, size, -1)
    kind = np.repeat([0, 1], size // 2)
    neighbours = int(np.sqrt(size) / 2) // 2 * 2 + 1
    told = [
        kind[scipy.spatial.KDTree(known).query(asked, k=neighbours)[1]].reshape(size, -1).mean(axis=1) > 0.5
        for known, asked in (halves, halves[::-1])
    ]
    return float(np.mean(np.stack(told) == kind.astype(bool)[None]))


def diversity(features: Float[np.ndarray, "N d"], *, num_pairs: int = 20_000, seed: int = 0) -> float:
    """Mean cosine distance of random pairs of features, in [0, 2] (paper, sec. 3.1)."""
    if len(features) < 2:
        raise ValueError("Diversity needs at least 2 samples.")
    unit = np.asarray(features, np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    rng = np.random.default_rng(seed)
    first = rng.integers(len(unit), size=num_pairs)
    second = (first + rng.integers(1, len(unit), size=num_pairs)) % len(unit)
    return float(1.0 - np.mean(np.sum(unit[first] * unit[second], axis=1)))
