"""Losses by relations: exact expectations over an enumerated chain, and two paths by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from oracles import QuadraticGaussian, TabularMasked, masked_paths

from rtbjax import losses
from rtbjax.process.absorbing import absorbing
from rtbjax.schedules import linear_mask_rate
from rtbjax.trajectory import log_prob
from rtbjax.types import Policy

CHAIN = TabularMasked(num_steps=2, length=2, vocab_size=2)
PROCESS = absorbing(linear_mask_rate(2), 2)
PRIOR = CHAIN.joint_prior()
PATHS = jnp.asarray(masked_paths(2, 2, 2))  # all 16
LOG_REWARD = jnp.asarray(np.random.default_rng(1).normal(size=(2, 2)), jnp.float32)[PATHS[-1, :, 0], PATHS[-1, :, 1]]
POSTERIOR = PRIOR.params + 0.5 * jax.random.normal(jax.random.key(1), PRIOR.params.shape)


def log_post(table):
    return jnp.sum(log_prob(PROCESS, Policy(table, CHAIN.apply), PATHS), axis=0)


LOG_PRIOR = jax.jit(log_post)(PRIOR.params)


def expected_gradient(loss):
    """Of a per-path loss, over the law of the on-policy paths: each path weighted by its probability."""

    @jax.jit
    def gradient(table):
        weights = jnp.exp(jax.lax.stop_gradient(log_post(table)))

        def total(table):
            return jnp.sum(weights * loss(LOG_PRIOR - log_post(table), weights))

        return jax.grad(total)(table)

    return np.asarray(gradient(POSTERIOR))


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_on_policy_rtb_and_reinforce_have_the_gradient_of_the_path_kl(beta):
    """Autodiff through the enumerated sum of p_post (log p_post - log p_prior - beta log r); any baseline will do."""

    def path_kl(table):
        log_p = log_post(table)
        return jnp.sum(jnp.exp(log_p) * (log_p - LOG_PRIOR - beta * LOG_REWARD))

    expected = np.asarray(jax.jit(jax.grad(path_kl))(POSTERIOR))
    assert np.abs(expected).max() > 0.05

    def vargrad(log_ratio, weights):
        gap = jax.lax.stop_gradient(log_ratio + beta * LOG_REWARD)
        return losses.rtb(log_ratio, LOG_REWARD, jnp.broadcast_to(jnp.sum(weights * gap), gap.shape), beta=beta)

    def at_another_log_z(log_ratio, weights):
        return losses.rtb(log_ratio, LOG_REWARD, jnp.full(log_ratio.shape, 1.7), beta=beta)

    def reinforce(log_ratio, weights):
        return losses.reinforce(log_ratio, LOG_REWARD, beta=beta)

    for loss in (vargrad, at_another_log_z, reinforce):
        np.testing.assert_allclose(expected_gradient(loss), expected, rtol=1e-3, atol=1e-5)


def test_on_the_same_batch_reinforce_and_vargrad_have_the_same_gradient():
    ratio = jax.random.normal(jax.random.key(0), (7,))
    reward = jax.random.normal(jax.random.key(1), (7,))
    mean_gap = jnp.full((7,), jnp.mean(ratio + reward))
    rtb = jax.grad(lambda ratio: jnp.mean(losses.rtb(ratio, reward, mean_gap)))(ratio)
    reinforce = jax.grad(lambda ratio: jnp.mean(losses.reinforce(ratio, reward)))(ratio)
    np.testing.assert_allclose(rtb, reinforce, rtol=1e-4, atol=1e-6)


def test_rtb_is_zero_at_the_tilted_law_only_and_the_prior_is_that_law_at_beta_zero():
    """Any positive law over the 16 paths may be a log p_post here; the tilted one by float64 arithmetic."""
    log_prior, log_reward = np.float64(LOG_PRIOR), np.float64(LOG_REWARD)
    for beta in (0.0, 0.3, 1.0):
        log_z = scipy.special.logsumexp(log_prior + beta * log_reward)
        tilted = log_prior + beta * log_reward - log_z
        z = jnp.full((16,), log_z, jnp.float32)
        ratio = jnp.asarray(log_prior - tilted, jnp.float32)
        np.testing.assert_allclose(losses.rtb(ratio, LOG_REWARD, z, beta=beta), np.zeros(16), atol=1e-10)
        at_prior = losses.rtb(jnp.zeros(16), LOG_REWARD, z, beta=beta)
        assert (np.abs(at_prior).max() < 1e-10) == (beta == 0.0)


def test_cutoff_silences_small_residuals_and_leaves_the_gradient_of_large_ones():
    ratio = jnp.asarray([0.2, -0.3, 1.0, -2.0])
    zeros = jnp.zeros(4)

    def total(ratio, cutoff):
        return jnp.sum(losses.rtb(ratio, zeros, zeros, cutoff=cutoff))

    np.testing.assert_allclose(losses.rtb(ratio, zeros, zeros, cutoff=0.1), [0.0, 0.0, 0.45, 1.95], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(total)(ratio, 0.1), [0.0, 0.0, 1.0, -2.0], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(total)(ratio, 0.0), ratio, rtol=1e-6)


@pytest.mark.parametrize("name", ["rtb", "reinforce", "reinforce_reward", "ddpo", "dpok"])
def test_arrays_that_do_not_pair_up_are_refused(name):
    log_z = (jnp.zeros(4),) if name == "rtb" else ()
    with (
        jax.numpy_rank_promotion("allow"),
        pytest.raises(ValueError, match=r"log_reward must have shape \(4,\), got \(4, 1\)"),
    ):
        getattr(losses, name)(jnp.zeros(4), jnp.zeros((4, 1)), *log_z)


# Two paths, rewards 1 and 3 (mean 2, standard deviation 1): whitened -1 and 1.
TWO = jnp.log(jnp.asarray([1.0, 3.0]))


def push(loss, ratio):
    """How one descent step changes each path's log p_post: minus the gradient in it, that is, that in log_ratio."""
    return np.asarray(jax.grad(lambda r: jnp.sum(loss(r)))(jnp.asarray(ratio)))


