"""Which prior and which values a config means: their sizes, their weights, the chain they share."""

from collections.abc import Mapping
from pathlib import Path
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
    trained_in = weights.metadata(place).get("environment")
    if trained_in != config.environment:
        raise weights.WeightsError(
            f"{place} was trained in {trained_in}, and config.environment is {config.environment}: pretrain it on the "
            f"data at hand (--mode=pretrain --config.pretrain.what={what})."
        )
    numbers = jax.ShapeDtypeStruct((task.observation_dim,), jnp.float32)
    like = {"params": params, "observations": {"mean": numbers, "std": numbers}}
    found: Any = weights.load(place, like)
    return found["params"], Normaliser(**found["observations"])


def data_of(found: Transitions) -> str:
    """What messages and notes call transitions."""
    return f"{len(found.rewards)} of {found.source}"


def notes_of(found: Transitions) -> dict[str, str]:
    """What weights say of the transitions they were trained on, for `check_data`."""
    return {"trained_on": data_of(found), "transitions": weights.fingerprint(found._replace(source=""))}


def check_data(path: Path, what: str, wanted: Mapping[str, Any]) -> None:
    """Checks that weights were trained on the transitions at hand, whatever the file is called that holds them.

    Args:
      path: of the weights.
      what: of ``pretrain.what``, for the message.
      wanted: `notes_of` the transitions at hand.

    Raises:
      WeightsError: they cannot be read, were trained on others, or do not say on which.
    """
    notes = weights.metadata(path)
    if notes.get("transitions") != wanted["transitions"]:
        raise weights.WeightsError(
            f"{path} was trained on {notes.get('trained_on', 'data that it does not name')}, which are not the "
            f"transitions that config.data.path has ({wanted['trained_on']}): train it on these "
            f"(--mode=pretrain --config.pretrain.what={what})."
        )


def check_networks(config: ConfigDict, wanted: Mapping[str, Any], needed: tuple[str, ...] = tuple(FIELDS)) -> None:
    """As `check_data` for the prior and the values of a config, those of them that are needed."""
    for what in needed:
        check_data(weights.locate(get(config, FIELDS[what])), what, wanted)


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
