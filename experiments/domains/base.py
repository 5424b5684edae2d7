"""What a domain is to the loop."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from experiments.finite import NotFinite, finite
from rtbjax import Policy, Process, RewardFn, Trajectory, rewards

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
      patience: with a reward that fails: ``retries``, ``retry_seconds`` and ``timeout`` of `rtbjax.rewards.evaluate`.
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
    patience: dict[str, Any] = dataclasses.field(default_factory=dict)


def rewarded(domain: Domain, trajectory: Trajectory) -> Trajectory:
    """The paths with their ``log_reward``, asked for on the host and checked.

    Raises:
      NotFinite: the samples are no numbers, which is not the reward's fault.
      RewardError: see `rtbjax.rewards.evaluate`.
    """
    x = trajectory.xs[-1]
    if not finite(x):
        raise NotFinite("There are samples that are not finite: the network that drew them gives no numbers there.")
    log_reward = rewards.evaluate(domain.log_reward, x, trajectory.cond, log_bound=domain.log_bound, **domain.patience)
    return trajectory._replace(log_reward=jnp.asarray(log_reward))
