"""Training stops where its numbers end, and says which term ended them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from experiments import hosts
from experiments.errors import UserError
from rtbjax import Trajectory
from rtbjax.train import StepInfo


class Diverged(UserError, FloatingPointError):
    """Numbers that are not finite where training cannot go on from them."""


class NotFinite(Diverged):
    """Samples that are no numbers: nothing a reward could be asked about."""


@jax.jit
def finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every number in a tree is."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def blame(trajectory: Trajectory, info: StepInfo, *, own: Bool[np.ndarray, " B"], beta: float, learned: bool) -> str:
    """Which term of ``log Z - [log p_prior - log p_post] - beta log r`` spoilt a step that was skipped.

    Args:
      trajectory: the step's batch, with ``log_prior`` and ``log_reward``.
      info: of the step.
      own: which paths are the posterior's own.
      beta: the exponent of r.
      learned: whether log Z is a parameter.
    """
    xs, log_prior = hosts.whole(trajectory.xs), hosts.whole(trajectory.log_prior)
    reward, gap = beta * hosts.whole(trajectory.log_reward).astype(np.float64), hosts.whole(info.gap).astype(np.float64)
    ratio = gap - reward
    if not np.isfinite(xs[:, own]).all():
        return "the posterior, whose paths hold states that are not finite"
    if not (np.isfinite(xs).all() and np.isfinite(log_prior).all()):
        return "the prior, whose states or log-probabilities are not finite"
    if not np.isfinite(reward).all():
        return "the reward, whose log r is not finite"
    if not np.isfinite(ratio).all():
        return "the posterior, whose log-probabilities are not finite"
    sizes = {"the reward": np.abs(reward).max(), "the posterior": np.abs(ratio).max()}
    names = {"the reward": "beta log r", "the posterior": "log-probabilities relative to the prior's"}
    if learned and not abs(float(info.log_z)) <= max(sizes.values()):
        return f"the learned log Z, which is {float(info.log_z):.3g}"
    largest = max(sizes, key=lambda name: sizes[name])
    if np.isfinite(float(info.loss)) and not np.isfinite(float(info.grad_norm)):
        return "the posterior, whose gradient is not finite"
    return f"{largest}, whose {names[largest]} reach {sizes[largest]:.3g} nats"
