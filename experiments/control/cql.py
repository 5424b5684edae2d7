"""Conservative Q-learning, CQL(H) (Kumar et al. 2020, eq. 4), with soft actor-critic's policy.

    L_Q  = sum_k  conservatism E_s [ log int exp Q_k(s, a) da - E_a~data Q_k(s, a) ] + 1/2 E (Q_k(s, a) - y)^2
    y    = r + gamma min_k Qbar_k(s', a'),   a' ~ pi(s')
    L_pi = E_s,a~pi [ entropy_weight log pi(a | s) - min_k Q_k(s, a) ]

with Qbar exponential averages of Q_k and an entropy weight that holds the entropy at minus the number of actions.
As in the published code, y has no entropy.
"""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from experiments.control import iql, learning
from experiments.control.learning import Batch
from rtbjax.kernels import Gaussian

PROPOSALS = 10  # Uniform ones, and as many of the policy, for the integral over actions.
LOG_STD = (-5.0, 2.0)


class SquashedPolicy(nn.Module):
    """Two hidden layers of rectified units; the law of u, an action being tanh(u)."""

    features: int
    width: int = 256

    @nn.compact
    def __call__(self, observations: Float[Array, "B S"]) -> Gaussian:
        h = learning.hidden(observations, self.width)
        mean, log_std = jnp.split(nn.Dense(2 * self.features)(h), 2, axis=-1)
        return Gaussian(mean, jnp.exp(jnp.clip(log_std, *LOG_STD)))


def init(key: Array, width: int, observation_dim: int, action_dim: int) -> PyTree:
    """``{"q": ..., "policy": ..., "log_entropy_weight": ...}``; critics as `iql.init` stacks them."""
    q_key, policy_key = jax.random.split(key)
    policy = SquashedPolicy(action_dim, width).init(policy_key, jnp.zeros((1, observation_dim)))["params"]
    critics: Any = iql.init(q_key, width, observation_dim, action_dim)
    return {"q": critics["q"], "policy": policy, "log_entropy_weight": jnp.float32(0.0)}


def law(params: Any, observations: Float[Array, "B S"]) -> Gaussian:
    """Of u, given normalised observations; ``params`` are those at ``"policy"``."""
    width, outputs = params["Dense_2"]["kernel"].shape
    found: Any = SquashedPolicy(outputs // 2, width).apply({"params": params}, observations)
    return found


def sample(key: Array, params: Any, observations: Float[Array, "B S"]) -> tuple[Array, Float[Array, " B"]]:
    """Actions ``[B, A]`` and their log densities."""
    found = law(params, observations)
    u = found.sample(jax.random.split(key, len(observations)))
    log_slope = 2.0 * (jnp.log(2.0) - u - nn.softplus(-2.0 * u))  # Of tanh at u: log (1 - tanh(u)^2).
    return jnp.tanh(u), found.log_prob(u) - jnp.sum(log_slope, axis=-1)


def log_integral(key: Array, q: Any, policy: Any, observations: Float[Array, "B S"], dim: int) -> Float[Array, "2 B"]:
    """``log int exp Q_k(s, a) da`` over [-1, 1]^A, by importance sampling.

    The mean of two unbiased estimates of the integral, from uniform actions and from the policy's.

    Args:
      key: of the proposals.
      q: critics.
      policy: parameters of the law of actions.
      observations: normalised.
      dim: A.
    """
    uniform_key, policy_key = jax.random.split(key)
    s = jnp.repeat(observations, PROPOSALS, axis=0)
    uniform = jax.random.uniform(uniform_key, (len(s), dim), minval=-1.0)
    own, log_density = sample(policy_key, policy, s)
    proposals = ((uniform, jnp.full(len(s), -dim * jnp.log(2.0))), (own, log_density))
    log_terms = [iql.critics(q, s, a) - jax.lax.stop_gradient(log_q)[None] for a, log_q in proposals]
    joined = jnp.concatenate([t.reshape(len(t), -1, PROPOSALS) for t in log_terms], axis=-1)
    return jax.nn.logsumexp(joined, axis=-1) - jnp.log(2.0 * PROPOSALS)


def loss(
    params: Any, targets: Any, key: Array, batch: Batch, *, discount: float, conservatism: float
) -> Float[Array, ""]:
    """Of critics, policy and entropy weight together; none sees another's gradient."""
    fixed = jax.lax.stop_gradient(params)
    keys, dim = jax.random.split(key, 3), batch.actions.shape[1]
    following, _ = sample(keys[0], fixed["policy"], batch.next_observations)
    future = iql.q_value(targets["q"], batch.next_observations, following)
    goal = batch.rewards + jnp.where(batch.terminals, 0.0, discount * future)
    recorded = iql.critics(params["q"], batch.observations, batch.actions)
    excess = log_integral(keys[1], params["q"], fixed["policy"], batch.observations, dim) - recorded
    critic_loss = jnp.sum(conservatism * excess + 0.5 * (recorded - goal[None]) ** 2, axis=0)
    actions, log_density = sample(keys[2], params["policy"], batch.observations)
    own = iql.q_value(fixed["q"], batch.observations, actions)
    policy_loss = jnp.exp(fixed["log_entropy_weight"]) * log_density - own
    surplus = jax.lax.stop_gradient(log_density) - dim  # Of log density over what is wanted.
    return jnp.mean(critic_loss + policy_loss - params["log_entropy_weight"] * surplus)


def train(data: Batch, settings: ConfigDict, *, discount: float, key: Array, workdir: Path) -> PyTree:
    """Critics and policy; resumes from what ``workdir`` holds.

    Args:
      data: all transitions.
      settings: ``conservatism``, and those of `experiments.control.learning.train`.
      discount: gamma.
      key: of weights and batches.
      workdir: for checkpoints.

    Raises:
      experiments.finite.Diverged: loss or parameters are no longer finite.
    """

    def total(params, targets, key, batch):
        return loss(params, targets, key, batch, discount=discount, conservatism=settings.conservatism)

    return learning.train(total, init, ("q",), data, settings, key=key, workdir=workdir, label="CQL")[0]
