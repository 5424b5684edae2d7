"""What a label asks of an image: log r of a classifier, and log h, its value along the prior's paths."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree
from ml_collections import ConfigDict

from experiments import data, weights
from experiments.domains.base import Value
from experiments.errors import ConfigError
from experiments.images import networks
from rtbjax.nets.value import NoisyClassifier


def classes(label: str) -> tuple[int, ...]:
    """The classes of one label: a number, a name, or a group of classes."""
    return (int(label),) if label in data.NUMBERS else data.CLASSES[label]


def labels(config: ConfigDict) -> tuple[str, ...]:
    """What ``reward.label`` stands for: itself, or the conditions of one posterior.

    Raises:
      ConfigError: not a label.
    """
    label, known = config.reward.label, networks.image_set(config)
    if label in known.many:
        return known.many[label]
    if label not in (*data.NUMBERS, *known.labels):
        single, many = (", ".join(map(repr, names)) for names in (known.labels, known.many))
        raise ConfigError(f"config.reward.label must be 0..9, {single}, or for many at once {many}, got {label!r}.")
    return (label,)


def chosen_classes(asked: tuple[str, ...], cond: Int[Array, " B"] | None) -> Bool[Array, "N 10"]:
    """The classes of each sample's label; N is 1 for the same of all."""
    table = jnp.asarray(np.stack([np.isin(np.arange(10), classes(label)) for label in asked]))
    return table[:1] if cond is None else table[cond]


def make_log_reward(
    net: nn.Module, params: PyTree, asked: tuple[str, ...]
) -> Callable[[Array, Int[Array, " B"] | None], Float[Array, " B"]]:
    """``max over the label's classes of log p(class | x)``, at most 0 (paper, sec. 3.1).

    ``cond`` is the place of a sample's label in ``asked``, ``i32[B]``, or None where there is one label.
    """

    def log_reward(x, cond=None):
        log_p = jax.nn.log_softmax(net.apply({"params": params}, x))
        return jnp.max(log_p, axis=-1, where=chosen_classes(asked, cond), initial=-jnp.inf)

    return log_reward


def load_value(config: ConfigDict) -> Value:
    """log h: the noisy classifier's log probability of the label's classes.

    The reward of several classes is the largest of their probabilities and this is their sum, which differ where the
    classifier hesitates between them.

    Raises:
      ConfigError: not a label.
      WeightsError: see `networks.load`.
    """
    net = NoisyClassifier(**config.prior.network)
    like = weights.abstract_params(net, networks.blank(config), jnp.float32(0.0))
    params, asked = networks.load(config, "value", like), labels(config)

    def log_h(params, x, t, cond):
        log_p: Any = net.apply({"params": params}, x, t)
        return jax.nn.logsumexp(log_p, axis=-1, where=chosen_classes(asked, cond))

    return Value(params, log_h)
