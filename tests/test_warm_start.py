"""The regression before RTB, on a chain whose value is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import QuadraticGaussian
from shrunk import bare_domain, changed

from configs.gmm import get_config
from experiments import loop, warm_start, weights
from experiments.domains.base import Value
from rtbjax import posterior, rollout
from rtbjax.sharding import data_mesh

CHAIN = QuadraticGaussian(diffusion=1.0)
SLOPES, CURVES = jnp.asarray([(0.0, 0.0), *CHAIN.following], jnp.float32).T  # At xs[0], which nothing asks for, zeros.


class Score(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        h = jnp.concatenate([x, jnp.broadcast_to(t, x.shape)], axis=-1)
        return nn.Dense(1, kernel_init=nn.initializers.zeros)(nn.silu(nn.Dense(32)(h)))


def exact_log_h(params, x, t, cond):
    i = CHAIN.process.step_at(t)
    return jnp.sum(SLOPES[i] * x - 0.5 * CURVES[i] * x**2, axis=-1)


def domain():
    score = Score()
    params = score.init(jax.random.key(0), jnp.zeros((1, 1)), jnp.float32(0))
    steered = posterior.steered(params, lambda params, x, t, cond, seen: score.apply(params, x, t))
    return bare_domain(CHAIN, steered, (1,), value=Value({}, exact_log_h))


def settings():
    settings = get_config().steer
    settings.steps, settings.batch_size = 600, 256
    return settings


def test_targets_are_gradients_at_the_next_states_and_of_the_reward_at_the_data(key):
    xs = jax.random.normal(key, (CHAIN.num_steps + 1, 5, 1))
    found = warm_start.value_gradients(domain(), {}, xs)
    slope, curve = np.asarray(CHAIN.following).T[:, :, None, None]
    np.testing.assert_allclose(found, slope - curve * np.asarray(xs[1:]), rtol=1e-4, atol=1e-5)


def test_the_warm_start_reaches_the_floor_of_fixed_variances(tmp_path):
    """With the exact value the means become exact; what is left is the divergence of the variances alone."""
    here = domain()

    @jax.jit
    def path_kl(params):
        policy = here.posterior.replace(params=params)
        sampled = rollout(jax.random.key(3), CHAIN.process, CHAIN.prior, policy, shape=(20_000, 1))
        return CHAIN.log_z - jnp.mean(jnp.sum(sampled.log_ratio, axis=0) + CHAIN.log_reward(sampled.xs[-1]))

    shrink = np.exp(2.0 * np.asarray(CHAIN.log_stds, np.float64))
    floor = 0.5 * np.sum(1.0 / shrink - 1.0 + np.log(shrink))
    params = warm_start.run(here, settings(), jax.random.key(2), tmp_path)
    before, after = float(path_kl(here.posterior.params)), float(path_kl(params))
    assert before > 10 * floor, (before, floor)
    assert abs(after - floor) < 0.02, (after, floor)


def test_strength_multiplies_the_gradient(tmp_path):
    """At the last step, of mean m and variance v: the score s solves ``s = strength (c - q (m + v s))``."""
    here, strong = domain(), settings()
    strong.strength = 2.0
    params = warm_start.run(here, strong, jax.random.key(2), tmp_path)
    policy = here.posterior.replace(params=params)
    i = CHAIN.num_steps - 1
    x = rollout(jax.random.key(3), CHAIN.process, CHAIN.prior, policy, shape=(2_000, 1)).xs[i]
    drift = CHAIN.prior(x, CHAIN.process.time(i), None)
    step = CHAIN.process.reverse(drift, x, i)
    exact = 2.0 * (CHAIN.c - CHAIN.q * step.mean) / (1.0 + 2.0 * CHAIN.q * step.std**2)
    error = np.asarray(policy(x, CHAIN.process.time(i), None, drift).score - exact)
    assert np.sqrt(np.mean(error**2)) < 0.15 * np.std(exact)  # Of strength 1 it is 0.44.


def test_learned_variances_are_left_alone(key):
    """A step's std is no part of the regression, which a smaller one would only seem to serve."""
    here = domain()
    policy = posterior.learned_std(
        here.posterior, {"s": jnp.float32(0.3)}, lambda params, x, t, cond: params["s"].reshape(1, 1)
    )
    paths = rollout(key, CHAIN.process, CHAIN.prior, policy, shape=(5, 1))
    targets = warm_start.value_gradients(here, {}, paths.xs)

    def loss(params):
        per_path = warm_start.steering(here, policy.replace(params=params), paths, targets)
        assert per_path.shape == (5,)
        return jnp.sum(per_path)

    gradient = jax.grad(loss)(policy.params)
    assert float(gradient["log_std"]["s"]) == 0.0
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradient["base"])) > 0.0


@pytest.mark.parametrize("trained", [False, True])
def test_a_posterior_that_was_trained_before_is_not_led_back_to_the_value(trained, tmp_path, monkeypatch):
    here, steered = domain(), []
    weights.save(tmp_path / "trained.safetensors", {"policy": here.posterior.params}, {})
    monkeypatch.setattr(warm_start, "run", lambda domain, *arguments: steered.append(1) or domain.posterior.params)
    config = changed(
        get_config("smoke"),
        devices=1,
        behaviour__accepted=0.0,
        train__steps=1,
        steer__steps=2,
        posterior__start=str(tmp_path / "trained.safetensors") if trained else "",
    )
    with loop.Clock() as clock:
        loop.run(config, here, tmp_path / "w", data_mesh(1), clock)
    assert len(steered) == (not trained)
