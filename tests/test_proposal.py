"""Where the paths of a batch come from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from oracles import QuadraticGaussian
from shrunk import bare_domain, changed

from configs.gmm import get_config
from experiments import hosts
from experiments.domains.base import Conditions
from experiments.proposal import Proposal, distinct
from rtbjax.sharding import data_mesh


def test_conditions_of_a_batch_are_different_and_any_set_of_them_is_as_likely(key):
    pairs = jax.vmap(lambda key: distinct(key, 5, 2))(jax.random.split(key, 20_000))
    drawn, times = np.unique(np.sort(pairs, axis=1), axis=0, return_counts=True)
    assert len(drawn) == 10 and (drawn[:, 0] < drawn[:, 1]).all()
    chi_squared = np.sum((times - 2_000) ** 2 / 2_000)
    assert chi_squared < 27.9  # Of nine degrees of freedom; one key in a thousand has more.
    assert sorted(distinct(key, 5, 5).tolist()) == [0, 1, 2, 3, 4]


def test_replay_prefers_what_had_more_reward(key):
    """With a weight of r to the power of beta over the temperature: when that is large, it is the best path alone."""
    chain, beta = QuadraticGaussian(), 2.0
    config = changed(
        get_config("smoke"),
        objective__beta=beta,
        train__batch_size=32,
        behaviour__accepted=0.0,
        behaviour__noised=0.0,
        behaviour__replay=0.5,
        behaviour__replay_temperature=1e-4,
        behaviour__capacity=64,
    )
    source = Proposal(config, bare_domain(chain, chain.prior, (1,)), data_mesh(1))
    batch, buffers = source.propose(key, 0, chain.prior.params, source.init(key))
    own, again = np.split(np.asarray(batch.log_reward), 2)
    np.testing.assert_array_equal(again, np.full(16, own.max()))
    np.testing.assert_allclose(buffers.visited.priority[:16], beta * own, rtol=1e-6)


def test_data_that_all_hosts_have_are_rewarded_by_the_first(key, monkeypatch):
    """Another one does not ask, and takes what the first was told: a reward may answer otherwise the second time."""
    chain, asked = QuadraticGaussian(), []

    def log_reward(x, cond):
        asked.append(len(x))
        return chain.log_reward(x)

    values = jnp.arange(4.0)
    conditions = Conditions(values, values, tuple("abcd"), examples=jnp.arange(4.0)[:, None])
    here = dataclasses.replace(bare_domain(chain, chain.prior, (1,), conditions=conditions), log_reward=log_reward)
    config = changed(
        get_config("smoke"),
        train__batch_size=16,
        objective__group=4,
        behaviour__accepted=0.0,
        behaviour__noised=0.5,
        behaviour__replay=0.0,
    )
    source = Proposal(config, here, data_mesh(1))

    def noised():
        batch, _ = source.propose(key, 0, chain.prior.params, source.init(key))
        return np.asarray(batch.log_reward).reshape(4, 4)[:, 2:], np.asarray(batch.xs[-1]).reshape(4, 4, 1)[:, 2:]

    log_r, ends = noised()
    np.testing.assert_allclose(log_r, chain.log_reward(ends), rtol=1e-5)
    assert asked == [8, 8]
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    monkeypatch.setattr(hosts, "from_first", lambda array: np.full_like(array, 7.0))
    np.testing.assert_array_equal(noised()[0], np.full((4, 2), 7.0))
    assert asked == [8, 8, 8]  # Its own paths alone.
