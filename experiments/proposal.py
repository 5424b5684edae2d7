"""Assembles each step's batch of paths from the behaviours of the config."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array
from ml_collections import ConfigDict

from experiments import batches, hosts
from experiments.accepted import Accepted
from experiments.domains.base import Conditions, Domain, log_reward, rewarded, rows
from experiments.errors import ConfigError, UserError
from experiments.finite import NotFinite
from rtbjax import Policy, Trajectory, behaviour, replay, rescore
from rtbjax.rewards import RewardError
from rtbjax.sharding import batch_axes, batch_devices, trajectory_specs
from rtbjax.train import make_rollout

MIN_PRIOR_PATHS = 256  # Per rollout while gathering accepted paths before the first step.
MAX_PRIOR_PATHS = 300_000  # What gathering may cost.
TRIAL_ROLLOUTS = 8  # Before its cost is estimated.


class Buffers(NamedTuple):
    """What the behaviours remember between steps; checkpointed. None where a behaviour is off.

    Attributes:
      accepted: exact posterior paths: ``xs[T + 1, E*]``, ``log_prior[T]``, ``log_reward``.
      visited: ends of on-policy paths: ``x0``, ``log_reward``; with conditions a buffer for each, along a leading axis.
    """

    accepted: replay.Buffer | None
    visited: replay.Buffer | None


def widening(config: ConfigDict) -> optax.Schedule:
    """Exploration std as a function of the step: constant, then linearly to 0."""
    b = config.behaviour
    return optax.linear_schedule(b.widen, 0.0, max(b.widen_until - b.widen_hold, 1), b.widen_hold)


def check(config: ConfigDict, domain: Domain) -> None:
    """Checks the behaviours against the domain.

    Raises:
      ConfigError: accepted paths of a reward without a declared bound, or of several posteriors; noised ones of
        conditions without data; or see `batches.check_group`.
    """
    paths = batches.path_counts(config)
    batches.check_group(config, 0 if domain.conditions is None else domain.conditions.count)
    if domain.conditions is not None:
        check_conditional(config, domain.conditions, paths)
        return
    uses_accepted = paths["accepted"] or paths["noised"]
    if uses_accepted and domain.log_bound is None:
        raise ConfigError(
            "config.behaviour.accepted and config.behaviour.noised must be 0: this reward has no declared bound."
        )


def check_conditional(config: ConfigDict, conditions: Conditions, paths: dict[str, int]) -> None:
    if paths["accepted"] or config.behaviour.prior_paths:
        raise ConfigError(
            "config.behaviour.accepted and config.behaviour.prior_paths must be 0: this domain has conditions."
        )
    if paths["noised"] and conditions.examples is None:
        raise ConfigError("config.behaviour.noised must be 0: this domain has no data for its conditions.")


class Proposal:
    """The proposal of a run, for a config that passed `check`. Every method is a function of its arguments alone."""

    def __init__(self, config: ConfigDict, domain: Domain, mesh: Mesh):
        self._settings, self._beta, self._domain = config.behaviour, config.objective.beta, domain
        self._paths, self._groups = batches.path_counts(config), batches.groups(config)
        self._width = widening(config)
        uses_accepted = domain.conditions is None and (self._paths["accepted"] or self._paths["noised"])
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._accepted = Accepted(config, domain, self._everywhere) if uses_accepted else None

        def roller(size: int) -> Callable[..., Trajectory]:
            return make_rollout(domain.process, (size, *domain.event_shape), mesh)

        self._roll = {
            name: roller(self._groups * self._paths[name]) for name in ("on_policy", "prior") if self._paths[name]
        }
        self._roll_fresh = roller(self._settings.prior_paths) if self._settings.prior_paths else None
        devices = batch_devices(mesh)

        def split(tree: Any, specs: Any, count: int) -> Any:
            """Over the devices, if they divide it: whole on each of them, all would do the same work."""
            places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
            return tree if count % devices else jax.lax.with_sharding_constraint(tree, places)

        def rescored(params: Any, paths: Trajectory) -> Trajectory:
            paths = split(paths, trajectory_specs(paths, mesh), paths.xs.shape[1])
            return rescore(domain.process, self._current(params), paths)

        # The prior is an argument: closed over, it would be a constant, and whole on every device.
        def renoised(key: Array, prior: Policy, params: Any, x0: Array, log_reward: Array, cond: Any) -> Trajectory:
            ends = (x0, log_reward, cond)
            x0, log_reward, cond = split(ends, jax.tree.map(lambda _: PartitionSpec(batch_axes(mesh)), ends), len(x0))
            return behaviour.renoise(key, domain.process, prior, self._current(params), x0, log_reward, cond)

        # Nobody asked for this number, so it gives way to the devices.
        self._gather_size = -(-max(self._settings.prior_paths, MIN_PRIOR_PATHS) // devices) * devices
        self._roll_gather = roller(self._gather_size)
        self._rescored, self._renoised = jax.jit(rescored), jax.jit(renoised)
        self._remember = jax.jit(self._add_visited, donate_argnums=0, out_shardings=self._everywhere)
        self._recall = jax.jit(self._sample_visited)
        self._mix = jax.jit(self._interleave)

    def _current(self, params: Any) -> Policy:
        return self._domain.posterior.replace(params=params)

    def blank(self) -> Buffers:
        """Empty buffers, whole on every device from the start, so that every step is one and the same program."""
        number = jax.ShapeDtypeStruct((), jnp.float32)
        end = {"x0": jax.ShapeDtypeStruct(self._domain.event_shape, self._domain.dtype), "log_reward": number}
        visited = replay.init(end, self._settings.capacity) if self._paths["replay"] else None
        if self._domain.conditions is not None:
            count = self._domain.conditions.count
            visited = jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape)), visited)
        buffers = Buffers(accepted=self._accepted and self._accepted.blank(), visited=visited)
        return jax.device_put(buffers, self._everywhere)

    def init(self, key: Array) -> Buffers:
        """Gathers what must be there before the first step.

        Args:
          key: of all draws.

        Raises:
          UserError: it would take more than `MAX_PRIOR_PATHS` prior paths.
        """
        buffers = self.blank()
        if self._accepted is None:
            return buffers
        accepted, domain = buffers.accepted, self._domain
        wanted = max(min(self._settings.warm_accepted, self._settings.capacity), 1)
        drawn = 0
        with hosts.progress(total=wanted, desc="gathering exact paths", unit="path") as bar:
            while (have := int(accepted.added)) < wanted:
                bar.update(have - bar.n)
                check_cost(drawn, have, wanted, self._gather_size)
                roll_key, accept_key = jax.random.split(jax.random.fold_in(key, drawn))
                trajectory = rewarded(domain, self._roll_gather(roll_key, domain.prior))
                accepted = self._accepted.keep(accept_key, accepted, trajectory)
                drawn += self._gather_size
            bar.update(wanted - bar.n)
        return buffers._replace(accepted=accepted)

    def propose(self, key: Array, step: int, params: Any, buffers: Buffers) -> tuple[Trajectory, Buffers]:
        """The batch of a step, and what the behaviours remember after it.

        The paths of a condition are neighbours; among them the on-policy ones come first.

        Raises:
          RewardError: see `rtbjax.rewards.evaluate`; ``buffers`` are then as they were.
        """
        keys = dict(
            zip(
                ("on_policy", "prior", "fresh", "accept", "accepted", "pick", "noised", "visit", "replay"),
                jax.random.split(key, 9),
                strict=True,
            )
        )
        domain, prior = self._domain, self._domain.prior
        accepted, visited = buffers
        chosen = self._choose(key)
        cond = {name: self._repeat(chosen, count) for name, count in self._paths.items() if count}
        parts, fresh, data = [], None, None
        # All rewards are asked for before a buffer is given away to be changed: one that fails loses nothing.
        if self._paths["on_policy"]:
            roll, width = self._roll["on_policy"], float(self._width(step))
            own = roll(keys["on_policy"], prior, self._current(params), cond=cond["on_policy"], widen=width)
            parts.append(self._rewarded(own))
        if self._paths["prior"]:
            of_prior = self._roll["prior"](keys["prior"], prior, cond=cond["prior"], look=domain.posterior.look)
            parts.append(self._rescored(params, self._rewarded(of_prior)))
        if chosen is not None and self._paths["noised"]:
            data = self._examples(chosen, cond["noised"])
        if self._accepted is not None and self._roll_fresh is not None:
            fresh = self._rewarded(self._roll_fresh(keys["fresh"], prior))
        if visited is not None and self._paths["on_policy"]:
            visited = self._remember(visited, chosen, parts[0])
        if self._accepted is not None and fresh is not None:
            accepted = self._accepted.keep(keys["accept"], accepted, fresh)
        if self._paths["accepted"]:
            assert self._accepted is not None
            parts.append(
                self._rescored(params, self._accepted.sample(keys["accepted"], accepted, self._paths["accepted"]))
            )
        if self._paths["noised"]:
            if data is None:
                ends = replay.sample(keys["pick"], accepted, self._paths["noised"])
                data = ends["xs"][:, -1], ends["log_reward"]
            parts.append(self._renoised(keys["noised"], prior, params, *data, cond["noised"]))
        if self._paths["replay"]:
            ends = self._recall(keys["visit"], visited, chosen)
            parts.append(self._renoised(keys["replay"], prior, params, ends["x0"], ends["log_reward"], cond["replay"]))
        return parts[0] if len(parts) == 1 else self._mix(*parts), Buffers(accepted, visited)

    def _choose(self, key: Array) -> Array | None:
        """Which conditions this batch is of, ``i32[groups]``, all different; None without conditions."""
        if self._domain.conditions is None:
            return None
        # Folded beyond what `propose` splits, whose keys a domain without conditions draws by.
        return distinct(jax.random.fold_in(key, 9), self._domain.conditions.count, self._groups)

    def _repeat(self, chosen: Array | None, count: int) -> Any:
        """The conditions of ``count`` paths of each group."""
        if chosen is None or self._domain.conditions is None:
            return None
        return rows(self._domain.conditions.values, jnp.repeat(chosen, count))

    def _examples(self, chosen: Array, cond: Any) -> tuple[Array, Array]:
        """The data of the chosen conditions, and their log r."""
        conditions = self._domain.conditions
        assert conditions is not None and conditions.examples is not None
        x0 = conditions.examples[jnp.repeat(chosen, self._paths["noised"])]
        # All hosts have the same ones: the first one asks, and a reward that is not the same twice is for all.
        with hosts.together(RewardError):
            log_r = log_reward(self._domain, x0, cond) if hosts.is_first() else np.zeros(len(x0), np.float32)
        return x0, jnp.asarray(hosts.from_first(log_r))

    def _rewarded(self, trajectory: Trajectory) -> Trajectory:
        """With a log r that is no number where the samples are none: the update skips the step, and counts it."""
        try:
            return rewarded(self._domain, trajectory)
        except NotFinite:
            return trajectory._replace(log_reward=jnp.full(trajectory.xs.shape[1], jnp.nan))

    def _add_visited(self, buffer: replay.Buffer, chosen: Array | None, trajectory: Trajectory) -> replay.Buffer:
        items = {"x0": trajectory.xs[-1], "log_reward": trajectory.log_reward}

        def add(buffer, items):
            log_reward = items["log_reward"]
            return replay.add(buffer, items, jnp.isfinite(log_reward), self._beta * log_reward)

        if chosen is None:
            return add(buffer, items)
        items = jax.tree.map(lambda a: a.reshape(self._groups, -1, *a.shape[1:]), items)
        added = jax.vmap(add)(rows(buffer, chosen), items)
        return jax.tree.map(lambda all_, new: all_.at[chosen].set(new), buffer, added)

    def _sample_visited(self, key: Array, buffer: replay.Buffer, chosen: Array | None) -> Any:
        """``x0`` and ``log_reward`` of earlier on-policy paths of the chosen conditions."""
        count, temperature = self._paths["replay"], self._settings.replay_temperature

        def sample(key, buffer):
            found = replay.sample(key, buffer, count, temperature)
            # An empty buffer has no paths to give: without a log r of theirs the update skips the step, and counts it.
            return found | {"log_reward": jnp.where(buffer.added > 0, found["log_reward"], jnp.nan)}

        if chosen is None:
            return sample(key, buffer)
        found = jax.vmap(sample)(jax.random.split(key, self._groups), rows(buffer, chosen))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)

    def _interleave(self, *parts: Trajectory) -> Trajectory:
        """One batch in which the paths of a condition are neighbours."""
        mixed = behaviour.mix(*parts)
        if self._groups == 1:
            return mixed
        group = jnp.concatenate([jnp.arange(p.xs.shape[1]) // (p.xs.shape[1] // self._groups) for p in parts])
        order = jnp.argsort(group, stable=True)

        def time_major(a):
            return a[:, order]

        return Trajectory(
            xs=time_major(mixed.xs),
            cond=rows(mixed.cond, order),
            log_reward=rows(mixed.log_reward, order),
            log_prior=time_major(mixed.log_prior),
            log_ratio=jax.tree.map(time_major, mixed.log_ratio),
            features=jax.tree.map(time_major, mixed.features),
        )


@functools.partial(jax.jit, static_argnames=("count", "number"))
def distinct(key: Array, count: int, number: int) -> Array:
    """``i32[number]`` different ones of 0..count-1, each set of them as likely (Floyd's algorithm).

    `jax.random.choice` would shuffle all of them: of 100,000 recorded states that took as long as a rollout.
    """

    def draw(chosen, i):
        last = count - number + i
        new = jax.random.randint(jax.random.fold_in(key, i), (), 0, last + 1)
        return chosen.at[i].set(jnp.where((chosen == new).any(), last, new)), None

    return jax.lax.scan(draw, jnp.full(number, -1), jnp.arange(number))[0]


def check_cost(drawn: int, have: int, wanted: int, size: int) -> None:
    """Stops gathering once it is clear that it would take too long.

    Raises:
      UserError: at the present rate, ``wanted`` paths take more than `MAX_PRIOR_PATHS` prior paths.
    """
    if drawn < TRIAL_ROLLOUTS * size:
        return
    cost = drawn * wanted / max(have, 1)
    if cost > MAX_PRIOR_PATHS:
        least = "more than " if have == 0 else "about "
        raise UserError(
            f"{have} of {drawn} prior paths were accepted, so that gathering {wanted} would take {least}{cost:,.0f}, "
            f"over the {MAX_PRIOR_PATHS:,} a run may spend: lower config.behaviour.warm_accepted, or use other "
            "behaviours than accepted and noised."
        )
