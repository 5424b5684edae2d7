"""Diffusion Q-learning (Wang et al. 2023): a diffusion policy that imitates, and is pulled towards higher Q.

    L_pi = L_denoising - q_weight sum_k E_s,a~pi [Q_k(s, a)] / (2 E |Q_k|)      (eqs. 3, 4; a by the whole chain)
    L_Q  = sum_k E (Q_k(s, a) - r - gamma min_k Qbar_k(s', a'))^2,   a' ~ pibar(s')

with Qbar and pibar exponential averages. Where the paper draws one critic at random, each is divided by its own size.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from experiments.control import behaviour_prior, iql, learning
from experiments.control.learning import Batch
from rtbjax import Policy, Process, rollout


def init(key: Array, width: int, observation_dim: int, action_dim: int) -> PyTree:
    """``{"policy": ..., "q": ...}``: a network as the behaviour prior's, critics as IQL's."""
    policy_key, q_key = jax.random.split(key)
    critics: Any = iql.init(q_key, width, observation_dim, action_dim)
    return {"policy": behaviour_prior.init(policy_key, width, observation_dim, action_dim), "q": critics["q"]}


def sample(key: Array, process: Process, policy: PyTree, observations: Float[Array, "B S"], dim: int) -> Array:
    """Latents ``u[B, A]``, given normalised observations; differentiable in ``policy``."""
    chain = Policy(policy, behaviour_prior.predict)
    return rollout(key, process, chain, shape=(len(observations), dim), cond=observations).xs[-1]


def loss(
    params: Any, targets: Any, key: Array, batch: Batch, *, process: Process, discount: float, q_weight: float
) -> Float[Array, ""]:
    """Of policy and critics together; neither sees the other's gradient."""
    keys, dim = jax.random.split(key, 3), batch.actions.shape[1]
    following = jnp.tanh(sample(keys[0], process, targets["policy"], batch.next_observations, dim))
    future = iql.q_value(targets["q"], batch.next_observations, following)
    goal = batch.rewards + jnp.where(batch.terminals, 0.0, discount * future)
    critic_loss = jnp.sum((goal[None] - iql.critics(params["q"], batch.observations, batch.actions)) ** 2, axis=0)
    bound = behaviour_prior.MAX_ACTION
    latents = jnp.arctanh(jnp.clip(batch.actions, -bound, bound))
    imitation = behaviour_prior.loss(params["policy"], keys[1], latents, batch.observations)
    actions = jnp.tanh(sample(keys[2], process, params["policy"], batch.observations, dim))
    q = iql.critics(jax.lax.stop_gradient(params["q"]), batch.observations, actions)
    size = jax.lax.stop_gradient(jnp.mean(jnp.abs(q), axis=1))
    return jnp.mean(critic_loss) + imitation - q_weight * jnp.mean(jnp.mean(q, axis=1) / size)


def train(data: Batch, process: Process, settings: ConfigDict, *, discount: float, key: Array, workdir: Path) -> Any:
    """Target policy and target critics; resumes from what ``workdir`` holds.

    Args:
      data: all transitions.
      process: the policy's chain.
      settings: ``q_weight``, and those of `experiments.control.learning.train`.
      discount: gamma.
      key: of weights and batches.
      workdir: for checkpoints.

    Raises:
      experiments.finite.Diverged: loss or parameters are no longer finite.
    """

    def total(params, targets, key, batch):
        return loss(params, targets, key, batch, process=process, discount=discount, q_weight=settings.q_weight)

    arguments = dict(key=key, workdir=workdir, label="D-QL", clip_norm=1.0)
    return learning.train(total, init, ("policy", "q"), data, settings, **arguments)[1]
