"""Low-rank adaptation of any parameter tree (Hu et al. 2022).

An adapter adds ``(alpha / rank) A @ B`` to a kernel viewed as a matrix ``[fan_in, fan_out]`` (leading axes flattened,
so convolutions are covered). B starts at zero: the adapted network starts as the base.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from rtbjax.types import PRNGKey


def init(key: PRNGKey, params: PyTree, rank: int, select: str = ".*") -> PyTree:
    """Adapters for every floating-point leaf of rank >= 2 whose path matches.

    Args:
      key: for A.
      params: the base parameters, any pytree; leaves that are no arrays (an Equinox module's functions) are left alone.
      rank: of every adapter.
      select: regular expression searched in the leaf's path: keys, indices and attributes joined by ``/``.

    Returns:
      ``{path: {"a": f32[fan_in, rank], "b": f32[rank, fan_out]}}``.

    Raises:
      ValueError: ``rank`` below 1, a ``select`` that is no regular expression, or nothing matches.
    """
    if rank < 1:
        raise ValueError(f"LoRA's rank must be at least 1, got {rank}.")
    try:
        pattern = re.compile(select)
    except re.error as error:
        raise ValueError(f"select must be a regular expression, got {select!r}: {error}.") from error
    leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    chosen = [path for path, leaf in sorted(leaves.items()) if _is_kernel(leaf) and pattern.search(path)]
    if not chosen:
        raise ValueError(f"No kernel's path matches {select!r}; the paths are {sorted(leaves)[:8]}...")
    adapters = {}
    for subkey, path in zip(jax.random.split(key, len(chosen)), chosen, strict=True):
        fan_out = leaves[path].shape[-1]
        fan_in = leaves[path].size // fan_out
        a = jax.random.normal(subkey, (fan_in, rank), jnp.float32) / jnp.sqrt(jnp.float32(fan_in))
        adapters[path] = {"a": a, "b": jnp.zeros((rank, fan_out), jnp.float32)}
    return adapters


def merge(params: PyTree, adapters: PyTree, alpha: float = 1.0) -> PyTree:
    """The base parameters with the adapters added; ``alpha`` is divided by each adapter's rank.

    Raises:
      ValueError: an adapter of a path that the parameters do not have.
    """
    unused = set(adapters)

    def adapt(path, leaf):
        name = _name(path)
        if name not in adapters:
            return leaf
        unused.discard(name)
        a, b = adapters[name]["a"], adapters[name]["b"]
        update = (alpha / a.shape[-1]) * (a @ b)
        return leaf + update.reshape(leaf.shape).astype(leaf.dtype)

    merged = jax.tree_util.tree_map_with_path(adapt, params)
    if unused:
        raise ValueError(f"The parameters have no kernel at {sorted(unused)}, where there is an adapter.")
    return merged


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_kernel(leaf: Any) -> bool:
    return getattr(leaf, "ndim", 0) >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating)
