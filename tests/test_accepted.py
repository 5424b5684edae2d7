"""The buffer of accepted prior paths, on a bounded chain whose posterior is known."""

import jax.numpy as jnp
import numpy as np
from oracles import QuadraticGaussian, assert_moments
from shrunk import bare_domain, changed

from configs.gmm import get_config
from experiments.proposal import Proposal
from rtbjax import score
from rtbjax.sharding import data_mesh

CHAIN = QuadraticGaussian()
BETA = 2.0


def test_what_is_gathered_are_exact_paths_of_the_posterior(key):
    """Prior paths, each with its own log r and log-probabilities, that end in the posterior at beta."""
    config = changed(
        get_config("smoke"),
        objective__beta=BETA,
        behaviour__accepted=0.5,
        behaviour__noised=0.0,
        behaviour__replay=0.0,
        behaviour__prior_paths=2_048,
        behaviour__capacity=2_048,
        behaviour__warm_accepted=2_048,
    )
    domain = bare_domain(CHAIN, CHAIN.prior, (1,))
    buffer = Proposal(config, domain, data_mesh(1)).init(key).accepted
    assert buffer.added >= 2_048
    xs = np.moveaxis(buffer.items["xs"], 1, 0)
    target = CHAIN.tempered(BETA)
    assert_moments(xs[-1], target.mean, target.std)
    np.testing.assert_allclose(buffer.items["log_reward"], CHAIN.log_reward(xs[-1]), rtol=1e-5, atol=1e-5)
    scored = score(CHAIN.process, CHAIN.prior, jnp.asarray(xs)).log_prior
    np.testing.assert_allclose(np.moveaxis(buffer.items["log_prior"], 1, 0), scored, rtol=1e-4, atol=1e-4)
