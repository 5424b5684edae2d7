"""Importance sampling from a prior whose posterior is known in closed form, state by state."""

import numpy as np
import pytest

from experiments.control import reference


def test_a_gaussian_tilted_linearly_shifts_and_its_normaliser_is_known():
    """mu = N(0, 1), log r = c u: log Z = c^2 / 2, E_pi[u] = c, ESS / n = exp(-c^2)."""
    slopes, n = np.array([0.0, 0.3, -0.8, 1.2]), 40_000
    u = np.random.default_rng(0).normal(size=(4, n))
    found = reference.self_normalised(slopes[:, None] * u, u)
    np.testing.assert_allclose(found.log_z, slopes**2 / 2, atol=0.05)
    np.testing.assert_allclose(found.ess / n, np.exp(-(slopes**2)), rtol=0.1)
    assert (np.abs(found.mean - slopes) < 4 * found.error).all()
    # sqrt(E_mu[w^2 (u - c)^2] / n), w normalised: exp(c^2) (1 + c^2) inside.
    np.testing.assert_allclose(found.error, np.sqrt(np.exp(slopes**2) * (1 + slopes**2) / n), rtol=0.15)


def test_numbers_of_the_size_of_q_over_alpha_lose_nothing():
    """Values of thousands, as Q / alpha has: a constant moves log Z by itself and nothing else."""
    u = np.random.default_rng(1).normal(size=(2, 1_000))
    plain, shifted = (reference.self_normalised(c + 0.5 * u, u) for c in (0.0, 5_000.0))
    np.testing.assert_allclose(shifted.log_z - plain.log_z, 5_000.0, rtol=1e-12)
    np.testing.assert_allclose(shifted.mean, plain.mean, rtol=1e-9)


def test_a_state_with_one_sample_that_counts_is_not_trusted():
    log_r = np.zeros((2, 500))
    log_r[0, 3] = 50.0
    found = reference.self_normalised(log_r, np.ones_like(log_r))
    np.testing.assert_allclose(found.ess, [1.0, 500.0])
    np.testing.assert_array_equal(found.trusted, [False, True])


def test_arrays_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="f must have shape"):
        reference.self_normalised(np.zeros((2, 3)), np.zeros((2, 1)))
