"""The border between a config and the code: every field is checked before anything is computed."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from experiments import batches, weights
from experiments.errors import ConfigError
from experiments.objectives import BASELINES
from experiments.optimizers import RULES

LARGEST = 2**31 - 1  # Of a count or a size in JAX; neither infinite nor NaN is smaller.
MAX_STEPS = 100_000  # Of a chain: its tables and the states of its paths are kept.
_REGRESSIONS = ("steer", "pretrain", "value.refine")  # What `experiments.pretrain.fit` reads.


def _of_each(field: str) -> tuple[str, ...]:
    return tuple(f"{section}.{field}" for section in _REGRESSIONS)


# Fields that not every domain has are checked where they are.
_AT_LEAST = {
    0: (
        "seed",
        "train.steps",
        "train.warmup_steps",
        "behaviour.warm_accepted",
        "behaviour.prior_paths",
        "behaviour.widen",
        "behaviour.widen_hold",
        "behaviour.widen_until",
        "behaviour.accepted",
        "behaviour.noised",
        "behaviour.prior",
        "behaviour.replay",
        "objective.cutoff",
        "objective.alpha",
        "objective.group",
        "objective.beta_warmup",
        "steer.steps",
        *_of_each("weight_decay"),
        "devices",
        "reward.retries",
        "reward.retry_seconds",
        "reward.timeout",
        "process.clip_x0",
    ),
    1: (
        "cpu_devices",
        "fsdp",
        "train.batch_size",
        "train.max_skipped",
        "objective.chunk",
        "checkpoint.every",
        "checkpoint.keep",
        "log.every",
        "process.num_steps",
        "behaviour.capacity",
        "steer.batch_size",
        "pretrain.steps",
        "pretrain.batch_size",
        "value.refine.steps",
        "value.refine.batch_size",
        "eval.best_of",
        "eval.stories",
        "data.stories",
        "data.test_stories",
        "data.conditions",
        "data.min_count",
        "prior.width",
        "prior.network.patch",
        "posterior.width",
        "posterior.network.patch",
        "posterior.rank",
        "posterior.num_samples",
        "iql.width",
        *_of_each("checkpoint_every"),
    ),
    # A variance, and so every interval, needs two; so does the distance between two sets.
    2: ("eval.num_samples", "eval.batch_size", "eval.exact_samples", "eval.particles"),
}
_POSITIVE = (
    "train.learning_rate",
    "train.log_z_learning_rate",
    "train.clip_norm",
    "train.log_z_limit",
    "objective.beta",
    "behaviour.replay_temperature",
    "steer.strength",
    "posterior.strength",
    "value.strength",
    "process.min_std",
    "process.diffusion",
    *_of_each("learning_rate"),
)
SAMPLERS = ("paths", "best_of", "smc", "smc_posterior")  # See `experiments.selection`.
PRECISIONS = {"float32": None, "bfloat16": jnp.bfloat16}  # As networks take it: None is that of their inputs.


def get(config: ConfigDict, name: str):
    """A field by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return value


def _has(config: ConfigDict, name: str) -> bool:
    try:
        get(config, name)
    except KeyError:
        return False
    return True


def check(config: ConfigDict) -> None:
    """Checks the fields that need neither the domain nor the devices to be checked.

    Raises:
      ConfigError: naming the field, its value and what is allowed.
    """
    for least, names in _AT_LEAST.items():
        for name in names:
            _require(config, name, f"at least {least}", lambda v, least=least: v >= least)
    for name in _POSITIVE:
        _require(config, name, "positive", lambda v: v > 0)
    for name in _of_each("ema"):
        _require(config, name, "at least 0 and below 1", lambda v: 0 <= v < 1)
    for name in filter(partial(_has, config), ("train.optimizer", *_of_each("optimizer"))):
        one_of(config, name, tuple(RULES))
    one_of(config, "precision", tuple(PRECISIONS))
    one_of(config, "objective.loss", ("rtb", *BASELINES))
    one_of(config, "objective.log_z", ("vargrad", "learned", "conditional"))
    _check_steps(config)
    _check_objective(config)
    _check_sampler(config)
    batches.check(config)


def _require(config: ConfigDict, name: str, allowed: str, ok) -> None:
    if not _has(config, name):
        return
    value = get(config, name)
    if not (-LARGEST <= value <= LARGEST and ok(value)):
        limit = f" and at most {LARGEST}" if LARGEST < value < float("inf") else ""
        raise ConfigError(f"config.{name} must be {allowed}{limit}, got {value}.")


