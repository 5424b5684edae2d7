"""A replay buffer as a pytree of fixed shapes and three pure functions.

Items are any pytree with a leading axis: terminal states ``(x0, cond, log_reward)`` to be noised anew, or whole paths
with their cached prior log-probabilities (batch axis first). The oldest item is overwritten.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from rtbjax.types import PRNGKey, check_shape


class Buffer(NamedTuple):
    """Attributes:
    items: leading axis ``capacity``.
    priority: log-weight of each item for `sample`, ``f32[capacity]``; -inf where empty.
    added: how many items were ever added, ``i32[]``.
    """

    items: PyTree
    priority: Float[Array, " capacity"]
    added: Int[Array, ""]


def init(item: PyTree, capacity: int) -> Buffer:
    """An empty buffer for items shaped like ``item`` (arrays or ``ShapeDtypeStruct``, without the leading axis).

    Raises:
      ValueError: ``capacity`` below 1.
    """
    if capacity < 1:
        raise ValueError(f"A replay buffer needs a capacity of at least 1, got {capacity}.")
    items = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), item)
    return Buffer(items, jnp.full((capacity,), -jnp.inf), jnp.int32(0))


def add(buffer: Buffer, items: PyTree, keep: Bool[Array, " B"], priority: Float[Array, " B"] | None = None) -> Buffer:
    """Adds the items that ``keep`` marks, oldest out first.

    Args:
      buffer: the buffer.
      items: shaped like its items, with leading axis B.
      keep: which of them to add, ``bool[B]``.
      priority: log-weight of each for `sample`, ``f32[B]``; 0, which is uniform, if None.

    Returns:
      The buffer with them; of more than ``capacity`` the last ones.

    Raises:
      ValueError: items of another shape than the buffer's, or not as many as ``keep`` and ``priority`` have numbers.
    """
    capacity = buffer.priority.shape[0]
    jax.tree.map(lambda held, new: check_shape("Each item", new, (*keep.shape, *held.shape[1:])), buffer.items, items)
    order = jnp.cumsum(keep.astype(jnp.int32)) - 1
    # Beyond the end for what is not kept: dropped by the scatter.
    slot = jnp.where(keep, (buffer.added + order) % capacity, capacity)
    # Of more items than fit, the later ones win: earlier ones are dropped, since scatter order is undefined.
    count = jnp.sum(keep.astype(jnp.int32))
    slot = jnp.where(order < count - capacity, capacity, slot)
    priority = jnp.zeros(keep.shape, jnp.float32) if priority is None else priority
    check_shape("priority", priority, keep.shape)
    return Buffer(
        items=jax.tree.map(lambda all_, new: all_.at[slot].set(new, mode="drop"), buffer.items, items),
        priority=buffer.priority.at[slot].set(priority, mode="drop"),
        added=buffer.added + count,
    )


def sample(key: PRNGKey, buffer: Buffer, batch: int, temperature: float = 1.0) -> PyTree:
    """``batch`` items with replacement, with probability proportional to ``exp(priority / temperature)``.

    The buffer must not be empty: check ``buffer.added`` on the host first.
    """
    # By inversion: Gumbel noise for every pair of a draw and an item would need batch * capacity numbers.
    cumulative = jnp.cumsum(jax.nn.softmax(buffer.priority / temperature))
    index = jnp.searchsorted(cumulative, jax.random.uniform(key, (batch,)) * cumulative[-1], side="right")
    # What a parallel sum rounds off must not reach into the empty slots, which are the last ones.
    held = jnp.minimum(buffer.added, buffer.priority.shape[0])
    index = jnp.minimum(index, held - 1)
    return jax.tree.map(lambda x: x[index], buffer.items)
