"""Distances of sets whose answers are known."""

import numpy as np
import pytest
import scipy.stats

from rtbjax.metrics import distances


def exact_normal(mean, covariance, count=400, seed=0):
    """Points whose sample mean and covariance are exactly these."""
    raw = np.random.default_rng(seed).normal(size=(count, len(mean)))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    return white @ np.linalg.cholesky(np.asarray(covariance)).T + np.asarray(mean)


@pytest.mark.parametrize(
    "other, expected",
    [
        (((0.0, 0.0), ((1.0, 0.0), (0.0, 4.0))), 0.0),
        (((3.0, 4.0), ((1.0, 0.0), (0.0, 4.0))), 25.0),
        (((0.0, 0.0), ((9.0, 0.0), (0.0, 1.0))), 4.0 + 1.0),  # standard deviations 1, 2 against 3, 1
        (((0.0, 0.0), ((4.0, 0.0), (0.0, 1.0))), 1.0 + 1.0),
    ],
)
def test_frechet_of_known_normals(other, expected):
    x = exact_normal((0.0, 0.0), ((1.0, 0.0), (0.0, 4.0)))
    y = exact_normal(*other, seed=1)
    np.testing.assert_allclose(distances.frechet(x, y), expected, atol=1e-6)
    np.testing.assert_allclose(distances.frechet(y, x), expected, atol=1e-6)


def test_frechet_of_one_feature_is_that_of_two_normals():
    x, y = np.random.default_rng(0).normal([[0.0], [1.0]], [[1.0], [3.0]], size=(2, 50))[..., None]
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    np.testing.assert_allclose(distances.frechet(x, y), expected, rtol=1e-6)


def test_frechet_of_covariances_that_do_not_commute():
    """tr sqrt(A B) from the eigenvalues of the unsymmetric product A B, which are real and positive."""
    a, b = np.asarray([[2.0, 1.0], [1.0, 2.0]]), np.asarray([[1.0, 0.0], [0.0, 5.0]])
    cross = np.sqrt(np.linalg.eigvals(a @ b)).sum()
    found = distances.frechet(exact_normal((0.0, 0.0), a), exact_normal((1.0, 0.0), b, seed=1))
    np.testing.assert_allclose(found, 1.0 + np.trace(a) + np.trace(b) - 2 * cross, atol=1e-6)


def test_frechet_of_singular_covariances_is_finite_and_zero_for_one_set():
    x = np.random.default_rng(0).normal(size=(5, 20))
    np.testing.assert_allclose(distances.frechet(x, x), 0.0, atol=1e-6)
    assert np.isfinite(distances.frechet(x, x[::-1] + 1.0))
    with pytest.raises(ValueError, match="at least 2 samples of each kind, got 5 and 1"):
        distances.frechet(x, x[:1])


@pytest.mark.parametrize("dim", [1, 2, 10])
def test_sliced_w2_of_a_shifted_set_is_the_shift_over_root_dim(dim):
    """A shift s moves each projection by s . u, whose mean square over directions is |s|^2 / d."""
    x = np.random.default_rng(0).normal(size=(200, dim))
    shift = np.full(dim, 3.0)
    found = distances.sliced_w2(x, np.random.default_rng(1).permutation(x + shift), num_projections=4_000)
    np.testing.assert_allclose(found, np.linalg.norm(shift) / np.sqrt(dim), rtol=0.1 if dim > 1 else 1e-9)


def test_sliced_w2_of_one_set_is_zero_and_uneven_sets_are_cut():
    x = np.random.default_rng(0).normal(size=(300, 2))
    assert distances.sliced_w2(x, x[::-1]) == 0.0
    assert distances.sliced_w2(x[:200], x) == 0.0
    # Two halves of one law are near each other, and nearer than a law of twice the spread.
    assert distances.sliced_w2(x[:150], x[150:]) < 0.3 < distances.sliced_w2(x[:150], 2.0 * x[150:])


def test_total_variation_by_hand():
    assert distances.total_variation([0.5, 0.5, 0.0], [0.0, 0.5, 0.5]) == 0.5
    assert distances.total_variation([1.0, 0.0], [0.0, 1.0]) == 1.0
    assert distances.total_variation([0.3, 0.7], [0.3, 0.7]) == 0.0


def test_total_variation_of_other_classes_is_refused():
    with pytest.raises(ValueError, match=r"q must have shape \(3,\), got \(1,\)"):
        distances.total_variation(np.full(3, 1 / 3), np.ones(1))


def test_diversity_of_known_features():
    """Cosine distances: 0 within a direction, 1 across orthogonal ones, 2 across opposite ones."""
    one = np.tile([[1.0, 2.0]], (50, 1))
    np.testing.assert_allclose(distances.diversity(one * np.arange(1, 51)[:, None]), 0.0, atol=1e-12)
    pair = np.asarray([[1.0, 0.0], [0.0, 3.0]])
    np.testing.assert_allclose(distances.diversity(pair), 1.0)
    np.testing.assert_allclose(distances.diversity(np.asarray([[1.0, 0.0], [-2.0, 0.0]])), 2.0)
    # Never a sample with itself: of four orthogonal ones every pair is at 1.
    np.testing.assert_allclose(distances.diversity(np.eye(4)), 1.0)
    with pytest.raises(ValueError, match="at least 2"):
        distances.diversity(one[:1])


def test_two_samples_of_one_law_are_told_apart_by_chance_alone():
    rng = np.random.default_rng(0)
    found = [distances.classifier_two_sample(*rng.normal(size=(2, 250, 5)), seed=seed) for seed in range(200)]
    error = 0.62 / np.sqrt(500)
    assert abs(np.mean(found) - 0.5) < 4 * error / np.sqrt(200)
    # Of 200 numbers the standard deviation is known to a twentieth.
    assert abs(np.std(found) - error) < 0.2 * error


def test_two_samples_of_two_normals_are_told_apart_as_well_as_can_be():
    """One dimension, a mile's scale: the best classifier cuts in the middle, right with probability Phi(shift / 2)."""
    rng = np.random.default_rng(0)
    x, y = 1e3 * rng.normal(size=(2_000, 1)), 1e3 * (rng.normal(size=(3_000, 1)) + 2.0)
    best = scipy.stats.norm.cdf(1.0)
    assert best - 0.03 < distances.classifier_two_sample(x, y) < best + 0.02
    assert distances.classifier_two_sample(x, x + 1e5) == 1.0


def test_a_lost_mode_and_copies_are_told_apart_where_means_agree():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 2)) + 8.0 * rng.choice([-1.0, 0.0, 1.0], size=(600, 1))
    middle = rng.normal(size=(600, 2))
    # Two thirds of x lie where the other has nothing; of the last third and all of the other one in four is x's.
    assert abs(distances.classifier_two_sample(x, middle) - (1.0 + 2.0 / 3.0) / 2.0) < 0.03


def test_a_two_sample_test_of_too_few_is_refused():
    with pytest.raises(ValueError, match="at least 2 samples of each kind, got 5 and 1"):
        distances.classifier_two_sample(np.zeros((5, 2)), np.zeros((1, 2)))
