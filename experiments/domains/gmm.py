"""The 25-Gaussian mixture: 25 equal modes in the prior, 9 weighted ones in the posterior (paper, eqs. 16-18)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.colors import PowerNorm
from ml_collections import ConfigDict

from experiments import hosts, weights
from experiments.domains.base import Domain, Samples
from experiments.plots import one_panel_each
from experiments.pretrain import fit
from experiments.settings import (
    PRECISIONS,
    data_unread,
    no_strength,
    no_training,
    no_warm_start,
    one_of,
    other_precision,
)
from experiments.streams import stream
from rtbjax import Policy, denoising_loss, guidance
from rtbjax.metrics.distances import sliced_w2, total_variation
from rtbjax.nets.mlp import PISNet
from rtbjax.process.sde import brownian_bridge
from rtbjax.types import LearnedStd

STD = 0.3**0.5  # The reference code's 0.3 I; the paper prints I, under which the modes of its figures would overlap.
GRID = np.array([(x, y) for x in (-10, -5, 0, 5, 10) for y in (-10, -5, 0, 5, 10)], np.float32)
POSTERIOR_MEANS = [(-10, -5), (-5, -10), (-5, 0), (10, -5), (0, 0), (0, 5), (5, -5), (5, 0), (5, 10)]
POSTERIOR_WEIGHTS = np.array([4, 10, 4, 5, 10, 5, 4, 15, 4], np.float64) / 61
LOG_BOUND = float(np.log(25 * POSTERIOR_WEIGHTS.max()))  # log 375/61

_WEIGHTS = np.zeros(25)
for _mean, _weight in zip(POSTERIOR_MEANS, POSTERIOR_WEIGHTS, strict=True):
    _WEIGHTS[np.flatnonzero((GRID == _mean).all(axis=1))] = _weight


def log_reward(x, cond=None):
    """log of the posterior mixture's density over the prior mixture's; at most log 375/61, unbounded below."""
    squares = jnp.sum((x[:, None, :] - GRID[None]) ** 2, axis=-1) / (-2.0 * STD**2)
    chosen = _WEIGHTS > 0
    log_weights = jnp.asarray(np.log(25 * _WEIGHTS[chosen]), jnp.float32)
    above = jax.nn.logsumexp(squares[:, chosen] + log_weights[None], axis=-1)
    return above - jax.nn.logsumexp(squares, axis=-1)


def sample_mixture(key, batch):
    """Exact samples of the 25-mode mixture."""
    mode, noise = jax.random.split(key)
    means = jnp.asarray(GRID)[jax.random.randint(mode, (batch,), 0, 25)]
    return means + STD * jax.random.normal(noise, (batch, 2))


def network(config: ConfigDict) -> PISNet:
    # Two outputs are the drift, two the log-std of a posterior that learns its variances; in the prior these stay 0.
    return PISNet(features=4, width=config.prior.width, dtype=PRECISIONS[config.precision])


def prior_apply(net):
    return lambda params, x, t, cond: net.apply({"params": params}, x, t)[:, :2]


def variance_apply(net):
    def apply_fn(params, x, t, cond):
        output = net.apply({"params": params}, x, t)
        return LearnedStd(output[:, :2], output[:, 2:])

    return apply_fn


def build(config: ConfigDict) -> Domain:
    """The domain of a config.

    Raises:
      WeightsError: the prior's weights cannot be read.
    """
    one_of(config, "posterior.kind", ("full", "classifier_guidance"))
    no_warm_start(config)
    if config.posterior.kind == "classifier_guidance":
        no_training(config)
    else:
        no_strength(config)
    data_unread(config)
    net = network(config)
    process = brownian_bridge(config.process.num_steps, config.process.diffusion)
    like = weights.abstract_params(net, jnp.zeros((1, 2)), jnp.float32(0.0))
    params = weights.load(weights.locate(config.prior.weights), like)
    prior = Policy(params, prior_apply(net))
    if config.posterior.kind == "classifier_guidance":

        def tempered(x, cond):
            return config.objective.beta * log_reward(x, cond)

        posterior = guidance.classifier_guidance(tempered, strength=config.posterior.strength)
    else:
        posterior = Policy(params, variance_apply(net) if config.posterior.learn_variance else prior.apply_fn)
    return Domain(
        name="gmm",
        data_source="samples of the 25-mode mixture",
        process=process,
        event_shape=(2,),
        prior=prior,
        posterior=posterior,
        log_reward=jax.jit(log_reward),
        log_bound=LOG_BOUND,
        fingerprint=weights.fingerprint(params, "gmm", config.process.to_dict(), *other_precision(config)),
        evaluate=evaluate,
        plot=plot,
    )


def pretrain(config: ConfigDict, workdir: Path) -> None:
    """Trains the prior and writes it to ``workdir/gmm_prior.safetensors``."""
    settings = config.pretrain
    net = network(config)
    process = brownian_bridge(config.process.num_steps, config.process.diffusion)
    init_key, fit_key = jax.random.split(stream(config.seed, "pretrain"))
    params = net.init(init_key, jnp.zeros((1, 2)), jnp.float32(0.0))["params"]

    def loss(params, key, data):
        del data  # Drawn anew at every step.
        data_key, noise_key = jax.random.split(key)
        x0 = sample_mixture(data_key, settings.batch_size)
        return jnp.mean(denoising_loss(noise_key, process, Policy(params, prior_apply(net)), x0))

    params = fit(loss, params, None, settings, key=fit_key, workdir=workdir, label="gmm prior", steps_per_call=100)
    path = workdir / "gmm_prior.safetensors"
    weights.save(path, params, {"trained_on": "samples of the 25-mode mixture"})
    hosts.say(f"{path}: use it by --config.prior.weights={path}")


def nearest_modes(x):
    """Nearest of the 25 means, and whether the sample is farther than 3 standard deviations from it."""
    distance = np.linalg.norm(x[:, None] - GRID[None], axis=-1)
    return distance.argmin(axis=1), distance.min(axis=1) > 3 * STD


def mode_weights(x):
    return np.bincount(nearest_modes(x)[0], minlength=25) / len(x)


def evaluate(samples):
    """Each set against the exact one: mode weights, mass off the modes, sliced W2."""
    exact = samples["exact"]
    compared = {"prior": samples["prior"], "rtb": samples["rtb"], "exact": samples["exact_again"]}
    return {
        name: {
            "mode_tv": total_variation(mode_weights(x), mode_weights(exact)),
            "off_mode_mass": float(nearest_modes(x)[1].mean()),
            "sliced_w2": sliced_w2(x, exact),
            "log_reward": float(np.mean(log_reward(jnp.asarray(x)))),
            "modes": {f"{a:g}, {b:g}": share for (a, b), share in zip(GRID, mode_weights(x).tolist(), strict=True)},
        }
        for name, x in compared.items()
    }


def plot(path: Path, panels: Samples) -> None:
    """Density of each set, by title."""

    def draw(axis, x):
        axis.hist2d(x[:, 0], x[:, 1], bins=130, range=[[-13, 13]] * 2, cmap="magma", norm=PowerNorm(0.5))
        axis.set_aspect("equal")

    one_panel_each(path, panels, draw, size=(3.6, 3.9), shared=True)
