"""Where the paths of a batch come from, on a chain without conditions."""

import numpy as np
from oracles import QuadraticGaussian
from shrunk import bare_domain, changed

from configs.gmm import get_config
from experiments.proposal import Proposal
from rtbjax.sharding import data_mesh


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
