"""Training-free steering where it is exact, and where its gradient has a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData, QuadraticGaussian

import rtbjax
from rtbjax import guidance
from rtbjax.process import sde, vp
from rtbjax.schedules import linear_alpha_bar, respace
from rtbjax.types import Policy

SLOPE = jnp.asarray([0.7, -0.4])


def linear(x, cond):
    return x @ SLOPE


def classifier(process, prior, log_reward, **arguments):
    return guidance.classifier_guidance(log_reward, **arguments)


def monte_carlo(process, prior, log_reward, **arguments):
    return guidance.loss_guidance(process, prior, log_reward, lambda i: jnp.float32(0.0), num_samples=2, **arguments)


def value(process, prior, log_reward, **arguments):
    return guidance.value_guidance(process, lambda x, t, cond: log_reward(x, cond), log_reward, **arguments)


KINDS = pytest.mark.parametrize(
    "make", [classifier, guidance.posterior_sampling, monte_carlo, value], ids=lambda make: make.__name__
)


@KINDS
def test_of_constant_drift_and_linear_log_r_it_is_the_exact_posterior(make, key):
    """log E[exp(c . x_T) | x] is then c . x plus a constant: its gradient is c, at every state."""
    drift, diffusion = jnp.asarray([0.5, -1.0]), 1.5
    process = sde.brownian_bridge(6, diffusion)
    prior = Policy(drift, lambda params, x, t, cond: jnp.broadcast_to(params, x.shape))
    guided = make(process, prior, linear)
    paths = jax.jit(lambda key: rtbjax.rollout(key, process, prior, guided, shape=(64, 2), widen=0.5))(key)
    gap = jnp.sum(paths.log_ratio, axis=0) + linear(paths.xs[-1], None)
    np.testing.assert_allclose(gap, drift @ SLOPE + 0.5 * diffusion * SLOPE @ SLOPE, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_posterior_sampling_differentiates_through_the_denoiser(prediction):
    """For Gaussian data E[x0 | x] is linear, so that the gradient is c times its gain, at each of the chain's times."""
    data, schedule = GaussianData(), respace(linear_alpha_bar(), 10)
    process = vp.ddpm(schedule, prediction=prediction)
    prior = data.vp(linear_alpha_bar(), prediction)
    guided = guidance.posterior_sampling(process, prior, linear, strength=2.0)
    x = jax.random.normal(jax.random.key(0), (3, 2))
    for i in (0, 4, 9):
        t, a = process.time(i), schedule.alpha_bar[i]
        score = guided.look(prior(x, t, None), x, t, None)["score"]
        gain = np.sqrt(a) * data.std**2 / (a * data.std**2 + 1.0 - a)
        np.testing.assert_allclose(score, np.broadcast_to(2.0 * gain * SLOPE, x.shape), rtol=2e-3)


def test_value_guidance_takes_the_gradient_at_the_mean_of_the_prior_s_step():
    """Of the exact value of a chain with a quadratic log r; at the last step of log r itself."""
    chain = QuadraticGaussian()
    slopes, curves = np.asarray(chain.following, np.float32).T

    def log_h(x, t, cond):  # Of the state that is at time t; the data come after the last time.
        before = chain.process.step_at(t) - 1
        return jnp.sum(jnp.asarray(slopes)[before] * x - 0.5 * jnp.asarray(curves)[before] * x**2, axis=-1)

    guided = guidance.value_guidance(chain.process, log_h, lambda x, cond: chain.log_reward(x))
    x = jax.random.normal(jax.random.key(0), (5, 1))
    for i in range(chain.num_steps):
        t = chain.process.time(jnp.int32(i))
        output = chain.prior(x, t, None)
        mean = chain.process.reverse(output, x, jnp.int32(i)).mean
        score = guided.look(output, x, t, None)["score"]
        np.testing.assert_allclose(score, slopes[i] - curves[i] * np.asarray(mean), rtol=1e-4, atol=1e-5)


def test_value_guidance_by_what_h_is_expected_to_be_moves_the_mean_as_the_exact_step_does():
    """Of h = exp(a x - c x^2 / 2) about a mean m with variance v, log E h has the slope (a - c m) / (1 + c v)."""
    chain = QuadraticGaussian()
    slopes, curves = np.asarray(chain.following, np.float32).T
    x = jax.random.normal(jax.random.key(0), (5, 1))
    for i in map(jnp.int32, range(chain.num_steps)):
        t = chain.process.time(i)
        output = chain.prior(x, t, None)
        law = chain.process.reverse(output, x, i)
        a, c = slopes[i], curves[i]

        def expected(x, cond, a=a, c=c, v=law.std**2):
            return jnp.sum((a * x - 0.5 * c * x**2) / (1.0 + c * v), axis=-1)

        guided = guidance.value_guidance(chain.process, lambda x, t, cond, log=expected: log(x, cond), expected)
        steered = chain.process.reverse(guided(x, t, None, guided.look(output, x, t, None)), x, i)
        exact = chain.process.reverse(chain.exact(x, t, None), x, i)
        np.testing.assert_allclose(steered.mean, exact.mean, rtol=1e-4, atol=1e-5)
        assert float(jnp.abs(exact.mean - law.mean).max()) > 1e-3


