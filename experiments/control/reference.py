"""What pi(a | s) is, state by state: self-normalised importance sampling from mu with weights exp(Q / alpha)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rtbjax.types import check_shape

MIN_ESS = 100.0  # Effective samples below which a state's reference says nothing.


class Reference(NamedTuple):
    """Of each of N states.

    Attributes:
      log_z: ``log E_mu[exp(Q / alpha)]``, in nats.
      ess: effective number of samples.
      mean: ``E_pi[f]``.
      error: standard error of ``mean`` (delta method).
      trusted: whether ``ess`` is at least `MIN_ESS`.
    """

    log_z: Float[np.ndarray, " N"]
    ess: Float[np.ndarray, " N"]
    mean: Float[np.ndarray, " N"]
    error: Float[np.ndarray, " N"]

    @property
    def trusted(self) -> np.ndarray:
        return self.ess >= MIN_ESS


def self_normalised(log_reward: Float[np.ndarray, "N n"], f: Float[np.ndarray, "N n"]) -> Reference:
    """Estimates from n prior samples in each of N states.

    Args:
      log_reward: ``Q(s, a) / alpha``.
      f: what the mean is wanted of, at the same samples.

    Raises:
      ValueError: arrays of other shapes.
    """
    check_shape("log_reward", log_reward, ("N", "n"))
    check_shape("f", f, log_reward.shape)
    log_w, f = np.asarray(log_reward, np.float64), np.asarray(f, np.float64)
    total = np.logaddexp.reduce(log_w, axis=1, keepdims=True)
    share = np.exp(log_w - total)
    mean = np.sum(share * f, axis=1)
    return Reference(
        log_z=total[:, 0] - np.log(log_w.shape[1]),
        ess=1.0 / np.sum(share**2, axis=1),
        mean=mean,
        error=np.sqrt(np.sum((share * (f - mean[:, None])) ** 2, axis=1)),
    )
