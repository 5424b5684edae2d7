"""Parametrisations of the posterior. Each takes a prior and gives the `Policy` to train.

All but `guided` start *as* the prior: corrections, adapters and variance heads are zero at first, so that the log-ratio
of every path is 0 at first and the residual ``log Z - beta log r``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from rtbjax import lora as _lora
from rtbjax.process import Process
from rtbjax.types import LearnedStd, Policy, PRNGKey, Steered, check_shape


def full_copy(prior: Policy) -> Policy:
    """Every parameter of the prior, trainable.

    Raises:
      ValueError: a leaf that is a function, as of an Equinox module.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(prior.params):
        if callable(leaf):
            raise ValueError(
                f"A full copy trains every leaf, and {jax.tree_util.keystr(path)} is a function: keep the arrays "
                "alone as parameters (equinox.partition), or train adapters (rtbjax.posterior.lora)."
            )
    return Policy(jax.tree.map(jnp.array, prior.params), prior.apply_fn, prior.look)


def lora(key: PRNGKey, prior: Policy, rank: int, *, alpha: float | None = None, select: str = ".*") -> Policy:
    """Low-rank adapters on the kernels whose path matches ``select``; ``alpha`` defaults to ``rank``.

    The policy's ``params`` are the adapters alone, so ``apply_fn`` closes over the prior's parameters, and a jitted
    function that calls it holds them as constants: a copy in each such program, and a third of a second of compiling
    per million parameters (measured). For a large prior set JAX's ``jax_use_simplified_jaxpr_constants``, which makes
    arguments of them, or call `lora` inside the jitted function, on a prior that is an argument of it.

    Raises:
      ValueError: see `rtbjax.lora.init`.
    """
    return adapted(prior, _lora.init(key, prior.params, rank, select), float(rank if alpha is None else alpha))


def adapted(prior: Policy, adapters: PyTree, alpha: float) -> Policy:
    """As `lora`, with adapters that are there already, as those of a file; ``alpha`` is divided by each one's rank.

    Calling it raises a ValueError where the prior has no kernel for an adapter.
    """

    def apply_fn(adapters, x, t, cond, *features):
        return Policy(_lora.merge(prior.params, adapters, alpha), prior.apply_fn)(x, t, cond, *features)

    return Policy(adapters, apply_fn, prior.look)


def correction(params: PyTree, apply_fn: Callable, *, look: Callable | None = None) -> Policy:
    """The frozen prior's output plus that of a network whose last layer starts at zero.

    Args:
      params: of the network.
      apply_fn: ``(params, x, t, cond, seen) -> change`` of the output.
      look: ``(prior output, x, t, cond) -> seen``, frozen: estimates of x0, gradients of log r. The prior's output if
        None.

    Returns:
      A policy with ``look``: paths carry the prior's output and what was seen, and training never runs the prior.
      Calling it raises a ValueError where the change is not of the output's shape.
    """

    def features(output, x, t, cond):
        return {"output": output, "seen": output if look is None else look(output, x, t, cond)}

    def corrected(params, x, t, cond, features):
        return _add(features["output"], apply_fn(params, x, t, cond, features["seen"]))

    return Policy(params, corrected, features)


def steered(params: PyTree, score: Callable[[PyTree, Array, Array, Any, Array], Array]) -> Policy:
    """The frozen prior with the mean of every Gaussian step moved by ``std^2 * score``.

    Args:
      params: of ``score``, whose last layer starts at zero.
      score: ``(params, x, t, cond, prior output) -> [B, E*]``, in units of one over those of x.

    Returns:
      A policy with ``look``: paths carry the prior's output, and training never runs the prior.
    """

    def apply_fn(params, x, t, cond, output):
        return Steered(output, score(params, x, t, cond, output))

    return Policy(params, apply_fn, lambda output, x, t, cond: output)


def value_guided(params: PyTree, log_h: Callable[[PyTree, Array, Array, Any], Array]) -> Policy:
    """`steered` by the gradient of a learned value, ``log h(x, t) = log E[r^beta | x_t = x]``.

    The exact posterior is the prior steered by the exact value, up to the step size (Doob's h-transform).

    Args:
      params: of ``log_h``, whose last layer starts at zero.
      log_h: ``(params, x, t, cond) -> f32[B]``, twice differentiable.
    """

    def score(params, x, t, cond, output):
        return jax.grad(lambda x: jnp.sum(log_h(params, x, t, cond)))(x)

    return steered(params, score)


def guided(guide: Policy, params: PyTree, change: Callable[[PyTree, Array, Array, Any, Steered], Array]) -> Policy:
    """A training-free guide (`rtbjax.guidance`) with a score that is trained: it starts as the guide, not as the prior.

    Args:
      guide: without parameters; its ``look`` computes the score.
      params: of ``change``.
      change: ``(params, x, t, cond, guided output) -> score``, that of the guide at first.

    Returns:
      A policy with ``look``: paths carry the guide's score, and training never runs the prior.
    """

    def apply_fn(params, x, t, cond, features):
        steered = guide(x, t, cond, features)
        return steered._replace(score=change(params, x, t, cond, steered))

    return Policy(params, apply_fn, guide.look)