def _check_steps(config: ConfigDict) -> None:
    steps, total = config.objective.grad_steps, config.process.num_steps
    if total > MAX_STEPS:
        raise ConfigError(f"config.process.num_steps must be at most {MAX_STEPS}, got {total}.")
    if steps is not None and not 1 <= steps <= total:
        raise ConfigError(f"config.objective.grad_steps must be None or lie in 1..{total} (T), got {steps}.")
    carried = steps or total
    if carried % config.objective.chunk:
        raise ConfigError(
            f"config.objective.chunk must divide the {carried} steps that carry the gradient, "
            f"got {config.objective.chunk}."
        )


def _check_objective(config: ConfigDict) -> None:
    """Refuses what the loss has no use for."""
    loss = config.objective.loss
    unused: dict[str, Any] = {"log_z": "vargrad", "cutoff": 0} if loss in BASELINES else {}
    if loss not in BASELINES or BASELINES[loss][1] is None:
        unused["alpha"] = 0
    for name, default in unused.items():
        value = get(config, f"objective.{name}")
        if value != default:
            raise ConfigError(
                f"config.objective.{name} must be {default}: config.objective.loss={loss} has no use for it, "
                f"got {value}."
            )


def _check_sampler(config: ConfigDict) -> None:
    one_of(config, "eval.sampler", SAMPLERS)
    batch, best_of = config.eval.batch_size, config.eval.best_of
    if config.eval.sampler == "best_of" and batch % best_of:
        raise ConfigError(f"config.eval.best_of must divide config.eval.batch_size={batch}, got {best_of}.")


def other_precision(config: ConfigDict) -> tuple:
    """What a fingerprint needs to know of the precision: nothing if it is float32."""
    return () if config.precision == "float32" else (config.precision,)


def patience(config: ConfigDict) -> dict[str, float | None]:
    """With a reward that fails, as `rtbjax.rewards.evaluate` takes it."""
    reward = config.reward
    return {
        "retries": reward.retries,
        "retry_seconds": reward.retry_seconds,
        "timeout": reward.timeout or None,
    }


def check_mesh(config: ConfigDict, available: int) -> None:
    """Checks ``devices`` and ``fsdp`` against the number of devices that are available.

    Raises:
      ConfigError: naming the field and what is allowed.
    """
    if config.devices > available:
        raise ConfigError(f"config.devices must lie in 0..{available}, the devices there are, got {config.devices}.")
    devices = config.devices or available
    if devices % config.fsdp:
        raise ConfigError(f"config.fsdp must divide the {devices} devices, got {config.fsdp}.")


def no_warm_start(config: ConfigDict, why: str = "this domain has no value of noisy states to start from") -> None:
    """Raises a ConfigError if a warm start is asked for."""
    if config.steer.steps:
        raise ConfigError(f"config.steer.steps must be 0: {why}.")


def no_training(config: ConfigDict) -> None:
    """Raises a ConfigError if a posterior without parameters is to be trained."""
    if config.train.steps:
        raise ConfigError(f"config.train.steps must be 0: posterior.kind={config.posterior.kind} has nothing to train.")


def no_strength(config: ConfigDict) -> None:
    """Raises a ConfigError if a strength is asked of a posterior that is no guide."""
    if config.posterior.strength != 1.0:
        raise ConfigError(
            f"config.posterior.strength must be 1: posterior.kind={config.posterior.kind} has no use for it, got "
            f"{config.posterior.strength}."
        )


def data_unread(config: ConfigDict) -> None:
    """For a domain whose training reads no data: warns of a data set that is given.

    Raises:
      ConfigError: there is none at that path.
    """
    path = config.data.path
    if path and not weights.locate(path).exists():
        raise ConfigError(f"config.data.path={path}: there is no such file or folder.")
    if path:
        logging.warning(
            "config.data.path=%s is not read: training needs no data here, at most --mode=pretrain does.", path
        )


def one_of(config: ConfigDict, name: str, allowed: tuple) -> None:
    """Raises a ConfigError unless the field has one of the allowed values."""
    value = get(config, name)
    if value not in allowed:
        raise ConfigError(f"config.{name} must be one of {', '.join(map(str, allowed))}, got {value!r}.")
