"""Training stops where its numbers end."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from experiments.errors import UserError


class Diverged(UserError, FloatingPointError):
    """Numbers that are not finite where training cannot go on from them."""


@jax.jit
def finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every number in a tree is."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
