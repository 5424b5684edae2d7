"""Training-free steering of a prior by the gradient of log r: the baselines of the field.

Each is a `Policy` without parameters, so that a guided sampler gets the same rollout, log-ratio and certificate as a
trained posterior: its paths' importance weights are known.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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


def reconstruction(
    process: Process,
    prior: Policy,
    log_reward: Callable[[Array, Any, Array], Array],
    spread: Float[Array, " T"],
    *,
    clip: float = 100.0,
) -> Policy:
    """The gradient of log r at an estimate of x0 that is known to be uncertain, as of pseudo-inverse guidance.

    A step of standard deviation s should move its mean m by ``s^2`` times the gradient, in m, of the log of the mean of
    r over all that may follow. The estimate of x0 at m stands for what may follow, its errors for white noise
    (Song et al. 2023): exact up to the step size where the law of x0 given the state is normal with just these errors.
    Costs one more forward and one backward pass of the prior a step.

    Args:
      process: the chain.
      prior: frozen.
      log_reward: differentiable ``(x0, cond, std) -> f32[B]``, the log of the mean of r under white noise of that
        standard deviation in x0, as `rtbjax.inverse.log_likelihood` gives it.
      spread: standard deviation of x0 given ``xs[i]``; see `denoising_errors`.
      clip: bound on every entry of the gradient.
    """
    last = process.num_steps - 1

    def look(output, x, t, cond):
        i = process.step_at(t)
        after = jnp.minimum(i + 1, last)

        def worth(mean):
            estimate = process.denoise(prior(mean, process.time(after), cond), mean, after)
            # The last step's own state is the data.
            return jnp.sum(log_reward(jnp.where(i == last, mean, estimate), cond, spread[i]))

        law: Any = process.reverse(output, x, i)
        gradient = jax.grad(worth)(law.mean)
        return {"output": output, "score": jnp.clip(gradient, -clip, clip)}

    return Policy({}, _steer, look)


def denoising_errors(process: Process, prior: Policy, xs: Float[Array, "T+1 B *E"], cond: Any = None) -> Array:
    """What each state leaves open: root mean square errors of x0's estimates on the prior's own paths, ``f32[T]``."""

    def step(_, i):
        estimate = process.denoise(prior(xs[i], process.time(i), cond), xs[i], i)
        return None, jnp.sqrt(jnp.mean((estimate - xs[-1]) ** 2))

    return jax.lax.scan(step, None, jnp.arange(process.num_steps))[1]


def _steer(params, x, t, cond, features):
    return Steered(features["output"], features["score"])
