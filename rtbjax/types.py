"""The few types everything else is written in.

Shapes, throughout the package: ``B`` paths, ``T`` steps, ``E*`` the event axes of one sample. Paths are time-major:
``xs[0]`` is noise, ``xs[T]`` is data, and step ``i`` maps ``xs[i]`` to ``xs[i + 1]``.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree


class Denoiser(Protocol):
    """The network of a prior or a posterior: a Flax ``apply``, an Equinox model, or a plain function."""

    def __call__(self, params: Any, x: Array, t: Float[Array, ""], cond: Any) -> Any:
        """Maps ``x[B, E*]`` at the scalar time ``t`` to the raw output that ``Process.reverse`` understands."""
        ...


class RewardFn(Protocol):
    """A positive function r, by its logarithm."""

    def __call__(self, x: Array, cond: Any, /) -> Float[ArrayLike, " B"]:
        """Maps samples ``x[B, E*]`` to ``log r``, one number per sample."""
        ...


@flax.struct.dataclass
class Shard:
    """One device's part of a parameter that is split over a mesh axis, as it is seen under ``shard_map``.

    Attributes:
      part: this device's.
      dim: the array axis that is split.
      axis_name: the mesh axis.
    """

    part: Array
    dim: int = flax.struct.field(pytree_node=False)
    axis_name: str = flax.struct.field(pytree_node=False)

    def whole(self) -> Array:
        """The parameter, gathered; its gradient is scattered back to the parts."""
        return jax.lax.all_gather(self.part, self.axis_name, axis=self.dim, tiled=True)


# What a gathered parameter passes through: the gather itself, and JAX's cast of what is the same on all devices.
_GATHERING = ("all_gather", "pvary")


def _is_shard(leaf: Any) -> bool:
    return isinstance(leaf, Shard)


def _takes(function: Callable, count: int) -> bool:
    """Whether it can be called with as many positional arguments, as far as its signature tells."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    return True


@flax.struct.dataclass
class Policy:
    """A denoiser with its parameters: priors, posteriors and everything between differ in nothing else.

    Attributes:
      params: what training may change.
      apply_fn: ``(params, x, t, cond) -> output``.
      look: for a posterior that builds on the frozen prior: ``(prior output, x, t, cond) -> features``. ``apply_fn``
        then takes the features as a fifth argument. They do not depend on ``params``, so a path carries them along and
        training never runs the prior again.
    """

    params: PyTree
    apply_fn: Callable = flax.struct.field(pytree_node=False)
    look: Callable | None = flax.struct.field(pytree_node=False, default=None)

    def __call__(self, x: Array, t: Float[Array, ""], cond: Any, features: PyTree = None) -> Any:
        """The raw output for ``x[B, E*]`` at the scalar time t.

        Raises:
          ValueError: features for a function that takes none, or none for one that does.
        """
        takes = partial(_takes, self.apply_fn)
        if features is None and takes(5) and not takes(4):
            raise ValueError(
                "This policy builds on the prior's features, and the paths carry none: score them with look=."
            )
        if features is not None and takes(4) and not takes(5):
            raise ValueError(
                "This policy takes no features, and the paths carry those of another: drop them with "
                "trajectory._replace(features=None)."
            )
        extra = () if features is None else (features,)
        if not any(map(_is_shard, jax.tree.leaves(self.params, is_leaf=_is_shard))):
            return self.apply_fn(self.params, x, t, cond, *extra)

        # The gradient gathers once more: kept for it, the whole parameters would lie on every device until then.
        @partial(jax.checkpoint, policy=lambda primitive, *_, **__: primitive.name not in _GATHERING)
        def gathered(params, *arguments):
            whole = jax.tree.map(lambda leaf: leaf.whole() if _is_shard(leaf) else leaf, params, is_leaf=_is_shard)
            return self.apply_fn(whole, *arguments)

        # Tied to the state: of a parameter alone XLA would gather once, before the scan over steps, and keep it.
        params, x = jax.lax.optimization_barrier((self.params, x))
        return gathered(params, x, t, cond, *extra)


class LearnedStd(NamedTuple):
    """A network output that also moves the step's standard deviation.

    Attributes:
      value: the output proper, whatever the process predicts, ``[B, E*]``.
      log_std: added to the log of the process's own standard deviation; broadcasts to ``[B, E*]``.
    """

    value: Array
    log_std: Array


class Steered(NamedTuple):
    """A network output with an additional score: a Gaussian step's mean moves by ``std^2 * score``.

    Attributes:
      output: an array or a `LearnedStd`.
      score: ``[B, E*]``, in units of one over those of x.
    """

    output: Any
    score: Array


class Trajectory(NamedTuple):
    """A batch of paths with what is known about them.

    Attributes:
      xs: states, ``[T + 1, B, E*]``.
      cond: conditions, a pytree with leading axis B, or None.
      log_reward: log r of ``xs[T]``, ``f32[B]``; None until the reward was asked.
      log_prior: log p_prior(xs[i + 1] | xs[i]), ``f32[T, B]``. The prior is frozen: score a path once, keep it.
      log_ratio: log p_prior - log p_post per step, ``f32[T, B]``, or None. Valid only for the very parameters it was
        computed with. It is stored, and not log p_post, because the difference of two kernels is exact where the
        difference of two stored totals has lost its digits (``kernels.Gaussian.log_ratio``).
      features: ``[T, B, ...]``, what ``Policy.look`` saw at each step, or None.
    """

    xs: Array
    cond: Any
    log_reward: Float[Array, " B"] | None
    log_prior: Float[Array, "T B"]
    log_ratio: Float[Array, "T B"] | None = None
    features: PyTree = None


PRNGKey = jax.Array
AxisName = str | tuple[str, ...]


# A float32 rounding of a log r exactly at its declared bound is not a violation.
BOUND_SLACK = 1e-4


def check_bound(log_reward: ArrayLike, log_bound: float) -> None:
    """Raises a ValueError if a log r is above the bound declared for it."""
    if np.any(np.asarray(log_reward) > log_bound + BOUND_SLACK):
        raise ValueError(f"log_reward reaches {np.max(log_reward):.4f}, beyond its declared bound {log_bound:.4f}.")


def check_shape(name: str, array: ArrayLike, shape: tuple[int | str, ...]) -> None:
    """Raises a ValueError with both shapes unless they agree; an axis given by a name may have any length.

    For arrays that a user hands in: a ``[B, 1]`` where ``[B]`` is meant broadcasts to ``[B, B]`` without a sound.
    """
    found = np.shape(array)
    named = [length if isinstance(want, str) else want for want, length in zip(shape, found, strict=False)]
    if len(found) != len(shape) or list(found) != named:
        raise ValueError(f"{name} must have shape {str(shape).replace(chr(39), '')}, got {found}.")


def varying_like(tree: PyTree, like: jax.Array) -> PyTree:
    """Marks arrays as varying over the mesh axes that ``like`` varies over; outside ``shard_map`` the tree itself.

    A constant carried by a scan must have the type its body gives it. And the gradient with respect to a *marked*
    parameter is this shard's own, to be averaged explicitly; with respect to an unmarked one JAX has already summed it
    over the shards.
    """
    target = jax.typeof(like).manual_axis_type.varying

    def mark(x):
        missing = tuple(target - jax.typeof(x).manual_axis_type.varying)
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(mark, tree)
