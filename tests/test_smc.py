"""Selection among the prior's paths, against posteriors that are enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import LinearGaussian, QuadraticGaussian
from test_one_by_one import JOINT, LENGTH, LOG_REWARD, PRIOR, PROCESS, perfect

from rtbjax import smc

BETA = 1.5
TARGET = JOINT * np.exp(BETA * LOG_REWARD)
# The prior, and a policy that leans towards r, not far enough and not everywhere.
PROPOSALS = {
    "prior": None,
    "another": perfect(JOINT * np.exp(0.6 * LOG_REWARD + 0.3 * np.cos(np.arange(27.0).reshape(3, 3, 3)))),
}


def log_reward(x, cond):
    return jnp.asarray(LOG_REWARD, jnp.float32)[tuple(x.T)]


def steer(key, count, threshold, proposal="prior"):
    arguments = dict(shape=(count, LENGTH), beta=BETA, threshold=threshold, proposal=PROPOSALS[proposal])
    return smc.steer(key, PROCESS, PRIOR, log_reward, **arguments)


@pytest.mark.parametrize("threshold, proposal", [(0.0, "prior"), (0.5, "prior"), (1.0, "prior"), (0.5, "another")])
def test_the_estimate_of_z_is_unbiased_however_often_particles_are_drawn_anew(threshold, proposal, key):
    """With a few particles each, where a wrong weight would show."""
    keys = jax.random.split(key, 20_000)
    found = np.asarray(jax.jit(jax.vmap(lambda key: steer(key, 4, threshold, proposal).log_z))(keys), np.float64)
    ratio = np.exp(found) / TARGET.sum()
    error = ratio.std() / np.sqrt(len(ratio))
    assert error < 0.02 and abs(ratio.mean() - 1.0) < 4 * error


@pytest.mark.parametrize("threshold, proposal", [(0.0, "prior"), (0.5, "prior"), (0.5, "another")])
def test_many_particles_are_the_posterior(threshold, proposal, key):
    found = jax.jit(lambda key: steer(key, 40_000, threshold, proposal))(key)
    law = np.zeros_like(JOINT)
    np.add.at(law, tuple(np.asarray(found.x).T), 1.0 / len(found.x))
    wanted = TARGET / TARGET.sum()
    assert 0.5 * np.abs(law - wanted).sum() < 0.03 < 0.2 < 0.5 * np.abs(JOINT - wanted).sum()
    assert float(found.log_z) == pytest.approx(np.log(TARGET.sum()), abs=0.03)


@pytest.mark.parametrize("chain", [LinearGaussian(num_steps=6), QuadraticGaussian()], ids=["linear", "quadratic"])
def test_from_the_exact_posterior_twisted_by_its_value_a_few_particles_know_z(chain, key):
    """All weights are then equal; by the posterior of another reward, or another twist, they are not."""
    width = 2 if isinstance(chain, LinearGaussian) else 1
    if isinstance(chain, LinearGaussian):
        dt = 1.0 / chain.num_steps
        slopes = np.stack([chain.c * (1.0 + dt * chain.a) ** (chain.num_steps - i) for i in range(chain.num_steps)])
        curves = np.zeros(chain.num_steps)
    else:  # log h at the state *before* a step is that after the one before; at the first state it is Z's.
        slopes, curves = np.transpose([(0.0, 0.0), *chain.following[:-1]])
        slopes = slopes[:, None]

    def value(output, x, i, cond):
        return jnp.sum(jnp.float32(slopes)[i][None] * x - 0.5 * jnp.float32(curves)[i] * x**2, axis=-1)

    def log_reward(x, cond):
        return chain.log_reward(x)

    def found(proposal, twist):
        arguments = dict(shape=(8, width), proposal=proposal, twist=twist, threshold=1.0)
        keys = jax.random.split(key, 3)
        run = jax.jit(jax.vmap(lambda key: smc.steer(key, chain.process, chain.prior, log_reward, **arguments).log_z))
        return np.asarray(run(keys))

    np.testing.assert_allclose(found(chain.exact, value), chain.log_z, atol=2e-4)
    assert np.ptp(found(chain.exact, None)) > 1e-2 and np.ptp(found(None, value)) > 1e-2


def test_the_best_of_n_has_the_law_of_the_largest_rank(key):
    """F^n - (F before)^n over the sorted values of r; not the posterior, whatever n."""
    x, n = jax.random.categorical(key, jnp.log(jnp.float32(JOINT.ravel())), shape=(90_000,)), 3
    log_r = jnp.float32(LOG_REWARD.ravel())[x]
    best = np.asarray(smc.best_of(n, x, log_r))
    order = np.argsort(LOG_REWARD.ravel())
    below = np.cumsum(JOINT.ravel()[order])
    law = np.zeros(JOINT.size)
    law[order] = below**n - np.concatenate([[0.0], below[:-1]]) ** n
    shares = np.bincount(best, minlength=JOINT.size) / len(best)
    assert best.shape == (30_000,) and np.abs(shares - law).max() < 5 * np.sqrt(law.max() / len(best))
    wanted = JOINT * np.exp(LOG_REWARD)
    assert 0.5 * np.abs(law - wanted.ravel() / wanted.sum()).sum() > 0.1


def test_the_best_of_every_few_in_turn():
    x = jnp.arange(18).reshape(6, 3)
    best = smc.best_of(3, x, jnp.array([0.0, 2.0, 1.0, -3.0, -2.0, -1.0]))
    np.testing.assert_array_equal(best, x[jnp.array([1, 5])])


def test_systematic_draws_are_as_many_as_they_should_be(key):
    share = jnp.array([0.5, 0.0, 0.26, 0.24], jnp.float32)
    counts = [np.bincount(smc.systematic(k, share), minlength=4) for k in jax.random.split(key, 50)]
    assert all(abs(c - 4 * s) < 1 + 1e-6 for one in counts for c, s in zip(one, np.asarray(share), strict=True))
    np.testing.assert_allclose(np.mean(counts, axis=0), 4 * np.asarray(share), atol=0.2)


def test_a_threshold_that_is_no_share_is_refused(key):
    with pytest.raises(ValueError, match="threshold must lie between 0 and 1, got 2.0"):
        steer(key, 4, 2.0)


def test_numbers_that_are_not_one_for_each_particle_are_refused(key):
    chain = LinearGaussian()
    arguments = dict(shape=(8, 2))
    for wrong in (lambda x, cond: chain.log_reward(x)[:, None], lambda x, cond: jnp.float32(0.0)):
        with pytest.raises(ValueError, match=r"log_reward must have shape \(8,\), got \("):
            smc.steer(key, chain.process, chain.prior, wrong, **arguments)
    with pytest.raises(ValueError, match=r"twist must have shape \(8,\), got \(\)"):
        twist = lambda output, x, i, cond: jnp.float32(0.0)  # noqa: E731
        smc.steer(key, chain.process, chain.prior, lambda x, cond: chain.log_reward(x), twist=twist, **arguments)
    with pytest.raises(ValueError, match=r"log_reward must have shape \(8,\), got \(4,\)"):
        smc.best_of(2, jnp.zeros((8, 2)), jnp.zeros(4))


def test_where_jax_is_in_double_precision_weights_stay_single(key):
    """A scan's carry has one type; the reward answers in another."""
    chain = LinearGaussian()
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        found = smc.steer(
            key,
            chain.process,
            chain.prior,
            lambda x, cond: chain.log_reward(x).astype(jnp.float64),
            shape=(64, 2),
            beta=np.float64(1.0),
        )
    assert found.log_z.dtype == jnp.float32 and np.isfinite(found.log_z)
