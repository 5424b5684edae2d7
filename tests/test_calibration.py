"""Calibration tests on a linear-Gaussian problem: the exact posterior passes, and every fault that matters does not."""

import numpy as np
import pytest
import scipy.stats

from rtbjax.metrics import calibration

A, NOISE, COUNT, DRAWS, DIM = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]), 0.5, 600, 99, 3


@pytest.fixture(scope="module")
def problem():
    """Truths from N(0, 1), measurements, and the exact posterior's means and the root of its covariance."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(COUNT, DIM))
    y = truth @ A.T + NOISE * rng.normal(size=(COUNT, 2))
    covariance = np.linalg.inv(np.eye(DIM) + A.T @ A / NOISE**2)
    return truth, y @ A @ covariance.T / NOISE**2, np.linalg.cholesky(covariance)


def draw(mean, root, *, width=1.0, shift=0.0, seed=1):
    noise = np.random.default_rng(seed).normal(size=(COUNT, DRAWS, DIM))
    return (mean + shift)[:, None] + width * noise @ root.T


def both_tests(truth, samples):
    """Both tests; the scalar of the ranks is the mean of the pixels."""
    references = np.random.default_rng(2).normal(size=(COUNT, DIM))
    return {
        "ranks": calibration.ranks(truth.mean(axis=1), samples.mean(axis=2)),
        "tarp": calibration.tarp(truth, samples, references),
    }


def test_the_exact_posterior_covers_what_it_says(problem):
    truth, mean, root = problem
    for places in both_tests(truth, draw(mean, root)).values():
        found = calibration.coverage(places)
        assert found.p_value > 0.02
        for level, covered, error in zip(found.levels, found.covered, found.errors, strict=True):
            assert abs(covered - level) < 4 * error
            assert error == pytest.approx(np.sqrt(level * (1 - level) / COUNT))


@pytest.mark.parametrize("fault", [dict(width=0.6), dict(width=1.6), dict(shift=0.5)], ids=str)
def test_too_narrow_too_wide_and_biased_posteriors_are_found(problem, fault):
    truth, mean, root = problem
    for name, places in both_tests(truth, draw(mean, root, **fault)).items():
        assert calibration.coverage(places).p_value < 1e-3, name


def test_a_prior_in_place_of_the_posterior_passes_ranks_and_tells_tarp_nothing_new(problem):
    """What no test of draws from the prior can see by a scalar of x alone: the prior itself is calibrated."""
    truth, mean, _ = problem
    places = both_tests(truth, draw(0.0 * mean, np.eye(DIM)))
    assert all(calibration.coverage(one).p_value > 0.01 for one in places.values())


def test_ties_are_broken_evenly_and_places_fill_their_cells():
    places = calibration.ranks(np.zeros(4000), np.zeros((4000, 3)))
    assert scipy.stats.kstest(places, "uniform").pvalue > 0.01
    low = calibration.ranks(np.full(2000, -1.0), np.zeros((2000, 3)))
    assert 0.0 <= low.min() and low.max() <= 0.25 and scipy.stats.kstest(4 * low, "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    "truth, samples, references, message",
    [
        ((8, 2), (8, 5, 2), (1, 2), r"references must have shape \(8, 2\), got \(1, 2\)"),
        ((8, 2), (7, 5, 2), (8, 2), r"samples must have shape \(8, n, 2\), got \(7, 5, 2\)"),
        ((8,), (8, 5, 2), (8, 2), r"truth must have shape \(N, d\), got \(8,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_not_broadcast(truth, samples, references, message):
    with pytest.raises(ValueError, match=message):
        calibration.tarp(np.zeros(truth), np.zeros(samples), np.zeros(references))


def test_numbers_that_are_not_finite_have_no_place():
    with pytest.raises(ValueError, match=r"truth must have shape \(N,\), got \(8, 1\)"):
        calibration.ranks(np.zeros((8, 1)), np.zeros((8, 8)))
    with pytest.raises(ValueError, match="samples must be finite numbers, and 8 are not"):
        calibration.ranks(np.zeros(8), np.where(np.arange(8)[:, None] % 2, 0.0, np.nan) * np.ones((8, 2)))
    with pytest.raises(ValueError, match="truth must be finite numbers, and 16 are not"):
        calibration.tarp(np.full((8, 2), np.nan), np.zeros((8, 3, 2)), np.zeros((8, 2)))


def test_coverage_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one truth"):
        calibration.coverage(np.zeros(0))
