"""Regression by a Gaussian policy against its closed-form optimum."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import regression
from experiments.control import gaussian
from experiments.control.learning import Batch

STATES = np.array([0, 0, 0, 1, 1, 1, 1])
ACTIONS = np.array([-0.6, 0.2, 0.5, 0.1, 0.3, -0.4, 0.8], np.float32)


def batch():
    one_hot, count = jnp.eye(2)[STATES], len(STATES)
    return Batch(one_hot, jnp.asarray(ACTIONS[:, None]), jnp.zeros(count), one_hot, jnp.ones(count, bool))


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_the_policy_is_the_weighted_mean_of_each_state_and_the_weighted_deviation_of_all(temperature, tmp_path, key):
    """Temperature 0 is behaviour cloning; above it, means move towards actions of high advantage."""
    advantages = 2.0 * ACTIONS
    weight = np.exp(temperature * advantages)
    settings = regression(steps=800, batch_size=256, learning_rate=1e-2, weight_decay=0.0)
    settings.width = 32
    found = gaussian.train(
        batch(),
        gaussian.advantage_weights(jnp.asarray(advantages), temperature),
        settings,
        key=key,
        workdir=tmp_path,
        label="BC",
    )
    law = gaussian.law(found, jnp.eye(2))
    means = np.array([np.average(ACTIONS[STATES == s], weights=weight[STATES == s]) for s in (0, 1)])
    deviation = np.sqrt(np.average((ACTIONS - means[STATES]) ** 2, weights=weight))
    np.testing.assert_allclose(law.mean[:, 0], means, atol=0.03)
    np.testing.assert_allclose(law.std[0, 0], deviation, atol=0.03)


def test_weights_of_advantages_are_bounded():
    found = gaussian.advantage_weights(jnp.asarray([-1.0, 0.0, 1.0, 50.0]), 3.0)
    np.testing.assert_allclose(found, [np.exp(-3.0), 1.0, np.exp(3.0), 100.0], rtol=1e-5)
