"""The optimizer of a config."""

import optax
from ml_collections import ConfigDict
from optax.contrib import muon

from rtbjax import train

RULES = {"adam": optax.adam, "muon": muon}


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Linear warm-up, then cosine to 0."""
    settings = config.train
    return optax.warmup_cosine_decay_schedule(
        0.0 if settings.warmup_steps else settings.learning_rate,
        settings.learning_rate,
        settings.warmup_steps,
        max(settings.steps, settings.warmup_steps + 1),
    )


def make(config: ConfigDict) -> optax.GradientTransformation:
    """Of a config's ``train``."""
    settings = config.train
    return train.optimizer(
        learning_rate(config),
        settings.log_z_learning_rate,
        clip_norm=settings.clip_norm,
        rule=RULES[settings.optimizer],
    )
