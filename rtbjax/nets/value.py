"""A small network for ``log h(x, t) = log E[r(x_0) | x_t = x]`` on features of the state."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rtbjax.nets.unet import timestep_embedding


class ValueHead(nn.Module):
    """One number per sample, at most 0; smooth, since a posterior follows its gradient.

    Attributes:
      initial: about the value everywhere at first: the log of the mean of r, negative.
      width: of the hidden layer.
    """

    initial: float
    width: int = 32

    @nn.compact
    def __call__(self, features: Float[Array, "B F"], t: Float[Array, ""]) -> Float[Array, " B"]:
        """Maps features and their training timestep to log h."""
        time = nn.silu(nn.Dense(self.width)(timestep_embedding(t.reshape(1), 2 * self.width)))
        scale, shift = jnp.split(nn.Dense(2 * self.width)(time), 2, axis=-1)
        h = nn.silu(nn.Dense(self.width)(features) * (1.0 + scale) + shift)
        logit = jnp.log(jnp.expm1(-jnp.float32(self.initial)))
        # log sigmoid, so that h is a probability of acceptance.
        return nn.log_sigmoid(nn.Dense(1, kernel_init=nn.initializers.zeros)(h)[:, 0] - logit)
