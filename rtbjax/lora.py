"""Low-rank adaptation of any parameter tree (Hu et al. 2022).

An adapter adds ``(alpha / rank) A @ B`` to a kernel viewed as a matrix ``[fan_in, fan_out]`` (leading axes flattened,
so convolutions are covered). B starts at zero: the adapted network starts as the base.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from rtbjax.types import PRNGKey


def init(key: PRNGKey, params: PyTree, rank: int, select: str = ".*") -> PyTree:
    """Adapters for every leaf of rank >= 2 whose path matches.

    Args:
      key: for A.
      params: the base parameters, a nested dict.
      rank: of every adapter.
      select: regular expression searched in the leaf's path, joined by ``/``.

    Returns:
      ``{path: {"a": f32[fan_in, rank], "b": f32[rank, fan_out]}}``.

    Raises:
      ValueError: ``rank`` below 1, or nothing matches.
    """
    if rank < 1:
        raise ValueError(f"LoRA's rank must be at least 1, got {rank}.")
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    chosen = [path for path, leaf in sorted(flat.items()) if leaf.ndim >= 2 and re.search(select, path)]
    if not chosen:
        raise ValueError(f"No kernel's path matches {select!r}; the paths are {sorted(flat)[:8]}...")
    adapters = {}
    for subkey, path in zip(jax.random.split(key, len(chosen)), chosen, strict=True):
        fan_out = flat[path].shape[-1]
        fan_in = flat[path].size // fan_out
        a = jax.random.normal(subkey, (fan_in, rank), jnp.float32) / jnp.sqrt(jnp.float32(fan_in))
        adapters[path] = {"a": a, "b": jnp.zeros((rank, fan_out), jnp.float32)}
    return adapters


def merge(params: PyTree, adapters: PyTree, alpha: float = 1.0) -> PyTree:
    """The base parameters with the adapters added; ``alpha`` is divided by each adapter's rank."""
    flat: dict[str, Any] = dict(flatten_dict(params, sep="/"))
    for path, adapter in adapters.items():
        rank = adapter["a"].shape[-1]
        update = (alpha / rank) * (adapter["a"] @ adapter["b"])
        flat[path] = flat[path] + update.reshape(flat[path].shape).astype(flat[path].dtype)
    return unflatten_dict(flat, sep="/")
