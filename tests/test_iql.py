"""Implicit Q-learning against a decision process whose expectile values are computed exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from configs.base import regression
from experiments.control import iql
from experiments.control.learning import Batch

DISCOUNT = 0.6
# (state, action, reward, next state or None): state 1 has three actions of unlike rates, and its last one is a lottery.
ROWS = [
    (0, 0, 0.0, 1),
    (0, 1, 1.0, 2),
    (1, 0, 2.0, None),
    (1, 1, -1.0, 0),
    (1, 1, -1.0, 0),
    (1, 1, -1.0, 0),
    (1, 2, 3.0, None),
    (1, 2, 0.0, 2),
    (2, 0, 0.5, 0),
    (2, 0, 0.5, None),
]


def exact(expectile):
    """V and Q of the recorded behaviour: the fixed point of eqs. 4 and 6, by iteration in float64."""
    rows, pairs = ROWS, sorted({row[:2] for row in ROWS})
    v = np.zeros(3)
    for _ in range(200):
        goals = np.array([r + (0.0 if n is None else DISCOUNT * v[n]) for _, _, r, n in rows])
        q = {pair: np.mean([g for row, g in zip(rows, goals, strict=True) if row[:2] == pair]) for pair in pairs}
        v = np.array([scipy.stats.expectile([q[row[:2]] for row in rows if row[0] == s], expectile) for s in range(3)])
    return v, q


def batch():
    states, actions, rewards, following = zip(*ROWS, strict=True)
    one_hot = np.eye(3, dtype=np.float32)
    return Batch(
        jnp.asarray(one_hot[list(states)]),
        jnp.asarray(one_hot[list(actions)]),
        jnp.asarray(rewards, jnp.float32),
        jnp.asarray(one_hot[[0 if n is None else n for n in following]]),
        jnp.asarray([n is None for n in following]),
    )


def settings(**changes):
    config = regression(steps=4000, batch_size=64, learning_rate=2e-3, weight_decay=0.0)
    config.update({"width": 32, "expectile": 0.7, "discount": DISCOUNT, "target_rate": 0.05})
    config.update(changes)
    return config


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_it_finds_the_expectile_values_of_the_recorded_behaviour(expectile, tmp_path, key):
    # Batches are small and their noise does not fall: at a rate that decays nowhere, 0.1 is what is left of it.
    params = iql.train(batch(), settings(expectile=expectile), key=key, workdir=tmp_path)
    v, q = exact(expectile)
    pairs = sorted(q)
    eye = jnp.eye(3)
    states, actions = (eye[jnp.asarray(column)] for column in zip(*pairs, strict=True))
    np.testing.assert_allclose(iql.value(params["v"], eye), v, atol=0.1)
    np.testing.assert_allclose(iql.q_value(params["q"], states, actions), [q[pair] for pair in pairs], atol=0.1)


def test_the_expectiles_differ_by_more_than_the_test_allows():
    values = [exact(expectile)[0] for expectile in (0.5, 0.7, 0.9)]
    assert np.abs(values[1] - values[0]).max() > 0.3 and np.abs(values[2] - values[1]).max() > 0.3


def test_the_exact_values_are_where_the_loss_has_no_gradient():
    """A table in place of the networks: no optimiser, no noise, no tolerance for either."""
    v, q = exact(0.7)

    def gradient(v, q):
        def loss(v, q):
            total = 0.0
            for s, a, r, n in ROWS:
                difference = jax.lax.stop_gradient(q[s, a]) - v[s]
                goal = r + (0.0 if n is None else DISCOUNT * jax.lax.stop_gradient(v[n]))
                total = total + iql.expectile_loss(difference[None], 0.7)[0] + (goal - q[s, a]) ** 2
            return total

        return jax.grad(loss, argnums=(0, 1))(v, q)

    table = np.zeros((3, 3), np.float32)
    for pair, number in q.items():
        table[pair] = number
    for part in gradient(jnp.asarray(v, jnp.float32), jnp.asarray(table)):
        np.testing.assert_allclose(part, 0.0, atol=2e-5)


def test_values_learn_nothing_from_critics_and_critics_nothing_from_values(key):
    """The gradient is that of two regressions on numbers."""
    params = iql.init(key, 8, 3, 3)
    data = batch()

    def regressions(params, fixed):
        observed = iql.q_value(fixed["q"], data.observations, data.actions)
        future = jnp.where(data.terminals, 0.0, DISCOUNT * iql.value(fixed["v"], data.next_observations))
        value_loss = iql.expectile_loss(observed - iql.value(params["v"], data.observations), 0.7)
        errors = (data.rewards + future)[None] - iql.critics(params["q"], data.observations, data.actions)
        return jnp.mean(value_loss + jnp.sum(errors**2, axis=0))

    found = jax.jit(jax.grad(iql.loss), static_argnames=("expectile", "discount"))(
        params, params["q"], data, expectile=0.7, discount=DISCOUNT
    )
    expected = jax.jit(jax.grad(regressions))(params, params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_run_in_two_sittings_is_a_run_in_one(tmp_path, key):
    whole = iql.train(batch(), settings(steps=800), key=key, workdir=tmp_path / "whole")
    iql.train(batch(), settings(steps=400), key=key, workdir=tmp_path / "parts")
    parts = iql.train(batch(), settings(steps=800), key=key, workdir=tmp_path / "parts")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)
