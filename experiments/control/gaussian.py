"""A Gaussian policy by weighted regression: behaviour cloning, and IQL's own (Kostrikov et al. 2022, eq. 7).

    L = -E_(s,a) [ w(s, a) log N(a; m(s), diag(sigma^2)) ]

with w = 1 for behaviour cloning and w = min(exp(temperature (Q(s, a) - V(s))), 100) for IQL. As published, m is bounded
by tanh, sigma does not depend on the state, and m(s) is what is played.
"""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from experiments.control.learning import Batch, draw, hidden
from experiments.pretrain import fit
from rtbjax.kernels import Gaussian

MAX_WEIGHT = 100.0
LOG_STD = (-5.0, 2.0)


class GaussianPolicy(nn.Module):
    """Two hidden layers of rectified units; a mean within [-1, 1] and one standard deviation for each action."""

    features: int
    width: int = 256

    @nn.compact
    def __call__(self, observations: Float[Array, "B S"]) -> Gaussian:
        h = hidden(observations, self.width)
        log_std = self.param("log_std", nn.initializers.zeros, (self.features,))
        return Gaussian(jnp.tanh(nn.Dense(self.features)(h)), jnp.exp(jnp.clip(log_std, *LOG_STD))[None])


def init(key: Array, width: int, observation_dim: int, action_dim: int) -> PyTree:
    """Parameters of a `GaussianPolicy`."""
    return GaussianPolicy(action_dim, width).init(key, jnp.zeros((1, observation_dim)))["params"]


def law(params: Any, observations: Float[Array, "B S"]) -> Gaussian:
    """Of actions, given normalised observations."""
    width, action_dim = params["Dense_2"]["kernel"].shape
    found: Any = GaussianPolicy(action_dim, width).apply({"params": params}, observations)
    return found


def advantage_weights(advantages: Float[Array, " B"], temperature: float) -> Float[Array, " B"]:
    """IQL's, of ``Q(s, a) - V(s)``."""
    return jnp.minimum(jnp.exp(temperature * advantages), MAX_WEIGHT)


def train(
    data: Batch, weight: Float[Array, " N"], settings: ConfigDict, *, key: Array, workdir: Path, label: str
) -> PyTree:
    """Regression on recorded actions; resumes from what ``workdir`` holds.

    Args:
      data: all N transitions.
      weight: of each.
      settings: ``width``, ``batch_size``, and those of `experiments.pretrain.fit`.
      key: of weights and batches.
      workdir: for checkpoints.
      label: of the progress bar.

    Raises:
      experiments.finite.Diverged: loss or parameters are no longer finite.
    """
    init_key, fit_key = jax.random.split(key)
    params = init(init_key, settings.width, data.observations.shape[1], data.actions.shape[1])

    def loss(params, key, data):
        s, a, w = draw(key, data, settings.batch_size)
        return -jnp.mean(w * law(params, s).log_prob(a))

    rows = (data.observations, data.actions, weight)
    return fit(loss, params, rows, settings, key=fit_key, workdir=workdir, label=label, steps_per_call=200)
