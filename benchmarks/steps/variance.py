"""Where the variance of a gradient comes from: other paths, or only some of their steps.

Let g_i be what step i contributes to the gradient of a batch. S of the T steps, drawn without replacement and rescaled
by T/S, leave its expectation and add the variance of a sample from a finite population (Cochran 1977, theorem 2.2),

    T^2 (1/S - 1/T) sum_i |g_i - g|^2 / (T - 1),      g = sum_i g_i / T,

all parameters together. One pass over the steps therefore gives it for every S.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from experiments import objectives
from experiments.domains.base import Domain
from experiments.proposal import Proposal
from experiments.streams import stream
from rtbjax import Policy, Trajectory, log_prob
from rtbjax.sharding import data_mesh


class StepGradients(NamedTuple):
    """Attributes:
    total: the policy's gradient of a batch, by all steps, flat.
    spread: ``sum_i |g_i - g|^2 / (T - 1)``.
    """

    total: Float[Array, " P"]
    spread: Float[Array, ""]


def step_gradients(objective, domain: Domain, params: PyTree, trajectory: Trajectory) -> StepGradients:
    """The gradient of ``objective`` (RTB) step by step, at ``params``, which a posterior of the domain has."""
    process, total_steps = domain.process, domain.process.num_steps
    _, info = objective(params, trajectory, key=None, axis_name=None)
    residual = info.log_z - info.gap

    def weighted(policy, i):
        paths = trajectory.xs, trajectory.cond, trajectory.features
        return jnp.mean(
            residual * log_prob(process, Policy(policy, domain.posterior.apply_fn), *paths, steps=i[None])[0]
        )

    def add(carry, i):
        total, squares = carry
        gradient = ravel_pytree(jax.grad(weighted)(params["policy"], i))[0]
        return (total + gradient, squares + jnp.sum(gradient**2)), None

    start = jnp.zeros_like(ravel_pytree(params["policy"])[0]), jnp.float32(0.0)
    (total, squares), _ = jax.lax.scan(add, start, jnp.arange(total_steps))
    return StepGradients(total, (squares - jnp.sum(total**2) / total_steps) / (total_steps - 1))


def subsampling(spread: Float[Array, ""], steps: int, of: int) -> Float[Array, ""]:
    """The variance that learning from ``steps`` of all the steps adds."""
    return of**2 * (1.0 / steps - 1.0 / of) * spread


class Variance(NamedTuple):
    """Squared norms of a gradient, over all parameters.

    Attributes:
      mean: of its expectation, without bias.
      paths: its variance between batches of paths.
      spread: as of `StepGradients`, the mean over batches.
    """

    mean: float
    paths: float
    spread: float


def variance(config: ConfigDict, domain: Domain, params: PyTree, batches: int) -> Variance:
    """Of the gradient at ``params`` in batches of a run's last step."""
    source, key = Proposal(config, domain, data_mesh()), stream(config.seed, "train")
    buffers = source.init(stream(config.seed, "gather"))
    objective = objectives.make(config, domain)
    gradients = jax.jit(lambda params, paths: step_gradients(objective, domain, params, paths))
    found = []
    for batch in range(batches):
        key_of_batch = jax.random.fold_in(key, batch)
        paths, buffers = source.propose(key_of_batch, config.train.steps, params["policy"], buffers)
        found.append(jax.device_get(gradients(params, paths)))
    totals = np.stack([f.total for f in found]).astype(np.float64)
    between = float(totals.var(axis=0, ddof=1).sum())
    mean = float((totals.mean(axis=0) ** 2).sum()) - between / batches
    return Variance(mean, between, float(np.mean([f.spread for f in found])))
