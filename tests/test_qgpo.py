"""Energy guidance against the closed form of a normal prior and a Q that is linear in u."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import regression
from experiments.control import behaviour_prior, qgpo
from rtbjax import Policy, rollout

SLOPES = np.array([1.0, -0.5], np.float32)  # Of log r in u, in each of two states.


@pytest.fixture(scope="module")
def energy(tmp_path_factory):
    """Trained on standard normal latents: log E[exp(k u_0) | u_t] = k sqrt(abar_t) u_t + a constant."""
    rng = np.random.default_rng(0)
    states = rng.integers(2, size=2000)
    latents = rng.normal(size=(2000, 32, 1)).astype(np.float32)
    log_reward = SLOPES[states][:, None] * latents[..., 0]
    settings = regression(steps=1600, batch_size=1024, learning_rate=3e-3, weight_decay=0.0)
    settings.width = 32
    data = (jnp.asarray(latents), jnp.asarray(log_reward), jnp.eye(2)[states])
    return qgpo.train(*data, settings, key=jax.random.key(1), workdir=tmp_path_factory.mktemp("qgpo"))


@pytest.mark.slow
def test_the_gradient_of_the_energy_is_that_of_the_closed_form(energy):
    u = jnp.linspace(-1.0, 1.5, 21)[:, None]
    for step in (10, 200, 500):
        for state, slope in enumerate(SLOPES):
            s = jnp.tile(jnp.eye(2)[state][None], (21, 1))
            found = jax.grad(lambda u, s=s, t=step: jnp.sum(qgpo.energy(energy, u, jnp.float32(t), s)))(u)
            expected = slope * np.sqrt(behaviour_prior.alpha_bar()[step])
            assert abs(float(jnp.mean(found)) - expected) < 0.12, (step, state)


@pytest.mark.slow
def test_the_guided_chain_draws_the_tilted_law(energy, key):
    """A standard normal tilted by exp(k u) has mean k."""
    process = behaviour_prior.make_process(20, 0.02)
    table = jnp.asarray(behaviour_prior.alpha_bar(), jnp.float32)
    prior = Policy({}, lambda params, u, t, cond: jnp.sqrt(1.0 - table[t.astype(jnp.int32)]) * u)
    s = jnp.repeat(jnp.eye(2), 4000, axis=0)
    guided = qgpo.guided(energy, lambda s: s)
    u = jax.jit(lambda key: rollout(key, process, prior, guided, shape=(8000, 1), cond=s).xs[-1])(key)
    means = np.asarray(u).reshape(2, 4000).mean(axis=1)
    np.testing.assert_allclose(means, SLOPES, atol=0.15)


def test_an_energy_that_says_nothing_costs_the_logarithm_of_how_many_it_chooses_from(key):
    latents = jax.random.normal(key, (8, 16, 1))
    params = qgpo.init(key, 8, 1, 1)
    np.testing.assert_allclose(
        qgpo.loss(params, key, latents, 2.0 * latents[..., 0], jnp.zeros((8, 1))), np.log(16.0), rtol=1e-5
    )
