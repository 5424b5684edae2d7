"""Samples that are selected and not weighted, on a chain whose posterior is known."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from oracles import LinearGaussian, assert_moments
from shrunk import bare_domain, changed

from configs.gmm import get_config
from experiments import evaluate, exact, selection
from experiments.domains.base import Conditions
from experiments.errors import ConfigError, UserError
from rtbjax.certificate import Estimate
from rtbjax.sharding import data_mesh

CHAIN = LinearGaussian(num_steps=5)
MESH = data_mesh(1)


def config(**changes):
    small = dict(
        devices=1,
        process__num_steps=CHAIN.num_steps,
        behaviour__accepted=0.0,
        eval__num_samples=900,
        eval__batch_size=1_000,
        eval__exact_samples=4_000,
        eval__particles=500,
        eval__best_of=10,
    )
    return changed(get_config("smoke"), **small | changes)


def domain(**fields):
    return bare_domain(CHAIN, CHAIN.exact, (2,), **fields)


@pytest.mark.parametrize("sampler", ["smc", "smc_posterior"])
def test_particles_are_the_posterior_and_know_log_z(sampler, key):
    found = selection.draw(key, config(eval__sampler=sampler, eval__num_samples=4_000), domain(), CHAIN.exact, MESH)
    assert found.x.shape == (4_000, 2) and found.log_z.shape == (8,) and found.seconds > 0
    np.testing.assert_allclose(found.log_reward, CHAIN.log_reward(found.x), rtol=1e-5, atol=1e-5)
    assert abs(np.log(np.mean(np.exp(found.log_z))) - CHAIN.log_z) < 0.15
    paths = selection.make_rollout(CHAIN.process, (4_000, 2), MESH)(key, CHAIN.prior, CHAIN.exact)
    known = np.asarray(paths.xs[-1])
    # Particles are not independent.
    assert_moments(found.x, known.mean(0), known.std(0), slack=0.15)


def test_the_best_of_ten_of_the_prior(key):
    found = selection.draw(key, config(eval__sampler="best_of"), domain(), CHAIN.exact, MESH)
    assert found.x.shape == (900, 2) and found.log_z is None
    prior = evaluate.paths(key, domain(), None, count=1_000, batch=1_000, beta=1.0, mesh=MESH, label="prior").log_reward
    # The mean of the largest of ten normals is 1.5388 standard deviations above theirs.
    assert abs(found.log_reward.mean() - (prior.mean() + 1.5388 * prior.std())) < 0.15 * prior.std()


@pytest.mark.parametrize("sampler", ["smc_posterior", "best_of"])
def test_selected_samples_have_no_certificate_and_say_why(sampler, tmp_path):
    one, here = config(eval__sampler=sampler, eval__exact_cache=str(tmp_path / "exact")), domain()
    known = exact.draw(one, here, MESH)
    found = evaluate.evaluate(one, here, CHAIN.exact, known, tmp_path, MESH)
    training = {"seconds": {"total": 1.0}, "skipped": 0}
    written = json.loads(json.dumps(evaluate.summarise(one, here, found, training)))
    certificate = written["certificate"]
    for name in ("elbo", "eubo", "ess", "pareto_k", "path_kl", "path_kl_lower", "num_paths", "verdict"):
        assert certificate[name] is None, name
    assert "importance weights" in certificate["reason"] and certificate["reason"] in evaluate.report(written)
    assert certificate["log_z_reference"] == pytest.approx(known.log_z[0].log_z)
    if sampler == "best_of":
        assert certificate["log_z_is"] is None and certificate["log_z_is_ci"] is None
    else:
        assert abs(certificate["log_z_is"] - CHAIN.log_z) < 0.15 and certificate["log_z_is_ci"] is None
    assert written["seconds"].keys() == {"total", "sample", "prior_sample"}
    with np.load(tmp_path / "samples.npz") as file:
        assert "log_weight" not in file and file["x"].shape == (900, 2)


def test_few_particle_systems_have_no_interval_and_many_have_one_that_holds():
    """Of log-normal estimates of Z = 1, in 95 of a hundred repetitions, give or take what 400 of them tell."""
    reference = exact.Exact(np.zeros((1, 0, 2)), (Estimate(1.0, (0.9, 1.1), "prior"),))

    def of(log_z):
        return evaluate.uncertified(selection.Selected(np.zeros((4, 2)), np.zeros(4), log_z, 1.0), reference, "why")

    alone = of(np.asarray([0.7]))
    assert alone["log_z_is"] == 0.7 and alone["log_z_is_ci"] is None and alone["log_z_reference"] == 1.0
    drawn = 0.1 * np.random.default_rng(0).normal(size=(400, 30)) - 0.005
    assert of(drawn[0][:24])["log_z_is_ci"] is None
    held = [low < 0.0 < high for low, high in (of(log_z)["log_z_is_ci"] for log_z in drawn)]
    assert 0.9 < np.mean(held) < 0.98


def test_a_reward_too_rare_for_exact_samples_is_known_long_before_the_last_batch(tmp_path):
    """Of 400 that are wanted from 10,000 batches of one hundred none was among the first 25,000."""
    one = config(eval__exact_samples=200, eval__batch_size=100, eval__exact_cache=str(tmp_path))
    here = dataclasses.replace(domain(), log_reward=lambda x, cond=None: np.full(len(x), -60.0), log_bound=0.0)
    with pytest.raises(UserError, match=r"0 of 400 exact samples after 25,100 prior samples: .*--mode=evaluate with"):
        exact.draw(one, here, MESH)


def test_without_a_reference_there_is_none():
    """Where r is too rare under the prior."""
    found = evaluate.uncertified(
        selection.Selected(np.zeros((4, 2)), np.zeros(4), None, 1.0), exact.Exact(np.zeros((1, 0, 2)), (None,)), "why"
    )
    assert found.pop("reason") == "why" and set(found.values()) == {None}


@pytest.mark.parametrize("sampler", ["smc", "smc_posterior"])
def test_particles_are_refused_a_reward_outside_jax_which_best_of_can_ask(sampler):
    here = dataclasses.replace(domain(), log_reward=lambda x, cond=None: np.asarray(x).sum(axis=1))
    with pytest.raises(ConfigError, match=f"sampler={sampler} asks the reward at every step, inside JAX"):
        selection.check(config(eval__sampler=sampler), here)
    selection.check(config(eval__sampler="best_of"), here)


def test_a_sampler_that_does_not_fit_is_refused():
    """Here by the domain; by its name and its sizes before (tests/test_settings.py)."""
    many = domain(conditions=Conditions(jax.numpy.arange(2), jax.numpy.arange(2), ("a", "b")))
    with pytest.raises(ConfigError, match="must be paths: this domain has conditions"):
        selection.check(config(eval__sampler="smc"), many)
