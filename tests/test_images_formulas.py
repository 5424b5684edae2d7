"""The formulas of the images' domain by hand, with tables in place of its networks."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrunk import changed

from configs.mnist import get_config
from experiments.images import networks, posteriors, rewards, training
from experiments.images.evaluation import Evaluation
from rtbjax import Policy

# What a value says of two images, and what the classifier does.
LOG_Q = np.log([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]])
P = np.array([[0.1, 0.3, 0.6], [0.8, 0.15, 0.05]])


@pytest.mark.parametrize(
    "asked, cond, expected",
    [(("3",), None, 0.15), (("even",), None, 0.2), (("odd",), None, 0.3), (("even", "odd"), [1, 0], [0.3, 0.2])],
)
def test_the_reward_of_a_label_is_its_most_probable_class(asked, cond, expected):
    """For the classes 0 to 9; logits need not be normalised."""
    logits = 3.0 + jnp.log(jnp.array([0.1, 0.3, 0.05, 0.15, 0.2, 0.05, 0.05, 0.02, 0.05, 0.03]))
    log_reward = rewards.make_log_reward(SimpleNamespace(apply=lambda variables, x: x), {}, asked)
    found = log_reward(jnp.stack([logits] * 2), cond and jnp.array(cond))
    np.testing.assert_allclose(np.exp(found), np.broadcast_to(expected, 2), rtol=1e-5)


@pytest.mark.parametrize("variance, clip", [("fixed_small", 0.0), ("fixed_large", 1.0)])
def test_the_chain_has_the_variance_the_clipping_and_the_least_std_of_the_config(variance, clip):
    """Where v is predicted, ``x0 = sqrt(a) x - sqrt(1 - a) v``, a the signal fraction; a clip of 0 is none."""
    config = changed(get_config("smoke"), process__variance=variance, process__clip_x0=clip, process__min_std=0.6)
    process, a = networks.make_process(config), networks.make_schedule(config).alpha_bar
    x, v = jnp.full((1, 2, 2, 1), 0.5), jnp.full((1, 2, 2, 1), -3.0)
    x0 = 0.5 * np.sqrt(a[2]) + 3.0 * np.sqrt(1.0 - a[2])
    assert x0 > 1.0
    np.testing.assert_allclose(process.denoise(v, x, 2), np.full(x.shape, 1.0 if clip else x0), rtol=1e-5)
    beta = 1.0 - a[:-1] / a[1:]
    std = np.sqrt(beta if variance == "fixed_large" else beta * (1.0 - a[1:]) / (1.0 - a[:-1]))
    assert (std < 0.6).any() and (std > 0.6).any()
    found = [process.reverse(v, x, i).std for i in range(process.num_steps)]
    np.testing.assert_allclose(found, np.maximum(std, 0.6), rtol=1e-5)
    assert networks.make_process(config, 7).num_steps == 7


def looked_up(variables, x, t):
    """A value that knows which of two images, 0 and 1, x is of: noise here is the time itself."""
    return variables["params"][jnp.round(x[:, 0, 0, 0] - t).astype(jnp.int32)]


def image(number):
    return jnp.full((1, 1, 1, 1), number, jnp.float32)


def test_the_value_s_loss_is_the_cross_entropy_of_samples_and_images_alike(key):
    noising = SimpleNamespace(
        num_steps=4, marginal=lambda keys, x0, i, cond: x0 + jnp.float32(i), time=lambda i: jnp.float32(i)
    )
    data = training.ValueData((image(0), jnp.asarray(P[:1])), (image(1), jnp.asarray(P[1:])), ())
    loss = training.value_loss(SimpleNamespace(apply=looked_up), noising, batch=8)
    np.testing.assert_allclose(loss(jnp.asarray(LOG_Q), key, data), -np.sum(P * LOG_Q) / 2, rtol=1e-5)


def test_the_refined_value_s_loss_is_the_cross_entropy_at_the_means(key):
    means = image(1) + 0.5, jnp.array([0.5]), jnp.asarray(P[1:])
    loss = training.refined_value_loss(SimpleNamespace(apply=looked_up), batch=8)
    np.testing.assert_allclose(loss(jnp.asarray(LOG_Q), key, means), -np.sum(P[1] * LOG_Q[1]), rtol=1e-5)


@pytest.mark.parametrize("kind", posteriors.GUIDED)
def test_guides_follow_r_to_the_power_of_beta(kind, key):
    """A beta of 1/2 is half the log r."""
    config = changed(get_config("smoke"), posterior__kind=kind)
    process, x, i = networks.make_process(config), jax.random.normal(key, (3, 2, 2, 1)), jnp.int32(2)
    prior = Policy({}, lambda params, x, t, cond: 0.1 * x)
    t = process.time(i)

    def score(beta, scale):
        def log_reward(x, cond):
            return -scale * jnp.sum(x**2, axis=(1, 2, 3))

        guide = posteriors.make(changed(config, objective__beta=beta), process, prior, log_reward, None)
        return guide(x, t, None, guide.look(prior(x, t, None), x, t, None)).score

    np.testing.assert_allclose(score(0.5, 1.0), score(1.0, 0.5), rtol=1e-5)
    assert float(jnp.abs(score(0.5, 1.0) - score(1.0, 1.0)).max()) > 0.1


def test_sets_are_held_against_the_exact_one_and_it_against_another():
    """Sets that are the exact one moved by some distance: the Fréchet distance is its square."""

    def classifier(variables, x, method=None):
        return x.reshape(len(x), -1)  # Pixels are the features, and the logits of ten classes.

    exact = np.random.default_rng(0).normal(size=(40, 2, 5, 1)).astype(np.float32)
    moved = {"exact": 0.0, "exact_again": 0.5, "rtb": 1.0, "prior": 2.0}
    evaluation = Evaluation(
        SimpleNamespace(apply=classifier), {}, lambda x, cond: jnp.max(x, axis=(1, 2, 3)), ("even",)
    )
    found = evaluation.metrics({name: exact + np.float32(by) for name, by in moved.items()})
    for name, by in (("exact", 0.5), ("rtb", 1.0), ("prior", 2.0)):
        np.testing.assert_allclose(found[name]["frechet_to_exact"], 10 * by**2, rtol=1e-4)
        np.testing.assert_allclose(found[name]["log_reward"], exact.max(axis=(1, 2, 3)).mean() + by, rtol=1e-5)
    share = np.mean(exact.reshape(40, 10).argmax(axis=1) % 2 == 0)
    assert found["rtb"]["accuracy"] == pytest.approx(share)
