"""Three ways to obtain log Z: learned, conditional, VarGrad.

Each maps the paths' gaps (see `rtbjax.objective`) and the trainable ``params["log_z"]`` to one log Z per path.
"""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from rtbjax.types import AxisName, check_shape

LogZ = str | Callable[[Any, Any], Array]
Group = int | Array | Callable[[Any], Array] | None


def log_z_per_path(
    log_z: LogZ,
    params: Any,
    gap: Float[Array, " B"],
    cond: Any,
    group: Group,
    axis_name: AxisName | None,
) -> Float[Array, " B"]:
    """The log Z each path is balanced against.

    Args:
      log_z: ``"vargrad"``; ``"learned"``, with ``params["log_z"]`` a scalar; or a function ``(params["log_z"], cond) ->
        f32[B]``, the conditional log Z.
      params: the objective's parameters, with an entry ``log_z`` unless VarGrad is used.
      gap: without gradient.
      cond: conditions of the paths.
      group: see `group_mean`, or a function ``cond -> ids[B]``; only VarGrad uses it.
      axis_name: the mesh axis or axes the batch is split over, under ``shard_map``.

    Raises:
      ValueError: an unknown name, no ``log_z`` among the parameters, or one of another shape; VarGrad with conditions
        and no ``group``, or with one whose paths have different conditions (where these are not traced).
    """
    if log_z == "vargrad":
        if callable(group):
            return group_mean(gap, group(cond), axis_name)
        if group is None and cond is not None:
            raise ValueError(
                "VarGrad's mean is over paths that share a condition: with cond, say by group how many neighbours do, "
                f"{gap.shape[0]} if all these paths do."
            )
        return group_mean(gap, group, axis_name, cond)
    if log_z != "learned" and not callable(log_z):
        raise ValueError(f"log_z must be 'vargrad', 'learned' or a function (params, cond) -> f32[B], got {log_z!r}.")
    if "log_z" not in params:
        raise ValueError(f"log_z={log_z!r} needs params['log_z']; the parameters have only {sorted(params)}.")
    if callable(log_z):
        estimate = log_z(params["log_z"], cond)
        check_shape("The conditional log Z", estimate, gap.shape)
        return estimate
    check_shape("params['log_z']", params["log_z"], ())
    return jnp.broadcast_to(params["log_z"], gap.shape)


def group_mean(
    gap: Float[Array, " B"],
    group: int | Int[Array, " B"] | None = None,
    axis_name: AxisName | None = None,
    cond: PyTree = None,
) -> Float[Array, " B"]:
    """VarGrad's log Z: the mean gap of the paths that share a condition (paper, eq. 23). Detached.

    Args:
      gap: ``f32[B]``, this shard's paths.
      group: None for one group; k for consecutive groups of k paths; or an id in ``0..B-1`` per path of this shard (B
        global). Groups may span shards.
      axis_name: the mesh axis or axes the batch is split over.
      cond: conditions of the paths, to check that those of a group are one.

    Returns:
      ``f32[B]``. NaN for a path that is alone in its group, whose residual would be 0 whatever the posterior, and,
      where only a traced value hides it until then, for one in a group of different conditions or of an id out of
      range. `rtbjax.make_update` skips and counts such a step.

    Raises:
      ValueError: groups of one path or of different conditions, k does not divide B, an array that is not ``[B]``, or
        an id out of range.
    """
    check_shape("gap", gap, gap.shape[:1])
    gap = jax.lax.stop_gradient(gap)
    shards = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    total = gap.shape[0] * shards

    def over_shards(x):
        return x if axis_name is None else jax.lax.psum(x, axis_name)

    if group is None:
        if total < 2:
            raise ValueError("VarGrad needs at least 2 paths per group, got 1: its loss would be 0 for any posterior.")
        return jnp.broadcast_to(over_shards(jnp.sum(gap)) / total, gap.shape)
    if np.ndim(group) == 0:
        size = operator.index(group)
        if size < 2 or total % size:
            raise ValueError(f"VarGrad's group must be at least 2 and divide the {total} paths, got {size}.")
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * gap.shape[0]
        ids = (first + jnp.arange(gap.shape[0])) // size
    else:
        check_shape("group", group, gap.shape)
        ids = jnp.asarray(group)
    known = (ids >= 0) & (ids < total)
    if not isinstance(known, Tracer) and not known.all():
        raise ValueError(f"VarGrad's group ids must lie in 0..{total - 1} (B - 1), got {ids[jnp.argmin(known)]}.")
    _check_shared(cond, ids)
    # Beyond the end, where a scatter drops it: a negative id would count from the end.
    ids = jnp.where(known, ids, total)
    counts = over_shards(jax.ops.segment_sum(jnp.ones_like(gap), ids, total))
    sums = over_shards(jax.ops.segment_sum(gap, ids, total))
    sound = (counts > 1) & _shared(cond, ids, total, axis_name)
    means = jnp.where(sound, sums / jnp.maximum(counts, 1.0), jnp.nan)
    return means.at[ids].get(mode="fill", fill_value=jnp.nan)


def _shared(cond: PyTree, ids: Int[Array, " B"], total: int, axis_name: AxisName | None) -> Bool[Array, " groups"]:
    """Whether the paths of each group, on whatever shards, have one condition."""
    shared = jnp.ones(total, bool)
    for values in jax.tree.leaves(cond):
        values = jnp.asarray(values).reshape(len(ids), -1)
        values = values.astype(jnp.int32) if values.dtype == bool else values
        low, high = (extreme(values, ids, total) for extreme in (jax.ops.segment_min, jax.ops.segment_max))
        if axis_name is not None:
            low, high = jax.lax.pmin(low, axis_name), jax.lax.pmax(high, axis_name)
        shared &= (low == high).all(axis=1)
    return shared


def _check_shared(cond: PyTree, ids: Int[Array, " B"]) -> None:
    """Raises a ValueError if a group has different conditions; says nothing where one of its arguments is traced."""
    leaves = jax.tree.leaves(cond)
    if any(isinstance(array, Tracer) for array in (ids, *leaves)):
        return
    _, first, group = np.unique(np.asarray(ids), return_index=True, return_inverse=True)
    for values in map(np.asarray, leaves):
        shared = (values == values[first[group]]).reshape(len(values), -1).all(axis=1)
        if not shared.all():
            path = int(np.argmin(shared))
            raise ValueError(
                f"VarGrad's groups are of paths that share a condition, but that of path {path} is not that of path "
                f"{first[group[path]]}, the first of its group."
            )
