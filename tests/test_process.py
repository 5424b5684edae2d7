"""Gaussian processes: noising against the marginals, the reverse chain against a known data law, the laws of a step."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData, assert_moments

from rtbjax.process import normal, sde, vp
from rtbjax.process.absorbing import absorbing, one_by_one
from rtbjax.process.autoregressive import left_to_right
from rtbjax.schedules import geometric_sigma, linear_alpha_bar, respace
from rtbjax.trajectory import noise, rollout
from rtbjax.types import LearnedStd, Policy, Steered

ALPHA_BAR = linear_alpha_bar()
SILENT = respace(np.linspace(0.9, 0.0, 10), 5, spacing="trailing")  # Ends in pure noise.
SHORT = respace(ALPHA_BAR, 6)
PROCESSES = {
    "ddpm fixed_large": vp.ddpm(SHORT),
    "ddpm fixed_small": vp.ddpm(SHORT, variance="fixed_small"),
    "ddim eta=0": vp.ddim(SHORT, eta=0.0),
    "ddim eta=0.5": vp.ddim(SHORT, eta=0.5),
    "variance exploding": sde.variance_exploding(geometric_sigma(6, 5.0, 0.1)),
    "brownian bridge": sde.brownian_bridge(6, 5.0),
}
NOISINGS = {name: PROCESSES[name] for name in ("ddpm fixed_large", "variance exploding", "brownian bridge")}


def every(table):
    return pytest.mark.parametrize("process", table.values(), ids=table.keys())


@every(NOISINGS)
def test_repeated_forward_has_the_moments_of_the_marginal(process):
    """Two samples of 20,000 per step: 5 % of a standard deviation, in mean or std, would be seen."""
    x0 = jnp.full((20_000, 1), 0.7)

    @jax.jit
    def both(key):
        keys = jax.random.split(jax.random.fold_in(key, 1), 20_000)
        direct = jax.vmap(lambda i: process.marginal(keys, x0, i, None))(jnp.arange(7))
        return noise(key, process, x0), direct

    stepped, direct = jax.device_get(both(jax.random.key(0)))
    np.testing.assert_array_equal(stepped[-1], x0)
    np.testing.assert_allclose(direct[-1], x0, atol=1e-6)
    for i in range(6):
        assert_moments(stepped[i], direct[i].mean(0), direct[i].std(0), standard_errors=7.0)


@every(NOISINGS)
def test_forward_steps_draw_fresh_noise(process):
    """Markov: given xs[i + 1], what a step adds is uncorrelated with what earlier steps added."""
    x0 = jnp.full((20_000, 1), 0.7)
    xs = np.asarray(jax.jit(lambda key: noise(key, process, x0))(jax.random.key(0)))[..., 0]

    def residual(y, x):
        return y - np.polyval(np.polyfit(x, y, 1), x)

    # A path's partial correlation of xs[2] and xs[4] given xs[3].
    partial = np.corrcoef(residual(xs[2], xs[3]), residual(xs[4], xs[3]))[0, 1]
    assert abs(partial) < 5 / np.sqrt(20_000)


def sample_data(process, prior, count):
    run = jax.jit(lambda key: rollout(key, process, prior, shape=(count, 1)).xs[-1])
    return run(jax.random.key(0))


DATA = GaussianData(mean=0.8, std=0.5)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_ancestral_chain_with_the_optimal_denoiser_samples_the_data(variance, prediction):
    """1000 steps, 4,000 samples: 8 % of the data's standard deviation is 5 standard errors."""
    process = vp.ddpm(respace(ALPHA_BAR, 1000), variance=variance, prediction=prediction)
    assert_moments(sample_data(process, DATA.vp(ALPHA_BAR, prediction), 4_000), DATA.mean, DATA.std)


def test_ddim_without_noise_maps_noise_to_the_data():
    process = vp.ddim(respace(ALPHA_BAR, 250, "trailing"), eta=0.0, min_std=1e-4)
    assert_moments(sample_data(process, DATA.vp(ALPHA_BAR), 4_000), DATA.mean, DATA.std, slack=0.01)


