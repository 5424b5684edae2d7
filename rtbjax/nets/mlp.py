"""Denoisers for vectors."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class TimeEmbedding(nn.Module):
    """Sines and cosines of ``t`` at 64 rates with learned phases, then a two-layer MLP.

    Attributes:
      width: of the result.
      num_rates: rates are spaced linearly from 0.1 to 100; t is expected in [0, 1].
      dtype: of the layers; the waves are float32, for half precision has three digits of t.
    """

    width: int = 64
    num_rates: int = 64
    dtype: Any = None

    @nn.compact
    def __call__(self, t: Float[Array, "*B"]) -> Float[Array, "*B width"]:
        rates = jnp.linspace(0.1, 100.0, self.num_rates)
        phase = self.param("phase", nn.initializers.normal(1.0), (self.num_rates,))
        lead = (1,) * t.ndim
        angle = t[..., None] * rates.reshape(*lead, -1) + phase.reshape(*lead, -1)
        features = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        return nn.Dense(self.width, dtype=self.dtype)(nn.gelu(nn.Dense(self.width, dtype=self.dtype)(features)))


class PISNet(nn.Module):
    """The drift network of the 25-Gaussian mixture (Zhang & Chen 2022; paper, appendix C).

    Attributes:
      features: number of outputs; the last layer starts at zero.
      width: hidden units.
      dtype: the layers compute in, e.g. ``jnp.bfloat16``; parameters and output stay float32. That of the inputs if
        None.
    """

    features: int
    width: int = 64
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "B d"], t: Float[Array, "*B"], cond: Array | None = None) -> Array:
        """Maps states at time t (a scalar, or one per sample) and conditions ``[B, c]`` to ``[B, features]``."""
        time = TimeEmbedding(self.width, dtype=self.dtype)(t)
        inputs = x if cond is None else jnp.concatenate([x, cond], axis=-1)
        h = nn.Dense(self.width, dtype=self.dtype)(inputs) + (time[None, :] if t.ndim == 0 else time)
        for _ in range(2):
            h = nn.Dense(self.width, dtype=self.dtype)(nn.gelu(h))
        out = nn.Dense(self.features, kernel_init=nn.initializers.zeros, dtype=self.dtype)(nn.gelu(h))
        return out.astype(x.dtype)
