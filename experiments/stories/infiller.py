"""A causal language model that writes the middle of a story, token by token: the network of `rtbjax.left_to_right`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from experiments.stories import language_model
from experiments.stories.words import Vocabulary
from rtbjax.nets.transformer import CausalTransformer
from rtbjax.types import Policy

CLOSING = (".", "!", "?")
QUOTES = "\"'\u201d\u2019"  # May follow in the same token.


@functools.cache  # A chain or two more ask it of the same vocabulary, which may have 50,000 tokens.
def closing_tokens(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Tokens that end a sentence: those of a closing mark, which byte pairs have with and without a space before it."""
    return tuple(
        token for token in range(vocabulary.size) if vocabulary.decode([token]).rstrip(QUOTES).endswith(CLOSING)
    )


def next_token(
    net: CausalTransformer,
    params: PyTree,
    prompt: tuple[Int[Array, "B _"], ...],
    z: Int[Array, "B L"],
    pad: int,
) -> Float[Array, "B V"]:
    """Logits of what follows the prompt's slots and the written part of ``z``; the rest of ``z`` is masked (V)."""
    written = jnp.where(z == net.vocab_size, pad, z)
    tokens, _, text = language_model.closed_up((*prompt, written), pad)
    every: Any = net.apply({"params": params}, tokens)
    return every[jnp.arange(len(z)), jnp.sum(text, axis=1) - 1]


def one_sentence(
    logits: Float[Array, "B V"], z: Int[Array, "B L"], pad: int, closing: tuple[int, ...]
) -> Float[Array, "B V"]:
    """The law of one sentence: no padding within it, and nothing else after the mark that closes it."""
    closed = jnp.any(jnp.isin(z, jnp.asarray(closing, jnp.int32)), axis=1)
    padding = jnp.arange(logits.shape[1]) == pad
    return jnp.where(padding[None] == closed[:, None], jnp.where(closed[:, None], 0.0, logits), -jnp.inf)


def policy(net: CausalTransformer, params: PyTree, seen: tuple[str, ...], vocabulary: Vocabulary) -> Policy:
    """Writes a sentence after those parts of its ``cond``, in this order."""
    pad, closing = vocabulary.pad, closing_tokens(vocabulary)

    def apply_fn(params, z, t, cond):
        logits = next_token(net, params, tuple(cond[part] for part in seen), z, pad)
        return one_sentence(logits, z, pad, closing)

    return Policy(params, apply_fn)


def correction(net: CausalTransformer, params: PyTree, pad: int) -> Policy:
    """A copy that also reads the ending, and whose output is zero, to be added to that of the original."""
    copy = params | {"head": jax.tree.map(jnp.zeros_like, params["head"])}
    return Policy(copy, lambda params, z, t, cond: next_token(net, params, (cond["before"], cond["after"]), z, pad))
