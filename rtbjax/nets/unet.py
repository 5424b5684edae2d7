"""A small convolutional U-Net denoiser for small images.

Pixels are first gathered in patches, because a convolution at full resolution costs four times the
one on 2x2 patches and a small image has little detail below that. The sides of the grid then halve
from level to level; the lowest level adds self-attention. Grids change size by pixel shuffling and
a matrix product, and skip connections add rather than concatenate, which halves the convolutions
after them.

Shapes: B batch, [H, W, C] image, D embedding width.
"""

from collections.abc import Sequence

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
    """

    patch: int = 2
    channels: Sequence[int] = (32, 128)
    num_blocks: Sequence[int] = (1, 1)
    embed_dim: int = 128
    num_heads: int = 4
    out_channels: int | None = None
    num_classes: int | None = None

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
        lowest = len(self.channels) - 1
        factor = self.patch * 2**lowest
        if x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(f"Image sides {x.shape[1:3]} do not divide by {factor}.")
        embedding = self._embed(x.shape[0], t, cond)

        h = Conv(self.channels[0], name="stem")(_space_to_depth(x, self.patch))
        skips = []
        for level, (width, depth) in enumerate(zip(self.channels, self.num_blocks, strict=True)):
            if level > 0:
                h = nn.Dense(width, name=f"shrink_{level}")(_space_to_depth(h, 2))
            for block in range(depth):
                h = ResidualBlock(width, name=f"down_{level}_{block}")(h, embedding)
            skips.append(h)
        if self.num_heads:
            h = Attention(self.num_heads, name="attention")(h)
        for level in reversed(range(lowest)):
            width = self.channels[level]
            h = _depth_to_space(nn.Dense(4 * width, name=f"grow_{level}")(h), 2) + skips[level]
            for block in range(self.num_blocks[level]):
                h = ResidualBlock(width, name=f"up_{level}_{block}")(h, embedding)
        h = nn.silu(nn.RMSNorm(name="norm")(h))
        pixels = self.patch**2 * (self.out_channels or x.shape[-1])
        h = Conv(pixels, kernel_init=nn.initializers.zeros, name="head")(h)
        return _depth_to_space(h, self.patch)

    def _embed(self, batch: int, t: Float[Array, "*B"], cond: Int[Array, " B"] | None) -> Float[Array, "N D"]:
        """N is 1 for a scalar t without labels, else B."""
        if t.ndim > 1:
            raise ValueError(f"t must be a scalar or one value per sample, got shape {t.shape}.")
        if cond is not None and self.num_classes is None:
            raise ValueError("cond was given to a UNet with num_classes=None.")
        waves = timestep_embedding(t.reshape(-1), self.embed_dim)
        embedding = nn.Dense(self.embed_dim, name="time_in")(waves)
        embedding = nn.Dense(self.embed_dim, name="time_out")(nn.silu(embedding))
        if self.num_classes is not None:
            if cond is None:
                cond = jnp.full((batch,), self.num_classes, jnp.int32)
            embedding += nn.Embed(self.num_classes + 1, self.embed_dim, name="label")(cond)
        return nn.silu(embedding)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the embedding scales and shifts the features between them."""

    width: int

    @nn.compact
    def __call__(self, h: Float[Array, "B H W F"], embedding: Float[Array, "N D"]) -> Float[Array, "B H W F"]:
        """N is 1 or B; F is ``width``."""
        film = nn.Dense(2 * self.width, name="film")(embedding)
        scale, shift = jnp.split(film[:, None, None, :], 2, axis=-1)
        r = Conv(self.width, name="conv_in")(nn.silu(nn.RMSNorm(name="norm_in")(h)))
        r = nn.silu(nn.RMSNorm(name="norm_out")(r) * (1.0 + scale) + shift)
        zeros = nn.initializers.zeros
        return h + Conv(self.width, kernel_init=zeros, name="conv_out")(r)


class Attention(nn.Module):
    """Residual self-attention over the positions of a feature grid."""

    num_heads: int

    @nn.compact
    def __call__(self, h: Float[Array, "B H W F"]) -> Float[Array, "B H W F"]:
        """F must divide by ``num_heads``."""
        batch, rows, cols, width = h.shape
        tokens = nn.RMSNorm(name="norm")(h).reshape(batch, rows * cols, width)
        heads = (batch, rows * cols, self.num_heads, width // self.num_heads)
        q, k, v = jnp.split(nn.Dense(3 * width, name="qkv")(tokens), 3, axis=-1)
        mixed = nn.dot_product_attention(q.reshape(heads), k.reshape(heads), v.reshape(heads))
        out = nn.Dense(width, kernel_init=nn.initializers.zeros, name="out")
        return h + out(mixed.reshape(tokens.shape)).reshape(h.shape)


def timestep_embedding(t: Float[Array, " N"], dim: int) -> Float[Array, "N {dim}"]:
    """Sines and cosines of geometrically spaced frequencies (Ho et al. 2020); ``dim`` is even."""
    decay = jnp.exp(-jnp.log(_MAX_PERIOD) / (dim // 2) * jnp.arange(dim // 2, dtype=t.dtype))
    angles = t[:, None] * decay[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


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
