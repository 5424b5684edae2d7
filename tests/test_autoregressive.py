"""Text written from left to right, on chains small enough to enumerate every text."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import rtbjax
from rtbjax.nets.transformer import CausalTransformer
from rtbjax.trajectory import log_prob, noise, rollout
from rtbjax.types import LearnedStd, Policy, Steered

LENGTH, SIZE = 3, 3
MASK = SIZE
PROCESS = rtbjax.left_to_right(LENGTH, SIZE)
JOINT = np.exp(0.8 * np.random.default_rng(0).normal(size=(SIZE,) * LENGTH))
JOINT[2, :, 1] = 0.0  # What a language model never writes.
JOINT /= JOINT.sum()
LOG_REWARD = 1.5 * np.random.default_rng(1).normal(size=JOINT.shape)  # Couples all positions.
TARGET = JOINT * np.exp(LOG_REWARD)


def perfect(joint):
    """The policy of a law of texts: a table of logits of the next token for every beginning."""
    table = np.zeros((SIZE + 1,) * LENGTH + (SIZE,))
    for written in range(LENGTH):
        for tokens in itertools.product(range(SIZE), repeat=written):
            seen = joint[tokens]
            with np.errstate(divide="ignore"):
                table[(*tokens, *[MASK] * (LENGTH - written))] = np.log(seen.reshape(SIZE, -1).sum(axis=1))
    return Policy(jnp.asarray(table, jnp.float32), lambda table, x, t, cond: table[tuple(x.T)])


PRIOR, POSTERIOR = perfect(JOINT), perfect(TARGET)
TEXTS = jnp.asarray([text for text in itertools.product(range(SIZE), repeat=LENGTH) if JOINT[text]], jnp.int32)
PATHS = noise(jax.random.key(0), PROCESS, TEXTS)
REWARDS = jnp.asarray(LOG_REWARD, jnp.float32)[tuple(TEXTS.T)]


def law_of(policy):
    """Of the texts."""
    return np.exp(np.asarray(jnp.sum(log_prob(PROCESS, policy, PATHS), axis=0), np.float64))


def test_a_text_is_written_from_left_to_right_and_has_one_path_with_its_own_probability():
    assert (np.asarray(PATHS == MASK) == (np.arange(LENGTH) >= np.arange(LENGTH + 1)[:, None])[:, None]).all()
    np.testing.assert_allclose(law_of(PRIOR), JOINT[tuple(np.asarray(TEXTS).T)], rtol=1e-5)


def test_sampled_texts_follow_their_probabilities(key):
    count = 20_000
    found = jax.jit(lambda key: rollout(key, PROCESS, PRIOR, PRIOR, shape=(count, LENGTH)))(key)
    xs = np.asarray(found.xs)
    assert xs.dtype == np.int32 and (xs[0] == MASK).all() and (xs[-1] < MASK).all()
    np.testing.assert_array_equal(noise(key, PROCESS, found.xs[-1]), xs)
    code = {tuple(text): index for index, text in enumerate(np.asarray(TEXTS).tolist())}
    index = [code[tuple(text)] for text in xs[-1].tolist()]
    shares = law_of(PRIOR)
    assert scipy.stats.chisquare(np.bincount(index, minlength=len(code)), count * shares / shares.sum()).pvalue > 1e-3
    np.testing.assert_allclose(np.exp(found.log_prior.sum(axis=0)), shares[index], rtol=1e-4)
    assert not np.asarray(found.log_ratio).any()


def test_the_posterior_of_a_coupled_reward_has_zero_loss_on_every_path():
    trajectory = rtbjax.score(PROCESS, PRIOR, PATHS, None, POSTERIOR)._replace(log_reward=REWARDS)
    np.testing.assert_allclose(trajectory.log_ratio.sum(axis=0) + REWARDS, np.log(TARGET.sum()), atol=1e-5)
    value, _ = rtbjax.loss({"policy": POSTERIOR.params}, trajectory, process=PROCESS, apply_fn=POSTERIOR.apply_fn)
    assert float(value) < 1e-9


@pytest.mark.parametrize("log_z", ["vargrad", "learned"])
def test_training_finds_it(log_z):
    """From the prior, by gradient steps on all texts at once; what the prior never writes stays unwritten."""
    scored = rtbjax.score(PROCESS, PRIOR, PATHS)._replace(log_reward=REWARDS)

    def loss(params):
        return rtbjax.loss(params, scored, process=PROCESS, apply_fn=PRIOR.apply_fn, log_z=log_z)[0]

    gradient = jax.jit(jax.grad(loss))
    params = {"policy": PRIOR.params} | ({"log_z": jnp.float32(0.0)} if log_z == "learned" else {})
    for _ in range(1_500):
        params = jax.tree.map(lambda p, g: p - g, params, gradient(params))
    wanted = TARGET[tuple(np.asarray(TEXTS).T)] / TARGET.sum()
    law = law_of(PRIOR.replace(params=params["policy"]))
    assert 0.5 * np.abs(law - wanted).sum() < 0.01 < 0.5 * np.abs(law_of(PRIOR) - wanted).sum()
    if log_z == "learned":
        assert float(params["log_z"]) == pytest.approx(np.log(TARGET.sum()), abs=0.01)


def test_the_variational_bound_of_a_perfect_network_is_tight(key):
    """Per text, in expectation over steps: what `denoising_loss` says is -log of its probability."""
    x0 = jnp.tile(jnp.array([[0, 2, 1]], jnp.int32), (30_000, 1))
    values = np.asarray(jax.jit(lambda key: rtbjax.denoising_loss(key, PROCESS, PRIOR, x0))(key))
    assert abs(values.mean() + np.log(JOINT[0, 2, 1])) < 5 * values.std() / np.sqrt(len(values))


def test_the_estimate_of_the_data_is_the_likeliest_next_token_and_no_more():
    x = jnp.array([[1, MASK, MASK]], jnp.int32)
    np.testing.assert_array_equal(PROCESS.denoise(jnp.array([[0.0, 2.0, 1.0]]), x, jnp.int32(1)), [[1, 1, MASK]])


@pytest.mark.parametrize("output", [Steered(jnp.zeros((1, 3)), 0.0), LearnedStd(jnp.zeros((1, 3)), 0.0)])
def test_outputs_for_gaussian_steps_are_refused(output):
    with pytest.raises(TypeError, match="changes a Gaussian step"):
        PROCESS.reverse(output, jnp.zeros((1, 3), jnp.int32), jnp.int32(0))


def test_the_language_model_of_the_project_reads_what_is_not_yet_written(key):
    """As the chain does: the text so far after a first token, and no NaN from the mask beyond its table."""
    net = CausalTransformer(vocab_size=SIZE + 1, width=8, depth=1, heads=1)
    starting = jnp.full((4, 1), SIZE, jnp.int32)
    params = net.init(key, starting)

    def logits(params, x, t, cond):
        # The mask of the chain is the start of a text, SIZE; one more id would be beyond the table.
        tokens = jnp.concatenate([starting, jnp.where(x == MASK, SIZE + 1, x)], axis=1)
        written = jnp.sum(x[0] != MASK)
        return net.apply(params, tokens)[:, written, :SIZE]

    found = rollout(key, PROCESS, Policy(params, logits), shape=(4, LENGTH))
    assert np.isfinite(np.asarray(found.log_prior)).all() and (np.asarray(found.xs[-1]) < SIZE).all()