def test_variance_exploding_chain_with_the_optimal_denoiser_samples_the_data():
    process = sde.variance_exploding(geometric_sigma(500, 50.0, 0.01), prediction="sample")
    assert_moments(sample_data(process, DATA.ve(), 4_000), DATA.mean, DATA.std, slack=0.01)


def laws(process, outputs, x, num_steps=6):
    """Means and stds of all steps' laws, ``[T, B, E]``."""

    @jax.jit
    def one(i, output):
        law = process.reverse(output, x, i)
        return law.mean, jnp.broadcast_to(law.std, x.shape)

    return jax.device_get(jax.vmap(one)(jnp.arange(num_steps), outputs))


def random_outputs(*shape):
    return jax.random.normal(jax.random.key(3), (6, *shape))


@pytest.mark.parametrize("clip_x0", [None, 0.5])
@pytest.mark.parametrize("schedule", [SHORT, respace(ALPHA_BAR, 6, "trailing", final_alpha_bar=0.9999)])
def test_ddim_with_eta_one_is_ddpm_with_fixed_small_variance(clip_x0, schedule):
    """DDPM's law written as Ho et al. do, from the betas, in float64."""
    x, outputs = 2.0 * jax.random.normal(jax.random.key(1), (4, 3)), random_outputs(4, 3)
    mean, std = laws(vp.ddim(schedule, eta=1.0, clip_x0=clip_x0), outputs, x)
    same_mean, same_std = laws(vp.ddpm(schedule, variance="fixed_small", clip_x0=clip_x0), outputs, x)
    np.testing.assert_array_equal(mean, same_mean)
    np.testing.assert_array_equal(std, same_std)
    for i in range(6):
        now, after = schedule.alpha_bar[i], schedule.alpha_bar[i + 1]
        alpha = now / after
        x0 = (np.asarray(x, np.float64) - np.sqrt(1 - now) * np.asarray(outputs[i])) / np.sqrt(now)
        x0 = x0 if clip_x0 is None else np.clip(x0, -clip_x0, clip_x0)
        expected = (np.sqrt(after) * (1 - alpha) * x0 + np.sqrt(alpha) * (1 - after) * np.asarray(x)) / (1 - now)
        np.testing.assert_allclose(mean[i], expected, rtol=2e-3, atol=2e-4 * np.abs(x0).max())
        np.testing.assert_allclose(std[i], max(np.sqrt((1 - alpha) * (1 - after) / (1 - now)), 1e-2), rtol=1e-4)
    large = laws(vp.ddpm(schedule, clip_x0=clip_x0), outputs, x)
    np.testing.assert_array_equal(large[0], mean)
    betas = 1 - schedule.alpha_bar[:-1] / schedule.alpha_bar[1:]
    np.testing.assert_allclose(large[1][:, 0, 0], np.sqrt(betas), rtol=1e-5)


def test_the_three_predictions_give_the_same_law():
    """Outputs made from one x0 and eps, in float64."""
    rng = np.random.default_rng(0)
    a = SHORT.alpha_bar[:-1, None, None]
    x, x0 = rng.normal(size=(4, 3)), rng.normal(size=(6, 4, 3))
    eps = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
    outputs = {"sample": x0, "epsilon": eps, "v_prediction": np.sqrt(a) * eps - np.sqrt(1 - a) * x0}
    found = {
        name: laws(vp.ddpm(SHORT, prediction=name), jnp.asarray(value, jnp.float32), jnp.asarray(x, jnp.float32))
        for name, value in outputs.items()
    }
    for name in ("epsilon", "v_prediction"):
        np.testing.assert_allclose(found[name][0], found["sample"][0], atol=1e-3)
    denoised = vp.ddpm(SHORT).denoise(jnp.asarray(eps[2], jnp.float32), jnp.asarray(x, jnp.float32), jnp.int32(2))
    np.testing.assert_allclose(denoised, x0[2], atol=1e-4)


