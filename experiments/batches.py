"""How a batch of paths divides: among conditions, among the behaviours that propose them, over devices."""

import math
from typing import Any

from ml_collections import ConfigDict

from experiments.errors import ConfigError
from experiments.objectives import BASELINES

OFF_POLICY = ("accepted", "noised", "prior", "replay")


def groups(config: ConfigDict) -> int:
    """Conditions in a batch, each with as many paths; 1 without conditions."""
    return _groups(config, config.train.batch_size)


def _groups(config: ConfigDict, batch: int) -> int:
    return batch // (config.objective.group or batch)


def path_counts(config: ConfigDict) -> dict[str, int]:
    """Paths per behaviour for each condition of a batch; on-policy takes the rest and comes first."""
    return _split(config, config.train.batch_size)


def _split(config: ConfigDict, batch: int) -> dict[str, int]:
    """By largest remainder: every behaviour is less than a path from its share."""
    behaviour: Any = config.behaviour
    size = config.objective.group or batch
    shares = {name: behaviour[name] * size for name in OFF_POLICY}
    shares = {"on_policy": max(size - sum(shares.values()), 0.0), **shares}
    paths = {name: math.floor(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: paths[name] - shares[name])
    for name in by_remainder[: size - sum(paths.values())]:
        paths[name] += 1
    return paths


def check(config: ConfigDict) -> None:
    """Checks how the batch divides, as far as that needs neither the domain nor the devices.

    Raises:
      ConfigError: naming the field, its value and what is allowed.
    """
    _check_vargrad(config)
    _check_shares(config)


def _check_vargrad(config: ConfigDict) -> None:
    batch, group, vargrad = config.train.batch_size, config.objective.group, config.objective.log_z == "vargrad"
    if batch < 2 and vargrad:
        raise ConfigError("config.train.batch_size must be at least 2: a VarGrad group of one path has loss 0.")
    if group and batch % group:
        raise ConfigError(f"config.objective.group must divide config.train.batch_size={batch}, got {group}.")
    if group == 1 and vargrad:
        raise ConfigError("config.objective.group must be at least 2: a VarGrad group of one path has loss 0.")


def _check_shares(config: ConfigDict) -> None:
    """Refuses fractions that cannot be met, or that nothing would come of."""
    behaviour: Any = config.behaviour
    batch, group = config.train.batch_size, config.objective.group
    parts = {name: behaviour[name] for name in OFF_POLICY}
    # A fraction of a decimal is rarely a sum of binary ones.
    if sum(parts.values()) > 1 + 1e-9:
        shares = ", ".join(f"{name}={value:g}" for name, value in parts.items())
        raise ConfigError(f"The fractions in config.behaviour must sum to at most 1, got {shares}.")
    widened_or_not_ours = [name for name in (*OFF_POLICY, "widen") if behaviour[name]]
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
    if behaviour.prior_paths and not (counts["accepted"] or counts["noised"]):
        raise ConfigError(
            "config.behaviour.prior_paths must be 0: they are drawn to be accepted, and config.behaviour.accepted and "
            "config.behaviour.noised are 0."
        )


def check_group(config: ConfigDict, conditions: int) -> None:
    """Checks ``objective.group`` against the number of a domain's conditions, 0 if it has none.

    Raises:
      ConfigError: a group without conditions, conditions without a group, more of them in a batch than there are, or
        one log Z for all.
    """
    group = config.objective.group
    if group and not conditions:
        raise ConfigError("config.objective.group must be 0: this domain has no conditions.")
    if conditions and not group:
        raise ConfigError("config.objective.group must be at least 1: this domain has conditions.")
    if conditions and config.objective.log_z == "learned":
        raise ConfigError(
            "config.objective.log_z must be vargrad or conditional: this domain has conditions, and one learned log Z "
            "is wrong for each of them."
        )
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
    otherwise = "" if config.distributed or config.fsdp > 1 else "; config.devices=1 takes any"
    whole = {"behaviour.prior_paths": config.behaviour.prior_paths, "eval.batch_size": config.eval.batch_size}
    for name, size in whole.items():
        if size % devices:
            below = size // devices * devices
            nearest = " and ".join(str(s) for s in (below, below + devices) if s)
            raise ConfigError(
                f"config.{name}={size} does not divide over {devices} devices; nearest are {nearest}{otherwise}."
            )

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
        f"{paths['prior']} prior paths with these config.behaviour fractions); "
        f"nearest are {nearest}{otherwise}."
    )
