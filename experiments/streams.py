"""Named streams of randomness: every consumer of keys has its own, so that no two can meet."""

import zlib

import jax
from jaxtyping import Array


def stream(seed: int, name: str) -> Array:
    """The key of a stream. Steps, batches and samples are folded below it, never beside it.

    A name folded as a small constant next to the steps would be the key of that very step.
    """
    # crc32 is the same in every process, which hash() is not.
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
