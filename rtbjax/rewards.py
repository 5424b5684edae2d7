"""Rewards at the border: what a run may take from a possibly black-box r, and how rewards compose.

A reward runs between two jitted halves, so it may be PyTorch, a simulator or a remote service. It is handed the samples
as they are: JAX arrays after a rollout, so that a jitted reward computes where they lie. One outside JAX begins with
``np.array(x)``, a copy of its own, which PyTorch takes and which it may write to. A failed or non-finite reward is
never silently a number.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from rtbjax.types import BOUND_SLACK, RewardFn

_TRUTH = (
    "The reward returned truth values, not log r: np.where(allowed, 0.0, -np.inf) makes a hard constraint of them, "
    "with a log_floor."
)


class RewardError(RuntimeError):
    """A reward that raised, did not answer, or returned something that is not one log r per sample."""


def evaluate(
    reward: RewardFn,
    x: Array,
    cond: Any = None,
    *,
    retries: int = 0,
    retry_seconds: float = 1.0,
    timeout: float | None = None,
    log_bound: float | None = None,
    log_floor: float | None = None,
) -> np.ndarray:
    """Asks a reward for ``log r`` of a batch and checks the answer.

    Args:
      reward: ``(x, cond) -> log r``, ``f[B]``, in JAX or on the host.
      x: samples, ``[B, E*]``; the reward gets this very array.
      cond: conditions.
      retries: how often to ask again after an exception, a time out, a wrong shape, or samples whose answer is not
        finite. It is always asked about the whole batch, and what it said of other samples before is kept.
      retry_seconds: pause before asking again.
      timeout: seconds to wait for an answer; None for ever. A reward that hangs is left behind in its thread.
      log_bound: declared bound on log r; None if there is none.
      log_floor: the least log r there is: what is below counts as this much. First of all the ``-inf`` of a violated
        hard constraint, which without it is an error.

    Returns:
      ``f32[B]``, finite.

    Raises:
      RewardError: the last try failed too, or, at once, samples that are not finite, truth values in place of numbers,
        or a value above its bound; the message names the first bad sample.
      ValueError: ``retries`` below 0.
      TypeError: it is called inside a jitted function.
    """
    if retries < 0:
        raise ValueError(f"retries must be at least 0, got {retries}.")
    if isinstance(x, Tracer):
        raise TypeError(
            "rewards.evaluate asks on the host, outside jax.jit: call it between the rollout and the update."
        )
    batch = x.shape[0]
    sound = np.isfinite(np.asarray(x)).all(axis=tuple(range(1, x.ndim)))
    if not sound.all():
        raise RewardError(
            f"Sample {np.argmin(sound)} of {batch} is not finite: that is the rollout's fault, and no reward was asked."
        )
    known = np.full(batch, np.nan, np.float32)
    failure, cause = "", None
    for attempt in range(retries + 1):
        if attempt:
            time.sleep(retry_seconds)
        try:
            log_r = _ask(reward, x, cond, timeout)
        except Exception as error:
            said = f": {error}" if str(error) else ""
            failure, cause = f"The reward raised {type(error).__name__}{said}", error
            continue
        if log_r.dtype == np.bool_:
            raise RewardError(_TRUTH)
        if log_r.shape != (batch,):
            shape = log_r.shape
            failure, cause = f"The reward must return one log r per sample, shape ({batch},), got {shape}", None
            continue
        if log_floor is not None:
            log_r = np.maximum(log_r, np.float32(log_floor))
        known = np.where(np.isfinite(known), known, log_r)
        if log_bound is not None:
            _check_bound(known, log_bound)
        bad = ~np.isfinite(known)
        if not bad.any():
            return known
        first = int(np.argmax(bad))
        hint = "; declare a floor (log_floor) for a hard constraint" if np.isneginf(known[first]) else ""
        failure, cause = f"The reward returned log r = {known[first]} for sample {first} of {batch}{hint}", None
    raise RewardError(f"{failure} ({retries + 1} {'tries' if retries else 'try'}).") from cause


def _ask(reward: RewardFn, x: Array, cond: Any, timeout: float | None) -> np.ndarray:
    """One call; raises whatever the reward raises, and a TimeoutError."""

    # Converted here: a JAX reward that fails or hangs may do so only when its numbers are fetched.
    def call() -> np.ndarray:
        answer = np.asarray(reward(x, cond))
        return answer if answer.dtype == np.bool_ else answer.astype(np.float32)

    if timeout is None:
        return call()
    answer: queue.SimpleQueue = queue.SimpleQueue()

    def work() -> None:
        try:
            answer.put((call(), None))
        except BaseException as error:
            answer.put((None, error))

    # A daemon: the program may end while it hangs.
    threading.Thread(target=work, name="reward", daemon=True).start()
    try:
        log_r, error = answer.get(timeout=timeout)
    except queue.Empty:
        raise TimeoutError(f"no answer within {timeout:g} s") from None
    if error is not None:
        raise error
    return log_r


def _check_bound(log_r: np.ndarray, log_bound: float) -> None:
    # What is no number is asked again.
    above = np.isfinite(log_r) & (log_r > log_bound + BOUND_SLACK)
    if above.any():
        worst = int(np.argmax(np.where(above, log_r, -np.inf)))
        raise RewardError(
            f"The reward returned log r = {log_r[worst]:.4f} for sample {worst}, above its declared bound "
            f"{log_bound:.4f}: rejection from the prior would not be exact."
        )


def per_sample(reward: Callable[[np.ndarray, Any], float]) -> RewardFn:
    """A reward of one sample, ``(x[E*], cond) -> log r``, for a whole batch; an error names the sample.

    Raises:
      RewardError: when asked, where it raises for a sample, or says true or false of one.
    """

    def log_reward(x, cond):
        samples, conditions = np.array(x), jax.device_get(cond)
        answers = [one(samples, conditions, index) for index in range(len(samples))]
        if any(np.asarray(answer).dtype == np.bool_ for answer in answers):
            raise RewardError(_TRUTH)
        return np.array(answers, np.float32)

    def one(samples, conditions, index):
        try:
            return reward(samples[index], jax.tree.map(lambda c: c[index], conditions))
        except Exception as error:
            raise RewardError(f"{type(error).__name__}: {error} (sample {index} of {len(samples)})") from error

    return log_reward


def product(*rewards: RewardFn) -> RewardFn:
    """The product of rewards: the sum of their logs.

    Raises:
      RewardError: when asked, of a factor that is not one number per sample.
    """
    return lambda x, cond: sum(_numbers(reward(x, cond), x) for reward in rewards)


def tempered(reward: RewardFn, beta: float) -> RewardFn:
    """``r ** beta``.

    Raises:
      RewardError: when asked, if r is not one number per sample.
    """
    return lambda x, cond: beta * _numbers(reward(x, cond), x)


def _numbers(answer: Any, x: Array) -> Any:
    """An answer, traced or not, that is one log r per sample: arithmetic would make numbers of anything else."""
    answer = answer if isinstance(answer, jax.Array) else np.asarray(answer)
    if answer.dtype == np.bool_:
        raise RewardError(_TRUTH)
    if answer.shape != x.shape[:1]:
        raise RewardError(f"Each factor of a reward must be one log r per sample, {x.shape[:1]}, got {answer.shape}.")
    return answer.astype(np.float32)


def from_probability(probability: Callable[[Array, Any], Array], floor: float) -> RewardFn:
    """The log of a function with values in [0, ...), with ``floor`` in place of 0.

    Raises:
      ValueError: ``floor`` not positive and finite.
      RewardError: when asked, of a negative value; the message names the first.
    """
    if not 0.0 < floor < float("inf"):
        raise ValueError(f"The floor that stands in for probability 0 must be positive and finite, got {floor}.")

    def log_reward(x, cond):
        p = np.asarray(probability(x, cond), np.float64)
        if (p < 0.0).any():
            first = int(np.argmax(p < 0.0))
            raise RewardError(
                f"The reward returned {p.flat[first]} for sample {first}, and a probability is at least 0."
            )
        return np.log(np.maximum(p, floor)).astype(np.float32)

    return log_reward
