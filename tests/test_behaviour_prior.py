"""The behaviour prior on a conditional Gaussian: its loss at the exact predictor, its samples once it is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import regression
from experiments.control import behaviour_prior
from experiments.pretrain import fit
from rtbjax import Policy, rollout

STD = 0.3
ALPHA_BAR = behaviour_prior.alpha_bar()


def mean(s):
    """u | s ~ N(mean(s), STD^2): two dimensions, one of which is curved in the state."""
    return jnp.concatenate([0.8 * s, jnp.sin(2.0 * s)], axis=-1)


def exact_noise(params, u, t, s):
    """E[eps | u_t, s] of that law."""
    a = jnp.asarray(ALPHA_BAR, jnp.float32)[jnp.broadcast_to(t, u.shape[:1]).astype(jnp.int32)][:, None]
    return jnp.sqrt(1.0 - a) * (u - jnp.sqrt(a) * mean(s)) / (a * STD**2 + 1.0 - a)


def draw(key, batch):
    state_key, noise_key = jax.random.split(key)
    s = jax.random.uniform(state_key, (batch, 1), minval=-1.0, maxval=1.0)
    return mean(s) + STD * jax.random.normal(noise_key, (batch, 2)), s


def test_the_loss_of_the_exact_predictor_is_the_noise_that_nobody_can_tell(key, monkeypatch):
    """E[w(t) Var(eps | u_t)], with Var = a STD^2 / (a STD^2 + 1 - a), in closed form."""
    snr = ALPHA_BAR / (1.0 - ALPHA_BAR)
    left = ALPHA_BAR * STD**2 / (ALPHA_BAR * STD**2 + 1.0 - ALPHA_BAR)
    expected = np.mean(np.minimum(snr, 5.0) / snr * left)
    monkeypatch.setattr(behaviour_prior, "predict", exact_noise)
    latents, s = draw(jax.random.key(1), 400_000)
    # The weighted squares have a standard deviation of about their mean: 0.2 % for 800,000 of them.
    found = float(behaviour_prior.loss({}, key, latents, s))
    assert found == pytest.approx(expected, rel=0.01)
    assert np.mean(left) > 1.05 * expected  # Without the weights it would be another number.


@pytest.mark.parametrize("num_steps", [2, 5, 20, 75])
def test_noising_ends_where_sampling_starts(num_steps):
    """KL(law of xs[0] given the most extreme datum | N(0, 1)), its moments told from draws of the process itself."""
    process = behaviour_prior.make_process(num_steps, min_std=0.05)
    count, x0 = 100_000, behaviour_prior.MAX_LATENT
    keys = jax.random.split(jax.random.key(1), count)
    near, far = (np.asarray(process.marginal(keys, jnp.full((count, 1), end), jnp.int32(0), None)) for end in (x0, -x0))
    # The two ends share their noise, so that their difference is twice the signal without an error.
    mean = float(np.mean(near - far) / 2)
    variance = 1.0 - (mean / x0) ** 2
    assert np.std(near) == pytest.approx(np.sqrt(variance), abs=5 / np.sqrt(2 * count))
    assert 0.5 * (variance + mean**2 - 1.0 - np.log(variance)) < 2e-4
    # The reference's end, sqrt(abar_T) = 0.674, would be far from it.
    assert 0.5 * ((0.674 * x0) ** 2 - 0.674**2 - np.log(1 - 0.674**2)) > 1.0


@pytest.mark.parametrize("std", [0.3, 0.6, 1.0])
def test_twenty_steps_keep_the_width_of_a_law(std):
    """The exact predictor of N(0, std^2) in one dimension: each step maps a normal law to a normal law."""
    process = behaviour_prior.make_process(20, min_std=0.05)
    variance = 1.0
    for i in range(process.num_steps):
        a = ALPHA_BAR[int(process.time(jnp.int32(i)))]
        gain = np.sqrt(1.0 - a) / (a * std**2 + 1.0 - a)
        probe = jnp.full((1, 1), 1e-3)
        law = process.reverse(jnp.float32(gain) * probe, probe, jnp.int32(i))
        variance = (float(law.mean[0, 0]) / 1e-3) ** 2 * variance + float(law.std) ** 2
    assert np.sqrt(variance) == pytest.approx(std, rel=0.1)


def test_latents_are_those_of_actions_and_finite_at_the_bounds():
    actions = np.array([[-1.0, -0.5, 0.0], [0.3, 0.985, 1.0]], np.float32)
    u = behaviour_prior.to_latents(actions)
    np.testing.assert_allclose(np.tanh(u), np.clip(actions, -0.99, 0.99), atol=1e-6)
    assert np.abs(u).max() <= behaviour_prior.MAX_LATENT + 1e-6


def test_it_learns_the_law_of_each_state(tmp_path, key):
    settings = regression(steps=1500, batch_size=256, learning_rate=3e-3, weight_decay=0.0)

    def loss(params, key, data):
        draw_key, loss_key = jax.random.split(key)
        return behaviour_prior.loss(params, loss_key, *draw(draw_key, settings.batch_size))

    params = behaviour_prior.init(key, 32, 1, 2)
    params = fit(loss, params, None, settings, key=key, workdir=tmp_path, label="prior", steps_per_call=100)
    process = behaviour_prior.make_process(20, min_std=0.05)
    states, count = np.array([-0.9, -0.3, 0.4, 0.8], np.float32), 2_000
    cond = jnp.asarray(np.repeat(states, count)[:, None])
    prior = Policy(params, behaviour_prior.predict)
    run = jax.jit(lambda key, prior, cond: rollout(key, process, prior, shape=(len(cond), 2), cond=cond).xs[-1])
    samples = np.asarray(run(key, prior, cond)).reshape(len(states), count, 2)
    np.testing.assert_allclose(samples.mean(axis=1), mean(jnp.asarray(states)[:, None]), atol=0.06)
    np.testing.assert_allclose(samples.std(axis=1), STD, atol=0.06)  # 0.33 of them exactly, see above.
    correlation = [np.corrcoef(s.T)[0, 1] for s in samples]
    np.testing.assert_allclose(correlation, 0.0, atol=0.12)
