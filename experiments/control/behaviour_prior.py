"""The behaviour prior mu(a | s): a diffusion over u = arctanh(a), conditioned on the state (paper, app. G.1).

Actions live in [-1, 1] and a diffusion in all of R^A, so it models u; clipped, since behaviour that saturates has
actions whose u is infinite. Prior and posterior both live in u, where their ratio is exp(Q(s, tanh u) / alpha): the
Jacobian of tanh would cancel and has no place in log r.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from experiments import noising
from rtbjax import Process, schedules
from rtbjax.nets.mlp import PISNet
from rtbjax.process import vp

MAX_ACTION = 0.99  # Clipped there, as the reference does.
MAX_LATENT = float(np.arctanh(MAX_ACTION))
TRAIN_STEPS = 1000
LOG_SNR = (0.5, 1.5)  # Centre and scale of the levels a chain visits.
MAX_WEIGHT = 5.0  # Of min-SNR.


def to_latents(actions: Float[np.ndarray, "N A"]) -> Float[np.ndarray, "N A"]:
    """u of actions in [-1, 1], within `MAX_LATENT`."""
    return np.arctanh(np.clip(actions, -MAX_ACTION, MAX_ACTION)).astype(np.float32)


def alpha_bar() -> np.ndarray:
    """Signal fractions of the `TRAIN_STEPS` noise levels the prior learns.

    Linear betas that belong to 1000 steps and go with 1000 steps: the last level keeps 4e-5 of the data's variance. At
    75 steps, as in the reference, the same betas leave 0.45 of it, and sampling would not start where noising ends.
    """
    return schedules.linear_alpha_bar(TRAIN_STEPS)


def make_process(num_steps: int, min_std: float) -> Process:
    """A chain of any length up to `TRAIN_STEPS` / 8, on levels that begin at the noisiest; one prior serves all.

    Levels are quantiles of a logistic law of log SNR about the widths that policies have, and steps have the paper's
    large variances: 20 of them then keep a normal law's width within a tenth from 0.3 up (0.33 for 0.3); evenly spaced
    steps of small variance would make it 0.22.
    """
    schedule = schedules.respace(alpha_bar(), num_steps, "log_snr", log_snr=LOG_SNR)
    return vp.ddpm(schedule, prediction="epsilon", variance="fixed_large", clip_x0=MAX_LATENT, min_std=min_std)


def network(width: int, action_dim: int) -> PISNet:
    return PISNet(features=action_dim, width=width)


def init(key: Array, width: int, observation_dim: int, action_dim: int) -> PyTree:
    """Parameters of `network`."""
    inputs = (jnp.zeros((1, action_dim)), jnp.float32(0.0), jnp.zeros((1, observation_dim)))
    return jax.jit(network(width, action_dim).init)(key, *inputs)["params"]


def predict(params: Any, u: Float[Array, "B A"], t: Float[Array, "*B"], observations: Float[Array, "B S"]) -> Array:
    """The noise in u at training timestep t, given normalised observations."""
    width, action_dim = params["Dense_0"]["kernel"].shape[-1], u.shape[-1]
    noise: Any = network(width, action_dim).apply({"params": params}, u, t / TRAIN_STEPS, observations)
    return noise


def loss(params: PyTree, key: Array, latents: Float[Array, "B A"], observations: Float[Array, "B S"]) -> Array:
    """Squared error of the noise at stratified levels, weighted by ``min(SNR, 5) / SNR`` (Hang et al. 2023).

    Weighted so, a level counts by its error in u, capped where there is hardly any noise left.
    """
    time_key, noise_key = jax.random.split(key)
    found = noising.noised(alpha_bar(), time_key, noise_key, latents)
    a = found.level[:, 0]
    snr = a / (1.0 - a)
    squares = jnp.mean((predict(params, found.x, found.t, observations) - found.eps) ** 2, axis=-1)
    return jnp.mean(jnp.minimum(snr, MAX_WEIGHT) / snr * squares)
