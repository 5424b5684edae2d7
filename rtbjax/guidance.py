"""Training-free steering of a prior by the gradient of log r: the baselines of the field.

Each is a `Policy` without parameters, so that a guided sampler gets the same rollout, log-ratio and certificate as a
trained posterior: its paths' importance weights are known.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from rtbjax.process import Process
from rtbjax.types import Policy, Steered, check_shape


def classifier_guidance(
    log_reward: Callable[[Array, Any], Array], *, strength: float = 1.0, clip: float = 100.0
) -> Policy:
    """Adds ``strength * grad log r(x)``, taken at the noisy state itself, to the score (paper, eq. 20).

    Biased: the exact term is the gradient of ``log E[r(x_0) | x]`` (Dhariwal & Nichol 2021, sec. 4.1).

    Args:
      log_reward: differentiable ``(x, cond) -> f32[B]``.
      strength: 1 is the formula.
      clip: bound on every entry of the gradient, as of `rtbjax.posterior.langevin`.
    """

    def gradient(output, x, t, cond):
        return jax.grad(lambda x: jnp.sum(log_reward(x, cond)))(x)

    return _guide(gradient, strength, clip)


def value_guidance(
    process: Process,
    log_h: Callable[[Array, Float[Array, ""], Any], Array],
    log_reward: Callable[[Array, Any], Array],
    *,
    strength: float = 1.0,
    clip: float = 100.0,
) -> Policy:
    """Adds ``strength * grad log h``, of a learned value, taken at the mean of the prior's step to the next state.

    Exact up to the step size where the value is (Doob's h-transform): the law of the next state is the prior's times
    ``h(x') = E[r | x']``, and near the mean log h is linear.

    Args:
      process: the chain, Gaussian.
      log_h: differentiable ``(x, t, cond) -> f32[B]``.
      log_reward: differentiable ``(x, cond) -> f32[B]``, which log h is at the data.
      strength: 1 is the formula.
      clip: bound on every entry of the gradient.
    """
    log_h_after = value_after(process, log_h, log_reward)

    def gradient(output, x, t, cond):
        i = process.step_at(t)
        law: Any = process.reverse(output, x, i)
        return jax.grad(lambda mean: jnp.sum(log_h_after(mean, i, cond)))(law.mean)

    return _guide(gradient, strength, clip)


def value_after(
    process: Process,
    log_h: Callable[[Array, Float[Array, ""], Any], Array],
    log_reward: Callable[[Array, Any], Array],
) -> Callable[[Array, Int[Array, ""], Any], Float[Array, " B"]]:
    """``(xs[i + 1], i, cond) -> log h`` of the state that step i led to; at the data it is log r."""
    last = process.num_steps - 1

    def before_data(x, i, cond):
        return log_h(x, process.time(jnp.minimum(i + 1, last)), cond)

    def at_data(x, i, cond):
        return log_reward(x, cond)

    return lambda x, i, cond: jax.lax.cond(i == last, at_data, before_data, x, i, cond)


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

    def gradient(output, x, t, cond):
        i = process.step_at(t)
        return jax.grad(lambda x: jnp.sum(log_reward(process.denoise(prior(x, t, cond), x, i), cond)))(x)

    return _guide(gradient, strength, clip)


def loss_guidance(
    process: Process,
    prior: Policy,
    log_reward: Callable[[Array, Any], Array],
    spread: Callable[[Int[Array, ""]], Float[Array, ""]],
    *,
    num_samples: int = 10,
    strength: float = 1.0,
    clip: float = 100.0,
) -> Policy:
    """LGD-MC: ``grad_x log mean_j r(x0(x) + spread eps_j)`` through the denoiser, per sample (Song et al. 2023).

    Exact as ``num_samples`` grows where x_0 given x is normal with that standard deviation; `posterior_sampling` is
    ``spread`` 0. The noise is a function of the state, so that this is a policy: what was sampled can be scored.

    Args:
      process: the chain, for its estimate of x0.
      prior: frozen.
      log_reward: differentiable ``(x0, cond) -> f32[B]``.
      spread: the standard deviation of x_0 about its estimate at step i, in the units of x.
      num_samples: the noises of a state.
      strength: 1 is the formula.
      clip: bound on every entry of the gradient.

    Raises:
      ValueError: ``num_samples`` below 1.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")

    def gradient(output, x, t, cond):
        i = process.step_at(t)
        noise = spread(i) * _noise_of(x, num_samples)

        def total(x):
            x0 = process.denoise(prior(x, t, cond), x, i)
            log_r = jax.vmap(lambda noise: log_reward(x0 + noise, cond))(noise)
            return jnp.sum(jax.nn.logsumexp(log_r, axis=0))

        return jax.grad(total)(x)

    return _guide(gradient, strength, clip)


def reconstruction(
    process: Process,
    prior: Policy,
    misfit: Callable[[Array, Any], Array],
    tweedie: Float[ArrayLike, " T+1"],
    *,
    iterations: int = 2,
    clip: float = 100.0,
) -> Policy:
    """The gradient of a Gaussian likelihood at an estimate of x0 whose uncertainty is that of the prior.

    A step of standard deviation s should move its mean m by ``s^2`` times the gradient, in m, of the log of the mean of
    r over all that may follow. With ``log r = -|e|^2 / 2`` plus a constant, e the misfit, B its derivative, J that of
    the estimate of x0 at m, and C the covariance of x0 given the state, this gradient is

        -J' B' (1 + B C B')^-1 e

    where the law of x0 given the state is normal. C is J up to a factor (Tweedie's second formula), so that it costs
    products with J alone: the inverse is that of a few iterations of conjugate gradients (Rozet et al. 2024). Exact up
    to the step size for a linear misfit of independent normal pixels of one variance.

    Costs one more forward pass of the prior a step, and ``iterations + 2`` backward passes.

    Args:
      process: the chain, Gaussian.
      prior: frozen.
      misfit: ``(x0, cond) -> e[B, ...]``, in units of the noise; twice differentiable.
      tweedie: variance over signal of every state, ``n^2 / s`` where ``xs[i] = s x0 + n eps``; 0 for the data.
      iterations: of conjugate gradients.
      clip: bound on every entry of the gradient.

    Raises:
      ValueError: ``tweedie`` of another length.
    """
    last = process.num_steps - 1
    check_shape("tweedie", tweedie, (process.num_steps + 1,))
    tweedie = jnp.asarray(tweedie, jnp.float32)

    def gradient(output, x, t, cond):
        i = process.step_at(t)
        after = jnp.minimum(i + 1, last)
        law: Any = process.reverse(output, x, i)

        def estimate(mean):
            x0 = process.denoise(prior(mean, process.time(after), cond), mean, after)
            return jnp.where(i == last, mean, x0)  # The last step's own state is the data.

        x0, back = jax.vjp(estimate, law.mean)
        e, blame = jax.vjp(lambda x0: misfit(x0, cond), x0)
        first = blame(e)[0]
        moved = back(first)[0]
        # That the step itself adds noise to m widens C by s^2 J J'; one number says how large J is where e points.
        size = _dots(moved, moved) / jnp.maximum(_dots(first, moved), 1e-6)
        scale = tweedie[i + 1] + law.std**2 * size

        def widened(v):
            change = scale * back(blame(v)[0])[0]
            return v + jax.jvp(lambda x0: misfit(x0, cond), (x0,), (change,))[1]

        return -back(blame(_conjugate_gradients(widened, e, iterations))[0])[0]

    return _guide(gradient, 1.0, clip)


def _guide(gradient: Callable[[Any, Array, Array, Any], Array], strength: float, clip: float) -> Policy:
    """The prior with ``gradient(prior output, x, t, cond)``, clipped and then scaled, added to its score."""

    def look(output, x, t, cond):
        score = strength * jnp.clip(gradient(output, x, t, cond), -clip, clip)
        return {"output": output, "score": score}

    def apply_fn(params, x, t, cond, features):
        return Steered(features["output"], features["score"])

    return Policy({}, apply_fn, look)


def _noise_of(x: Array, count: int) -> Array:
    """Standard normals ``[count, B, E*]`` from the bits of each state: other noise for another state."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32).reshape(x.shape[0], -1)
    odd = jnp.uint32(2) * jnp.arange(bits.shape[1], dtype=jnp.uint32) + jnp.uint32(1)
    # Multiples of the golden ratio, modulo 2^32, as in multiplicative hashing: no two places count alike.
    digest = jnp.sum(bits * (jnp.uint32(2654435769) * odd)[None], axis=1, dtype=jnp.uint32)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), digest)
    draw = jax.vmap(lambda key: jax.random.normal(key, (count, *x.shape[1:]), jnp.float32), out_axes=1)
    return draw(keys)


def _dots(a: Array, b: Array) -> Array:
    """Inner products per sample, ``[B, 1*]``."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)


def _conjugate_gradients(matrix: Callable[[Array], Array], b: Array, iterations: int) -> Array:
    """Solves ``matrix(v) = b`` for every sample from ``v = 0``; a sample that meets no positive curvature stays."""
    v, rest = jnp.zeros_like(b), b
    direction, squares = b, _dots(b, b)
    for _ in range(iterations):
        image = matrix(direction)
        curvature = _dots(direction, image)
        step = jnp.where(curvature > 0.0, squares / jnp.where(curvature > 0.0, curvature, 1.0), 0.0)
        v, rest = v + step * direction, rest - step * image
        before, squares = squares, _dots(rest, rest)
        direction = rest + squares / jnp.maximum(before, 1e-30) * direction
    return v
