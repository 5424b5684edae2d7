"""Assembles each step's batch of paths from the behaviours of the config."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from experiments.domains.base import Domain
from rtbjax import Trajectory, behaviour, replay, rescore, rewards, rollout, score
from rtbjax.train import make_rollout

MIN_PRIOR_PATHS = 256  # Per rollout while gathering accepted paths before the first step.
STORE_SIZE = 32  # Accepted paths stored per jitted call.


class Buffers(NamedTuple):
    """What the behaviours remember between steps; checkpointed. None where a behaviour is off.

    Attributes:
      accepted: exact posterior paths: ``xs[T + 1, E*]``, ``log_prior[T]``, ``log_reward``.
      visited: ends of on-policy paths: ``x0``, ``log_reward``.
    """

    accepted: replay.Buffer | None
    visited: replay.Buffer | None


class Proposal(NamedTuple):
    """Attributes:
    blank: empty buffers.
    init: ``(key, progress bar, keep) -> Buffers``, gathers what must be there before the first step; ``keep`` gets
      every batch of prior paths it rolls out.
    propose: ``(key, step, params, buffers) -> (Trajectory, Buffers)``.
    accepted_paths: the states in the buffer of accepted paths, ``[T + 1, N, E*]``.
    """

    blank: Callable[[], Buffers]
    init: Callable[[Array, tqdm, Callable[[Trajectory], None]], Buffers]
    propose: Callable[[Array, int, Any, Buffers], tuple[Trajectory, Buffers]]
    accepted_paths: Callable[[Buffers], Array]


def time_and_batch(x: Array) -> Array:
    """Swaps the leading two axes: a path in a trajectory is time-major, in a buffer it is an item."""
    return jnp.swapaxes(x, 0, 1)


def counts(config: ConfigDict) -> dict[str, int]:
    """Paths per behaviour in a batch; on-policy takes the rest.

    Raises:
      ValueError: fractions that are negative or sum to more than 1.
    """
    batch = config.train.batch_size
    parts = {name: getattr(config.behaviour, name) for name in ("accepted", "noised", "prior", "replay")}
    if min(parts.values()) < 0 or sum(parts.values()) > 1 + 1e-9:
        raise ValueError(f"The behaviour fractions must be at least 0 and sum to at most 1, got {parts}.")
    paths = {name: round(fraction * batch) for name, fraction in parts.items()}
    return {"on_policy": batch - sum(paths.values()), **paths}


def widening(config: ConfigDict) -> optax.Schedule:
    """Exploration std as a function of the step: constant, then linearly to 0."""
    b = config.behaviour
    return optax.linear_schedule(b.widen, 0.0, max(b.widen_until - b.widen_hold, 1), b.widen_hold)


def make(config: ConfigDict, domain: Domain, mesh: Mesh) -> Proposal:
    """Builds the proposal of a run.

    Raises:
      ValueError: accepted paths of a reward without a declared bound, or bad fractions.
    """
    paths, settings, beta = counts(config), config.behaviour, config.objective.beta
    uses_accepted = paths["accepted"] or paths["noised"]
    if uses_accepted and domain.log_bound is None:
        raise ValueError("behaviour.accepted and behaviour.noised need a reward with a declared bound; this has none.")
    process, prior, posterior = domain.process, domain.prior, domain.posterior
    look = posterior.look
    value_look = None if domain.value is None else domain.value.look
    width = widening(config)

    def roller(size):
        return make_rollout(process, (size, *domain.event_shape), mesh)

    roll = {name: roller(paths[name]) for name in ("on_policy", "prior") if paths[name]}
    fresh = settings.prior_paths
    gather_size = max(fresh, MIN_PRIOR_PATHS)
    roll_gather = roller(gather_size)
    roll_fresh = roller(fresh) if fresh else None

    def rewarded(trajectory: Trajectory) -> Trajectory:
        log_reward = rewards.evaluate(domain.log_reward, trajectory.xs[-1], trajectory.cond, log_bound=domain.log_bound)
        return trajectory._replace(log_reward=jnp.asarray(log_reward))

    @jax.jit(donate_argnums=0)
    def store(buffer, xs, log_prior, log_reward, keep):
        # The features of the few accepted paths only: they may cost more than the path did.
        features = None if look is None else score(process, prior, xs, look=look).features
        items = {"xs": xs, "log_prior": log_prior, "features": features}
        items = jax.tree.map(time_and_batch, items) | {"log_reward": log_reward}
        return replay.add(buffer, items, keep)

    def keep_accepted(key, buffer, trajectory):
        log_r = trajectory.log_reward
        accepted = np.flatnonzero(behaviour.accept(key, log_r, domain.log_bound, beta=beta))
        for first in range(0, len(accepted), STORE_SIZE):
            index = accepted[first : first + STORE_SIZE]
            keep = jnp.arange(STORE_SIZE) < len(index)
            index = np.pad(index, (0, STORE_SIZE - len(index)))
            buffer = store(buffer, trajectory.xs[:, index], trajectory.log_prior[:, index], log_r[index], keep)
        return buffer

    @jax.jit(donate_argnums=0)
    def keep_visited(buffer, trajectory):
        items = {"x0": trajectory.xs[-1], "log_reward": trajectory.log_reward}
        everything = jnp.ones(trajectory.log_reward.shape, bool)
        return replay.add(buffer, items, everything, beta * trajectory.log_reward)

    @jax.jit
    def from_accepted(key, params, buffer):
        items = replay.sample(key, buffer, paths["accepted"])
        trajectory = Trajectory(
            xs=time_and_batch(items["xs"]),
            cond=None,
            log_reward=items["log_reward"],
            log_prior=time_and_batch(items["log_prior"]),
            features=jax.tree.map(time_and_batch, items["features"]),
        )
        return rescore(process, posterior.replace(params=params), trajectory)

    @jax.jit
    def renoised(key, params, x0, log_reward):
        return behaviour.renoise(key, process, prior, posterior.replace(params=params), x0, log_reward)

    def blank() -> Buffers:
        number = jax.ShapeDtypeStruct((), jnp.float32)
        one = jax.eval_shape(
            lambda key: rollout(key, process, prior, shape=(1, *domain.event_shape), look=look), jax.random.key(0)
        )
        path = {
            "xs": one.xs,
            "log_prior": one.log_prior,
            "features": one.features,
        }
        path = jax.tree.map(lambda a: jax.ShapeDtypeStruct((a.shape[0], *a.shape[2:]), a.dtype), path)
        path["log_reward"] = number
        end = {"x0": jax.ShapeDtypeStruct(domain.event_shape, jnp.float32), "log_reward": number}
        return Buffers(
            accepted=replay.init(path, settings.capacity) if uses_accepted else None,
            visited=replay.init(end, settings.capacity) if paths["replay"] else None,
        )

    def init(key: Array, bar: tqdm, keep: Callable[[Trajectory], None]) -> Buffers:
        accepted, visited = blank()
        if uses_accepted:
            wanted, drawn = min(settings.warm_accepted, settings.capacity), 0
            while (have := int(accepted.added)) < max(wanted, 1):
                bar.update(have - bar.n)
                if drawn >= 1000 * gather_size and have == 0:
                    raise ValueError(
                        f"None of {drawn} prior paths was accepted: r is too rare under the prior for "
                        "behaviour.accepted; use other behaviours."
                    )
                roll_key, accept_key = jax.random.split(jax.random.fold_in(key, drawn))
                trajectory = rewarded(roll_gather(roll_key, prior, look=value_look))
                keep(trajectory)
                accepted = keep_accepted(accept_key, accepted, trajectory)
                drawn += gather_size
            bar.update(wanted - bar.n)
        return Buffers(accepted, visited)

    def propose(key: Array, step: int, params: Any, buffers: Buffers) -> tuple[Trajectory, Buffers]:
        keys = dict(
            zip(
                ("on_policy", "prior", "fresh", "accept", "accepted", "pick", "noised", "visit", "replay"),
                jax.random.split(key, 9),
                strict=True,
            )
        )
        current = posterior.replace(params=params)
        accepted, visited = buffers
        parts = []
        if paths["on_policy"]:
            on_policy = rewarded(roll["on_policy"](keys["on_policy"], prior, current, widen=float(width(step))))
            parts.append(on_policy)
            if paths["replay"]:
                visited = keep_visited(visited, on_policy)
        if paths["prior"]:
            parts.append(rescored(params, rewarded(roll["prior"](keys["prior"], prior, look=look))))
        if uses_accepted and roll_fresh:
            accepted = keep_accepted(keys["accept"], accepted, rewarded(roll_fresh(keys["fresh"], prior)))
        if paths["accepted"]:
            parts.append(from_accepted(keys["accepted"], params, accepted))
        if paths["noised"]:
            ends = replay.sample(keys["pick"], accepted, paths["noised"])
            parts.append(renoised(keys["noised"], params, ends["xs"][:, -1], ends["log_reward"]))
        if paths["replay"]:
            ends = replay.sample(keys["visit"], visited, paths["replay"], settings.replay_temperature)
            parts.append(renoised(keys["replay"], params, ends["x0"], ends["log_reward"]))
        return parts[0] if len(parts) == 1 else mix(*parts), Buffers(accepted, visited)

    rescored = jax.jit(lambda params, trajectory: rescore(process, posterior.replace(params=params), trajectory))
    mix = jax.jit(behaviour.mix)

    def accepted_paths(buffers: Buffers) -> Array:
        if buffers.accepted is None:
            raise ValueError("A steered posterior starts from accepted prior paths: set behaviour.accepted above 0.")
        count = min(int(buffers.accepted.added), settings.capacity)
        return time_and_batch(buffers.accepted.items["xs"][:count])

    return Proposal(blank, init, propose, accepted_paths)
