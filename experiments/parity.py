"""Is a path scored again as it was when it was sampled?

RTB takes its residual from the log-ratio of the rollout, and its gradient from scoring the same path again. A network
that does not repeat itself (half precision rounded otherwise in another program, dropout left on) makes the two speak
of different policies. Float32 repeats itself to less than 0.01 nats.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Float, PyTree

from experiments import hosts
from experiments.domains.base import Domain
from rtbjax import Trajectory, rescore

TOLERANCE = 0.1  # Nats: an error of a tenth in a path's importance weight.


def checker(domain: Domain) -> Callable[[PyTree, Trajectory], Float[Array, ""]]:
    """``f(params, trajectory)``: by how many nats a path's log-ratio differs when scored again, at most."""

    @jax.jit
    def difference(params: PyTree, trajectory: Trajectory) -> Float[Array, ""]:
        again = rescore(domain.process, domain.posterior.replace(params=params), trajectory)
        assert again.log_ratio is not None and trajectory.log_ratio is not None
        return jnp.max(jnp.abs(jnp.sum(again.log_ratio - trajectory.log_ratio, axis=0)))

    return difference


def warn(step: int, difference: float) -> None:
    """Warns of a difference beyond `TOLERANCE`."""
    if hosts.is_first() and not difference <= TOLERANCE:
        logging.warning(
            "At step %d a path's log-ratio differs by %.3g nats between sampling and scoring it again, more than %g: "
            "the gradient is of another policy than the residual; try config.precision=float32.",
            *(step, difference, TOLERANCE),
        )