@KINDS
def test_the_score_is_clipped_scaled_per_sample_and_sees_the_condition(make):
    """log r = -cond |x|^2 / 2 at a prior without drift, whose estimate of the data is the state itself."""
    process = sde.brownian_bridge(5, 1.0)
    prior = Policy({}, lambda params, x, t, cond: jnp.zeros_like(x))

    def log_reward(x, cond):
        return -0.5 * cond * jnp.sum(x**2, axis=-1)

    guided = make(process, prior, log_reward, strength=0.5, clip=1.5)
    x, cond, i = jnp.asarray([[1.0, -7.0], [0.2, 0.4]]), jnp.asarray([1.0, 3.0]), jnp.int32(2)
    t = process.time(i)
    output = prior(x, t, cond)
    law = process.reverse(guided(x, t, cond, guided.look(output, x, t, cond)), x, i)
    base = process.reverse(output, x, i)
    np.testing.assert_allclose(
        law.mean - base.mean, base.std**2 * 0.5 * np.asarray([[-1.0, 1.5], [-0.6, -1.2]]), rtol=1e-5
    )
    np.testing.assert_array_equal(law.std, base.std)
    assert not jax.tree.leaves(guided.params)


def test_the_bias_of_posterior_sampling_and_its_absence_in_loss_guidance():
    """Gaussian data and log r = c x - q x^2 / 2: log E[r(x_0) | x] has the slope of log r at the mean over 1 + q v."""
    data, schedule = GaussianData(), respace(linear_alpha_bar(), 10)
    process = vp.ddpm(schedule, prediction="sample")
    prior = data.vp(linear_alpha_bar(), "sample")
    c, q, i = 0.5, 6.0, 4
    a, t = schedule.alpha_bar[i], process.time(i)
    variance = data.std**2 * (1.0 - a) / (a * data.std**2 + 1.0 - a)
    gain = np.sqrt(a) * data.std**2 / (a * data.std**2 + 1.0 - a)

    def log_reward(x, cond):
        return jnp.sum(c * x - 0.5 * q * x**2, axis=-1)

    x = jnp.asarray([[0.3], [-0.6], [1.4]])
    slope = gain * (c - q * np.asarray(data.x0(x, np.sqrt(a), np.sqrt(1.0 - a))))
    exact = slope / (1.0 + q * variance)

    def score(guided):
        return guided.look(prior(x, t, None), x, t, None)["score"]

    def spread(i):
        return jnp.float32(np.sqrt(variance))

    np.testing.assert_allclose(score(guidance.posterior_sampling(process, prior, log_reward)), slope, rtol=2e-3)
    assert q * variance > 0.5  # The factor by which it is wrong is no rounding.
    many = guidance.loss_guidance(process, prior, log_reward, spread, num_samples=40_000)
    np.testing.assert_allclose(score(many), exact, rtol=0.03)


def test_loss_guidance_has_other_noise_for_other_states_and_scores_what_it_sampled(key):
    process = sde.brownian_bridge(6, 1.5)
    prior = Policy(jnp.asarray([0.5, -1.0]), lambda params, x, t, cond: jnp.broadcast_to(params, x.shape))

    def log_reward(x, cond):
        return -jnp.sum(x**4, axis=-1)

    guided = guidance.loss_guidance(process, prior, log_reward, lambda i: jnp.float32(0.7), num_samples=3)
    paths = jax.jit(lambda key: rtbjax.rollout(key, process, prior, guided, shape=(32, 2)))(key)
    again = jax.jit(lambda xs: rtbjax.score(process, prior, xs, None, guided).log_ratio)(paths.xs)
    np.testing.assert_allclose(again, paths.log_ratio, rtol=1e-4, atol=1e-4)
    found = np.asarray(guidance._noise_of(jax.random.normal(key, (4_000, 2)), 2))
    assert found.shape == (2, 4_000, 2) and len(np.unique(found)) > 0.99 * found.size
    assert abs(found.mean()) < 0.03 and abs(found.std() - 1.0) < 0.03
    assert np.abs(np.corrcoef(found.transpose(0, 2, 1).reshape(4, -1)) - np.eye(4)).max() < 0.08


def test_loss_guidance_without_samples_is_refused():
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        guidance.loss_guidance(sde.brownian_bridge(2, 1.0), Policy({}, None), linear, lambda i: 0.0, num_samples=0)