def test_ddpo_on_two_paths_by_hand():
    np.testing.assert_allclose(push(lambda r: losses.ddpo(r, TWO), [0.4, -0.8]), [-1.0, 1.0], rtol=1e-5)


def test_dpok_on_two_paths_by_hand():
    """KL to the prior is -log_ratio = (-0.4, 0.8), about its mean (-0.6, 0.6): at weight 2 it outweighs the reward."""
    np.testing.assert_allclose(push(lambda r: losses.dpok(r, TWO, kl_weight=0.0), [0.4, -0.8]), [-1.0, 1.0], rtol=1e-5)
    np.testing.assert_allclose(push(lambda r: losses.dpok(r, TWO, kl_weight=0.5), [0.4, -0.8]), [-0.7, 0.7], rtol=1e-5)
    np.testing.assert_allclose(push(lambda r: losses.dpok(r, TWO, kl_weight=2.0), [0.4, -0.8]), [0.2, -0.2], rtol=1e-4)


def test_reinforce_on_the_reward_on_two_paths_by_hand():
    """Rewards about their mean; the penalty alpha log_ratio^2 pulls each path towards the prior's probability."""
    np.testing.assert_allclose(push(lambda r: losses.reinforce_reward(r, TWO), [0.4, -0.8]), [-1.0, 1.0], rtol=1e-5)
    np.testing.assert_allclose(
        push(lambda r: losses.reinforce_reward(r, TWO, alpha=0.5), [0.4, -0.8]), [-0.6, 0.2], rtol=1e-5
    )


def test_reinforce_on_two_paths_by_hand():
    """Gaps 0.4 + 0 and -0.8 + log 3: the better path for its reward, less what the prior thinks of it."""
    difference = 0.5 * (np.log(3) - 1.2)
    np.testing.assert_allclose(
        push(lambda r: losses.reinforce(r, TWO), [0.4, -0.8]), [-difference, difference], rtol=1e-4
    )


@pytest.mark.parametrize("name", ["reinforce", "reinforce_reward", "ddpo", "dpok"])
def test_the_exponent_of_r_is_that_of_a_tempered_reward(name):
    loss = getattr(losses, name)
    ratio, log_reward = jax.random.normal(jax.random.key(0), (2, 7))
    np.testing.assert_allclose(loss(ratio, log_reward, beta=0.3), loss(ratio, 0.3 * log_reward), rtol=1e-6)
    assert np.abs(loss(ratio, log_reward, beta=0.3) - loss(ratio, log_reward)).max() > 0.1


def test_whitened():
    white = losses.whitened(jnp.asarray([5.0, 1.0, 3.0, 3.0]))
    np.testing.assert_allclose(white, np.sqrt([2.0, 2.0, 0.0, 0.0]) * np.asarray([1, -1, 0, 0]), rtol=1e-5)
    np.testing.assert_array_equal(losses.whitened(jnp.full((3,), 2.0)), np.zeros(3))


