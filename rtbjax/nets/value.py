"""A small convolutional network for ``log h(x, t) = log E[r(x_0) | x_t = x]`` on images."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rtbjax.nets.convolution import Conv
from rtbjax.nets.unet import space_to_depth, timestep_embedding


class ValueNet(nn.Module):
    """One number per image, at most 0; smooth, since a posterior follows its gradient.

    Attributes:
      initial: the value everywhere at first, about the log of the mean of r; its gradient starts at zero.
      channels: width per level; the sides halve from level to level.
      embed_dim: of time.
    """

    initial: float
    channels: Sequence[int] = (32, 64)
    embed_dim: int = 64

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], t: Float[Array, "*B"]) -> Float[Array, " B"]:
        """Maps images and their training timestep (a scalar, or one per image) to log h."""
        time = nn.Dense(self.embed_dim)(timestep_embedding(t.reshape(-1), self.embed_dim))
        time = nn.silu(nn.Dense(self.embed_dim)(nn.silu(time)))
        h = x
        for width in self.channels:
            h = Conv(width)(space_to_depth(h, 2))
            scale, shift = jnp.split(nn.Dense(2 * width)(time)[:, None, None, :], 2, axis=-1)
            h = nn.silu(h * (1.0 + scale) + shift)
            h = nn.silu(Conv(width)(h))
        h = nn.silu(nn.Dense(self.embed_dim)(h.reshape(h.shape[0], -1)) + nn.Dense(self.embed_dim)(time))
        logit = jnp.log(jnp.expm1(-jnp.float32(self.initial)))
        # log sigmoid, so that h is a probability of acceptance.
        return nn.log_sigmoid(nn.Dense(1, kernel_init=nn.initializers.zeros)(h)[:, 0] - logit)
