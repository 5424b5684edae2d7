"""Before RTB: a steered posterior is brought near by regression on the prior paths that were rolled out anyway.

A value, ``log h = log E[r | state]``, is fitted on every state of every path. Its gradient at the states after those of
accepted paths then teaches the posterior's score (`rtbjax.losses.steering`).
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from experiments.domains.base import Domain, Value
from experiments.pretrain import fit
from rtbjax import Trajectory, losses
from rtbjax.process import Process

STEPS_PER_BATCH = 8  # Different steps of the chain in one batch of a regression.
PATHS_PER_CALL = 32  # Paths whose gradients are taken in one jitted call.


class Seen:
    """What is kept of the prior paths, on the host: features of their states and log r."""

    def __init__(self):
        self.features: list[np.ndarray] = []
        self.log_reward: list[np.ndarray] = []

    def keep(self, trajectory: Trajectory) -> None:
        self.features.append(np.asarray(trajectory.features))
        self.log_reward.append(np.asarray(trajectory.log_reward))


def run(config: ConfigDict, domain: Domain, seen: Seen, accepted: Array, key: Array, workdir: Path) -> PyTree:
    """Fits the value, then the posterior; returns the posterior's parameters.

    Args:
      config: ``value`` and ``steer``.
      domain: with a value.
      seen: prior paths.
      accepted: states of accepted paths, ``[T + 1, N, E*]``.
      key: of all draws.
      workdir: for checkpoints.
    """
    assert domain.value is not None
    fit_key, draw_key, steer_key = jax.random.split(key, 3)
    params = fit_value(config, domain, domain.value, seen, fit_key, workdir)
    targets = draw(config, domain, domain.value, params, accepted, draw_key)
    return fit_score(config, domain, targets, steer_key, workdir)


def some_steps(key: Array, process: Process) -> Array:
    return jax.random.choice(key, process.num_steps, (min(STEPS_PER_BATCH, process.num_steps),), replace=False)


def fit_value(config: ConfigDict, domain: Domain, value: Value, seen: Seen, key: Array, workdir: Path) -> PyTree:
    """Regresses acceptance on the features of states of prior paths."""
    assert domain.log_bound is not None
    log_bound = domain.log_bound
    data = jnp.asarray(np.concatenate(seen.features, axis=1)), jnp.asarray(np.concatenate(seen.log_reward))
    process, batch = domain.process, config.value.batch_size // STEPS_PER_BATCH

    def loss(params, key, data):
        features, log_reward = data
        path_key, step_key = jax.random.split(key)
        steps = some_steps(step_key, process)
        paths = jax.random.randint(path_key, (len(steps), batch), 0, log_reward.shape[0])

        def one(i, index):
            h = value.log_h(params, features[i, index], process.time(i))
            return losses.value(h, log_reward[index], log_bound, beta=config.objective.beta)

        return jnp.mean(jax.vmap(one)(steps, paths))

    return fit(loss, value.params, data, config.value, key=key, workdir=workdir / "value", label="value on prior paths")


def draw(config: ConfigDict, domain: Domain, value: Value, params: PyTree, accepted: Array, key: Array) -> PyTree:
    """States near those of posterior paths, and the gradient of the value at a next state of each.

    Every second state is a path's own, the others are path ends noised anew; next states come from the prior's step.

    Returns:
      ``x``, ``output`` (the prior's) and ``gradient``, each ``f16[T, N * draws, E*]``.
    """
    process, prior = domain.process, domain.prior
    last = process.num_steps - 1

    def log_h(x, t):
        return jnp.sum(value.log_h(params, value.look(prior(x, t, None), x, t, None), t))

    @jax.jit
    def targets(key, xs):
        fresh = jnp.arange(xs.shape[1]).reshape(-1, *[1] * (xs.ndim - 2)) % 2 == 1

        def step(_, i):
            noise_key, next_key = jax.random.split(jax.random.fold_in(key, i))
            keys = partial(jax.random.split, num=xs.shape[1])
            x = jnp.where(fresh, process.marginal(keys(noise_key), xs[-1], i, None), xs[i])
            output = prior(x, process.time(i), None)
            following = process.reverse(output, x, i).sample(keys(next_key))
            gradient = jax.grad(log_h)(following, process.time(jnp.minimum(i + 1, last)))
            at_end = jax.grad(lambda x: config.objective.beta * jnp.sum(domain.log_reward(x, None)))(following)
            half = partial(jax.tree.map, lambda a: a.astype(jnp.float16))
            return None, half({"x": x, "output": output, "gradient": jnp.where(i == last, at_end, gradient)})

        return jax.lax.scan(step, None, jnp.arange(process.num_steps))[1]

    def batches() -> Iterator[PyTree]:
        count = accepted.shape[1]
        with tqdm(total=config.steer.draws * count, desc="gradients of the value", unit="path") as bar:
            for number, first in enumerate(range(0, config.steer.draws * count, PATHS_PER_CALL)):
                index = (first + np.arange(PATHS_PER_CALL)) % count
                yield jax.tree.map(np.asarray, targets(jax.random.fold_in(key, number), accepted[:, index]))
                bar.update(min(PATHS_PER_CALL, bar.total - bar.n))

    return jax.tree.map(lambda *parts: jnp.asarray(np.concatenate(parts, axis=1)), *batches())


def fit_score(config: ConfigDict, domain: Domain, targets: PyTree, key: Array, workdir: Path) -> PyTree:
    """Regresses the posterior's score on the gradients."""
    process, policy = domain.process, domain.posterior
    batch = config.steer.batch_size // STEPS_PER_BATCH
    look = policy.look
    assert look is not None

    def loss(params, key, targets):
        path_key, step_key = jax.random.split(key)
        steps = some_steps(step_key, process)
        paths = jax.random.randint(path_key, (len(steps), batch), 0, targets["x"].shape[1])

        def one(i, index):
            x, output, gradient = (targets[k][i, index].astype(jnp.float32) for k in ("x", "output", "gradient"))
            t = process.time(i)
            steered = policy.replace(params=params)(x, t, None, look(output, x, t, None))
            return losses.steering(steered.score, gradient, process.reverse(output, x, i).std)

        return process.num_steps * jnp.mean(jax.vmap(one)(steps, paths))

    return fit(
        loss, policy.params, targets, config.steer, key=key, workdir=workdir / "steer", label="score on gradients"
    )
