"""Operators against matrices, likelihoods against densities, a linear-Gaussian posterior in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from oracles import GaussianData

import rtbjax
from rtbjax import guidance, inverse
from rtbjax.process import vp
from rtbjax.schedules import cosine_alpha_bar, respace

SHAPE = (4, 6, 2)
SEEN = np.arange(48).reshape(SHAPE) % 3 > 0
LINEAR = {
    "inpainting": inverse.inpainting(SEEN),
    "super_resolution": inverse.super_resolution(SHAPE, 2),
    "deblurring": inverse.deblurring(SHAPE, 0.8),
}


def matrix(operator, shape):
    """A, from the images of unit vectors; of the measured entries alone."""
    basis = jnp.eye(int(np.prod(shape)), dtype=jnp.float32).reshape(-1, *shape)
    columns = np.asarray(operator.measure(basis), np.float64) - np.asarray(operator.measure(0.0 * basis[:1]))
    return columns[:, operator.measured].T


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_operator_is_a_matrix_with_a_column_for_each_pixel_that_is_seen(name):
    operator = LINEAR[name]
    x = jax.random.normal(jax.random.key(0), (3, *SHAPE))
    a = matrix(operator, SHAPE)
    y = np.asarray(operator.measure(x))
    np.testing.assert_allclose(y[:, operator.measured], np.asarray(x).reshape(3, -1) @ a.T, rtol=1e-5, atol=1e-6)
    assert not y[:, ~operator.measured].any()
    np.testing.assert_array_equal(np.abs(a).sum(axis=0).reshape(SHAPE) > 0, operator.seen)


def test_a_constant_stays_under_blur_and_means_and_a_blur_is_as_wide_as_it_says():
    x = jnp.full((1, *SHAPE), 0.7)
    for name in ("super_resolution", "deblurring"):
        np.testing.assert_allclose(LINEAR[name].measure(x), 0.7, rtol=1e-5)
    point = jnp.zeros((1, 41, 41, 1)).at[0, 20, 20, 0].set(1.0)
    spot = np.asarray(inverse.deblurring((41, 41, 1), 3.0).measure(point), np.float64)[0, ..., 0]
    place = np.arange(41) - 20
    assert np.sqrt((spot.sum(axis=1) * place**2).sum()) == pytest.approx(3.0, rel=1e-3)


def test_amplitudes_do_not_know_where_an_object_lies_nor_which_way_it_points():
    rng = np.random.default_rng(0)
    x = np.full((1, 8, 8, 1), -1.0, np.float32)
    x[0, 2:5, 1:4] = rng.uniform(-1, 1, (3, 3, 1))
    operator = inverse.phase_retrieval((8, 8, 1))
    seen = np.asarray(operator.measure(jnp.asarray(x)))
    for same in (np.roll(x, (2, 3), (1, 2)), x[:, ::-1, ::-1]):
        np.testing.assert_allclose(operator.measure(jnp.asarray(same)), seen, atol=1e-5)
    assert np.abs(np.asarray(operator.measure(jnp.asarray(x.swapaxes(1, 2)))) - seen).max() > 0.01
    # The transform is unitary: all amplitudes together, both halves, weigh what the brightness does.
    half = seen[..., 0] ** 2
    assert half.sum() + half[:, :, 1:-1].sum() == pytest.approx(np.sum((0.5 * (x + 1)) ** 2), rel=1e-5)


def test_amplitudes_that_vanish_have_a_finite_gradient():
    operator = inverse.phase_retrieval((4, 4, 1))
    gradient = jax.grad(lambda x: jnp.sum(inverse.log_likelihood(operator, jnp.ones((1, 8, 5, 1)), x, 0.1)))
    assert np.isfinite(np.asarray(gradient(jnp.full((1, 4, 4, 1), -1.0)))).all()


@pytest.mark.parametrize("name", LINEAR)
def test_log_r_is_a_normal_density_below_its_bound(name):
    operator, noise = LINEAR[name], 0.3
    x = jax.random.normal(jax.random.key(0), (4, *SHAPE))
    y = operator.measure(x[:1]) + 0.1
    a = matrix(operator, SHAPE)
    mean, data = np.asarray(x).reshape(4, -1) @ a.T, np.asarray(y)[0, operator.measured]
    expected = scipy.stats.norm(mean, noise).logpdf(data).sum(axis=1)
    np.testing.assert_allclose(inverse.log_likelihood(operator, y, x, noise), expected, rtol=1e-5)
    exact = inverse.log_likelihood(operator, operator.measure(x), x, noise)
    np.testing.assert_allclose(exact, inverse.log_bound(operator, noise), rtol=1e-6)
    assert (inverse.log_likelihood(operator, y, x, noise) < exact).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: inverse.inpainting(np.zeros((2, 2, 1), bool)), "at least one pixel"),
        (lambda: inverse.inpainting(np.ones((2, 2), bool)), r"seen must have shape \(H, W, C\), got \(2, 2\)"),
        (lambda: inverse.super_resolution((28, 28, 1), 5), "divide the sides 28 and 28 .* got 5"),
        (lambda: inverse.deblurring((28, 28, 1), 0.0), "positive, got 0.0"),
        (lambda: inverse.phase_retrieval((28, 28, 1), 0), "at least 1, got 0"),
    ],
)
def test_an_operator_that_cannot_be_says_why(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", LINEAR)
def test_images_and_measurements_of_another_shape_are_no_likelihood(name):
    """A mask of one channel on images of two would count its pixels twice, or the channels that it has not."""
    operator, x = LINEAR[name], jnp.zeros((3, *SHAPE))
    y = operator.measure(x[:1])
    with pytest.raises(ValueError, match=r"x must have shape \(B, 4, 6, 2\), got \(3, 4, 6, 1\)"):
        inverse.log_likelihood(operator, y, x[..., :1], 0.3)
    with pytest.raises(ValueError, match=r"y must have shape \(B, "):
        inverse.log_likelihood(operator, y[0], x, 0.3)


SMALL = (2, 2, 1)
NOISE = 0.3
PROBLEMS = {
    "inpainting": inverse.inpainting(np.array([True, False, True, False]).reshape(SMALL)),
    "super_resolution": inverse.super_resolution(SMALL, 2),
}


class LinearGaussian:
    """Independent pixels N(0.8, 0.5^2), so that the law of x given y is known, and so is that of x0 given a state."""

    def __init__(self, num_steps):
        self.data, schedule = GaussianData(), respace(cosine_alpha_bar(), num_steps, "trailing")
        self.process = vp.ddpm(schedule, prediction="v_prediction", variance="fixed_large", min_std=1e-2)
        self.prior = self.data.vp(cosine_alpha_bar(), "v_prediction")
        self.tweedie = (1.0 - schedule.alpha_bar) / np.sqrt(schedule.alpha_bar)

    def posterior(self, operator, y):
        """Mean and covariance."""
        a = matrix(operator, SMALL)
        precision = np.eye(4) / self.data.std**2 + a.T @ a / NOISE**2
        covariance = np.linalg.inv(precision)
        mean = covariance @ (self.data.mean / self.data.std**2 + a.T @ np.asarray(y)[0, operator.measured] / NOISE**2)
        return mean, covariance

    def evidence(self, operator, y):
        """log p(y)."""
        a = matrix(operator, SMALL)
        law = scipy.stats.multivariate_normal(
            a @ np.full(4, self.data.mean), self.data.std**2 * a @ a.T + NOISE**2 * np.eye(len(a))
        )
        return law.logpdf(np.asarray(y)[0, operator.measured])

    def guide(self, operator, y):
        def misfit(x0, cond):
            return inverse.misfit(operator, y, x0, NOISE)

        return guidance.reconstruction(self.process, self.prior, misfit, self.tweedie)


@pytest.mark.parametrize("name", PROBLEMS)
def test_reconstruction_guidance_samples_the_posterior_of_a_linear_gaussian_problem(name, key):
    """Mean, covariance and evidence; the bias of 60 steps is some five per cent of a standard deviation."""
    chain, operator = LinearGaussian(60), PROBLEMS[name]
    y = operator.measure(jnp.asarray([1.5, 0.0, 0.2, 0.6]).reshape(1, *SMALL)) + 0.6
    count = 6_000
    roll = jax.jit(
        lambda key: rtbjax.rollout(key, chain.process, chain.prior, chain.guide(operator, y), shape=(count, *SMALL))
    )
    paths = roll(key)
    x = np.asarray(paths.xs[-1], np.float64).reshape(count, 4)
    mean, covariance = chain.posterior(operator, y)
    std = np.sqrt(np.diag(covariance))
    assert np.abs((x.mean(axis=0) - mean) / std).max() < 5 / np.sqrt(count) + 0.05
    assert np.abs((np.cov(x.T) - covariance) / np.outer(std, std)).max() < 7 / np.sqrt(count) + 0.07
    gap = np.asarray(jnp.sum(paths.log_ratio, axis=0) + inverse.log_likelihood(operator, y, paths.xs[-1], NOISE))
    found = rtbjax.certify(gap)
    assert found.ess > 0.8
    assert abs(found.log_z_is - chain.evidence(operator, y)) < 0.05
    # The prior's own samples are not that posterior.
    assert np.abs(mean - chain.data.mean).max() > 0.2 * chain.data.std
