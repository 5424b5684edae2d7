"""Diffusion Q-learning in a bandit whose best action is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import regression
from experiments.control import behaviour_prior, diffusion_ql, iql
from experiments.control.learning import Batch

BEST = 0.5


def bandit():
    actions = np.random.default_rng(0).uniform(-0.9, 0.9, (4096, 1)).astype(np.float32)
    ones = jnp.ones((4096, 1))
    rewards = 1.0 - 4.0 * (actions[:, 0] - BEST) ** 2
    return Batch(ones, jnp.asarray(actions), jnp.asarray(rewards), ones, jnp.ones(4096, bool))


@pytest.fixture(scope="module")
def process():
    return behaviour_prior.make_process(5, 0.02)


def trained(q_weight, process, folder, key):
    settings = regression(steps=1200, batch_size=128, learning_rate=2e-3, weight_decay=0.0)
    settings.update({"width": 32, "target_rate": 0.02, "q_weight": q_weight})
    found = diffusion_ql.train(bandit(), process, settings, discount=0.9, key=key, workdir=folder)
    return found, np.tanh(diffusion_ql.sample(key, process, found["policy"], jnp.ones((2000, 1)), 1))[:, 0]


@pytest.mark.slow
def test_the_policy_goes_from_what_was_recorded_to_the_best_action_as_q_weighs_more(process, tmp_path, key):
    params, imitated = trained(1e-6, process, tmp_path / "imitation", key)
    assert abs(imitated.mean()) < 0.12 and abs(imitated.std() - 1.8 / np.sqrt(12.0)) < 0.1
    grid = np.linspace(-0.8, 0.8, 50, dtype=np.float32)
    values = iql.critics(params["q"], jnp.ones((50, 1)), jnp.asarray(grid[:, None]))
    np.testing.assert_allclose(values, np.tile(1.0 - 4.0 * (grid - BEST) ** 2, (2, 1)), atol=0.4)
    _, improved = trained(5.0, process, tmp_path / "improvement", key)
    assert abs(improved.mean() - BEST) < 0.15 and improved.std() < 0.2


@pytest.mark.slow
def test_policy_and_critics_do_not_see_each_others_gradient(process, key):
    params = diffusion_ql.init(key, 8, 1, 1)
    data = jax.tree.map(lambda a: a[:16], bandit())
    arguments = dict(process=process, discount=0.9)

    def gradient(q_weight, params):
        return jax.grad(lambda p: diffusion_ql.loss(p, params, key, data, q_weight=q_weight, **arguments))(params)

    first, second = gradient(0.0, params), gradient(3.0, params)
    for a, b in zip(jax.tree.leaves(first["q"]), jax.tree.leaves(second["q"]), strict=True):
        np.testing.assert_array_equal(a, b)
    moved = params | {"q": jax.tree.map(lambda a: a + 0.1, params["q"])}
    for a, b in zip(jax.tree.leaves(first["policy"]), jax.tree.leaves(gradient(0.0, moved)["policy"]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(second["policy"]))
