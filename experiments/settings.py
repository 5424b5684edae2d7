"""The border between a config and the code: every field is checked before anything is computed."""

import math
from typing import Any

import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from experiments import weights
from experiments.errors import ConfigError
from experiments.objectives import BASELINES
from experiments.optimizers import RULES

LARGEST = 2**31 - 1  # Of a count or a size in JAX; neither infinite nor NaN is smaller.
MAX_STEPS = 100_000  # Of a chain: its tables and the states of its paths are kept.
_REGRESSIONS = ("steer", "pretrain")  # What `experiments.pretrain.fit` reads.


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
        "eval.best_of",
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
    "process.min_std",
    "process.diffusion",
    *_of_each("learning_rate"),
)
PRECISIONS = {"float32": None, "bfloat16": jnp.bfloat16}  # As networks take it: None is that of their inputs.
OFF_POLICY = ("accepted", "noised", "prior", "replay")


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
    for name in ("train.optimizer", *_of_each("optimizer")):
        one_of(config, name, tuple(RULES))
    one_of(config, "precision", tuple(PRECISIONS))
    one_of(config, "objective.loss", ("rtb", *BASELINES))
    one_of(config, "objective.log_z", ("vargrad", "learned", "conditional"))
    _check_steps(config)
    _check_objective(config)
    _check_paths(config)


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


def _check_paths(config: ConfigDict) -> None:
    if config.train.batch_size < 2 and config.objective.log_z == "vargrad":
        raise ConfigError("config.train.batch_size must be at least 2: a VarGrad group of one path has loss 0.")
    batch, group = config.train.batch_size, config.objective.group
    if group and batch % group:
        raise ConfigError(f"config.objective.group must divide config.train.batch_size={batch}, got {group}.")
    if group == 1 and config.objective.log_z == "vargrad":
        raise ConfigError("config.objective.group must be at least 2: a VarGrad group of one path has loss 0.")
    parts = {name: get(config, f"behaviour.{name}") for name in OFF_POLICY}
    # A fraction of a decimal is rarely a sum of binary ones.
    if sum(parts.values()) > 1 + 1e-9:
        shares = ", ".join(f"{name}={value:g}" for name, value in parts.items())
        raise ConfigError(f"The fractions in config.behaviour must sum to at most 1, got {shares}.")
    widened_or_not_ours = [name for name in (*OFF_POLICY, "widen") if get(config, f"behaviour.{name}")]
    if config.objective.loss in BASELINES and widened_or_not_ours:
        fields = " and ".join(f"config.behaviour.{name}" for name in widened_or_not_ours)
        raise ConfigError(
            f"config.objective.loss={config.objective.loss} is a policy gradient and learns from its own paths alone: "
            f"set {fields} to 0."
        )
    counts = path_counts(config)
    for name, share in parts.items():
        if share and not counts[name]:
            size, of = (group, "group") if group else (batch, "batch")
            raise ConfigError(
                f"config.behaviour.{name}={share:g} is not one of the {size} paths of a {of}: set it to 0."
            )
    if counts["replay"] and not counts["on_policy"]:
        raise ConfigError(
            "config.behaviour.replay must be 0: it takes the ends of on-policy paths, and the other fractions in "
            "config.behaviour leave none."
        )
    if config.behaviour.prior_paths and not (counts["accepted"] or counts["noised"]):
        raise ConfigError(
            "config.behaviour.prior_paths must be 0: they are drawn to be accepted, and config.behaviour.accepted and "
            "config.behaviour.noised are 0."
        )


def other_precision(config: ConfigDict) -> tuple:
    """What a fingerprint needs to know of the precision: nothing if it is float32."""
    return () if config.precision == "float32" else (config.precision,)


def groups(config: ConfigDict) -> int:
    """Conditions in a batch, each with as many paths; 1 without conditions."""
    return _groups(config, config.train.batch_size)


def _groups(config: ConfigDict, batch: int) -> int:
    return batch // (config.objective.group or batch)


def patience(config: ConfigDict) -> dict[str, float | None]:
    """With a reward that fails, as `rtbjax.rewards.evaluate` takes it."""
    reward = config.reward
    return {
        "retries": reward.retries,
        "retry_seconds": reward.retry_seconds,
        "timeout": reward.timeout or None,
    }


def path_counts(config: ConfigDict) -> dict[str, int]:
    """Paths per behaviour for each condition of a batch; on-policy takes the rest and comes first."""
    return _split(config, config.train.batch_size)


def _split(config: ConfigDict, batch: int) -> dict[str, int]:
    """By largest remainder: every behaviour is less than a path from its share."""
    size = config.objective.group or batch
    shares = {name: get(config, f"behaviour.{name}") * size for name in OFF_POLICY}
    shares = {"on_policy": max(size - sum(shares.values()), 0.0), **shares}
    paths = {name: math.floor(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: paths[name] - shares[name])
    for name in by_remainder[: size - sum(paths.values())]:
        paths[name] += 1
    return paths


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


def check_group(config: ConfigDict, conditions: int) -> None:
    """Checks ``objective.group`` against the number of a domain's conditions, 0 if it has none.

    Raises:
      ConfigError: a group without conditions, conditions without a group, or more of them in a batch than there are.
    """
    group = config.objective.group
    if group and not conditions:
        raise ConfigError("config.objective.group must be 0: this domain has no conditions.")
    if conditions and not group:
        raise ConfigError("config.objective.group must be at least 1: this domain has conditions.")
    if conditions and groups(config) > conditions:
        raise ConfigError(
            f"config.objective.group={group} asks for {groups(config)} conditions in a batch of "
            f"{config.train.batch_size}, and there are {conditions}."
        )


def check_devices(config: ConfigDict, devices: int) -> None:
    """Checks that all batches that are rolled out divide over the devices.

    Raises:
      ConfigError: naming the field and the nearest values that do.
    """
    for name in ("behaviour.prior_paths", "eval.batch_size"):
        size = get(config, name)
        if size % devices:
            below = size // devices * devices
            nearest = " and ".join(str(s) for s in (below, below + devices) if s)
            raise ConfigError(f"config.{name}={size} does not divide over {devices} devices; nearest are {nearest}.")

    batch, group = config.train.batch_size, config.objective.group

    def counts(batch: int) -> dict[str, int]:
        return {name: n * _groups(config, batch) for name, n in _split(config, batch).items()}

    def fits(batch: int) -> bool:
        paths = counts(batch)
        whole = batch % devices == paths["on_policy"] % devices == paths["prior"] % devices == 0
        return whole and batch % (group or 1) == 0

    if fits(batch):
        return
    smaller = next((b for b in range(batch - 1, 1, -1) if fits(b)), None)
    larger = next((b for b in range(batch + 1, batch + 1000 * devices) if fits(b)), None)
    nearest = " and ".join(str(b) for b in (smaller, larger) if b)
    paths = counts(batch)
    raise ConfigError(
        f"config.train.batch_size={batch} does not divide over {devices} devices ({paths['on_policy']} on-policy and "
        f"{paths['prior']} prior paths with these config.behaviour fractions); nearest are {nearest}."
    )


def no_warm_start(config: ConfigDict, why: str = "this domain has no value of noisy states to start from") -> None:
    """Raises a ConfigError if a warm start is asked for."""
    if config.steer.steps:
        raise ConfigError(f"config.steer.steps must be 0: {why}.")


def no_training(config: ConfigDict) -> None:
    """Raises a ConfigError if a posterior without parameters is to be trained."""
    if config.train.steps:
        raise ConfigError(f"config.train.steps must be 0: posterior.kind={config.posterior.kind} has nothing to train.")


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
