"""What a run says of its posterior, on chains where it is known."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import QuadraticGaussian, assert_moments, one_step
from shrunk import bare_domain, changed

from configs.gmm import get_config
from experiments import evaluate, exact
from rtbjax import Policy
from rtbjax.sharding import data_mesh

CHAIN = QuadraticGaussian()
BETA = 0.5
TARGET = CHAIN.tempered(BETA)
MESH = data_mesh(1)


def domain():
    return bare_domain(CHAIN, CHAIN.prior, (1,))


def test_fresh_paths_are_all_different_and_weighted_by_r_to_the_power_of_beta(key):
    """Those of the exact posterior all weigh Z; three batches, of which the last is not full."""
    found = evaluate.paths(key, domain(), TARGET.exact, count=250, batch=100, beta=BETA, mesh=MESH, label="")
    np.testing.assert_allclose(found.gap[0], TARGET.log_z, atol=1e-3)
    np.testing.assert_allclose(found.log_reward[0], CHAIN.log_reward(found.x[0]), rtol=1e-5, atol=1e-5)
    assert found.x.shape == (1, 250, 1) and len(np.unique(found.x)) == 250


def test_the_upper_bound_is_of_exact_paths_at_beta(key):
    """Of the exact posterior it is log Z; of the prior in its place the mean of beta log r under the posterior."""
    (exact,) = evaluate.exact_gaps(key, domain(), TARGET.exact, 4_000, BETA, MESH)
    np.testing.assert_allclose(exact, TARGET.log_z, atol=1e-3)
    (prior,) = evaluate.exact_gaps(key, domain(), CHAIN.prior, 4_000, BETA, MESH)
    expected = TARGET.c * TARGET.mean - 0.5 * TARGET.q * (TARGET.mean**2 + TARGET.std**2)
    assert abs(prior.mean() - expected) < 4 * prior.std() / np.sqrt(len(prior))


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_a_start_that_the_data_remember_is_found_and_warned_of(rho, key, caplog):
    """At log r = c x the ends of two paths from one start share rho xs[0]: the excess is exp((beta c rho)^2) - 1."""
    c = 1.4
    remembering = dataclasses.replace(
        domain(),
        process=one_step(rho, np.sqrt(1.0 - rho**2)),
        prior=Policy({}, lambda params, x, t, cond: jnp.zeros_like(x)),
        log_reward=lambda x, cond: c * x[:, 0],
        log_bound=None,
    )
    excess, error = evaluate.start_excess(key, remembering, 8_000, BETA, MESH)
    assert abs(excess - (np.exp((BETA * c * rho) ** 2) - 1.0)) < 4 * error
    assert ("The reward depends on where a path starts" in caplog.text) == (rho > 0.0)


@pytest.mark.parametrize("policy, verdict", [(CHAIN.exact, "consistent"), (CHAIN.prior, "importance_weight")])
def test_samples_to_be_reweighted_are_shown_resampled_too(policy, verdict, tmp_path):
    """And then they have the posterior's moments, which those of the prior in its place have not."""
    small = dict(
        devices=1,
        process__num_steps=CHAIN.process.num_steps,
        behaviour__accepted=0.0,
        eval__num_samples=4_000,
        eval__batch_size=4_000,
        eval__exact_samples=4_000,
        eval__exact_cache=str(tmp_path / "exact"),
    )
    shown = {}

    def plot(path, panels):
        path.touch()
        shown.update(panels)

    config, here = changed(get_config("smoke"), **small), dataclasses.replace(domain(), plot=plot)
    found = evaluate.evaluate(config, here, policy, exact.draw(config, here, MESH), tmp_path, MESH)
    assert found["certificate"]["verdict"] == verdict
    titles = ["prior", "RTB posterior", "RTB, resampled", "exact posterior"]
    assert list(shown) == (titles if verdict == "importance_weight" else [t for t in titles if "resampled" not in t])
    for title in titles[2:]:
        if title in shown:
            assert_moments(shown[title], CHAIN.mean, CHAIN.std, slack=0.05)
