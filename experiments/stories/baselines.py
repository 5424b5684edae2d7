"""Infills without fine-tuning, to compare with: of a language model, and the best of several of the prior's."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from experiments.stories import language_model
from experiments.stories.words import Vocabulary
from rtbjax.nets.transformer import CausalTransformer

CLOSING = (".", "!", "?")


def closing_tokens(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Tokens that end a sentence."""
    return tuple({vocabulary.encode(mark)[0] for mark in CLOSING if vocabulary.decode(vocabulary.encode(mark)) == mark})


def autoregressive(
    key: Array,
    net: CausalTransformer,
    params: PyTree,
    prompt: tuple[Int[Array, "B _"], ...],
    length: int,
    *,
    pad: int,
    closing: tuple[int, ...],
) -> Int[Array, "B L"]:
    """The sentence that a language model writes after the prompt's slots; padding follows once it is closed."""
    room = jnp.full((prompt[0].shape[0], length), pad, jnp.int32)
    tokens, _, text = language_model.closed_up((*prompt, room), pad)
    start, row = jnp.sum(text, axis=1), jnp.arange(len(room))
    ends = jnp.asarray(closing, jnp.int32)

    def write(state, i):
        tokens, done = state
        every: Any = net.apply({"params": params}, tokens)
        logits = every[row, start + i - 1]
        drawn = jax.random.categorical(jax.random.fold_in(key, i), logits.at[:, pad].set(-jnp.inf)).astype(jnp.int32)
        drawn = jnp.where(done, pad, drawn)
        closed = jnp.any(drawn[:, None] == ends[None], axis=1)
        return (tokens.at[row, start + i].set(drawn), done | closed), drawn

    (_, _), drawn = jax.lax.scan(write, (tokens, jnp.zeros(len(room), jnp.bool_)), jnp.arange(length))
    return drawn.T


def best_of(n: int, x: Int[Array, "m L"], log_r: Float[Array, " m"]) -> Int[Array, "m/n L"]:
    """Of every n infills in turn that of the highest log r; n must divide their number."""
    groups = log_r.reshape(-1, n)
    return x[jnp.arange(len(groups)) * n + jnp.argmax(groups, axis=1)]
