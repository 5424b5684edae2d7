"""A small convolutional U-Net denoiser for small images.

Pixels are first gathered in patches, because a convolution at full resolution costs four times the
one on 2x2 patches and a small image has little detail below that. The sides of the grid then halve
from level to level; the lowest level adds self-attention. Grids change size by pixel shuffling and
a matrix product, and skip connections add rather than concatenate, which halves the convolutions
after them.

Shapes: B batch, [H, W, C] image, D embedding width.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rtbjax.nets.convolution import Conv

_MAX_PERIOD = 10_000.0


class UNet(nn.Module):
    """Maps a noisy image and its training timestep to the network output (noise, v, ...).

    Attributes:
      patch: side of the pixel patches of the first level.
      channels: width per level, finest first. H and W must divide by patch * 2^(levels - 1).
      num_blocks: residual blocks per level; used on the way down and, above the lowest level,
        again on the way up.
      embed_dim: even width D of the time (and label) embedding.
      num_heads: heads of the attention at the lowest level; 0 leaves it out.
      out_channels: channels of the output; those of the input if None.
      num_classes: number of labels, or None for a denoiser without labels. The label table has one
        row more, for the absent label.
      dtype: the layers compute in, e.g. ``jnp.bfloat16``; parameters and output stay float32. That of
        the inputs if None.
    """

    patch: int = 2
    channels: Sequence[int] = (32, 128)
    num_blocks: Sequence[int] = (1, 1)
    embed_dim: int = 128
    num_heads: int = 4
    out_channels: int | None = None
    num_classes: int | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], t: Float[Array, "*B"], cond: Int[Array, " B"] | None = None
    ) -> Float[Array, "B H W C"]:
        """Denoiser output, zero at initialisation.

        Args:
          x: noisy images.
          t: training timestep index in [0, 999]; a scalar is embedded once, not per sample.
          cond: labels, or None.
        """
        if cond is not None and self.num_classes is None:
            raise ValueError("cond was given to a UNet with num_classes=None.")
        embedding = embed_time(t, self.embed_dim, self.dtype)
        if self.num_classes is not None:
            cond = jnp.full(x.shape[:1], self.num_classes, jnp.int32) if cond is None else cond
            embedding += nn.Embed(self.num_classes + 1, self.embed_dim, dtype=self.dtype, name="label")(cond)
        embedding = nn.silu(embedding)

        skips = descend(x, embedding, self.patch, self.channels, self.num_blocks, self.num_heads, self.dtype)
        h = skips.pop()
        lowest = len(self.channels) - 1
        for level in reversed(range(lowest)):
            width = self.channels[level]
            h = _depth_to_space(nn.Dense(4 * width, dtype=self.dtype, name=f"grow_{level}")(h), 2) + skips[level]
            for block in range(self.num_blocks[level]):
                h = ResidualBlock(width, dtype=self.dtype, name=f"up_{level}_{block}")(h, embedding)
        h = nn.silu(nn.RMSNorm(dtype=self.dtype, name="norm")(h))
        pixels = self.patch**2 * (self.out_channels or x.shape[-1])
        h = Conv(pixels, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="head")(h)
        return _depth_to_space(h, self.patch).astype(x.dtype)


def embed_time(t: Float[Array, "*B"], dim: int, dtype: Any = None) -> Float[Array, "N {dim}"]:
    """Embedding of a scalar t (N is 1) or of one per sample; its layers belong to the module that calls."""
    if t.ndim > 1:
        raise ValueError(f"t must be a scalar or one value per sample, got shape {t.shape}.")
    waves = timestep_embedding(t.reshape(-1), dim)
    h = nn.silu(nn.Dense(dim, dtype=dtype, name="time_in")(waves))
    return nn.Dense(dim, dtype=dtype, name="time_out")(h)


def descend(
    x: Float[Array, "B H W C"],
    embedding: Float[Array, "N D"],
    patch: int,
    channels: Sequence[int],
    num_blocks: Sequence[int],
    num_heads: int,
    dtype: Any = None,
) -> list[Float[Array, "B h w F"]]:
    """The way down: one grid of features per level, finest first; its layers belong to the module that calls.

    Raises:
      ValueError: sides that do not divide by ``patch * 2^(levels - 1)``, no level, or not a number of blocks for each.
    """
    if not channels or len(channels) != len(num_blocks):
        raise ValueError(
            f"channels and num_blocks must be as many, at least 1, got {len(channels)} and {len(num_blocks)} levels."
        )
    factor = patch * 2 ** (len(channels) - 1)
    if x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(f"Image sides {x.shape[1:3]} do not divide by {factor}.")
    h = Conv(channels[0], dtype=dtype, name="stem")(_space_to_depth(x, patch))
    grids = []
    for level, (width, depth) in enumerate(zip(channels, num_blocks, strict=True)):
        if level > 0:
            h = nn.Dense(width, dtype=dtype, name=f"shrink_{level}")(_space_to_depth(h, 2))
        for block in range(depth):
            h = ResidualBlock(width, dtype=dtype, name=f"down_{level}_{block}")(h, embedding)
        grids.append(h)
    if num_heads:
        grids[-1] = Attention(num_heads, dtype=dtype, name="attention")(grids[-1])
    return grids


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the embedding scales and shifts the features between them."""

    width: int
    dtype: Any = None

    @nn.compact
    def __call__(self, h: Float[Array, "B H W F"], embedding: Float[Array, "N D"]) -> Float[Array, "B H W F"]:
        """N is 1 or B; F is ``width``."""
        film = nn.Dense(2 * self.width, dtype=self.dtype, name="film")(embedding)
        scale, shift = jnp.split(film[:, None, None, :], 2, axis=-1)
        r = Conv(self.width, dtype=self.dtype, name="conv_in")(nn.silu(nn.RMSNorm(dtype=self.dtype, name="norm_in")(h)))
        r = nn.silu(nn.RMSNorm(dtype=self.dtype, name="norm_out")(r) * (1.0 + scale) + shift)
        zeros = nn.initializers.zeros
        return h + Conv(self.width, kernel_init=zeros, dtype=self.dtype, name="conv_out")(r)


