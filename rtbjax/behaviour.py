"""Who proposes the paths. Any path is a legitimate training example; these are the useful sources.

On-policy and widened paths are `rtbjax.rollout` with a posterior (``widen``); prior paths are `rtbjax.rollout` without.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from rtbjax.process import Process
from rtbjax.trajectory import noise, sample_keys, score
from rtbjax.types import Policy, PRNGKey, Trajectory, check_bound, check_shape


def accept(
    key: PRNGKey,
    log_reward: Float[Array, " B"],
    log_bound: float,
    *,
    beta: float | Float[Array, ""] = 1.0,
    index: Int[Array, " B"] | None = None,
) -> Bool[Array, " B"]:
    """Rejection sampling: which *prior* paths to keep so that they are exact samples of the posterior path law.

    Args:
      key: one key for the batch.
      log_reward: log r of prior samples.
      log_bound: log R, a declared upper bound on log r. `rtbjax.rewards.evaluate` stops a run whose rewards exceed it.
      beta: the exponent of r.
      index: global index of each sample, ``arange(B)`` if None.

    Returns:
      True with probability ``(r / R)^beta``; never where log r is NaN.

    Raises:
      ValueError: an array that is not one number per sample, or a log r above the bound, unless it is traced: what is
        kept would follow another law.
    """
    log_reward = jnp.asarray(log_reward)
    check_shape("log_reward", log_reward, ("B",))
    if not isinstance(log_reward, Tracer):
        check_bound(log_reward, log_bound)
    index = jnp.arange(log_reward.shape[0]) if index is None else index
    check_shape("index", index, log_reward.shape)

    def uniform(key):
        # A float32 uniform is 0 once in 2^23, which would accept anything: 23 bits more, not all of them 0.
        fine = jax.random.uniform(jax.random.fold_in(key, 1), minval=2.0**-23)
        return jax.random.uniform(key) + 2.0**-23 * fine

    return jnp.log(jax.vmap(uniform)(sample_keys(key, index))) <= beta * (log_reward - log_bound)


def renoise(
    key: PRNGKey,
    process: Process,
    prior: Policy,
    posterior: Policy | None,
    x0: Array,
    log_reward: Float[Array, " B"],
    cond: Any = None,
    *,
    index: Int[Array, " B"] | None = None,
) -> Trajectory:
    """Paths that end in given samples (data, a replay buffer, exact samples), noised anew and scored.

    Args:
      key: one key for the batch.
      process: the chain.
      prior: the frozen prior.
      posterior: fills ``log_ratio``, which is None without it.
      x0: samples, ``[B, E*]``.
      log_reward: their log r, ``f32[B]``.
      cond: conditions with leading axis B, or None.
      index: global index of each sample, ``arange(B)`` if None.

    Returns:
      A whole `Trajectory` of T steps.

    Raises:
      ValueError: ``log_reward`` is not one number per sample.
    """
    check_shape("log_reward", log_reward, x0.shape[:1])
    xs = noise(key, process, x0, cond, index=index)
    return score(process, prior, xs, cond, posterior)._replace(log_reward=log_reward)


def mix(*trajectories: Trajectory) -> Trajectory:
    """One batch out of several, in order.

    Args:
      *trajectories: of one process, ``B_1, B_2, ...`` paths.

    Returns:
      All ``B_1 + B_2 + ...`` paths.

    Raises:
      ValueError: none is given, or some have ``log_ratio``, ``log_reward``, features or conditions and others have not,
        or others of another structure; `rtbjax.score` fills all but the reward.
    """
    if not trajectories:
        raise ValueError("mix needs at least one trajectory, got none.")
    for name in ("log_reward", "log_ratio", "features", "cond"):
        if len({getattr(t, name) is None for t in trajectories}) > 1:
            raise ValueError(f"Either all trajectories of a mixture have {name} or none has.")
        if len({jax.tree.structure(getattr(t, name)) for t in trajectories}) > 1:
            raise ValueError(f"All trajectories of a mixture must have {name} of one structure.")

    def join(axis):
        return lambda *parts: jnp.concatenate(parts, axis=axis)

    time_major, batch_major = join(1), join(0)
    first = trajectories[0]
    return Trajectory(
        xs=time_major(*(t.xs for t in trajectories)),
        cond=jax.tree.map(batch_major, *(t.cond for t in trajectories)),
        log_reward=None if first.log_reward is None else batch_major(*(t.log_reward for t in trajectories)),
        log_prior=time_major(*(t.log_prior for t in trajectories)),
        log_ratio=None if first.log_ratio is None else time_major(*(t.log_ratio for t in trajectories)),
        features=jax.tree.map(time_major, *(t.features for t in trajectories)),
    )
