"""The regressions before RTB, on a chain whose log Z is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import QuadraticGaussian

from configs.gmm import get_config
from experiments import warm_start
from experiments.domains.base import Domain, Value
from rtbjax import behaviour, posterior, rollout
from rtbjax.nets.value import ValueHead


class Score(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        h = jnp.concatenate([x, jnp.broadcast_to(t, x.shape)], axis=-1)
        return nn.Dense(1, kernel_init=nn.initializers.zeros)(nn.silu(nn.Dense(32)(h)))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Path-KL before and after."""
    chain, score = QuadraticGaussian(diffusion=1.0), Score()
    # c x - q x^2 / 2 is at most c^2 / 2q.
    log_bound = chain.c**2 / (2 * chain.q)
    head = ValueHead(initial=chain.log_z - log_bound)
    x = jnp.zeros((1, 1))
    domain = Domain(
        name="quadratic",
        data_source="none",
        process=chain.process,
        event_shape=(1,),
        prior=chain.prior,
        posterior=posterior.steered(
            score.init(jax.random.key(0), x, jnp.float32(0)), lambda params, x, t, cond, seen: score.apply(params, x, t)
        ),
        log_reward=lambda x, cond: chain.log_reward(x),
        log_bound=log_bound,
        fingerprint="",
        evaluate=lambda samples: {},
        plot=lambda path, panels: None,
        value=Value(
            params=head.init(jax.random.key(1), x, jnp.float32(0)),
            look=lambda output, x, t, cond: x,
            log_h=lambda params, features, t: head.apply(params, features, 1000.0 * t),
        ),
    )
    config = get_config()
    config.process.num_steps = chain.num_steps
    config.value.steps, config.steer.steps = 600, 600
    seen = warm_start.Seen()
    key = jax.random.key(2)
    paths = jax.jit(lambda key: rollout(key, chain.process, chain.prior, shape=(4096, 1), look=domain.value.look))(key)
    paths = paths._replace(log_reward=chain.log_reward(paths.xs[-1]))
    seen.keep(paths)
    accepted = np.flatnonzero(behaviour.accept(key, paths.log_reward, log_bound))
    assert 200 < len(accepted) < 4000
    workdir = tmp_path_factory.mktemp("warm")
    params = warm_start.run(config, domain, seen, paths.xs[:, accepted], key, workdir)

    @jax.jit
    def path_kl(params):
        policy = domain.posterior.replace(params=params)
        sampled = rollout(jax.random.key(3), chain.process, chain.prior, policy, shape=(4000, 1))
        return chain.log_z - jnp.mean(jnp.sum(sampled.log_ratio, axis=0) + chain.log_reward(sampled.xs[-1]))

    return float(path_kl(domain.posterior.params)), float(path_kl(params))


def test_the_warm_start_brings_the_posterior_near(fitted):
    before, after = fitted
    # The step variances stay the prior's, which costs a little whatever the means are.
    assert after < 0.25 * before, fitted
    assert after < 0.1, fitted
