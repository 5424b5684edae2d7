"""Data with noise at stratified levels: what networks that denoise are trained on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rtbjax import schedules


class Noised(NamedTuple):
    """``x = signal * x0 + std * eps`` of B samples, each at a level of its own.

    Attributes:
      x: ``[B, E*]``.
      t: training timesteps, ``f32[B]``, one in each of B equal parts of the schedule.
      level: ``alpha_bar`` there, ``[B, 1*]``.
      eps: standard normal, ``[B, E*]``.
    """

    x: Array
    t: Float[Array, " B"]
    level: Array
    eps: Array

    @property
    def signal(self) -> Array:
        return jnp.sqrt(self.level)

    @property
    def std(self) -> Array:
        return jnp.sqrt(1.0 - self.level)


def noised(alpha_bar: Any, time_key: Array, noise_key: Array, x0: Array) -> Noised:
    """``x0[B, E*]`` with noise at the levels of ``alpha_bar[T]``."""
    alpha_bar = jnp.asarray(alpha_bar, jnp.float32)
    batch, steps = x0.shape[0], alpha_bar.shape[0]
    t = jnp.floor((jnp.arange(batch, dtype=jnp.float32) + jax.random.uniform(time_key)) / batch * steps)
    level = alpha_bar[t.astype(jnp.int32)].reshape(-1, *(1,) * (x0.ndim - 1))
    eps = jax.random.normal(noise_key, x0.shape)
    return Noised(jnp.sqrt(level) * x0 + jnp.sqrt(1.0 - level) * eps, t, level, eps)


def v_errors(predict: Callable[[Array, Array], Any], time_key: Array, noise_key: Array, x0: Array) -> Array:
    """Squared errors of v on the cosine schedule (Salimans & Ho 2022), ``[B, E*]``, of a network ``predict(x, t)``."""
    found = noised(schedules.cosine_alpha_bar(), time_key, noise_key, x0)
    return (predict(found.x, found.t) - (found.signal * found.eps - found.std * x0)) ** 2
