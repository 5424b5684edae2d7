"""Masked diffusion one reveal at a time, on chains small enough to enumerate every order and every token."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import rtbjax
from rtbjax.kernels import Reveal
from rtbjax.process.absorbing import one_by_one
from rtbjax.trajectory import log_prob, noise, rollout
from rtbjax.types import LearnedStd, Policy, Steered

LENGTH, SIZE = 3, 3
MASK = SIZE
PROCESS = one_by_one(LENGTH, SIZE)
JOINT = np.exp(0.8 * np.random.default_rng(0).normal(size=(SIZE,) * LENGTH))
JOINT /= JOINT.sum()
LOG_REWARD = 1.5 * np.random.default_rng(1).normal(size=JOINT.shape)  # Couples all positions.


def perfect(joint):
    """The policy of a law of the tokens: conditionals given what is revealed."""
    table = np.zeros((SIZE + 1,) * LENGTH + (LENGTH, SIZE))
    for tokens in itertools.product(range(SIZE + 1), repeat=LENGTH):
        seen = joint[tuple(slice(None) if v == MASK else slice(v, v + 1) for v in tokens)]
        for place in range(LENGTH):
            table[(*tokens, place)] = np.log(seen.sum(tuple(axis for axis in range(LENGTH) if axis != place)))
    return Policy(jnp.asarray(table, jnp.float32), lambda table, x, t, cond: table[tuple(x.T)])


PRIOR, POSTERIOR = perfect(JOINT), perfect(JOINT * np.exp(LOG_REWARD))


def every_path():
    """``i32[T + 1, N, L]``, all orders of all tokens."""
    paths = []
    for order in itertools.permutations(range(LENGTH)):
        for tokens in itertools.product(range(SIZE), repeat=LENGTH):
            states = [np.full(LENGTH, MASK)]
            for place in order:
                states.append(np.where(np.arange(LENGTH) == place, tokens, states[-1]))
            paths.append(states)
    return np.transpose(np.asarray(paths, np.int32), (1, 0, 2))


PATHS = jnp.asarray(every_path())


def path_log_prob(policy):
    return np.asarray(jax.jit(lambda xs: jnp.sum(log_prob(PROCESS, policy, xs), axis=0))(PATHS), np.float64)


def test_the_law_of_the_ends_is_the_priors_own_whatever_the_order():
    """No step reveals two tokens, so that nothing is lost: the ends follow the joint law exactly."""
    shares, law = np.exp(path_log_prob(PRIOR)), np.zeros_like(JOINT)
    np.add.at(law, tuple(np.asarray(PATHS[-1]).T), shares)
    np.testing.assert_allclose(shares.sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(law, JOINT, rtol=1e-4)


def test_sampled_paths_follow_their_probabilities():
    count = 20_000
    roll = jax.jit(lambda key: rollout(key, PROCESS, PRIOR, PRIOR, shape=(count, LENGTH)))
    found = roll(jax.random.key(0))
    xs = np.asarray(found.xs)
    assert xs.dtype == np.int32 and (xs[0] == MASK).all() and (xs[-1] < MASK).all()
    code = {path.tobytes(): index for index, path in enumerate(np.transpose(np.asarray(PATHS), (1, 0, 2)))}
    index = [code[path.tobytes()] for path in np.ascontiguousarray(np.transpose(xs, (1, 0, 2)))]
    observed = np.bincount(index, minlength=len(code))
    shares = np.exp(path_log_prob(PRIOR))
    assert scipy.stats.chisquare(observed, count * shares / shares.sum()).pvalue > 1e-3
    np.testing.assert_allclose(found.log_prior.sum(axis=0), path_log_prob(PRIOR)[index], atol=1e-4)
    assert not np.asarray(found.log_ratio).any()


def test_the_posterior_of_a_coupled_reward_has_zero_loss_on_every_path():
    log_reward = jnp.asarray(LOG_REWARD, jnp.float32)[tuple(PATHS[-1].T)]
    trajectory = rtbjax.score(PROCESS, PRIOR, PATHS, None, POSTERIOR)._replace(log_reward=log_reward)
    gap = np.asarray(trajectory.log_ratio.sum(axis=0) + log_reward)
    np.testing.assert_allclose(gap, np.log(np.sum(JOINT * np.exp(LOG_REWARD))), atol=1e-4)
    value, _ = rtbjax.loss({"policy": POSTERIOR.params}, trajectory, process=PROCESS, apply_fn=POSTERIOR.apply_fn)
    assert float(value) < 1e-7


def test_training_finds_it():
    """From the prior, by gradient steps on all paths at once."""
    log_reward = jnp.asarray(LOG_REWARD, jnp.float32)[tuple(PATHS[-1].T)]
    scored = rtbjax.score(PROCESS, PRIOR, PATHS)._replace(log_reward=log_reward)
    gradient = jax.jit(
        jax.grad(lambda params: rtbjax.loss({"policy": params}, scored, process=PROCESS, apply_fn=PRIOR.apply_fn)[0])
    )
    params = PRIOR.params
    for _ in range(1_500):
        params = params - 4.0 * gradient(params)
    law, shares = np.zeros_like(JOINT), np.exp(path_log_prob(PRIOR.replace(params=params)))
    np.add.at(law, tuple(np.asarray(PATHS[-1]).T), shares)
    wanted = JOINT * np.exp(LOG_REWARD)
    assert 0.5 * np.abs(law - wanted / wanted.sum()).sum() < 0.01 < 0.5 * np.abs(JOINT - wanted / wanted.sum()).sum()


def test_noising_is_the_reversal_of_revealing():
    """Paths noised from data, and states directly from data, hide places at random."""
    count = 12_000
    x0 = jnp.tile(jnp.array([[0, 1, 2]], jnp.int32), (count, 1))
    xs = np.asarray(jax.jit(lambda key: noise(key, PROCESS, x0))(jax.random.key(1)))
    assert ((xs == MASK).sum(axis=2) == np.arange(LENGTH, -1, -1)[:, None]).all()
    kept = np.where(xs[:-1] == MASK, xs[1:], xs[:-1])
    np.testing.assert_array_equal(kept, xs[1:])
    orders = np.argmax(xs[1:] != MASK, axis=0)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6 and scipy.stats.chisquare(counts).pvalue > 1e-3
    for i in range(LENGTH + 1):
        direct = np.asarray(PROCESS.marginal(jax.random.split(jax.random.key(2), count), x0, jnp.int32(i), None))
        assert ((direct == MASK).sum(axis=1) == LENGTH - i).all() and ((direct == MASK) | (direct == x0)).all()
        masked = (direct == MASK).sum(axis=0)
        np.testing.assert_allclose(masked / count, 1.0 - i / LENGTH, atol=5 * 0.5 / np.sqrt(count))


def test_the_variational_bound_of_a_perfect_network_is_tight(key):
    """Per datum, in expectation over states: what `denoising_loss` says is -log of the joint law."""
    tokens = jnp.array([[0, 2, 1]], jnp.int32)
    x0 = jnp.tile(tokens, (30_000, 1))
    values = np.asarray(jax.jit(lambda key: rtbjax.denoising_loss(key, PROCESS, PRIOR, x0))(key))
    assert abs(values.mean() + np.log(JOINT[0, 2, 1])) < 5 * values.std() / np.sqrt(len(values))


def test_what_no_step_can_do_is_impossible_and_costs_no_gradient():
    log_probs = jax.nn.log_softmax(jnp.zeros((1, 3, 2)))
    x = jnp.array([[2, 2, 1]], jnp.int32)

    def score(log_probs, after):
        return Reveal(log_probs, x).log_prob(jnp.array([after], jnp.int32))[0]

    assert score(log_probs, [0, 2, 1]) == pytest.approx(np.log(1 / 2 * 1 / 2))
    for after in ([2, 2, 1], [0, 0, 1], [2, 2, 0], [0, 2, 0]):
        assert score(log_probs, after) == -jnp.inf
        assert np.isfinite(jax.grad(score)(log_probs, after)).all()
    done = jnp.array([[0, 1, 1]], jnp.int32)
    law = Reveal(log_probs, done)
    np.testing.assert_array_equal(law.sample(jax.random.split(jax.random.key(0), 1)), done)
    assert float(law.log_prob(done)[0]) == 0.0 and float(law.kl(law)[0]) == 0.0


def test_ratio_divergence_and_widening_agree_with_the_laws_themselves():
    """By enumeration of what a step can do."""
    a, b = (jax.nn.log_softmax(jax.random.normal(jax.random.key(seed), (1, 3, 2))) for seed in (0, 1))
    x = jnp.array([[2, 1, 2]], jnp.int32)
    after = jnp.array([[0, 1, 2], [1, 1, 2], [2, 1, 0], [2, 1, 1]], jnp.int32)
    mine, theirs = (np.array([float(Reveal(p, x).log_prob(row[None])[0]) for row in after]) for p in (a, b))
    ratio = [float(Reveal(a, x).log_ratio(Reveal(b, x), row[None])[0]) for row in after]
    np.testing.assert_allclose(ratio, mine - theirs, atol=1e-6)
    np.testing.assert_allclose(np.exp(mine).sum(), 1.0, rtol=1e-6)
    assert float(Reveal(a, x).kl(Reveal(b, x))[0]) == pytest.approx(np.exp(mine) @ (mine - theirs), abs=1e-6)
    flat = Reveal(a, x).widen(jnp.float32(1e6))
    np.testing.assert_allclose(flat.log_probs, np.log(0.5), atol=1e-5)
    np.testing.assert_allclose(Reveal(a, x).widen(jnp.float32(0.0)).log_probs, a, atol=1e-6)


@pytest.mark.parametrize("output", [Steered(jnp.zeros((1, 3, 3)), 0.0), LearnedStd(jnp.zeros((1, 3, 3)), 0.0)])
def test_outputs_for_gaussian_steps_are_refused(output):
    with pytest.raises(TypeError, match="changes a Gaussian step"):
        PROCESS.reverse(output, jnp.zeros((1, 3), jnp.int32), jnp.int32(0))
