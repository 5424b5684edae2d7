"""The optimizer of a config."""

import jax
import optax
from jaxtyping import PyTree
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers

from rtbjax import train


def muon(learning_rate: optax.ScalarOrSchedule, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Orthogonalised momentum for every kernel, a matrix ``[fan_in, fan_out]``; Nesterov's Adam for the rest."""

    def matrices(params: PyTree) -> PyTree:
        def numbers(leaf):
            is_matrix = leaf.ndim >= 2 and min(leaf.shape[-1], leaf.size // leaf.shape[-1]) > 1
            return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1) if is_matrix else None

        return jax.tree.map(numbers, params)

    return optax.contrib.muon(learning_rate, weight_decay=weight_decay, muon_weight_dimension_numbers=matrices)


def adam(learning_rate: optax.ScalarOrSchedule, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Adam, with decoupled weight decay if there is any."""
    return optax.adamw(learning_rate, weight_decay=weight_decay) if weight_decay else optax.adam(learning_rate)


RULES = {"adam": adam, "muon": muon}


def learning_rate(peak: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """Linear warm-up to ``peak``, then cosine to 0."""
    first = 0.0 if warmup_steps else peak
    return optax.warmup_cosine_decay_schedule(first, peak, warmup_steps, max(steps, warmup_steps + 1))


def make(config: ConfigDict) -> optax.GradientTransformation:
    """Of a config's ``train``."""
    settings = config.train
    return train.optimizer(
        learning_rate(settings.learning_rate, settings.warmup_steps, settings.steps),
        settings.log_z_learning_rate,
        clip_norm=settings.clip_norm,
        rule=RULES[settings.optimizer],
    )
