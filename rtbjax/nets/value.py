"""A classifier of noisy states: ``p(class | x_t)``, whose gradient says where the classes lie."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rtbjax.nets.unet import descend, embed_time


class NoisyClassifier(nn.Module):
    """Log class probabilities of a state of the diffusion; smooth, since a posterior follows its gradient.

    It reads the grid at the bottom of a `rtbjax.nets.unet.UNet`'s way down. Layers have the U-Net's names, so that a
    trained prior of the same sizes is where it starts (`from_denoiser`).

    Attributes:
      patch: as of the U-Net, like ``channels``, ``num_blocks``, ``embed_dim`` and ``num_heads``.
      num_classes: K.
      squeeze: channels of the grid before it is flattened.
      hidden: width of the layer before the classes.
    """

    patch: int = 2
    channels: Sequence[int] = (32, 128)
    num_blocks: Sequence[int] = (1, 1)
    embed_dim: int = 128
    num_heads: int = 4
    num_classes: int = 10
    squeeze: int = 32
    hidden: int = 128

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], t: Float[Array, "*B"]) -> Float[Array, "B K"]:
        """Maps noisy images and their training timestep, a scalar or one per sample, to log probabilities."""
        embedding = nn.silu(embed_time(t, self.embed_dim))
        h = descend(x, embedding, self.patch, self.channels, self.num_blocks, self.num_heads)[-1]
        h = nn.Dense(self.squeeze, name="squeeze")(nn.RMSNorm(name="norm_out")(h))
        h = nn.Dense(self.hidden, name="hidden")(nn.silu(h).reshape(x.shape[0], -1))
        scale, shift = jnp.split(nn.Dense(2 * self.hidden, name="film")(embedding), 2, axis=-1)
        h = nn.silu(h * (1.0 + scale) + shift)
        return jax.nn.log_softmax(nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="classes")(h))


def from_denoiser(params: dict, denoiser: dict) -> dict:
    """``params`` of a `NoisyClassifier` with every layer that a U-Net of the same sizes shares taken from it.

    Raises:
      ValueError: a shared layer has other sizes in the U-Net.
    """
    taken = {name: denoiser.get(name, layer) for name, layer in params.items()}
    for name, layer in params.items():
        if jax.tree.map(jnp.shape, layer) != jax.tree.map(jnp.shape, taken[name]):
            raise ValueError(f"Layer {name!r} of the denoiser has other sizes than the noisy classifier's.")
    return taken
