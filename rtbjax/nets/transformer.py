"""Transformers over tokens: a denoiser of masked diffusion, and a causal language model.

Both are pre-norm with rotary positions, which have no parameters, so that a network serves sequences of any length. The
denoiser's norms are modulated by time (Peebles & Xie 2023; as in MDLM and SEDD).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rtbjax.nets.mlp import TimeEmbedding


def rotary(x: Float[Array, "B L H D"], base: float = 10_000.0) -> Float[Array, "B L H D"]:
    """Turns the pairs ``(x[d], x[d + D / 2])`` by angles proportional to the position (Su et al. 2021).

    Products of two turned vectors depend on the difference of their positions only.
    """
    half = x.shape[-1] // 2
    rates = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None, None] * rates[None, None]
    cos, sin = jnp.cos(angle)[None], jnp.sin(angle)[None]
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


class Attention(nn.Module):
    """Self-attention of ``heads`` heads.

    Attributes:
      heads: must divide the width, each with an even number of features.
    """

    heads: int

    @nn.compact
    def __call__(self, h: Float[Array, "B L W"], attend: Bool[Array, "L L"] | None) -> Float[Array, "B L W"]:
        """``attend[i, j]``: whether position i sees position j; all see all if None."""
        batch, length, width = h.shape
        q, k, v = jnp.split(nn.Dense(3 * width, use_bias=False, name="qkv")(h), 3, axis=-1)
        q, k, v = (a.reshape(batch, length, self.heads, width // self.heads) for a in (q, k, v))
        mask = None if attend is None else attend[None, None]
        mixed = jax.nn.dot_product_attention(rotary(q), rotary(k), v, mask=mask)
        return nn.Dense(width, use_bias=False, name="out")(mixed.reshape(h.shape))


class Block(nn.Module):
    """Attention and a two-layer network, each added to its input."""

    heads: int

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "B L W"],
        attend: Bool[Array, "L L"] | None = None,
        time: Float[Array, "#B 1 W"] | None = None,
    ) -> Float[Array, "B L W"]:
        """Given ``time``, it shifts and scales the norms and gates what is added; the gates start at zero."""
        width = h.shape[-1]
        norm = nn.LayerNorm(use_bias=False, use_scale=time is None, name="norm_attention")(h)
        norm_mlp = nn.LayerNorm(use_bias=False, use_scale=time is None, name="norm_mlp")
        attention, widen, narrow = Attention(self.heads, name="attention"), nn.Dense(4 * width), nn.Dense(width)
        if time is None:
            h = h + attention(norm, attend)
            return h + narrow(nn.gelu(widen(norm_mlp(h))))
        changes = nn.Dense(6 * width, kernel_init=nn.initializers.zeros, name="modulation")(time)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = jnp.split(changes, 6, axis=-1)
        h = h + gate * attention(norm * (1.0 + scale) + shift, attend)
        return h + gate_mlp * narrow(nn.gelu(widen(norm_mlp(h) * (1.0 + scale_mlp) + shift_mlp)))


class MaskedTransformer(nn.Module):
    """The denoiser of a masked diffusion: every position sees every other.

    Attributes:
      vocab_size: V; the mask is token V.
      width: of the residual stream.
      depth: number of blocks.
      heads: of each.
    """

    vocab_size: int
    width: int
    depth: int
    heads: int

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B L"],
        t: Float[Array, "*B"],
        span: tuple[int, int] | None = None,
        context: Int[Array, "B K"] | None = None,
    ) -> Float[Array, "B l V"]:
        """Logits of the clean tokens.

        Args:
          tokens: with masks.
          t: a scalar, or one of each sample.
          span: start and number of the positions wanted, all if None.
          context: tokens whose embeddings, summed, modulate the norms as time does: the shortest way from what they say
            to every logit.
        """
        h = nn.Embed(self.vocab_size + 1, self.width, name="tokens")(tokens)
        time = TimeEmbedding(self.width, name="time")(t.reshape(-1))
        if context is not None:
            time = time + jnp.sum(nn.Embed(self.vocab_size, self.width, name="context")(context), axis=1)
        time = nn.silu(time)[:, None]
        for number in range(self.depth):
            h = Block(self.heads, name=f"block_{number}")(h, time=time)
        if span is not None:
            h = jax.lax.dynamic_slice_in_dim(h, *span, axis=1)
        changes = nn.Dense(2 * self.width, kernel_init=nn.initializers.zeros, name="modulation")(time)
        shift, scale = jnp.split(changes, 2, axis=-1)
        h = nn.LayerNorm(use_bias=False, use_scale=False)(h) * (1.0 + scale) + shift
        return nn.Dense(self.vocab_size, name="head")(h)


class CausalTransformer(nn.Module):
    """A language model: the logits at a position are of the next token, given it and those before it.

    Attributes:
      vocab_size: V.
      width: of the residual stream.
      depth: number of blocks.
      heads: of each.
    """

    vocab_size: int
    width: int
    depth: int
    heads: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L V"]:
        """Logits of the next token at every position; the mask V, as of places not yet written, is read as token 0."""
        # Nothing that is written attends to what comes after it, but a lookup beyond the table would be NaN there.
        tokens = jnp.where(tokens == self.vocab_size, 0, tokens)
        attend = jnp.tril(jnp.ones((tokens.shape[1],) * 2, jnp.bool_))
        h = nn.Embed(self.vocab_size, self.width, name="tokens")(tokens)
        for number in range(self.depth):
            h = Block(self.heads, name=f"block_{number}")(h, attend)
        h = nn.LayerNorm(use_bias=False)(h)
        return nn.Dense(self.vocab_size, name="head")(h)
