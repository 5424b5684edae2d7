"""The border between a config and the code: every field is checked before anything is computed."""

from typing import Any

from ml_collections import ConfigDict

from experiments.loop import OPTIMIZERS
from experiments.objectives import BASELINES


class ConfigError(ValueError):
    """A field with a value that is not allowed; the message names the field and what is."""


_AT_LEAST_ONE = (
    "train.batch_size",
    "objective.chunk",
    "checkpoint.every",
    "checkpoint.keep",
    "log.every",
    "eval.num_samples",
    "eval.batch_size",
    "eval.exact_samples",
    "process.num_steps",
    "behaviour.capacity",
)
_AT_LEAST_ZERO = (
    "train.steps",
    "train.warmup_steps",
    "behaviour.warm_accepted",
    "behaviour.prior_paths",
    "behaviour.widen",
    "devices",
)
_POSITIVE = ("train.learning_rate", "train.log_z_learning_rate", "objective.beta", "behaviour.replay_temperature")


def get(config: ConfigDict, name: str):
    """A field by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return value


def check(config: ConfigDict) -> None:
    """Checks the fields all domains share.

    Raises:
      ConfigError: naming the field, its value and what is allowed.
    """
    for names, allowed, ok in (
        (_AT_LEAST_ONE, "at least 1", lambda v: v >= 1),
        (_AT_LEAST_ZERO, "at least 0", lambda v: v >= 0),
        (_POSITIVE, "positive", lambda v: v > 0),
    ):
        for name in names:
            value = get(config, name)
            if not ok(value):
                raise ConfigError(f"config.{name} must be {allowed}, got {value}.")
    one_of(config, "train.optimizer", tuple(OPTIMIZERS))
    one_of(config, "objective.loss", ("rtb", *BASELINES))
    one_of(config, "objective.log_z", ("vargrad", "learned"))
    steps, total = config.objective.grad_steps, config.process.num_steps
    if steps is not None and not 1 <= steps <= total:
        raise ConfigError(f"config.objective.grad_steps must be None or lie in 1..{total} (T), got {steps}.")
    carried = steps or total
    if carried % config.objective.chunk:
        raise ConfigError(
            f"config.objective.chunk must divide the {carried} steps that carry the gradient, "
            f"got {config.objective.chunk}."
        )
    if config.train.batch_size < 2 and config.objective.log_z == "vargrad":
        raise ConfigError("config.train.batch_size must be at least 2: a VarGrad group of one path has loss 0.")


def one_of(config: ConfigDict, name: str, allowed: tuple) -> None:
    """Raises a ConfigError unless the field has one of the allowed values."""
    value = get(config, name)
    if value not in allowed:
        raise ConfigError(f"config.{name} must be one of {', '.join(map(str, allowed))}, got {value!r}.")
