"""The claims of docs/method.md that no other file tests: what zero loss implies, and the floors that stay above it."""

import jax
import jax.numpy as jnp
import numpy as np
from oracles import QuadraticGaussian, one_step

import rtbjax
from rtbjax import certificate
from rtbjax.types import Policy

PATHS = 40_000


def shift(amount):
    return Policy(jnp.float32(amount), lambda params, x, t, cond: jnp.broadcast_to(params, x.shape))


def within(values, expected):
    """The mean of independent values is the expected one, to 4 standard errors."""
    error = 4 * np.std(values) / np.sqrt(np.size(values))
    np.testing.assert_allclose(np.mean(values), expected, atol=error)


def test_exact_samples_do_not_imply_zero_loss(key):
    """r = 1 and a prior that forgets its start; a posterior that remembers it samples the same law by other paths."""
    rho = 0.8
    remembering = one_step(rho, np.sqrt(1 - rho**2))
    paths = rtbjax.rollout(key, remembering, shift(0.0), shape=(PATHS, 1))
    ends = np.asarray(paths.xs[-1])
    within(ends, 0.0)
    within(ends**2, 1.0)
    log_prior = rtbjax.log_prob(one_step(0.0, 1.0), shift(0.0), paths.xs)
    gap = np.asarray(jnp.sum(log_prior - paths.log_prior, axis=0))
    assert np.var(gap) > 0.1
    # The path-KL is the mutual information of start and end; the samples' own KL is 0 and lies below it.
    within(-gap, -0.5 * np.log(1 - rho**2))


def test_a_remembered_start_leaves_a_floor_that_start_excess_sees(key):
    """log r = c x: the best posterior has the exact step; the start, which it may not tilt, costs (c rho)^2 / 2."""
    c, rho = 0.7, 0.5
    std = np.sqrt(1 - rho**2)
    process, prior = one_step(rho, std), shift(0.0)
    best = shift(c * std**2)
    paths = rtbjax.rollout(key, process, prior, best, shape=(PATHS, 1))
    gap = np.asarray(jnp.sum(paths.log_ratio, axis=0) + c * paths.xs[-1][:, 0], np.float64)
    log_z, floor = c**2 / 2, (c * rho) ** 2 / 2
    within(log_z - gap, floor)
    # What is left depends on the start alone: no posterior step can remove it.
    np.testing.assert_allclose(gap - c * rho * np.asarray(paths.xs[0][:, 0]), log_z - floor, atol=1e-4)

    again = rtbjax.rollout(jax.random.key(1), process, prior, shape=(PATHS, 1))
    same_start = process.reverse(prior(paths.xs[0], 0.0, None), paths.xs[0], 0)
    ends = [same_start.sample(jax.random.split(jax.random.key(seed), PATHS)) for seed in (2, 3)]
    excess, error = certificate.start_excess(*(c * x[:, 0] for x in ends))
    np.testing.assert_allclose(excess, np.exp((c * rho) ** 2) - 1, atol=4 * error)
    unrelated, error = certificate.start_excess(c * ends[0][:, 0], c * again.xs[-1][:, 0])
    assert abs(unrelated) < 4 * error


def test_fixed_variances_leave_a_floor_of_the_order_of_the_step(key):
    """The exact posterior's means with the prior's variances: the best there is, since only the means are free."""
    floors = []
    for num_steps in (10, 20, 40):
        chain = QuadraticGaussian(num_steps)
        exact = chain.exact.apply_fn
        fixed = Policy({}, lambda params, x, t, cond, exact=exact: exact(params, x, t, cond).value)
        paths = rtbjax.rollout(key, chain.process, chain.prior, fixed, shape=(PATHS, 1))
        gap = np.asarray(jnp.sum(paths.log_ratio, axis=0) + chain.log_reward(paths.xs[-1]), np.float64)
        log_stds = [exact({}, jnp.zeros((1, 1)), jnp.float32(i / num_steps), None).log_std for i in range(num_steps)]
        variances = np.exp(2 * np.asarray(log_stds, np.float64))
        floors.append(0.5 * np.sum(1 / variances - 1 + np.log(variances)))
        within(chain.log_z - gap, floors[-1])
    np.testing.assert_allclose(np.divide(floors[:-1], floors[1:]), 2.0, rtol=0.1)


def test_weights_alone_do_not_see_a_lost_mode(key):
    """Two equally likely tokens, r = 1, a posterior that only ever draws one: perfect weights, half of Z missing."""
    process = rtbjax.absorbing(rtbjax.schedules.linear_mask_rate(3), 2)
    both = Policy(jnp.zeros(2), lambda params, x, t, cond: jnp.broadcast_to(params, (*x.shape, 2)))
    one = both.replace(params=jnp.asarray([30.0, -30.0]))
    gap = jnp.sum(rtbjax.rollout(key, process, both, one, shape=(1000, 1)).log_ratio, axis=0)
    alone = rtbjax.certify(gap)
    np.testing.assert_allclose([alone.log_z_is, alone.elbo], np.log(0.5), atol=1e-5)
    assert alone.ess > 0.999 and alone.pareto_k is None and alone.path_kl_lower < 1e-5
    assert alone.verdict == "coverage_unchecked"
    known = rtbjax.certify(gap, certificate.exact(0.0, "closed form"))
    assert known.verdict == "modes_missing"
    np.testing.assert_allclose(known.path_kl, np.log(2.0), atol=1e-5)
