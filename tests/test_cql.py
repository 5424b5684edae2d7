"""Conservative Q-learning against quadrature and a fixed point, in one state with one action."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from configs.base import regression
from experiments.control import cql, iql
from experiments.control.learning import Batch

GRID = np.linspace(-1.0, 1.0, 2001)


def at(grid):
    return jnp.ones((len(grid), 1)), jnp.asarray(grid[:, None], jnp.float32)


def quadrature(values):
    return np.trapezoid(values, GRID)


def test_the_density_of_an_action_is_the_slope_of_its_distribution(key):
    params = cql.init(key, 16, 1, 1)["policy"]
    s = jnp.ones((64, 1))
    actions, log_density = cql.sample(key, params, s)
    law = cql.law(params, s[:1])
    a = np.asarray(actions[:, 0], np.float64)
    inner = np.abs(a) < 0.99

    def below(x):
        return scipy.stats.norm.cdf(np.arctanh(x), float(law.mean[0, 0]), float(law.std[0, 0]))

    slope = (below(a[inner] + 1e-5) - below(a[inner] - 1e-5)) / 2e-5
    assert inner.sum() > 50
    np.testing.assert_allclose(np.exp(log_density[inner]), slope, rtol=2e-3)


def test_the_integral_over_actions_is_that_of_quadrature(key):
    params = cql.init(key, 16, 1, 1)
    # Critics that vary by some nats over the actions.
    q = jax.tree.map(lambda a: 2.0 * a, params["q"])
    s = jnp.ones((4000, 1))
    estimates = np.exp(cql.log_integral(key, q, params["policy"], s, 1))
    exact = np.array([quadrature(np.exp(np.asarray(v, np.float64))) for v in iql.critics(q, *at(GRID))])
    error = np.std(estimates, axis=1) / np.sqrt(len(s))
    assert np.all(np.abs(np.mean(estimates, axis=1) - exact) < 4 * error)
    assert np.all(error < 0.02 * np.abs(exact))


def fixed_point(rewards, conservatism):
    """Q of uniform behaviour where the derivative of eq. 4 is zero: Q = r - conservatism (pi_Q / behaviour - 1)."""
    q = rewards.copy()
    for _ in range(2000):
        density = np.exp(q) / quadrature(np.exp(q))
        q += 0.05 * (rewards - conservatism * (density / 0.5 - 1.0) - q)
    return q


@pytest.mark.slow
def test_critics_are_the_fixed_point_of_the_penalty_and_the_policy_prefers_what_they_do(tmp_path, key):
    def reward(a):
        return 2.0 * np.sin(2.0 * a)

    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (4096, 1)).astype(np.float32)
    ones = jnp.ones((4096, 1))
    data = Batch(ones, jnp.asarray(actions), jnp.asarray(reward(actions[:, 0])), ones, jnp.ones(4096, bool))
    settings = regression(steps=1600, batch_size=128, learning_rate=2e-3, weight_decay=0.0)
    settings.update({"width": 32, "target_rate": 0.01, "conservatism": 1.0})
    found = cql.train(data, settings, discount=0.9, key=key, workdir=tmp_path)
    expected = fixed_point(reward(GRID), 1.0)
    inner = np.abs(GRID) < 0.95
    for values in iql.critics(found["q"], *at(GRID)):
        assert np.abs(values - expected)[inner].mean() < 0.1
    # What is tested is not the reward itself.
    assert np.abs(reward(GRID) - expected)[inner].mean() > 0.3
    assert float(jnp.tanh(cql.law(found["policy"], ones[:1]).mean[0, 0])) > 0.3
