"""Which prior and which values a config means: their sizes, their weights, the chain they share."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from experiments import weights
from experiments.control import behaviour_prior, iql
from experiments.control.tasks import TASKS, Task
from experiments.control.transitions import Normaliser, Transitions
from experiments.settings import get, one_of
from rtbjax import Policy, Process

# Where a config names the weights of what a posterior needs.
FIELDS = {"prior": "prior.weights", "reward": "reward.weights"}


def task_of(config: ConfigDict) -> Task:
    """The task a config asks for.

    Raises:
      ConfigError: an unknown one.
    """
    one_of(config, "environment", tuple(TASKS))
    return TASKS[config.environment]


def make_process(config: ConfigDict) -> Process:
    return behaviour_prior.make_process(config.process.num_steps, config.process.min_std)


def load(config: ConfigDict, path: str, params: PyTree, what: str) -> tuple[Any, Normaliser]:
    """Weights that pretraining wrote, with the normaliser they were trained with.

    Args:
      config: names the environment.
      path: absolute, or relative to the repository.
      params: arrays of the sizes that are expected.
      what: of ``pretrain.what``, for the message.

    Raises:
      WeightsError: they cannot be read, or are of other sizes or another environment.
    """
    place, task = weights.locate(path), task_of(config)
    numbers = jax.ShapeDtypeStruct((task.observation_dim,), jnp.float32)
    like = {"params": params, "observations": {"mean": numbers, "std": numbers}}
    found: Any = weights.load(place, like)
    trained_in = weights.metadata(place).get("environment")
    if trained_in != config.environment:
        raise weights.WeightsError(
            f"{place} was trained in {trained_in}, and config.environment is {config.environment}: pretrain it on the "
            f"data at hand (--mode=pretrain --config.pretrain.what={what})."
        )
    return found["params"], Normaliser(**found["observations"])


def data_of(found: Transitions) -> str:
    """What weights say of the data they were trained on."""
    return f"{len(found.rewards)} of {found.source}"


def check_data(config: ConfigDict, found: Transitions, needed: tuple[str, ...] = tuple(FIELDS)) -> None:
    """Checks that prior and values, those of them that are needed, were trained on these transitions.

    Raises:
      WeightsError: the weights of one of them cannot be read, or were trained on others.
    """
    for what in needed:
        field = FIELDS[what]
        path = weights.locate(get(config, field))
        trained_on = weights.metadata(path).get("trained_on", "data that it does not name")
        if trained_on != data_of(found):
            raise weights.WeightsError(
                f"config.{field}: {path} was trained on {trained_on}, and config.data.path has {data_of(found)}: train "
                f"it on these (--mode=pretrain --config.pretrain.what={what})."
            )


def load_prior(config: ConfigDict) -> tuple[Policy, Normaliser]:
    """The behaviour prior; its ``cond`` are observations as they were recorded."""
    task = task_of(config)
    shapes = jax.eval_shape(
        lambda key: behaviour_prior.init(key, config.prior.width, task.observation_dim, task.action_dim),
        jax.random.key(0),
    )
    params, norm = load(config, config.prior.weights, shapes, "prior")
    return Policy(params, lambda params, u, t, cond: behaviour_prior.predict(params, u, t, norm(cond))), norm


def load_values(config: ConfigDict) -> tuple[Any, Normaliser]:
    """``{"q": ..., "v": ...}`` of `iql`."""
    task = task_of(config)
    shapes = jax.eval_shape(
        lambda key: iql.init(key, config.iql.width, task.observation_dim, task.action_dim), jax.random.key(0)
    )
    return load(config, config.reward.weights, shapes, "reward")


def make_log_reward(values: Any, norm: Normaliser, alpha: float):
    """``Q(s, tanh u) / alpha``, ``(u[B, A], s[B, S]) -> f32[B]``.

    The target is a tilted mu *of u*: no Jacobian of tanh, which would cancel between prior and posterior.
    """

    def log_reward(u, cond):
        return iql.q_value(values["q"], norm(cond), jnp.tanh(u)) / alpha

    return log_reward
