"""Before RTB: regresses the value of a value-guided posterior on the prior paths that were rolled out anyway."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from experiments.domains.base import Domain
from experiments.pretrain import fit
from rtbjax import Trajectory, losses


class PriorPaths:
    """Keeps prior paths on the host, states in half precision."""

    def __init__(self):
        self.xs: list[np.ndarray] = []
        self.log_reward: list[np.ndarray] = []

    def keep(self, trajectory: Trajectory) -> None:
        self.xs.append(np.asarray(trajectory.xs, np.float16))
        self.log_reward.append(np.asarray(trajectory.log_reward))


def value(config: ConfigDict, domain: Domain, paths: PriorPaths, params: PyTree, key: Array, workdir: Path) -> PyTree:
    """Fits ``domain.log_h`` to the acceptance of the prior paths, at random steps; returns its parameters.

    A share ``config.value.noised`` of the states are the paths' ends noised anew: a few thousand paths are soon known
    by heart, fresh noise is not.
    """
    assert domain.log_h is not None and domain.log_bound is not None
    log_h, log_bound = domain.log_h, domain.log_bound
    xs, log_reward = jnp.asarray(np.concatenate(paths.xs, axis=1)), jnp.asarray(np.concatenate(paths.log_reward))
    process, count, batch = domain.process, log_reward.shape[0], config.value.batch_size
    times = jax.vmap(process.time)(jnp.arange(process.num_steps))
    noised = jnp.arange(batch) < round(config.value.noised * batch)

    def loss(params, key):
        path_key, step_key, noise_key = jax.random.split(key, 3)
        index = jax.random.randint(path_key, (batch,), 0, count)
        step = jax.random.randint(step_key, (batch,), 0, process.num_steps)
        visited, ends = xs[step, index].astype(jnp.float32), xs[process.num_steps, index].astype(jnp.float32)
        fresh = jax.vmap(lambda key, x0, i: process.marginal(key[None], x0[None], i, None)[0])(
            jax.random.split(noise_key, batch), ends, step
        )
        x = jnp.where(noised.reshape(-1, *[1] * (visited.ndim - 1)), fresh, visited)
        h = log_h(params, x, times[step], None)
        return jnp.mean(losses.value(h, log_reward[index], log_bound, beta=config.objective.beta))

    return fit(loss, params, config.value, key=key, workdir=workdir / "value", label="value on prior paths")