def test_variance_exploding_predictions_and_posterior():
    """Its law is that of xs[i + 1] given x0 and xs[i] (product of two normals, by hand in float64)."""
    rng = np.random.default_rng(0)
    sigmas = geometric_sigma(6, 5.0, 0.1)
    x, x0 = rng.normal(size=(4, 3)), rng.normal(size=(6, 4, 3))
    eps = (x - x0) / sigmas[:-1, None, None]
    means = {}
    for name, value in {"sample": x0, "epsilon": eps, "score": -eps / sigmas[:-1, None, None]}.items():
        process = sde.variance_exploding(sigmas, prediction=name)
        means[name], stds = laws(process, jnp.asarray(value, jnp.float32), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(means["epsilon"], means["sample"], atol=1e-4)
    np.testing.assert_allclose(means["score"], means["sample"], atol=1e-4)
    for i in range(5):
        step_var, after_var = sigmas[i] ** 2 - sigmas[i + 1] ** 2, sigmas[i + 1] ** 2
        precision = 1 / step_var + 1 / after_var
        np.testing.assert_allclose(means["sample"][i], (x / step_var + x0[i] / after_var) / precision, atol=1e-4)
        np.testing.assert_allclose(stds[i], precision**-0.5, rtol=1e-4)
    np.testing.assert_allclose(means["sample"][5], x0[5], atol=1e-5)
    np.testing.assert_allclose(stds[5], 1e-2, rtol=1e-5)


@every(PROCESSES)
def test_no_step_has_zero_std_a_learned_factor_moves_the_std_and_a_score_the_mean(process):
    x, value = jax.random.normal(jax.random.key(1), (2, 3)), random_outputs(2, 3)
    mean, std = laws(process, value, x)
    assert std.min() >= 0.99e-2
    factor = jnp.full((6, 1, 3), 0.25)
    same_mean, wider = laws(process, LearnedStd(value, factor), x)
    np.testing.assert_allclose(same_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(wider, np.exp(0.25) * std, rtol=1e-6)
    # An extra score moves the mean by the step's variance times it, whatever the process predicts.
    pushed, same_std = laws(process, Steered(value, jnp.full((6, 2, 3), 2.0)), x)
    np.testing.assert_array_equal(same_std, std)
    np.testing.assert_allclose(pushed - mean, 2.0 * std**2, rtol=1e-3, atol=1e-5 * np.abs(mean).max())


@pytest.mark.parametrize(
    "make", [lambda s, m: vp.ddpm(s, variance="fixed_small", min_std=m), lambda s, m: vp.ddim(s, min_std=m)]
)
def test_min_std_is_the_floor_of_the_last_step(make):
    std = laws(make(SHORT, 0.03), random_outputs(1, 1), jnp.zeros((1, 1)))[1]
    np.testing.assert_allclose(std[-1], 0.03, rtol=1e-6)
    assert std[0] > 0.1


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_no_gradient_passes_a_clipped_x0(prediction):
    process = vp.ddpm(SHORT, clip_x0=1.0, prediction=prediction)
    x, i = jnp.zeros((1, 2)), jnp.int32(3)
    # Towards x0 the outputs -50 and 50 are far outside, 0.01 is inside.
    outputs = jnp.asarray([[50.0, 0.01]])
    gradient = jax.jit(jax.grad(lambda output: jnp.sum(process.reverse(output, x, i).mean)))(outputs)
    assert gradient[0, 0] == 0.0 and abs(gradient[0, 1]) > 1e-3
    assert np.abs(process.denoise(outputs, x, i)).max() == 1.0


def test_brownian_bridge_noising_is_the_bridge_from_the_origin():
    """Given x_1 = 2 (20,000 paths): mean 2 t, covariance D s (1 - t); pinned at 0 exactly."""
    process = sde.brownian_bridge(8, 3.0)
    xs = jax.jit(lambda key: noise(key, process, jnp.full((20_000, 1), 2.0)))(jax.random.key(0))
    assert np.all(np.asarray(xs[0]) == 0.0)
    t = np.arange(1, 8) / 8
    assert_moments(np.asarray(xs[1:8, :, 0]).T, 2 * t, np.sqrt(3 * t * (1 - t)))
    covariance = np.cov(np.asarray(xs[1:8, :, 0]))
    s = np.minimum(t[:, None], t[None])
    np.testing.assert_allclose(covariance, 3 * s * (1 - np.maximum(t[:, None], t[None])), atol=0.05)


def test_brownian_bridge_drift_points_at_what_it_denoises_to():
    process = sde.brownian_bridge(8, 3.0)
    x, data, i = jnp.asarray([[0.4]]), 2.0, jnp.int32(3)
    drift = (data - x) / (1 - 3 / 8)
    np.testing.assert_allclose(process.denoise(drift, x, i), [[data]], rtol=1e-6)
    law = process.reverse(drift, x, i)
    np.testing.assert_allclose(law.mean, [[0.4 + (data - 0.4) / 5]], rtol=1e-6)  # an eighth of the five that are left
    np.testing.assert_allclose(law.std, np.sqrt(3 / 8), rtol=1e-6)


@every(PROCESSES)
def test_init_has_the_asked_shape_and_is_float32(process):
    keys = jax.random.split(jax.random.key(0), 5)
    x = process.init(keys, (5, 3, 2), None)
    assert x.shape == (5, 3, 2) and x.dtype == jnp.float32
    assert process.num_steps == 6


def test_init_has_the_scale_of_the_noisiest_marginal():
    keys = jax.random.split(jax.random.key(0), 20_000)
    assert_moments(PROCESSES["ddpm fixed_large"].init(keys, (20_000, 1), None), 0.0, 1.0)
    assert_moments(PROCESSES["variance exploding"].init(keys, (20_000, 1), None), 0.0, 5.0)
    assert_moments(normal(keys, (1,)), 0.0, 1.0)
    np.testing.assert_array_equal(PROCESSES["brownian bridge"].init(keys[:3], (3, 1), None), np.zeros((3, 1)))


@every(PROCESSES)
def test_the_step_at_a_time_is_the_one_with_that_time(process):
    found = [int(process.step_at(process.time(jnp.int32(i)))) for i in range(process.num_steps)]
    assert found == list(range(process.num_steps))


def test_what_the_network_is_told():
    def times(name):
        return [float(PROCESSES[name].time(jnp.int32(i))) for i in (0, 5)]

    assert times("ddpm fixed_large") == times("ddim eta=0.5") == [830.0, 0.0]
    np.testing.assert_allclose(times("variance exploding"), [np.log(5.0) / 4, np.log(0.1) / 4], rtol=1e-6)
    np.testing.assert_allclose(times("brownian bridge"), [0.0, 5 / 6], rtol=1e-6)


@pytest.mark.parametrize("shape", [(8,), (2,), (8, 2, 1), (1, 3)])
def test_a_change_of_the_std_with_other_axes_is_refused(shape):
    x, process = jnp.zeros((8, 2)), vp.ddpm(SHORT)
    with pytest.raises(
        ValueError,
        match=re.escape(f"must have the shape (8, 2) of the batch, with 1 where it is shared, or none, got {shape}"),
    ):
        process.reverse(LearnedStd(x, jnp.zeros(shape)), x, 0)
    process.reverse(LearnedStd(x, jnp.zeros((1, 2))), x, 0)


@pytest.mark.parametrize("make", [vp.ddpm, vp.ddim])
def test_a_schedule_that_is_not_respaced_is_refused(make):
    with pytest.raises(TypeError, match=r"respace\(alpha_bar, num_steps\), got ndarray"):
        make(ALPHA_BAR)


@every(NOISINGS)
@pytest.mark.parametrize("shape", [(8, 1), (), (1, 2), (8, 3)])
def test_an_output_of_another_shape_is_refused_and_not_broadcast(process, shape):
    x, bad, message = jnp.zeros((8, 2)), jnp.zeros(shape), re.escape(f"must have shape (8, 2), got {shape}")
    for output in (bad, LearnedStd(bad, jnp.float32(0.0)), Steered(bad, x)):
        for read in (process.reverse, process.denoise):
            with pytest.raises(ValueError, match=f"The network's output {message}"):
                read(output, x, 0)
    with pytest.raises(ValueError, match=f"The network's score {message}"):
        process.reverse(Steered(x, bad), x, 0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: vp.ddpm(SILENT), "'epsilon' says nothing of the data where alpha_bar is 0"),
        (lambda: vp.ddim(SILENT), "'epsilon' says nothing of the data where alpha_bar is 0"),
        (lambda: vp.ddpm(SHORT, prediction="x0"), "'epsilon', 'sample', 'v_prediction'.*got 'x0'"),
        (lambda: vp.ddim(SHORT, prediction="x0"), "'epsilon', 'sample', 'v_prediction'.*got 'x0'"),
        (lambda: vp.ddpm(SHORT, variance="learned"), "'fixed_large', 'fixed_small'.*got 'learned'"),
        (lambda: vp.ddpm(SHORT, min_std=0.0), "min_std must be positive.*got 0.0"),
        (lambda: vp.ddim(SHORT, min_std=-1.0), "min_std must be positive.*got -1.0"),
        (lambda: vp.ddpm(SHORT, min_std=np.nan), "min_std must be positive.*got nan"),
        (lambda: vp.ddpm(SHORT, clip_x0=-1.0), "clip_x0 must be positive.*got -1.0"),
        (lambda: vp.ddim(SHORT, clip_x0=np.nan), "clip_x0 must be positive.*got nan"),
        (lambda: vp.ddim(SHORT, eta=np.nan), r"\[0, 1\], got nan"),
        (lambda: vp.ddim(SHORT, eta=1.5), r"\[0, 1\], got 1.5"),
        (lambda: vp.ddim(SHORT, eta=-0.1), r"\[0, 1\], got -0.1"),
        (lambda: sde.variance_exploding(np.asarray([1.0, 2.0, 0.0])), "fall strictly and end in 0"),
        (lambda: sde.variance_exploding(np.asarray([2.0, 1.0])), "fall strictly and end in 0"),
        (
            lambda: sde.variance_exploding(geometric_sigma(3, 2.0, 1.0), prediction="v_prediction"),
            "'epsilon', 'sample' or 'score', got 'v_prediction'",
        ),
        (lambda: sde.variance_exploding(geometric_sigma(3, 2.0, 1.0), min_std=0.0), "min_std must be positive"),
        (lambda: sde.brownian_bridge(0), "num_steps must be >= 1.*got 0"),
        (lambda: sde.brownian_bridge(5, 0.0), "diffusion > 0, got 5 and 0.0"),
        (lambda: sde.brownian_bridge(5, np.nan), "diffusion > 0, got 5 and nan"),
        (lambda: sde.variance_exploding(np.asarray([3.0, np.nan, 0.0])), "fall strictly and end in 0"),
        (lambda: sde.variance_exploding(np.asarray([0.0])), "at least 2 that fall"),
        (lambda: sde.variance_exploding(geometric_sigma(3, 2.0, 1.0), min_std=np.nan), "min_std must be positive"),
        (lambda: absorbing(np.asarray([0.0]), 3), "mask_rate must fall strictly"),
        (lambda: absorbing(np.asarray([1.0, np.nan, 0.0]), 3), "mask_rate must fall strictly"),
        (lambda: one_by_one(0, 3), "length must be at least 1, got 0"),
        (lambda: left_to_right(0, 3), "length must be at least 1, got 0"),
    ],
)
def test_bad_arguments_say_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


