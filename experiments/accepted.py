"""The buffer of accepted prior paths: exact posterior paths, with what is needed to train on them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Bool
from ml_collections import ConfigDict

from experiments import hosts
from experiments.domains.base import Domain
from rtbjax import Policy, Trajectory, behaviour, replay, rollout, score

STORE_SIZE = 32  # Paths stored per jitted call.


def time_and_batch(x: Array) -> Array:
    """Swaps the leading two axes: a path in a trajectory is time-major, in a buffer it is an item."""
    return jnp.swapaxes(x, 0, 1)


class Accepted:
    """Pure functions of a buffer, kept at ``placement``.

    Its items are ``xs[T + 1, E*]``, ``log_prior[T]``, ``features``, ``log_reward``.
    """

    def __init__(self, config: ConfigDict, domain: Domain, placement: Sharding):
        self._domain, self._beta, self._capacity = domain, config.objective.beta, config.behaviour.capacity
        self._store = jax.jit(self._add, donate_argnums=0, out_shardings=placement)
        self.sample = jax.jit(self._sample, static_argnums=2)

    def blank(self) -> replay.Buffer:
        """An empty buffer."""
        domain = self._domain
        one = jax.eval_shape(
            lambda key: rollout(
                key, domain.process, domain.prior, shape=(1, *domain.event_shape), look=domain.posterior.look
            ),
            jax.random.key(0),  # Only its shape is used.
        )
        path = {"xs": one.xs, "log_prior": one.log_prior, "features": one.features}
        path = jax.tree.map(lambda a: jax.ShapeDtypeStruct((a.shape[0], *a.shape[2:]), a.dtype), path)
        return replay.init(path | {"log_reward": jax.ShapeDtypeStruct((), jnp.float32)}, self._capacity)

    def keep(self, key: Array, buffer: replay.Buffer, trajectory: Trajectory) -> replay.Buffer:
        """Adds those of a batch of prior paths that are accepted."""
        prior = self._domain.prior
        assert trajectory.log_reward is not None and self._domain.log_bound is not None
        log_r = hosts.whole(trajectory.log_reward)
        accepted = np.flatnonzero(behaviour.accept(key, log_r, self._domain.log_bound, beta=self._beta))
        for first in range(0, len(accepted), STORE_SIZE):
            index = accepted[first : first + STORE_SIZE]
            marked = jnp.arange(STORE_SIZE) < len(index)
            index = np.pad(index, (0, STORE_SIZE - len(index)))
            buffer = self._store(
                buffer, prior, trajectory.xs[:, index], trajectory.log_prior[:, index], log_r[index], marked
            )
        return buffer

    def _add(
        self,
        buffer: replay.Buffer,
        prior: Policy,
        xs: Array,
        log_prior: Array,
        log_reward: Array,
        marked: Bool[Array, " B"],
    ) -> replay.Buffer:
        # The features of the few accepted paths only: they may cost more than the path did.
        domain, look = self._domain, self._domain.posterior.look
        features = None if look is None else score(domain.process, prior, xs, look=look).features
        items = jax.tree.map(time_and_batch, {"xs": xs, "log_prior": log_prior, "features": features})
        return replay.add(buffer, items | {"log_reward": log_reward}, marked)

    def _sample(self, key: Array, buffer: replay.Buffer, count: int) -> Trajectory:
        """``count`` paths, without ``log_ratio``."""
        items = replay.sample(key, buffer, count)
        return Trajectory(
            xs=time_and_batch(items["xs"]),
            cond=None,
            log_reward=items["log_reward"],
            log_prior=time_and_batch(items["log_prior"]),
            features=jax.tree.map(time_and_batch, items["features"]),
        )
