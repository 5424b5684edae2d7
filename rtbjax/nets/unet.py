"""A small convolutional U-Net denoiser for small images.

Feature grids halve in side from level to level. The first level only carries edges (one convolution
at full resolution costs as much as four at the next); most work happens at the lower levels, and the
lowest one adds self-attention. Sampling between levels is pixel shuffling with a matrix product.

Shapes: B batch, [H, W, C] image, D embedding width.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

_MAX_PERIOD = 10_000.0


class UNet(nn.Module):
    """Maps a noisy image and its training timestep to the network output (noise, v, ...).

    Attributes:
      channels: width per level, finest first; H and W must divide by 2^(levels - 1).
      num_blocks: residual blocks per level, on the way down and again on the way up.
      embed_dim: width D of the time (and label) embedding.
      num_heads: heads of the attention at the lowest level; 0 leaves it out.
      num_classes: number of labels, or None for a denoiser without labels. The embedding has one
        row more, the absent label.
    """

    channels: Sequence[int] = (16, 32, 96)
    num_blocks: Sequence[int] = (0, 1, 1)
    embed_dim: int = 128
    num_heads: int = 4
    num_classes: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: jax.Array | None = None) -> jax.Array:
        """Denoiser output.

        Args:
          x: f32[B, H, W, C].
          t: f32[] or f32[B], training timestep index in [0, 999]. A scalar is embedded once.
          cond: int32[B] labels, or None.

        Returns:
          f32[B, H, W, C]; zero at initialisation.
        """
        lowest = len(self.channels) - 1
        if any(side % 2**lowest for side in x.shape[1:3]):
            raise ValueError(f"Image sides {x.shape[1:3]} do not divide by {2**lowest}.")
        embedding = self._embed(x.shape[0], t, cond)

        h = nn.Conv(self.channels[0], (3, 3), name="stem")(x)
        skips = []
        for level, (width, depth) in enumerate(zip(self.channels, self.num_blocks, strict=True)):
            if level > 0:
                h = nn.Dense(width, name=f"shrink_{level}")(_space_to_depth(h))
            for block in range(depth):
                h = ResidualBlock(width, name=f"down_{level}_{block}")(h, embedding)
            skips.append(h)
        if self.num_heads:
            h = Attention(self.num_heads, name="attention")(h)
        for level in reversed(range(len(self.channels))):
            width = self.channels[level]
            if level < lowest:
                h = _depth_to_space(nn.Dense(4 * width, name=f"grow_{level}")(h)) + skips[level]
            for block in range(self.num_blocks[level]):
                h = ResidualBlock(width, name=f"up_{level}_{block}")(h, embedding)
        if not self.num_blocks[0]:
            h = ResidualBlock(self.channels[0], name="up_0_0")(h, embedding)
        h = nn.silu(_norm(self.channels[0])(h))
        return nn.Conv(x.shape[-1], (3, 3), kernel_init=nn.initializers.zeros, name="out")(h)

    def _embed(self, batch: int, t: jax.Array, cond: jax.Array | None) -> jax.Array:
        """f32[1, D] for a scalar t without labels, else f32[B, D]."""
        if t.ndim > 1:
            raise ValueError(f"t must be a scalar or one value per sample, got shape {t.shape}.")
        waves = timestep_embedding(t.reshape(-1), self.embed_dim)
        embedding = nn.Dense(self.embed_dim, name="time_in")(waves)
        embedding = nn.Dense(self.embed_dim, name="time_out")(nn.silu(embedding))
        if self.num_classes is None:
            if cond is not None:
                raise ValueError("cond was given to a UNet with num_classes=None.")
        else:
            absent = jnp.full((batch,), self.num_classes, jnp.int32)
            table = nn.Embed(self.num_classes + 1, self.embed_dim, name="label")
            embedding = embedding + table(absent if cond is None else cond)
        return nn.silu(embedding)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the embedding scales and shifts the features between them."""

    width: int

    @nn.compact
    def __call__(self, h: jax.Array, embedding: jax.Array) -> jax.Array:
        """Same shape as h, f32[B, H, W, width]; embedding is f32[1 or B, D]."""
        film = nn.Dense(2 * self.width, name="film")(embedding)
        scale, shift = jnp.split(film[:, None, None, :], 2, axis=-1)
        r = nn.Conv(self.width, (3, 3), name="conv_in")(nn.silu(_norm(self.width)(h)))
        r = nn.silu(_norm(self.width)(r) * (1.0 + scale) + shift)
        r = nn.Conv(self.width, (3, 3), kernel_init=nn.initializers.zeros, name="conv_out")(r)
        return h + r


class Attention(nn.Module):
    """Residual self-attention over the positions of a feature grid."""

    num_heads: int

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """Same shape as h, f32[B, H, W, width]."""
        *grid, width = h.shape
        tokens = _norm(width)(h).reshape(grid[0], -1, width)
        q, k, v = jnp.split(nn.Dense(3 * width, name="qkv")(tokens), 3, axis=-1)
        heads = (*tokens.shape[:2], self.num_heads, width // self.num_heads)
        mixed = nn.dot_product_attention(q.reshape(heads), k.reshape(heads), v.reshape(heads))
        mixed = nn.Dense(width, kernel_init=nn.initializers.zeros, name="out")(mixed.reshape(tokens.shape))
        return h + mixed.reshape(h.shape)


def timestep_embedding(t: jax.Array, dim: int) -> jax.Array:
    """Sines and cosines of geometrically spaced frequencies (Ho et al., 2020, arXiv:2006.11239).

    Args:
      t: f32[N].
      dim: even embedding width.

    Returns:
      f32[N, dim].
    """
    frequencies = jnp.exp(-jnp.log(_MAX_PERIOD) * jnp.arange(dim // 2, dtype=t.dtype) / (dim // 2))
    angles = t[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=min(8, width // 4))


def _space_to_depth(h: jax.Array) -> jax.Array:
    b, rows, cols, width = h.shape
    h = h.reshape(b, rows // 2, 2, cols // 2, 2, width).transpose(0, 1, 3, 2, 4, 5)
    return h.reshape(b, rows // 2, cols // 2, 4 * width)


def _depth_to_space(h: jax.Array) -> jax.Array:
    b, rows, cols, width = h.shape
    h = h.reshape(b, rows, cols, 2, 2, width // 4).transpose(0, 1, 3, 2, 4, 5)
    return h.reshape(b, 2 * rows, 2 * cols, width // 4)