CHAINS = {"one by one": (one_by_one(3, 2), (2, 4, 2)), "left to right": (left_to_right(3, 2), (2, 2))}


@pytest.mark.parametrize("process, output", CHAINS.values(), ids=CHAINS.keys())
def test_tokens_of_another_length_are_refused_wherever_they_come_in(process, output, key):
    """A chain of three steps would leave the fourth token as a mask, and log Z would be that of three."""
    wanted = r"Tokens of a chain of 3 steps must have shape \(B, 3\), got \(2, 4\)"
    tokens = jnp.zeros((2, 4), jnp.int32)
    prior = Policy({}, lambda params, x, t, cond: jnp.zeros(output))
    for use in (
        lambda: rollout(key, process, prior, shape=(2, 4)),
        lambda: noise(key, process, tokens),
        lambda: process.marginal(jax.random.split(key, 2), tokens, 1, None),
        lambda: process.reverse(jnp.zeros(output), tokens, 0),
    ):
        with pytest.raises(ValueError, match=wanted):
            use()


@pytest.mark.parametrize("process", [process for process, _ in CHAINS.values()], ids=CHAINS.keys())
def test_the_time_of_a_step_may_be_a_plain_number(process):
    assert [float(process.time(i)) for i in range(3)] == [float(process.time(jnp.int32(i))) for i in range(3)]
