"""One-step laws against SciPy in float64, and the digits of a log-ratio at 16,384 dimensions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from oracles import assert_moments

from rtbjax.kernels import Categorical, Gaussian, Reveal


def keys(count, seed=1):
    return jax.random.split(jax.random.key(seed), count)


STDS = {
    "scalar": np.float32(0.3),
    "per feature": np.asarray([[[0.1, 2.0]]], np.float32),
    "per entry": np.exp(np.random.default_rng(1).normal(size=(3, 4, 2))).astype(np.float32),
}


@pytest.mark.parametrize("std", STDS.values(), ids=STDS.keys())
def test_gaussian_log_prob_is_that_of_scipy(std):
    rng = np.random.default_rng(0)
    mean, x = rng.normal(size=(2, 3, 4, 2)).astype(np.float32)
    expected = scipy.stats.norm.logpdf(x.astype(np.float64), mean.astype(np.float64), std.astype(np.float64))
    actual = Gaussian(jnp.asarray(mean), jnp.asarray(std)).log_prob(jnp.asarray(x))
    assert actual.shape == (3,)
    np.testing.assert_allclose(actual, expected.sum((1, 2)), rtol=2e-6)


def large_case(std_self, std_other):
    """50 steps (the batch axis) of 16,384 dimensions, the means a little apart, x drawn from the first law."""
    rng = np.random.default_rng(0)
    shape = (50, 16_384)
    mean = rng.normal(size=shape).astype(np.float32)
    other = (mean + 0.002 * rng.normal(size=shape)).astype(np.float32)
    x = (mean + std_self * rng.normal(size=shape)).astype(np.float32)
    stds = np.float32(std_self), np.float32(std_other)

    def exact(m, s):
        return scipy.stats.norm.logpdf(x.astype(np.float64), m.astype(np.float64), np.float64(s)).sum()

    laws = Gaussian(jnp.asarray(mean), stds[0]), Gaussian(jnp.asarray(other), stds[1])
    return *laws, jnp.asarray(x), exact(mean, stds[0]) - exact(other, stds[1])


def test_log_ratio_keeps_the_digits_that_two_totals_lose():
    law, other, x, exact = large_case(0.1, 0.1)
    ratio = float(jnp.sum(law.log_ratio(other, x)))
    totals = float(jnp.sum(law.log_prob(x)) - jnp.sum(other.log_prob(x)))
    assert abs(exact) > 10.0  # a difference worth having digits of
    assert abs(ratio - exact) < 1e-4
    assert abs(totals - exact) > 1e-2


def test_log_ratio_of_unequal_stds_is_exact_to_float32():
    """The totals themselves are thousands of nats here, so float32 leaves some 1e-3 of a nat."""
    law, other, x, exact = large_case(0.1, 0.101)
    ratio = float(np.asarray(law.log_ratio(other, x), np.float64).sum())
    totals = float(jnp.sum(law.log_prob(x)) - jnp.sum(other.log_prob(x)))
    assert abs(ratio - exact) < 5e-3
    assert abs(ratio - exact) < 0.2 * abs(totals - exact)


@pytest.mark.parametrize("std", STDS.values(), ids=STDS.keys())
def test_log_ratio_of_different_laws(std):
    rng = np.random.default_rng(2)
    mean, other_mean, x = rng.normal(size=(3, 3, 4, 2)).astype(np.float32)
    other_std = np.float32(0.7)
    law, other = Gaussian(jnp.asarray(mean), jnp.asarray(std)), Gaussian(jnp.asarray(other_mean), other_std)
    expected = scipy.stats.norm.logpdf(x, mean, std) - scipy.stats.norm.logpdf(x, other_mean, other_std)
    np.testing.assert_allclose(law.log_ratio(other, jnp.asarray(x)), expected.sum((1, 2)), rtol=1e-5, atol=1e-4)


def test_bfloat16_means_are_scored_and_sampled_in_float32():
    rng = np.random.default_rng(0)
    mean = jnp.asarray(rng.normal(size=(2, 512)), jnp.bfloat16)
    x = jnp.asarray(rng.normal(size=(2, 512)), jnp.float32)
    law, other = Gaussian(mean, jnp.float32(0.5)), Gaussian(mean * 0.5, jnp.float32(0.5))
    exact = [scipy.stats.norm.logpdf(x, np.asarray(m, np.float64), 0.5).sum(-1) for m in (mean, mean * 0.5)]
    assert law.log_prob(x).dtype == law.log_ratio(other, x).dtype == law.sample(keys(2)).dtype == jnp.float32
    np.testing.assert_allclose(law.log_prob(x), exact[0], rtol=1e-5)
    np.testing.assert_allclose(law.log_ratio(other, x), exact[0] - exact[1], rtol=1e-5)


def test_gaussian_samples_have_its_moments():
    """20,000 draws: an error of 4 % of a standard deviation, in mean or std, is 5 standard errors or more."""
    mean = np.asarray([1.0, -3.0], np.float32)
    std = np.asarray([0.5, 2.0], np.float32)
    law = Gaussian(jnp.broadcast_to(mean[None], (20_000, 2)), jnp.asarray(std)[None])
    x = law.sample(keys(20_000))
    assert_moments(x, mean, std)
    assert abs(np.corrcoef(np.asarray(x).T)[0, 1]) < 5 / np.sqrt(20_000)


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_what_a_key_draws_does_not_depend_on_its_batch(kind):
    values = jax.random.normal(jax.random.key(0), (6, 5, 3))
    law = Gaussian(values, jnp.float32(1.0)) if kind == "gaussian" else Categorical(jax.nn.log_softmax(values))
    part = type(law)(*(a[2:5] if a.ndim else a for a in law))
    all_keys = keys(6)
    np.testing.assert_array_equal(part.sample(all_keys[2:5]), law.sample(all_keys)[2:5])
    assert len(np.unique(np.asarray(law.sample(all_keys)).reshape(6, -1), axis=0)) == 6


def test_widened_gaussian_adds_an_independent_normal():
    law = Gaussian(jnp.zeros((1, 1)), jnp.float32(0.3))
    x = jnp.asarray([[0.7]])
    np.testing.assert_allclose(
        law.widen(jnp.float32(0.4)).log_prob(x), scipy.stats.norm(0, 0.5).logpdf([0.7]), rtol=1e-6
    )
    np.testing.assert_allclose(law.widen(jnp.float32(0.0)).log_prob(x), law.log_prob(x), rtol=1e-6)


def random_categorical():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), size=(1, 2))
    return Categorical(jnp.asarray(np.log(probabilities), jnp.float32)), probabilities[0]


def test_categorical_log_prob_by_enumeration():
    law, p = random_categorical()
    other = Categorical(jnp.full((1, 2, 3), -np.log(3.0), jnp.float32))
    total = 0.0
    for first, second in itertools.product(range(3), repeat=2):
        x = jnp.asarray([[first, second]], jnp.int32)
        log_prob = float(law.log_prob(x)[0])
        np.testing.assert_allclose(log_prob, np.log(p[0, first] * p[1, second]), rtol=1e-5)
        np.testing.assert_allclose(law.log_ratio(other, x)[0], log_prob + 2 * np.log(3), rtol=1e-5, atol=1e-6)
        total += np.exp(log_prob)
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)
    assert law.log_prob(x).dtype == jnp.float32


def test_categorical_samples_have_its_frequencies():
    """Chi-square over the joint table of 8,000 draws; a law with 0.03 moved between two classes is told apart."""
    law, p = random_categorical()
    x = np.asarray(Categorical(jnp.broadcast_to(law.log_probs, (8_000, 2, 3))).sample(keys(8_000)))
    counts = np.histogram2d(x[:, 0], x[:, 1], bins=[np.arange(4) - 0.5] * 2)[0].ravel()
    assert scipy.stats.chisquare(counts, 8_000 * np.outer(p[0], p[1]).ravel()).pvalue > 1e-3
    moved = p + np.asarray([[0.03, -0.03, 0.0], [0.0, 0.0, 0.0]])
    assert scipy.stats.chisquare(counts, 8_000 * np.outer(moved[0], moved[1]).ravel()).pvalue < 1e-4


def test_one_hot_positions_contribute_nothing_and_have_no_gradient():
    one_hot = jnp.log(jnp.asarray([1.0, 0.0, 0.0]))
    frozen = jnp.asarray([True, False])

    def log_probs(logits):
        return jnp.where(frozen[None, :, None], one_hot[None, None, :], jax.nn.log_softmax(logits, axis=-1))

    x = jnp.asarray([[0, 2]], jnp.int32)
    logits = jax.random.normal(jax.random.key(0), (1, 2, 3))
    other = Categorical(log_probs(-logits))
    np.testing.assert_allclose(
        Categorical(log_probs(logits)).log_prob(x), jax.nn.log_softmax(logits[:, 1], axis=-1)[:, 2], rtol=1e-6
    )
    for score in (lambda law: law.log_prob(x), lambda law: law.log_ratio(other, x)):
        gradient = jax.grad(lambda v, score=score: score(Categorical(log_probs(v)))[0])(logits)
        np.testing.assert_array_equal(gradient[0, 0], 0.0)
        assert np.isfinite(gradient).all() and np.abs(gradient[0, 1]).min() > 1e-3


def test_a_token_impossible_under_both_laws_contributes_nothing_to_their_ratio():
    """Under one of them alone it is an infinite ratio, as it should be; and there is no NaN in the gradient."""
    log_probs = jnp.log(jnp.asarray([[[0.0, 1.0, 0.0], [0.5, 0.25, 0.25]]]))
    law = Categorical(log_probs)
    both = Categorical(log_probs.at[0, 1].set(jnp.log(jnp.asarray([0.25, 0.25, 0.5]))))
    x = jnp.asarray([[0, 2]], jnp.int32)
    np.testing.assert_allclose(law.log_ratio(both, x), [np.log(0.5)], rtol=1e-6)
    possible = Categorical(jnp.full((1, 2, 3), -np.log(3.0), jnp.float32))
    assert law.log_ratio(possible, x) == -np.inf and possible.log_ratio(law, x) == np.inf
    gradient = jax.grad(lambda lp: jnp.sum(law.log_ratio(Categorical(lp), x)))(both.log_probs)
    np.testing.assert_array_equal(gradient, [[[0.0, 0.0, 0.0], [0.0, 0.0, -1.0]]])


def test_a_reveal_impossible_under_both_laws_contributes_nothing_to_their_ratio():
    """A token that neither can tell, and two reveals in a step of one."""
    x = jnp.full((1, 2), 3, jnp.int32)
    law = Reveal(jnp.log(jnp.asarray([[[0.5, 0.5, 0.0]] * 2])), x)
    other = Reveal(jnp.log(jnp.asarray([[[0.2, 0.8, 0.0]] * 2])), x)
    anything = Reveal(jnp.full((1, 2, 3), -np.log(3.0), jnp.float32), x)
    for impossible in ([[2, 3]], [[0, 1]]):
        after = jnp.asarray(impossible, jnp.int32)
        assert law.log_prob(after) == other.log_prob(after) == -np.inf
        assert law.log_ratio(other, after) == 0.0
        gradient = jax.grad(lambda lp, after=after: jnp.sum(law.log_ratio(Reveal(lp, x), after)))(other.log_probs)
        np.testing.assert_array_equal(gradient, np.zeros((1, 2, 3)))
    np.testing.assert_allclose(law.log_ratio(other, jnp.asarray([[0, 3]])), [np.log(2.5)], rtol=1e-6)
    told = jnp.asarray([[2, 3]], jnp.int32)
    assert law.log_ratio(anything, told) == -np.inf and anything.log_ratio(law, told) == np.inf


def test_widened_categorical_is_flatter_and_keeps_the_impossible_impossible():
    log_probs = jnp.log(jnp.asarray([[[0.7, 0.3, 0.0], [0.0, 1.0, 0.0]]]))
    wide = np.exp(Categorical(log_probs).widen(jnp.float32(1.0)).log_probs)[0]
    np.testing.assert_allclose(wide.sum(-1), 1.0, rtol=1e-6)
    assert 0.5 < wide[0, 0] < 0.7 and wide[0, 2] == 0.0
    np.testing.assert_allclose(wide[0, 0] / wide[0, 1], np.sqrt(7 / 3), rtol=1e-5)
    np.testing.assert_array_equal(wide[1], [0.0, 1.0, 0.0])
    np.testing.assert_allclose(Categorical(log_probs).widen(jnp.float32(0.0)).log_probs, log_probs, rtol=1e-6)


def test_gaussian_kl_is_the_mean_log_ratio():
    mean_p, mean_q = np.array([[0.3, -1.0]]), np.array([[0.1, 0.5]])
    p = Gaussian(jnp.asarray(mean_p, jnp.float32), jnp.float32(0.7))
    q = Gaussian(jnp.asarray(mean_q, jnp.float32), jnp.float32(1.2))
    expected = 0.0
    for a, b in zip(mean_p[0], mean_q[0], strict=True):
        law = scipy.stats.norm(a, 0.7)
        expected += law.expect(lambda x, law=law, b=b: law.logpdf(x) - scipy.stats.norm.logpdf(x, b, 1.2))
    np.testing.assert_allclose(p.kl(q), [expected], rtol=1e-5)
    np.testing.assert_array_equal(p.kl(p), [0.0])


def test_categorical_kl_ignores_what_is_impossible():
    p = Categorical(jnp.log(jnp.asarray([[[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]])))
    q = Categorical(jnp.log(jnp.asarray([[[0.25, 0.5, 0.25], [0.0, 1.0, 0.0]]])))
    np.testing.assert_allclose(p.kl(q), [0.5 * np.log(2.0)], rtol=1e-6)
    gradient = jax.grad(lambda lp: jnp.sum(p.kl(Categorical(lp))))(q.log_probs)
    np.testing.assert_allclose(gradient, [[[-0.5, -0.5, 0.0], [0.0, -1.0, 0.0]]], atol=1e-6)
