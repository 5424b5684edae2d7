"""Text written from left to right, as a chain: what a causal language model is to RTB (paper, sec. 2.4).

States are int32 token ids ``[B, L]``, as of `rtbjax.absorbing`: the mask is the id ``vocab_size``, and step i writes
token i. Prior and posterior differ in nothing but the law of the next token, so that the posterior of any reward is
again such a chain: there is no floor. RTB on it is GFlowNet fine-tuning of a language model (Hu et al. 2024).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rtbjax.kernels import Categorical
from rtbjax.process import Process
from rtbjax.process.absorbing import check_output, check_tokens


def left_to_right(length: int, vocab_size: int) -> Process:
    """The chain of L steps, each of which writes the next token.

    Args:
      length: L.
      vocab_size: V, the number of tokens; the network outputs ``[B, V]``, logits of the next token (-inf where it
        cannot be), and is told the share that is not yet written.

    Raises:
      ValueError: ``length`` below 1; of the process's functions, tokens of another length.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}.")

    def certain(x: Array) -> Float[Array, "B L W"]:
        """Log-probabilities of being x, over V tokens and the mask."""
        return jnp.where(jax.nn.one_hot(x, vocab_size + 1, dtype=jnp.bool_), 0.0, -jnp.inf)

    def here(i):
        return jnp.arange(length) == i

    def reverse(output, x, i):
        check_tokens(x, length)
        check_output(output, (x.shape[0], vocab_size))
        following = jax.nn.log_softmax(output.astype(jnp.float32), axis=-1)
        following = jnp.pad(following, ((0, 0), (0, 1)), constant_values=-jnp.inf)
        return Categorical(jnp.where(here(i)[None, :, None], following[:, None], certain(x)))

    def unwritten(x, i):
        check_tokens(x, length)
        return jnp.where(jnp.arange(length)[None] < i, x, jnp.int32(vocab_size))

    return Process(
        num_steps=length,
        init=lambda keys, shape, cond: check_tokens(jnp.full(shape, vocab_size, jnp.int32), length),
        time=lambda i: (length - jnp.asarray(i)).astype(jnp.float32) / length,
        reverse=reverse,
        forward=lambda keys, x, i, cond: unwritten(x, i),
        marginal=lambda keys, x0, i, cond: unwritten(x0, i),
        # Of what comes later a law of the next token says nothing: it stays masked.
        denoise=lambda output, x, i: jnp.where(here(i)[None], jnp.argmax(output, -1).astype(jnp.int32)[:, None], x),
        target=lambda x0, x, i: Categorical(certain(jnp.where(here(i)[None], x0, x))),
    )