def standalone(prior: Policy, posterior: Policy) -> Policy:
    """A posterior that brings its prior along: for all that takes a prior, such as another reward, or a guide.

    Args:
      prior: that the posterior was trained beside.
      posterior: any of this module's, or a guide.

    Returns:
      A policy without ``look`` and with parameters ``{"prior": ..., "posterior": ...}``, of which every call runs both;
      a posterior that builds on no prior is returned as it is. `Process.denoise` does not see a score: of a steered or
      guided one, guides and particles take the first prior's estimate of x0, which makes them worse and not wrong.
    """
    look = posterior.look
    if look is None:
        return posterior

    def apply_fn(params, x, t, cond):
        output = Policy(params["prior"], prior.apply_fn)(x, t, cond)
        return Policy(params["posterior"], posterior.apply_fn)(x, t, cond, look(output, x, t, cond))

    return Policy({"prior": prior.params, "posterior": posterior.params}, apply_fn)


def langevin(
    base: Policy,
    scale_params: PyTree,
    scale: Callable[[PyTree, Array], Array],
    log_reward: Callable[[Array, Any], Array],
    *,
    clip: float = 100.0,
) -> Policy:
    """Adds ``scale(t) * clip(grad log r(x))`` to the output of ``base`` (paper, eq. 11).

    Args:
      base: a trainable parametrisation.
      scale_params: parameters of ``scale``, whose last layer starts at zero.
      scale: ``(params, t) ->`` factor that broadcasts to ``[B, E*]``.
      log_reward: differentiable ``(x, cond) -> f32[B]``.
      clip: bound on every entry of the gradient (the reference's 100).

    Returns:
      A policy with parameters ``{"base": ..., "scale": ...}``; the gradient travels with the path.
    """

    def look(output, x, t, cond):
        gradient = jax.grad(lambda x: jnp.sum(log_reward(x, cond)))(x)
        inner = None if base.look is None else base.look(output, x, t, cond)
        return {"gradient": jnp.clip(gradient, -clip, clip), "base": inner}

    def apply_fn(params, x, t, cond, features):
        output = Policy(params["base"], base.apply_fn)(x, t, cond, features["base"])
        return _add(output, scale(params["scale"], t) * features["gradient"])

    return Policy({"base": base.params, "scale": scale_params}, apply_fn, look)


def learned_std(base: Policy, head_params: PyTree, head: Callable[[PyTree, Array, Array, Any], Array]) -> Policy:
    """Lets the posterior move its step variances by a head that starts at zero.

    The exact posterior of a discretised chain has other step variances than the prior: fixed ones leave a path-KL floor
    of the order of the step size.

    Args:
      base: a trainable parametrisation.
      head_params: parameters of ``head``.
      head: ``(params, x, t, cond) -> log_std``, added to the log of the process's std; broadcasts to ``[B, E*]``.

    Returns:
      A policy with parameters ``{"base": ..., "log_std": ...}``.
    """

    def apply_fn(params, x, t, cond, *features):
        output = Policy(params["base"], base.apply_fn)(x, t, cond, *features)
        change = head(params["log_std"], x, t, cond)
        # Of each sample, for what carries outputs along paths: a posterior on top of this one.
        shape = change.shape or (1,) * x.ndim
        return _add_log_std(output, jnp.broadcast_to(change, (x.shape[0], *shape[1:])))

    return Policy({"base": base.params, "log_std": head_params}, apply_fn, base.look)


def step_std(base: Policy, process: Process, shape: tuple[int, ...]) -> Policy:
    """`learned_std` by a table: numbers for every step, the same for all samples.

    Args:
      base: a trainable parametrisation.
      process: the chain, Gaussian, that it will be rolled out with: a step of another takes that of the nearest time.
      shape: of a step's numbers, with the axes of ``E*``; along those of length 1 they are shared.
    """
    table = {"log_std": jnp.zeros((process.num_steps, *shape))}
    return learned_std(base, table, lambda table, x, t, cond: table["log_std"][process.step_at(t)][None])


def _add(output: Any, change: Array) -> Any:
    if isinstance(output, Steered):
        return output._replace(output=_add(output.output, change))
    if isinstance(output, LearnedStd):
        return output._replace(value=_add(output.value, change))
    check_shape("The change of the network's output", change, output.shape)
    return output + change


def _add_log_std(output: Any, change: Array) -> Any:
    if isinstance(output, Steered):
        return output._replace(output=_add_log_std(output.output, change))
    if isinstance(output, LearnedStd):
        return output._replace(log_std=output.log_std + change)
    return LearnedStd(output, change)
