"""What a domain is to the loop."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from experiments import hosts
from experiments.errors import ConfigError
from experiments.finite import NotFinite, finite
from rtbjax import Policy, Process, RewardFn, Trajectory, rewards
from rtbjax.sharding import parameter_shardings

Samples = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Value:
    """A frozen model of ``log h(x) = log E[r | x]`` along the prior's paths.

    Attributes:
      params: of the model.
      log_h: ``(params, x, t, cond) -> f[B]``, differentiable in x.
    """

    params: PyTree
    log_h: Callable[[PyTree, Array, Array, Any], Array]


class ConditionalLogZ(NamedTuple):
    """A conditional log Z to train.

    Attributes:
      params: at the start.
      apply_fn: ``(params, cond) -> f32[B]``.
    """

    params: PyTree
    apply_fn: Callable[[PyTree, Any], Array]


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What one posterior is asked for many times: a class, a story, a state.

    Attributes:
      values: ``[C, ...]``, arrays; those trained on. A path's ``cond`` is one row of them.
      evaluated: ``[N, ...]``, arrays; those the certificate and the metrics are of.
      names: of the evaluated, N.
      examples: ``[C, *E]``, a datum for each of the values, to be noised (``behaviour.noised``), or None.
      log_z: for ``objective.log_z = "conditional"``, or None.
    """

    values: PyTree
    evaluated: PyTree
    names: tuple[str, ...]
    examples: Array | None = None
    log_z: ConditionalLogZ | None = None

    @property
    def count(self) -> int:
        """C."""
        return len(jax.tree.leaves(self.values)[0])


def named(names: tuple[str, ...]) -> Conditions:
    """Those of a few labels or prompts: a ``cond`` is a place in ``names``, all are trained on and evaluated.

    log Z is a number for each.
    """
    every = jnp.arange(len(names))
    log_z = ConditionalLogZ(jnp.zeros(len(names)), lambda table, cond: table[cond])
    return Conditions(values=every, evaluated=every, names=names, log_z=log_z)


def rows(tree: PyTree, index: Int[Array, " B"]) -> PyTree:
    """Those rows of every array."""
    return jax.tree.map(lambda a: a[index], tree)


@dataclasses.dataclass(frozen=True)
class Domain:
    """A prior, a reward, and how to look at the result: everything the loop does not know.

    A conditional domain's sets of samples have a leading axis more, that of the evaluated conditions.

    Attributes:
      name: as in ``config.domain``.
      data_source: which data stand behind the prior, for ``summary.json``.
      process: the chain.
      event_shape: of one sample.
      prior: frozen.
      posterior: the parametrisation to train, at its start.
      log_reward: log r, ``(x, cond) -> f[B]``.
      log_bound: declared bound on log r, or None.
      log_floor: what the -inf of a violated hard constraint counts as (`rtbjax.rewards.evaluate`), or None.
      fingerprint: changes whenever prior, reward or process do; exact sets are cached under it.
      evaluate: samples by name (``prior``, ``rtb``, the baselines, and where they exist ``exact``, ``exact_again``) to
        metrics.
      plot: ``(path, samples by title)``; writes a PNG with one panel per set.
      value: what steers the posterior at first (`experiments.warm_start`) and judges particles, or None.
      conditions: None if there is one posterior.
      rare: r is too rare under the prior for exact samples by rejection, and for a reference log Z from prior samples.
      baselines: training-free policies, by name, whose samples are evaluated beside ours.
      patience: with a reward that fails: ``retries``, ``retry_seconds`` and ``timeout`` of `rtbjax.rewards.evaluate`.
    """

    name: str
    data_source: str
    process: Process
    event_shape: tuple[int, ...]
    prior: Policy
    posterior: Policy
    log_reward: RewardFn
    log_bound: float | None
    fingerprint: str
    evaluate: Callable[[Samples], dict[str, Any]]
    plot: Callable[[Path, Samples], None]
    value: Value | None = None
    conditions: Conditions | None = None
    rare: bool = False
    log_floor: float | None = None
    baselines: dict[str, Policy] = dataclasses.field(default_factory=dict)
    patience: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def asked(self) -> int:
        """How many posteriors are evaluated: N conditions, or one."""
        return 1 if self.conditions is None else len(self.conditions.names)

    @property
    def dtype(self) -> np.dtype:
        """Of a sample, as the process draws it: int32 for tokens."""
        shape = (1, *self.event_shape)
        start = jax.eval_shape(
            lambda key: self.process.init(jax.random.split(key, 1), shape, self.evaluated(np.zeros(1, int))),
            jax.random.key(0),
        )
        return np.dtype(start.dtype)

    @property
    def log_z(self) -> ConditionalLogZ:
        """The conditional log Z.

        Raises:
          ConfigError: there is none.
        """
        if self.conditions is None or self.conditions.log_z is None:
            raise ConfigError("config.objective.log_z must not be 'conditional': this domain has no conditional log Z.")
        return self.conditions.log_z

    def evaluated(self, index: np.ndarray) -> PyTree | None:
        """The evaluated conditions of these indices, as the ``cond`` of as many paths."""
        return None if self.conditions is None else rows(self.conditions.evaluated, index)

    def shown(self, x: np.ndarray) -> np.ndarray:
        """Without the leading axis of length 1 where there are no conditions."""
        return x[0] if self.conditions is None else x


def placed(domain: Domain, mesh: Mesh) -> Domain:
    """The domain with the parameters of its prior and its posterior where a mesh wants them."""
    prior, posterior = (on_mesh(policy, mesh) for policy in (domain.prior, domain.posterior))
    return dataclasses.replace(domain, prior=prior, posterior=posterior)


def on_mesh(policy: Policy, mesh: Mesh) -> Policy:
    """The policy with its parameters in parts, or whole on every device (`rtbjax.sharding.parameter_specs`)."""
    return policy.replace(params=jax.device_put(policy.params, parameter_shardings(policy.params, mesh)))


def log_reward(domain: Domain, x: Array, cond: Any) -> np.ndarray:
    """log r of a batch, asked for on the host and checked.

    Raises:
      RewardError: see `rtbjax.rewards.evaluate`.
    """
    bounds: Any = dict(log_floor=domain.log_floor, log_bound=domain.log_bound)
    return rewards.evaluate(domain.log_reward, x, cond, **bounds, **domain.patience)


def rewarded(domain: Domain, trajectory: Trajectory) -> Trajectory:
    """The paths with their `log_reward`; of several hosts each asks for its own.

    Raises:
      NotFinite: the samples are no numbers, which is not the reward's fault.
      RewardError: on every process if on one.
    """
    x0, cond = trajectory.xs[-1], trajectory.cond
    if not finite(x0):
        raise NotFinite("There are samples that are not finite: the network that drew them gives no numbers there.")
    if x0.is_fully_addressable:
        return trajectory._replace(log_reward=jnp.asarray(log_reward(domain, x0, cond)))
    split: Any = trajectory.xs.sharding
    with hosts.together(rewards.RewardError):
        log_r = log_reward(domain, *jax.tree.map(hosts.local, (x0, cond)))
    by_path = NamedSharding(split.mesh, PartitionSpec(split.spec[1]))
    return trajectory._replace(log_reward=hosts.from_local(log_r, by_path))
