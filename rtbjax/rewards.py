"""Rewards at the border: what a run may take from a possibly black-box r, and how rewards compose.

A reward runs between two jitted halves, so it may be PyTorch, a simulator or a remote service. It receives and returns
arrays on the host; a JAX reward may be jitted and is called the same way. A failed or non-finite reward is never
silently a number.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array

from rtbjax.types import RewardFn


class RewardError(RuntimeError):
    """A reward that raised, or returned something that is not one log r per sample."""


def evaluate(
    reward: RewardFn,
    x: Array,
    cond: Any = None,
    *,
    retries: int = 0,
    retry_seconds: float = 1.0,
    log_bound: float | None = None,
    log_floor: float | None = None,
) -> np.ndarray:
    """Asks a reward for ``log r`` of a batch and checks the answer.

    Args:
      reward: ``(x, cond) -> log r``, ``f[B]``.
      x: samples, ``[B, E*]``.
      cond: conditions.
      retries: how often to ask again after an exception.
      retry_seconds: pause before asking again.
      log_bound: declared bound on log r; None if there is none.
      log_floor: stands in for ``-inf``, the log of a violated hard constraint; without it ``-inf`` is an error.

    Returns:
      ``f32[B]``, finite.

    Raises:
      RewardError: the reward kept raising, or returned a wrong shape, NaN, ``+inf``, ``-inf`` without a floor, or a
        value above its bound; the message names the first bad sample.
    """
    batch = x.shape[0]
    for attempt in range(retries + 1):
        try:
            # Converted here: a JAX reward that fails may do so only when its numbers are fetched.
            log_r = np.asarray(reward(x, cond), np.float32)
            break
        except Exception as error:
            if attempt == retries:
                raise RewardError(
                    f"The reward raised {type(error).__name__}: {error} ({attempt + 1} tries)."
                ) from error
            time.sleep(retry_seconds)
    if log_r.shape != (batch,):
        raise RewardError(f"The reward must return one log r per sample, shape ({batch},), got {log_r.shape}.")
    if log_floor is not None:
        log_r = np.where(np.isneginf(log_r), np.float32(log_floor), log_r)
    bad = ~np.isfinite(log_r)
    if bad.any():
        first = int(np.argmax(bad))
        hint = " Declare a floor (log_floor) for a hard constraint." if np.isneginf(log_r[first]) else ""
        raise RewardError(f"The reward returned log r = {log_r[first]} for sample {first} of {batch}.{hint}")
    # A float32 rounding of a reward exactly at its bound is not a violation.
    if log_bound is not None and log_r.max() > log_bound + 1e-4:
        first = int(np.argmax(log_r))
        raise RewardError(
            f"The reward returned log r = {log_r[first]:.4f} for sample {first}, above its declared bound "
            f"{log_bound:.4f}: rejection from the prior would not be exact."
        )
    return log_r


def product(*rewards: RewardFn) -> RewardFn:
    """The product of rewards: the sum of their logs."""
    return lambda x, cond: sum(reward(x, cond) for reward in rewards)


def tempered(reward: RewardFn, beta: float) -> RewardFn:
    """``r ** beta``."""
    return lambda x, cond: beta * reward(x, cond)


def from_probability(probability: Callable[[Array, Any], Array], floor: float) -> RewardFn:
    """The log of a function with values in [0, ...), with ``floor`` in place of 0.

    Raises:
      ValueError: ``floor`` not positive.
      RewardError: when asked, of a negative value; the message names the first.
    """
    if floor <= 0.0:
        raise ValueError(f"The floor that stands in for probability 0 must be positive, got {floor}.")

    def log_reward(x, cond):
        p = np.asarray(probability(x, cond), np.float64)
        if (p < 0.0).any():
            first = int(np.argmax(p < 0.0))
            raise RewardError(
                f"The reward returned {p.flat[first]} for sample {first}, and a probability is at least 0."
            )
        return np.log(np.maximum(p, floor)).astype(np.float32)

    return log_reward
