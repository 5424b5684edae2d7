"""Implicit Q-learning (Kostrikov et al. 2022): values of recorded behaviour that never ask about unseen actions.

    L_V = E_(s,a) [ |tau - 1(Qbar(s,a) < V(s))| (Qbar(s,a) - V(s))^2 ]        (eqs. 4, 5: an expectile over actions)
    L_Q = E_(s,a,r,s') [ sum_k (r + gamma V(s') - Q_k(s,a))^2 ]               (eq. 6: a mean over dynamics)

with Qbar the smaller of two target critics, exponential averages of Q_k, and V(s') = 0 where s' has no future.
"""

from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from experiments.control import learning
from experiments.control.learning import Batch

CRITICS = 2


class MLP(nn.Module):
    """Two hidden layers of rectified units and one output."""

    width: int = 256

    @nn.compact
    def __call__(self, x: Float[Array, "B d"]) -> Float[Array, " B"]:
        h = learning.hidden(x, self.width)
        return nn.Dense(1)(h)[:, 0]


@partial(jax.jit, static_argnames=("width", "observation_dim", "action_dim"))
def init(key: Array, width: int, observation_dim: int, action_dim: int) -> PyTree:
    """``{"q": ..., "v": ...}``; the critics are stacked along a leading axis of `CRITICS`."""
    q_key, v_key = jax.random.split(key)
    net, both = MLP(width), jnp.zeros((1, observation_dim + action_dim))
    return {
        "q": jax.vmap(lambda k: net.init(k, both)["params"])(jax.random.split(q_key, CRITICS)),
        "v": net.init(v_key, jnp.zeros((1, observation_dim)))["params"],
    }


def critics(params: Any, observations: Float[Array, "B S"], actions: Float[Array, "B A"]) -> Float[Array, "2 B"]:
    """Both critics; ``params`` are those at ``"q"``, normalised observations are asked for."""
    x = jnp.concatenate([observations, actions], axis=-1)
    return jax.vmap(lambda p: _apply(p, x))(params)


def q_value(params: Any, observations: Float[Array, "B S"], actions: Float[Array, "B A"]) -> Float[Array, " B"]:
    """The smaller of the two critics."""
    return jnp.min(critics(params, observations, actions), axis=0)


def value(params: Any, observations: Float[Array, "B S"]) -> Float[Array, " B"]:
    """V; ``params`` are those at ``"v"``."""
    return _apply(params, observations)


def _apply(params: Any, x: Array) -> Array:
    width = params["Dense_0"]["kernel"].shape[-1]
    output: Any = MLP(width).apply({"params": params}, x)
    return output


def expectile_loss(difference: Float[Array, " B"], expectile: float) -> Float[Array, " B"]:
    """Squared differences, those below zero weighted by ``1 - expectile`` and the others by ``expectile``."""
    return jnp.abs(expectile - (difference < 0.0).astype(jnp.float32)) * difference**2


def loss(params: Any, target: Any, batch: Batch, *, expectile: float, discount: float) -> Float[Array, ""]:
    """``L_V + L_Q``. Neither sees the other's gradient."""
    observed = q_value(target, batch.observations, batch.actions)
    value_loss = expectile_loss(observed - value(params["v"], batch.observations), expectile)
    future = value(jax.lax.stop_gradient(params["v"]), batch.next_observations)
    goal = batch.rewards + jnp.where(batch.terminals, 0.0, discount * future)
    critic_loss = jnp.sum((goal[None] - critics(params["q"], batch.observations, batch.actions)) ** 2, axis=0)
    return jnp.mean(value_loss + critic_loss)


def train(data: Batch, settings: ConfigDict, *, key: Array, workdir: Path) -> PyTree:
    """Q and V of the data; resumes from what ``workdir`` holds.

    Args:
      data: all transitions.
      settings: ``expectile``, ``discount``, and those of `experiments.control.learning.train`.
      key: of weights and batches.
      workdir: for checkpoints.

    Returns:
      ``{"q": ..., "v": ...}``, the target critics and V.

    Raises:
      experiments.finite.Diverged: loss or parameters are no longer finite.
    """
    constants = dict(expectile=settings.expectile, discount=settings.discount)

    def total(params, targets, key, batch):
        return loss(params, targets["q"], batch, **constants)

    last, targets = learning.train(total, init, ("q",), data, settings, key=key, workdir=workdir, label="IQL")
    return {"q": targets["q"], "v": last["v"]}