class Attention(nn.Module):
    """Residual self-attention over the positions of a feature grid."""

    num_heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, h: Float[Array, "B H W F"]) -> Float[Array, "B H W F"]:
        """F must divide by ``num_heads``."""
        batch, rows, cols, width = h.shape
        tokens = nn.RMSNorm(dtype=self.dtype, name="norm")(h).reshape(batch, rows * cols, width)
        heads = (batch, rows * cols, self.num_heads, width // self.num_heads)
        q, k, v = jnp.split(nn.Dense(3 * width, dtype=self.dtype, name="qkv")(tokens), 3, axis=-1)
        q, k, v = (a.reshape(heads) for a in (q, k, v))
        mixed = nn.dot_product_attention(q, k, v, force_fp32_for_softmax=True)
        out = nn.Dense(width, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="out")
        return h + out(mixed.reshape(tokens.shape)).reshape(h.shape)


def timestep_embedding(
    t: Float[Array, " N"], dim: int, shift: float = 0.0, cos_first: bool = False
) -> Float[Array, "N {dim}"]:
    """Sines and cosines of geometrically spaced frequencies (Ho et al. 2020); ``dim`` is even.

    With ``shift`` 1 the last frequency is 1/10000 itself, as in the release of Ho et al.; with 0 it stays above.
    """
    decay = jnp.exp(-jnp.log(_MAX_PERIOD) / (dim // 2 - shift) * jnp.arange(dim // 2, dtype=t.dtype))
    angles = t[:, None] * decay[None, :]
    waves = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(waves[::-1] if cos_first else waves, axis=-1)


def _space_to_depth(h: Array, side: int) -> Array:
    batch, rows, cols, width = h.shape
    h = h.reshape(batch, rows // side, side, cols // side, side, width)
    h = h.transpose(0, 1, 3, 2, 4, 5)
    return h.reshape(batch, rows // side, cols // side, side * side * width)


def _depth_to_space(h: Array, side: int) -> Array:
    batch, rows, cols, width = h.shape
    h = h.reshape(batch, rows, cols, side, side, width // (side * side))
    h = h.transpose(0, 1, 3, 2, 4, 5)
    return h.reshape(batch, rows * side, cols * side, width // (side * side))
