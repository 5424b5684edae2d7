"""Training-free steering of a prior by the gradient of log r: the baselines of the field.

Each is a `Policy` without parameters, so that a guided sampler gets the same rollout, log-ratio and certificate as a
trained posterior: its paths' importance weights are known.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rtbjax.process import Process
from rtbjax.types import Policy, Steered


def classifier_guidance(
    prior: Policy, log_reward: Callable[[Array, Any], Array], *, strength: float = 1.0, clip: float = 100.0
) -> Policy:
    """Adds ``strength * grad log r(x)``, taken at the noisy state itself, to the score (paper, eq. 20).

    Biased: the exact term is the gradient of ``log E[r(x_0) | x]`` (Dhariwal & Nichol 2021, sec. 4.1).

    Args:
      prior: frozen.
      log_reward: differentiable ``(x, cond) -> f32[B]``.
      strength: 1 is the formula.
      clip: bound on every entry of the gradient, as of `rtbjax.posterior.langevin`.
    """

    def look(output, x, t, cond):
        gradient = jax.grad(lambda x: jnp.sum(log_reward(x, cond)))(x)
        return {"output": output, "score": strength * jnp.clip(gradient, -clip, clip)}

    return Policy({}, _steer, look)


def posterior_sampling(
    process: Process,
    prior: Policy,
    log_reward: Callable[[Array, Any], Array],
    *,
    strength: float = 1.0,
    clip: float = 100.0,
) -> Policy:
    """Diffusion posterior sampling: ``grad_x log r(x0(x))`` through the denoiser, per sample (Chung et al. 2023).

    Biased: it takes log r at the mean of x_0 where the mean of r is meant. Costs one backward pass of the prior a step.

    Args:
      process: the chain, for its estimate of x0.
      prior: frozen.
      log_reward: differentiable ``(x0, cond) -> f32[B]``.
      strength: 1 is the formula.
      clip: bound on every entry of the gradient.
    """

    def look(output, x, t, cond):
        i = process.step_at(t)
        gradient = jax.grad(lambda x: jnp.sum(log_reward(process.denoise(prior(x, t, cond), x, i), cond)))(x)
        return {"output": output, "score": strength * jnp.clip(gradient, -clip, clip)}

    return Policy({}, _steer, look)


def _steer(params, x, t, cond, features):
    return Steered(features["output"], features["score"])
