"""The reward p(y | x, z): a causal language model, exact on the tokens of the ending and on nothing else."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from rtbjax.nets.transformer import CausalTransformer


def closed_up(
    parts: tuple[Int[Array, "B _"], ...], pad: int
) -> tuple[Int[Array, "B L"], Int[Array, "B L"], Bool[Array, "B L"]]:
    """The text of several slots without the padding in and between them.

    Returns:
      Its tokens, padded at their end; the number of the part that each is of; which of them are text.
    """
    tokens = jnp.concatenate(parts, axis=1)
    part = jnp.concatenate([jnp.full_like(p, number) for number, p in enumerate(parts)], axis=1)
    order = jnp.argsort(tokens == pad, axis=1, stable=True)
    tokens, part = (jnp.take_along_axis(a, order, axis=1) for a in (tokens, part))
    return tokens, part, tokens != pad


def log_probs(net: CausalTransformer, params: PyTree, tokens: Int[Array, "B L"]) -> Float[Array, "B L"]:
    """Log-probability of each token given those before it; the first is given, and has 0."""
    logits: Any = net.apply({"params": params}, tokens)
    law = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    found = jnp.take_along_axis(law, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.pad(found, ((0, 0), (1, 0)))


def log_likelihood(
    net: CausalTransformer,
    params: PyTree,
    before: Int[Array, "B X"],
    middle: Int[Array, "B L"],
    after: Int[Array, "B Y"],
    pad: int,
) -> Float[Array, " B"]:
    """log p(after | before, middle): the ending's own tokens, its close included, and no padding anywhere."""
    tokens, part, text = closed_up((before, middle, after), pad)
    return jnp.sum(jnp.where(text & (part == 2), log_probs(net, params, tokens), 0.0), axis=1)


def loss(net: CausalTransformer, params: PyTree, parts: tuple[Int[Array, "B _"], ...], pad: int) -> Float[Array, " B"]:
    """Nats of each story, the first token given."""
    tokens, _, text = closed_up(parts, pad)
    return -jnp.sum(jnp.where(text, log_probs(net, params, tokens), 0.0), axis=1)


def init(net: CausalTransformer, key: Array) -> PyTree:
    return net.init(key, jnp.zeros((1, 2), jnp.int32))["params"]
