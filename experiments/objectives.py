"""The objective of a config: RTB, or one of the baselines, all through the same two-pass gradient."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

import rtbjax
from experiments.domains.base import Domain
from rtbjax import losses
from rtbjax.objective import LossInfo, path_log_ratio
from rtbjax.train import Objective
from rtbjax.types import Trajectory

# Each with the name it has for objective.alpha, or None.
BASELINES = {
    "reinforce": (losses.reinforce, None),
    "reinforce_reward": (losses.reinforce_reward, "alpha"),
    "ddpo": (losses.ddpo, None),
    "dpok": (losses.dpok, "kl_weight"),
}


def initial_params(config: ConfigDict, domain: Domain) -> PyTree:
    """``{"policy": ..., "log_z": ...}``; log Z only where it is learned."""
    params = {"policy": domain.posterior.params}
    if config.objective.log_z == "learned":
        return params | {"log_z": jnp.float32(0.0)}
    return params | ({"log_z": domain.log_z.params} if config.objective.log_z == "conditional" else {})


def warmed_up(config: ConfigDict, trajectory: Trajectory, step: int) -> Trajectory:
    """The paths with log r scaled by the share of beta that is reached at a step: no loss takes log r without beta."""
    share = min(1.0, (step + 1) / (config.objective.beta_warmup + 1))
    return trajectory if share == 1.0 else trajectory._replace(log_reward=share * trajectory.log_reward)


def make(config: ConfigDict, domain: Domain) -> Objective:
    """Binds everything but parameters, paths and key."""
    settings = config.objective
    steps = dict(grad_steps=settings.grad_steps, chunk=settings.chunk)
    if settings.loss == "rtb":
        return partial(
            rtbjax.loss,
            process=domain.process,
            apply_fn=domain.posterior.apply_fn,
            log_z=domain.log_z.apply_fn if settings.log_z == "conditional" else settings.log_z,
            group=settings.group or None,
            beta=settings.beta,
            cutoff=settings.cutoff,
            **steps,
        )
    baseline, weight = BASELINES[settings.loss]
    weights = {"beta": settings.beta} | ({} if weight is None else {weight: settings.alpha})

    def objective(params, trajectory, *, key, axis_name):
        log_ratio = path_log_ratio(
            params["policy"],
            trajectory,
            process=domain.process,
            apply_fn=domain.posterior.apply_fn,
            key=key,
            **steps,
        )
        gap = jax.lax.stop_gradient(log_ratio + settings.beta * trajectory.log_reward)
        per_path = baseline(log_ratio, trajectory.log_reward, axis_name=axis_name, **weights)
        return jnp.mean(per_path), LossInfo(gap, jnp.zeros_like(gap))

    return objective
