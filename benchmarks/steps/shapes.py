"""The training steps that are measured: each domain's own networks, chain and batch.

All paths are on-policy and the optimizer is Adam, so that every row can do the same work; what else a config's batches
hold, and how its posterior was warmed up, is left out. In control the Langevin term is, too, and of digits the gradient
of the value.
"""

import importlib

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict
from numpy import zeros

from experiments.domains.base import Domain, rows
from rtbjax.sharding import data_mesh

CONFIGS = {
    "gmm": ("gmm", ""),
    "mnist": ("mnist", ""),
    "control": ("d4rl", "paper"),
    "control_cpu": ("d4rl", ""),  # The default's, sized to two cores.
    "stories": ("stories", ""),
}


def config_of(name: str) -> ConfigDict:
    """The config of a shape, one of `CONFIGS`."""
    file, variant = CONFIGS[name]
    config = importlib.import_module(f"configs.{file}").get_config(variant)
    for behaviour in ("accepted", "noised", "prior", "replay", "widen"):
        config.behaviour[behaviour] = 0.0
    config.train.optimizer, config.train.learning_rate = "adam", 1e-3
    if config.domain == "images":
        config.posterior.kind = "steered"
    if config.domain == "control":
        config.posterior.langevin = False
    return config


def mesh_of(config: ConfigDict) -> Mesh:
    """The devices that a run of the config would have."""
    return data_mesh(min(config.cpu_devices, jax.device_count()) if jax.default_backend() == "cpu" else None)


def build(config: ConfigDict) -> Domain:
    return importlib.import_module(f"experiments.domains.{config.domain}").build(config)


def condition(config: ConfigDict, domain: Domain) -> PyTree:
    """A ``cond`` for a whole batch, the first of the domain's throughout; None without conditions."""
    if domain.conditions is None:
        return None
    return rows(domain.conditions.values, zeros(config.train.batch_size, int))


def describe(config: ConfigDict, domain: Domain) -> str:
    group = f" in groups of {config.objective.group}" if config.objective.group else ""
    return f"{config.train.batch_size} paths{group} of {config.process.num_steps} steps, event {domain.event_shape}"