@pytest.mark.parametrize("i", [0, 3, 7])
def test_steering_has_the_gradient_of_the_divergence_from_the_exact_step(i, key):
    """Anywhere, and not at the optimum only; the targets are taken where the step itself leads."""
    chain = QuadraticGaussian()
    slope, curve = chain.following[i]
    x, t = jnp.asarray([[0.4], [-1.1]]), chain.process.time(i)
    prior = chain.process.reverse(chain.prior(x, t, None), x, i)
    exact = chain.process.reverse(chain.exact(x, t, None), x, i)

    def step(score):
        return prior._replace(mean=prior.mean + prior.std**2 * score)

    score = jnp.asarray([[0.7], [-0.2]])
    following = step(score).mean[None] + prior.std * jax.random.normal(key, (40_000, 2, 1))
    targets = slope - curve * following

    def distance(score):
        return jnp.mean(jax.vmap(lambda target: losses.steering(score, target, prior.std))(targets), axis=0).sum()

    expected = jax.grad(lambda score: jnp.sum(step(score).kl(exact)))(score)
    # 40,000 draws of a target whose standard deviation is curve * std.
    tolerance = 5.0 * curve * float(prior.std) ** 3 / np.sqrt(40_000)
    np.testing.assert_allclose(jax.grad(distance)(score), expected, atol=tolerance + 1e-5)
    # And it is a divergence in nats: that of two steered steps.
    np.testing.assert_allclose(
        losses.steering(score, -2.0 * score, prior.std), step(score).kl(step(-2.0 * score)), rtol=1e-4
    )


def masked_expectation(loss, joint, x0, *, rates=64):
    """E over the mask rate, uniform in (0, 1), and over masks, of a loss that sees a perfect network.

    By Gauss-Legendre quadrature and enumeration; ``joint`` is the law of the tokens, one axis each.
    """
    length, size = joint.ndim, joint.shape[0]
    nodes, weights = np.polynomial.legendre.leggauss(rates)
    total = 0.0
    for masked in itertools.product((False, True), repeat=length):
        seen = joint[tuple(slice(None) if hidden else slice(v, v + 1) for hidden, v in zip(masked, x0, strict=True))]
        logits = np.zeros((length, size))
        for position in range(length):
            others = tuple(axis for axis in range(length) if axis != position)
            law = seen.sum(others)
            logits[position] = np.log(law / law.sum()) if law.size == size else 0.0
        for node, weight in zip((nodes + 1.0) / 2.0, weights / 2.0, strict=True):
            chance = node ** sum(masked) * (1.0 - node) ** (length - sum(masked))
            value = loss(jnp.float32(logits)[None], jnp.array([x0]), jnp.array([masked]), jnp.float32([node]))
            total += weight * chance * float(value[0])
    return total


def scored(logits, x0, masked, rate):
    """`losses.score_entropy` of the scores that a perfect network would give."""
    ratio = (1.0 - rate) / rate
    return losses.score_entropy(logits + jnp.log(ratio)[:, None, None], x0, masked, rate)


@pytest.mark.parametrize("loss", [losses.masked_elbo, scored], ids=["mdlm", "sedd"])
def test_the_bounds_of_a_perfect_network_are_tight(loss):
    """The expectation of either loss is the entropy of the very tokens, for every value of them."""
    joint = np.exp(np.random.default_rng(0).normal(size=(3, 3)))
    joint /= joint.sum()
    for x0 in ((0, 0), (1, 2), (2, 1)):
        assert masked_expectation(loss, joint, x0) == pytest.approx(-np.log(joint[x0]), abs=1e-4)


def test_score_entropy_is_least_at_the_true_scores():
    """In expectation over the clean token; its own excess is at least 0, and 0 nowhere else."""
    law, rate = np.array([0.2, 0.5, 0.3]), 0.4
    true = np.log(law * (1.0 - rate) / rate)

    def expected(log_score):
        tokens, masked = jnp.arange(3)[:, None], jnp.ones((3, 1), jnp.bool_)
        scores = jnp.broadcast_to(jnp.float32(log_score), (3, 1, 3))
        return float(law @ np.asarray(losses.score_entropy(scores, tokens, masked, jnp.full(3, rate))))

    gradient = [(expected(true + step) - expected(true - step)) / 2e-2 for step in 1e-2 * np.eye(3)]
    np.testing.assert_allclose(gradient, 0.0, atol=1e-3)
    for step in 0.3 * np.concatenate([np.eye(3), -np.eye(3), np.ones((1, 3))]):
        assert expected(true + step) > expected(true) + 1e-3
