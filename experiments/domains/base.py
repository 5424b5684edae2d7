"""What a domain is to the loop."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from experiments import hosts
from rtbjax import Policy, Process, RewardFn, Trajectory, rewards
from rtbjax.sharding import parameter_shardings

Samples = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Value:
    """A frozen model of ``log h(x) = log E[r | x]`` along the prior's paths.

    Attributes:
      params: of the model.
      log_h: ``(params, x, t) -> f[B]``, differentiable in x.
    """

    params: PyTree
    log_h: Callable[[PyTree, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Domain:
    """A prior, a reward, and how to look at the result: everything the loop does not know.

    Attributes:
      name: as in ``config.domain``.
      data_source: which data stand behind the prior, for ``summary.json``.
      process: the chain.
      event_shape: of one sample.
      prior: frozen.
      posterior: the parametrisation to train, at its start.
      value: what steers the posterior at first (`experiments.warm_start`), or None.
      log_reward: log r, ``(x, cond) -> f[B]``.
      log_bound: declared bound on log r, or None.
      fingerprint: changes whenever prior, reward or process do; exact sets are cached under it.
      evaluate: samples by name (``prior``, ``rtb``, and where they exist ``exact``, ``exact_again``) to metrics.
      plot: ``(path, samples by title)``; writes a PNG with one panel per set.
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


def placed(domain: Domain, mesh: Mesh) -> Domain:
    """The domain with the parameters of its prior and its posterior where a mesh wants them."""
    prior, posterior = (on_mesh(policy, mesh) for policy in (domain.prior, domain.posterior))
    return dataclasses.replace(domain, prior=prior, posterior=posterior)


def on_mesh(policy: Policy, mesh: Mesh) -> Policy:
    """The policy with its parameters in parts, or whole on every device (`rtbjax.sharding.parameter_specs`)."""
    return policy.replace(params=jax.device_put(policy.params, parameter_shardings(policy.params, mesh)))


def rewarded(domain: Domain, trajectory: Trajectory) -> Trajectory:
    """The paths with their ``log_reward``, asked for on the host and checked; of several hosts each asks for its own.

    Raises:
      RewardError: see `rtbjax.rewards.evaluate`; on every process if on one.
    """
    x0, cond, bound = trajectory.xs[-1], trajectory.cond, domain.log_bound
    if x0.is_fully_addressable:
        return trajectory._replace(
            log_reward=jnp.asarray(rewards.evaluate(domain.log_reward, x0, cond, log_bound=bound))
        )
    split: Any = trajectory.xs.sharding
    x0, cond = jax.tree.map(hosts.local, (x0, cond))
    with hosts.together(rewards.RewardError):
        log_reward = rewards.evaluate(domain.log_reward, x0, cond, log_bound=bound)
    rows = NamedSharding(split.mesh, PartitionSpec(split.spec[1]))
    return trajectory._replace(log_reward=hosts.from_local(log_reward, rows))
