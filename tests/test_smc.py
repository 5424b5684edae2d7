"""Selection among the prior's paths, against posteriors that are enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_one_by_one import JOINT, LENGTH, LOG_REWARD, PRIOR, PROCESS

from rtbjax import smc

BETA = 1.5
TARGET = JOINT * np.exp(BETA * LOG_REWARD)


def log_reward(x, cond):
    return jnp.asarray(LOG_REWARD, jnp.float32)[tuple(x.T)]


def steer(key, count, threshold):
    shape = (count, LENGTH)
    return smc.steer(key, PROCESS, PRIOR, log_reward, shape=shape, beta=BETA, threshold=threshold)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_the_estimate_of_z_is_unbiased_however_often_particles_are_drawn_anew(threshold, key):
    """With a few particles each, where a wrong weight would show."""
    keys = jax.random.split(key, 20_000)
    found = np.asarray(jax.jit(jax.vmap(lambda key: steer(key, 4, threshold).log_z))(keys), np.float64)
    ratio = np.exp(found) / TARGET.sum()
    error = ratio.std() / np.sqrt(len(ratio))
    assert error < 0.02 and abs(ratio.mean() - 1.0) < 4 * error


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_many_particles_are_the_posterior(threshold, key):
    found = jax.jit(lambda key: steer(key, 40_000, threshold))(key)
    law = np.zeros_like(JOINT)
    np.add.at(law, tuple(np.asarray(found.x).T), 1.0 / len(found.x))
    wanted = TARGET / TARGET.sum()
    assert 0.5 * np.abs(law - wanted).sum() < 0.03 < 0.2 < 0.5 * np.abs(JOINT - wanted).sum()
    assert float(found.log_z) == pytest.approx(np.log(TARGET.sum()), abs=0.03)


def test_systematic_draws_are_as_many_as_they_should_be(key):
    share = jnp.array([0.5, 0.0, 0.26, 0.24], jnp.float32)
    counts = [np.bincount(smc.systematic(k, share), minlength=4) for k in jax.random.split(key, 50)]
    assert all(abs(c - 4 * s) < 1 + 1e-6 for one in counts for c, s in zip(one, np.asarray(share), strict=True))
    np.testing.assert_allclose(np.mean(counts, axis=0), 4 * np.asarray(share), atol=0.2)


def test_a_threshold_that_is_no_share_is_refused(key):
    with pytest.raises(ValueError, match="threshold must lie between 0 and 1, got 2.0"):
        steer(key, 4, 2.0)
