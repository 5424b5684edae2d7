"""Parametrisations of the posterior. Each takes a prior and gives the `Policy` to train.

All of them start *as* the prior: corrections, adapters and variance heads are zero at first, so that the log-ratio
of every path is 0 at first and the residual ``log Z - beta log r``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from rtbjax import lora as _lora
from rtbjax.types import LearnedStd, Policy, PRNGKey


def full_copy(prior: Policy) -> Policy:
    """Every parameter of the prior, trainable."""
    return Policy(jax.tree.map(jnp.array, prior.params), prior.apply_fn)


def lora(key: PRNGKey, prior: Policy, rank: int, *, alpha: float | None = None, select: str = ".*") -> Policy:
    """Low-rank adapters on the kernels whose path matches ``select``; ``alpha`` defaults to ``rank``.

    Raises:
      ValueError: see `rtbjax.lora.init`.
    """
    strength = float(rank if alpha is None else alpha)

    def apply_fn(adapters, x, t, cond):
        return prior.apply_fn(_lora.merge(prior.params, adapters, strength), x, t, cond)

    return Policy(_lora.init(key, prior.params, rank, select), apply_fn)


def correction(prior: Policy, params: PyTree, apply_fn: Callable) -> Policy:
    """The frozen prior's output plus that of a network whose last layer starts at zero."""

    def corrected(params, x, t, cond):
        return _add(prior(x, t, cond), apply_fn(params, x, t, cond))

    return Policy(params, corrected)


def langevin(
    base: Policy,
    scale_params: PyTree,
    scale: Callable[[PyTree, Array], Array],
    log_reward: Callable[[Array, Any], Array],
    *,
    clip: float = 100.0,
    estimate: Callable[[Any, Array, Array], Array] | None = None,
) -> Policy:
    """Adds ``scale(t) * clip(grad log r)`` to the output of ``base`` (paper, eq. 11).

    Args:
      base: a trainable parametrisation.
      scale_params: parameters of ``scale``, whose last layer starts at zero.
      scale: ``(params, t) ->`` factor that broadcasts to ``[B, E*]``.
      log_reward: differentiable ``(x, cond) -> f32[B]``.
      clip: bound on every entry of the gradient (the reference's 100).
      estimate: where the gradient is taken: None for the state itself, or ``(output, x, t) -> x0``. No gradient flows
        through the point.

    Returns:
      A policy with parameters ``{"base": ..., "scale": ...}``.
    """

    def apply_fn(params, x, t, cond):
        output = base.apply_fn(params["base"], x, t, cond)
        point = jax.lax.stop_gradient(x if estimate is None else estimate(output, x, t))
        gradient = jax.grad(lambda point: jnp.sum(log_reward(point, cond)))(point)
        return _add(output, scale(params["scale"], t) * jnp.clip(gradient, -clip, clip))

    return Policy({"base": base.params, "scale": scale_params}, apply_fn)


def learned_std(base: Policy, head_params: PyTree, head: Callable[[PyTree, Array, Array, Any], Array]) -> Policy:
    """Lets the posterior move its step variances by a head that starts at zero.

    The exact posterior of a discretised chain has other step variances than the prior: fixed ones leave a path-KL floor
    of the order of the step size.

    Args:
      base: a trainable parametrisation.
      head_params: parameters of ``head``.
      head: ``(params, x, t, cond) -> log_std``, added to the log of the process's std.

    Returns:
      A policy with parameters ``{"base": ..., "log_std": ...}``.
    """

    def apply_fn(params, x, t, cond):
        return LearnedStd(base.apply_fn(params["base"], x, t, cond), head(params["log_std"], x, t, cond))

    return Policy({"base": base.params, "log_std": head_params}, apply_fn)


def _add(output: Any, change: Array) -> Any:
    if isinstance(output, LearnedStd):
        return output._replace(value=output.value + change)
    return output + change
