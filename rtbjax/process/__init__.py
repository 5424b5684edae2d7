"""A process ties a network's output to one-step laws.

Each constructor returns a `Process`: pure functions closed over its tables. A new process is a new constructor; no code
asks a process what kind it is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rtbjax.kernels import Gaussian, Kernel
from rtbjax.types import LearnedStd, PRNGKey, Steered, check_shape


@dataclasses.dataclass(frozen=True, eq=False)
class Process:
    """A discrete-time diffusion: T reverse kernels, and the noising that goes with them.

    Hashable by identity, so it can be a static argument of ``jax.jit``. ``i`` is a step index, possibly traced.

    Attributes:
      num_steps: T.
      init: ``(keys[B], shape, cond) -> xs[0]`` of that shape, drawn from p_T.
      time: ``i -> f32[]``, what the network is told at step i.
      reverse: ``(output, xs[i], i) -> Kernel`` for ``xs[i + 1]``.
      forward: ``(keys[B], xs[i + 1], i, cond) -> xs[i]``, one step of noising.
      marginal: ``(keys[B], x0, i, cond) -> xs[i]`` directly from data.
      denoise: ``(output, xs[i], i) -> x0``, the network's estimate of the data.
      target: ``(x0, xs[i], i) -> Kernel``, the law of ``xs[i + 1]`` that a perfect denoiser, which knows the data,
        would give it: with the step's own std, which need not be that of noised data.
    """

    num_steps: int
    init: Callable[[PRNGKey, tuple[int, ...], Any], Array]
    time: Callable[[Int[Array, ""]], Float[Array, ""]]
    reverse: Callable[[Any, Array, Int[Array, ""]], Kernel]
    forward: Callable[[PRNGKey, Array, Int[Array, ""], Any], Array]
    marginal: Callable[[PRNGKey, Array, Int[Array, ""], Any], Array]
    denoise: Callable[[Any, Array, Int[Array, ""]], Array]
    target: Callable[[Array, Array, Int[Array, ""]], Kernel]

    def step_at(self, t: Float[Array, ""]) -> Int[Array, ""]:
        """The step whose time is nearest to ``t``: the inverse of ``time``."""
        return jnp.argmin(jnp.abs(jax.vmap(self.time)(jnp.arange(self.num_steps)) - t))


def split_output(output: Any, x: Array) -> tuple[Array, Array, Array]:
    """What a Gaussian process reads in a network output: float32 value, factor on the std (1), extra score (0).

    Raises:
      ValueError: the value or the score is not of the shape of ``x[B, E*]``, to which it would be broadcast, or the
        change of the std has other axes.
    """
    if isinstance(output, Steered):
        check_shape("The network's score", output.score, x.shape)
        value, factor, score = split_output(output.output, x)
        return value, factor, score + output.score.astype(jnp.float32)
    score, factor = jnp.float32(0.0), jnp.float32(1.0)
    if isinstance(output, LearnedStd):
        shape = output.log_std.shape
        if shape and (len(shape) != x.ndim or any(a not in (1, b) for a, b in zip(shape, x.shape, strict=True))):
            raise ValueError(
                f"log_std must have the shape {x.shape} of the batch, with 1 where it is shared, or none, got {shape}."
            )
        output, factor = output.value, jnp.exp(output.log_std.astype(jnp.float32))
    check_shape("The network's output", output, x.shape)
    return output.astype(jnp.float32), factor, score


def gaussian(output: Any, mean: Array, std: Array) -> Gaussian:
    """The step's law: the process's own mean and std, changed by what the output says of them."""
    _, factor, score = split_output(output, mean)
    std = std * factor
    return Gaussian(mean + std**2 * score, std)


def check_min_std(min_std: float) -> None:
    """Raises a ValueError unless it is positive, which NaN is not."""
    if not min_std > 0.0:
        raise ValueError(f"min_std must be positive (a zero std has no density), got {min_std}.")


def normal(keys: PRNGKey, event_shape: tuple[int, ...]) -> Array:
    """Standard normals ``f32[B, E*]``, one key per sample."""
    return jax.vmap(lambda k: jax.random.normal(k, event_shape, jnp.float32))(keys)
