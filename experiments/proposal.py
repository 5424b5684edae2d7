"""Assembles each step's batch of paths from the behaviours of the config."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from experiments import settings
from experiments.accepted import Accepted
from experiments.domains.base import Domain, rewarded
from experiments.errors import ConfigError, UserError
from experiments.finite import NotFinite
from rtbjax import Policy, Trajectory, behaviour, replay, rescore
from rtbjax.sharding import DATA_AXIS
from rtbjax.train import make_rollout

MIN_PRIOR_PATHS = 256  # Per rollout while gathering accepted paths before the first step.
MAX_PRIOR_PATHS = 300_000  # What gathering may cost.
TRIAL_ROLLOUTS = 8  # Before its cost is estimated.


class Buffers(NamedTuple):
    """What the behaviours remember between steps; checkpointed. None where a behaviour is off.

    Attributes:
      accepted: exact posterior paths: ``xs[T + 1, E*]``, ``log_prior[T]``, ``log_reward``.
      visited: ends of on-policy paths: ``x0``, ``log_reward``.
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
      ConfigError: accepted paths of a reward without a declared bound.
    """
    paths = settings.path_counts(config)
    uses_accepted = paths["accepted"] or paths["noised"]
    if uses_accepted and domain.log_bound is None:
        raise ConfigError(
            "config.behaviour.accepted and config.behaviour.noised must be 0: this reward has no declared bound."
        )


class Proposal:
    """The proposal of a run, for a config that passed `check`. Every method is a function of its arguments alone."""

    def __init__(self, config: ConfigDict, domain: Domain, mesh: Mesh):
        self._settings, self._beta, self._domain = config.behaviour, config.objective.beta, domain
        self._paths = settings.path_counts(config)
        self._width = widening(config)
        uses_accepted = self._paths["accepted"] or self._paths["noised"]
        self._accepted = Accepted(config, domain) if uses_accepted else None

        def roller(size: int) -> Callable[..., Trajectory]:
            return make_rollout(domain.process, (size, *domain.event_shape), mesh)

        self._roll = {name: roller(self._paths[name]) for name in ("on_policy", "prior") if self._paths[name]}
        self._roll_fresh = roller(self._settings.prior_paths) if self._settings.prior_paths else None
        devices = mesh.shape[DATA_AXIS]
        # Nobody asked for this number, so it gives way to the devices.
        self._gather_size = -(-max(self._settings.prior_paths, MIN_PRIOR_PATHS) // devices) * devices
        self._roll_gather = roller(self._gather_size)
        self._rescored = jax.jit(lambda params, paths: rescore(domain.process, self._current(params), paths))
        self._renoised = jax.jit(
            lambda key, params, x0, log_reward: behaviour.renoise(
                key, domain.process, domain.prior, self._current(params), x0, log_reward
            )
        )
        self._remember = jax.jit(self._add_visited, donate_argnums=0)
        self._mix = jax.jit(behaviour.mix)

    def _current(self, params: Any) -> Policy:
        return self._domain.posterior.replace(params=params)

    def blank(self) -> Buffers:
        """Empty buffers."""
        number = jax.ShapeDtypeStruct((), jnp.float32)
        end = {"x0": jax.ShapeDtypeStruct(self._domain.event_shape, jnp.float32), "log_reward": number}
        return Buffers(
            accepted=self._accepted and self._accepted.blank(),
            visited=replay.init(end, self._settings.capacity) if self._paths["replay"] else None,
        )

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
        with tqdm(total=wanted, desc="gathering exact paths", unit="path") as bar:
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
        parts, fresh = [], None
        # All rewards are asked for before a buffer is given away to be changed: one that fails loses nothing.
        if self._paths["on_policy"]:
            roll, width = self._roll["on_policy"], float(self._width(step))
            parts.append(self._rewarded(roll(keys["on_policy"], prior, self._current(params), widen=width)))
        if self._paths["prior"]:
            of_prior = self._rewarded(self._roll["prior"](keys["prior"], prior, look=domain.posterior.look))
            parts.append(self._rescored(params, of_prior))
        if self._accepted is not None and self._roll_fresh is not None:
            fresh = self._rewarded(self._roll_fresh(keys["fresh"], prior))
        if visited is not None and self._paths["on_policy"]:
            visited = self._remember(visited, parts[0])
        if self._accepted is not None and fresh is not None:
            accepted = self._accepted.keep(keys["accept"], accepted, fresh)
        if self._paths["accepted"]:
            parts.append(
                self._rescored(params, self._accepted.sample(keys["accepted"], accepted, self._paths["accepted"]))
            )
        if self._paths["noised"]:
            ends = replay.sample(keys["pick"], accepted, self._paths["noised"])
            parts.append(self._renoised(keys["noised"], params, ends["xs"][:, -1], ends["log_reward"]))
        if self._paths["replay"]:
            ends = replay.sample(keys["visit"], visited, self._paths["replay"], self._settings.replay_temperature)
            parts.append(self._renoised(keys["replay"], params, ends["x0"], ends["log_reward"]))
        return parts[0] if len(parts) == 1 else self._mix(*parts), Buffers(accepted, visited)

    def _rewarded(self, trajectory: Trajectory) -> Trajectory:
        """With a log r that is no number where the samples are none: the update skips the step, and counts it."""
        try:
            return rewarded(self._domain, trajectory)
        except NotFinite:
            return trajectory._replace(log_reward=jnp.full(trajectory.xs.shape[1], jnp.nan))

    def _add_visited(self, buffer: replay.Buffer, trajectory: Trajectory) -> replay.Buffer:
        items = {"x0": trajectory.xs[-1], "log_reward": trajectory.log_reward}
        return replay.add(buffer, items, jnp.isfinite(trajectory.log_reward), self._beta * trajectory.log_reward)


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
