"""Energy guidance (QGPO; Lu et al. 2023): the prior steered by a learned gradient of ``log E[exp(Q / alpha) | u_t]``.

Contrastive energy prediction (their eq. 12): of K actions of the prior in a state, all noised to one level t,

    L = -E_t,s sum_i softmax_i(Q(s, a_i) / alpha) log softmax_i(f(u_t^i, t, s)),

which is least where f is the energy up to a function of s and t, which no gradient in u sees. Q is that of the config,
so that this is another way to the very posterior that RTB trains; the paper learns a Q of its own.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from experiments import noising
from experiments.control import behaviour_prior
from experiments.control.learning import draw
from experiments.pretrain import fit
from rtbjax import Policy, posterior
from rtbjax.nets.mlp import PISNet


def init(key: Array, width: int, observation_dim: int, action_dim: int) -> PyTree:
    """Parameters of the energy."""
    inputs = (jnp.zeros((1, action_dim)), jnp.float32(0.0), jnp.zeros((1, observation_dim)))
    return jax.jit(PISNet(1, width).init)(key, *inputs)["params"]


def energy(params: Any, u: Float[Array, "B A"], t: Float[Array, "*B"], observations: Float[Array, "B S"]) -> Array:
    """f, ``f32[B]``, at training timestep t, given normalised observations."""
    width = params["Dense_0"]["kernel"].shape[-1]
    found: Any = PISNet(1, width).apply({"params": params}, u, t / behaviour_prior.TRAIN_STEPS, observations)
    return found[:, 0]


def loss(
    params: Any,
    key: Array,
    latents: Float[Array, "B K A"],
    log_reward: Float[Array, "B K"],
    observations: Float[Array, "B S"],
) -> Float[Array, ""]:
    """Contrastive energy prediction at stratified levels, one for each state."""
    states, k, dim = latents.shape
    time_key, noise_key = jax.random.split(key)
    found = noising.noised(behaviour_prior.alpha_bar(), time_key, noise_key, latents)
    t, s = (jnp.repeat(a, k, axis=0) for a in (found.t, observations))
    f = energy(params, found.x.reshape(-1, dim), t, s).reshape(states, k)
    return -jnp.mean(jnp.sum(jax.nn.softmax(log_reward) * jax.nn.log_softmax(f), axis=-1))


def train(
    latents: Float[Array, "N K A"],
    log_reward: Float[Array, "N K"],
    observations: Float[Array, "N S"],
    settings: ConfigDict,
    *,
    key: Array,
    workdir: Path,
) -> PyTree:
    """Parameters of the energy; resumes from what ``workdir`` holds.

    Args:
      latents: of the prior, in each of N states.
      log_reward: ``Q / alpha`` there.
      observations: normalised.
      settings: ``width``, ``batch_size`` (in actions, of which a state has K), those of `experiments.pretrain.fit`.
      key: of weights and batches.
      workdir: for checkpoints.

    Raises:
      experiments.finite.Diverged: loss or parameters are no longer finite.
    """
    init_key, fit_key = jax.random.split(key)
    _, k, dim = latents.shape
    params = init(init_key, settings.width, observations.shape[1], dim)
    size = max(1, settings.batch_size // k)

    def total(params, key, data):
        rows_key, noise_key = jax.random.split(key)
        return loss(params, noise_key, *draw(rows_key, data, size))

    data = (latents, log_reward, observations)
    return fit(total, params, data, settings, key=fit_key, workdir=workdir, label="QGPO", steps_per_call=200)


def guided(params: PyTree, norm) -> Policy:
    """The policy, beside a prior whose ``cond`` are observations as they were recorded."""
    return posterior.value_guided(params, lambda params, u, t, cond: energy(params, u, t, norm(cond)))
