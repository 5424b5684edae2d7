"""Every objective a config can name has the gradient of its formula, and takes its settings from the config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import LinearGaussian
from shrunk import bare_domain

from configs.base import base
from experiments import objectives
from rtbjax.posterior import steered
from rtbjax.sharding import data_mesh
from rtbjax.train import init_state, make_update, optimizer
from rtbjax.trajectory import log_prob, rollout
from rtbjax.types import Policy

BETA, ALPHA = 0.6, 0.3
CHAIN = LinearGaussian(num_steps=4)
POSTERIOR = Policy({"shift": jax.random.normal(jax.random.key(1), (4, 2))}, CHAIN.shifted_apply)


def domain(posterior=POSTERIOR):
    return bare_domain(CHAIN, posterior, (2,))


def settings(loss):
    config = base()
    config.objective.update(loss=loss, beta=BETA, alpha=ALPHA, chunk=2)
    return config


def deviation(x):
    return x - np.mean(x)


def whitened(x):
    return deviation(x) / np.std(x)


def stated(log_post, log_prior, log_reward):
    """Each loss as its paper has it, for autodiff in ``log_post``; advantages are numbers."""
    r, ratio = np.exp(BETA * np.float64(log_reward)), np.float64(log_prior - log_post)
    advantage = {
        "rtb": deviation(ratio + BETA * np.float64(log_reward)),
        "reinforce": deviation(ratio + BETA * np.float64(log_reward)),
        "reinforce_reward": deviation(r),
        "ddpo": whitened(r),
        "dpok": whitened(r) + ALPHA * deviation(ratio),
    }
    penalty = {"reinforce_reward": ALPHA}

    def loss(name, log_post):
        score_function = -jnp.asarray(advantage[name], jnp.float32) * log_post
        return jnp.mean(score_function + penalty.get(name, 0.0) * (log_prior - log_post) ** 2)

    return loss


@pytest.fixture(scope="module")
def paths():
    run = jax.jit(lambda key: rollout(key, CHAIN.process, CHAIN.prior, POSTERIOR, shape=(16, 2)))
    found = run(jax.random.key(0))
    return found._replace(log_reward=CHAIN.log_reward(found.xs[-1]))


def log_post(params, paths):
    return jnp.sum(log_prob(CHAIN.process, Policy(params, CHAIN.shifted_apply), paths.xs), axis=0)


@pytest.mark.parametrize("name", ["rtb", *objectives.BASELINES])
def test_the_gradient_is_that_of_the_formula(name, paths):
    objective = objectives.make(settings(name), domain())

    @jax.jit
    def actual(params):
        def loss(params):
            return objective({"policy": params}, paths, key=jax.random.key(0), axis_name=None)

        return jax.grad(loss, has_aux=True)(params)

    gradient, info = actual(POSTERIOR.params)
    log_prior = jnp.sum(paths.log_prior, axis=0)
    loss = stated(jax.jit(log_post)(POSTERIOR.params, paths), log_prior, paths.log_reward)
    expected = jax.jit(jax.grad(lambda params: loss(name, log_post(params, paths))))(POSTERIOR.params)
    assert np.abs(expected["shift"]).max() > 0.01
    np.testing.assert_allclose(gradient["shift"], expected["shift"], rtol=1e-3, atol=1e-4)
    # Of any objective: the paths' log importance weights, so that runs can be compared.
    np.testing.assert_allclose(info.gap, jnp.sum(paths.log_ratio, axis=0) + BETA * paths.log_reward, rtol=1e-5)


def test_a_baseline_runs_in_the_update(paths):
    update = make_update(objectives.make(settings("dpok"), domain()), optimizer(1e-3), data_mesh(2))
    state = init_state(objectives.initial_params(settings("dpok"), domain()), optimizer(1e-3))
    state, info = update(state, paths, jax.random.key(0))
    assert np.isfinite(info.loss) and state.step == 1


def test_log_z_is_a_parameter_only_where_it_is_learned():
    config = settings("rtb")
    assert set(objectives.initial_params(config, domain())) == {"policy"}
    config.objective.log_z = "learned"
    assert objectives.initial_params(config, domain(steered({}, lambda *a: 0.0)))["log_z"].shape == ()


def test_the_exponent_of_r_rises_linearly_to_beta_and_stays_there(paths):
    """By the gap of each step, whatever the loss."""
    config = settings("rtb")
    config.objective.beta_warmup = 3
    params, options = {"policy": POSTERIOR.params}, dict(key=jax.random.key(0), axis_name=None)

    def gap(beta, trajectory):
        config.objective.beta = beta
        return objectives.make(config, domain())(params, trajectory, **options)[1].gap

    for step, share in enumerate((0.25, 0.5, 0.75, 1.0, 1.0)):
        now = objectives.warmed_up(config, paths, step)
        np.testing.assert_allclose(gap(BETA, now), gap(share * BETA, paths), rtol=1e-5, atol=1e-6)
    config.objective.beta_warmup = 0
    assert objectives.warmed_up(config, paths, 0) is paths
