"""The prior p(z | x): a masked diffusion over the fourth sentence that knows the first three, and never the fifth.

The same network trained with the fifth in sight (``after``) is p(z | x, y) learned from data: what a posterior is
compared with.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from rtbjax import losses
from rtbjax.nets.transformer import MaskedTransformer
from rtbjax.types import Policy

LEAST_RATE = 1e-3  # Of masked tokens in training: below it a loss would be divided by nothing.
MOST_RATE = 1.0 - 1e-6  # What a score ratio takes for all masked.


def denoise(
    net: MaskedTransformer,
    params: PyTree,
    z: Int[Array, "B L"],
    t: Float[Array, "*B"],
    before: Int[Array, "B X"],
    after: Int[Array, "B Y"] | None = None,
    context: Int[Array, "B Y"] | None = None,
) -> Float[Array, "B L V"]:
    """Output at the middle of the text ``before, z`` (``after``), of which z alone may be masked."""
    text = jnp.concatenate([before, z] if after is None else [before, z, after], axis=1)
    found: Any = net.apply({"params": params}, text, t, (before.shape[1], z.shape[1]), context)
    return found


def init(net: MaskedTransformer, key: Array) -> PyTree:
    return net.init(key, jnp.zeros((1, 2), jnp.int32), jnp.float32(0.0))["params"]


def output(head: str, logits: Float[Array, "B L V"], t: Float[Array, "*B"]) -> Float[Array, "B L V"]:
    """What `rtbjax.absorbing` expects of a head: logits for ``mdlm``, log scores for ``sedd``.

    A score is a probability times ``(1 - m) / m``; the network is spared the factor, which leaves any range as m does.
    """
    if head == "mdlm":
        return logits
    rate = jnp.clip(t, LEAST_RATE, MOST_RATE).reshape(-1, 1, 1)
    return logits + jnp.log1p(-rate) - jnp.log(rate)


def predict(
    net: MaskedTransformer,
    head: str,
    params: PyTree,
    z: Int[Array, "B L"],
    t: Float[Array, "*B"],
    before: Int[Array, "B X"],
    after: Int[Array, "B Y"] | None = None,
) -> Float[Array, "B L V"]:
    """`output` of what `denoise` says."""
    return output(head, denoise(net, params, z, t, before, after), t)


def loss(
    net: MaskedTransformer,
    head: str,
    params: PyTree,
    key: Array,
    before: Int[Array, "B X"],
    middle: Int[Array, "B L"],
    after: Int[Array, "B Y"] | None = None,
) -> Float[Array, " B"]:
    """A bound on ``-log p(z | x)`` in nats, at one mask rate for each story; its mean is minimised and reported."""
    offset_key, mask_key = jax.random.split(key)
    batch = middle.shape[0]
    # Stratified: one mask rate in each of B equal parts of (0, 1).
    rate = (jnp.arange(batch, dtype=jnp.float32) + jax.random.uniform(offset_key)) / batch
    rate = jnp.clip(rate, LEAST_RATE, 1.0 - LEAST_RATE)
    masked = jax.random.uniform(mask_key, middle.shape) < rate[:, None]
    z = jnp.where(masked, net.vocab_size, middle)
    found = predict(net, head, params, z, rate, before, after)
    bound = losses.masked_elbo if head == "mdlm" else losses.score_entropy
    return bound(found, middle, masked, rate)


def bound(
    net: MaskedTransformer,
    head: str,
    params: PyTree,
    key: Array,
    before: Array,
    middle: Array,
    after: Array | None = None,
    draws: int = 200,
) -> tuple[float, float]:
    """Nats per middle of an upper bound on the mean of ``-log p(z | x)``, and its standard error over the draws."""
    one = jax.jit(lambda params, key: jnp.mean(loss(net, head, params, key, before, middle, after)))
    values = jnp.stack([one(params, jax.random.fold_in(key, i)) for i in range(draws)])
    return float(values.mean()), float(values.std(ddof=1) / draws**0.5)


def correction(net: MaskedTransformer, params: PyTree, key: Array) -> Policy:
    """A copy that also reads the ending, and whose output is zero, to be added to that of the original."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    # As one program: one by one, the network's operations take five seconds to compile.
    fresh = jax.jit(lambda key: net.init(key, tokens, jnp.float32(0.0), None, tokens)["params"]["context"])(key)
    copy = params | {"context": fresh, "head": jax.tree.map(jnp.zeros_like, params["head"])}

    def apply_fn(params, z, t, cond):
        return denoise(net, params, z, t, cond["before"], cond["after"], context=cond["after"])

    return Policy(copy, apply_fn)
