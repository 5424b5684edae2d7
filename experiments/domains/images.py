"""Classifier-guided images: p(x) p(class | x), the prior a small U-Net the project trains (paper, sec. 3.1)."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from experiments import batches, weights
from experiments.domains.base import Domain, named
from experiments.errors import ConfigError
from experiments.images import networks, posteriors, rewards, training
from experiments.images.evaluation import Evaluation, plot
from experiments.settings import data_unread, no_strength, no_training, no_warm_start, one_of, other_precision


def check(config: ConfigDict) -> None:
    """Raises a ConfigError on a field of this domain that is not allowed."""
    one_of(config, "posterior.kind", posteriors.KINDS)
    networks.check_process(config)
    data_unread(config)
    count, kind = len(rewards.labels(config)), config.posterior.kind
    batches.check_group(config, count if count > 1 else 0)
    if count > 1:
        one_of(config, "posterior.kind", posteriors.CONDITIONAL)
    if kind in posteriors.GUIDED:
        no_training(config)
    else:
        no_strength(config)
    if kind not in posteriors.STEERED:
        no_warm_start(config, f"config.posterior.kind={kind} does not follow a value")
    if config.steer.steps and config.objective.beta != 1.0:
        raise ConfigError(
            "config.steer.steps must be 0 unless config.objective.beta is 1: the value is that of r itself."
        )
    if needs_value(config) and "value" not in config:
        raise ConfigError(f"config.posterior.kind={kind} follows a value, and this config has no section of that name.")


def needs_value(config: ConfigDict) -> bool:
    """Whether a value guides the posterior, steers it at first, or judges its particles."""
    if config.posterior.kind not in posteriors.STEERED:
        return False
    judges = config.eval.sampler == "smc_posterior" and config.objective.beta == 1.0
    return config.posterior.kind == "value_guided" or config.steer.steps > 0 or judges


def build(config: ConfigDict) -> Domain:
    """The domain of a config.

    Raises:
      ConfigError: an unknown label or parametrisation.
      WeightsError: the prior's, the classifier's or the value's weights cannot be read.
    """
    check(config)
    asked = rewards.labels(config)
    prior, process = networks.load_prior(config), networks.make_process(config)
    classifier, classifier_params = networks.load_classifier(config)
    log_reward = rewards.make_log_reward(classifier, classifier_params, asked)
    value = rewards.load_value(config) if needs_value(config) else None
    return Domain(
        name="images",
        data_source=f"prior trained on {networks.trained_on(config)}",
        process=process,
        event_shape=networks.shape(config),
        prior=prior,
        posterior=posteriors.make(config, process, prior, log_reward, value),
        log_reward=jax.jit(log_reward),
        log_bound=0.0,
        fingerprint=weights.fingerprint(
            prior.params,
            classifier_params,
            config.process.to_dict(),
            *(list(rewards.classes(label)) for label in asked),
            *other_precision(config),
        ),
        evaluate=Evaluation(classifier, classifier_params, log_reward, asked).metrics,
        plot=plot,
        value=value,
        conditions=named(asked) if len(asked) > 1 else None,
    )


def pretrain(config: ConfigDict, workdir: Path) -> None:
    """Trains the prior, or by ``pretrain.what`` the classifier or the value, and writes weights to the workdir.

    Raises:
      ConfigError: a field that is not allowed.
      DataError: the images cannot be read.
      WeightsError: see `training.train`.
    """
    one_of(config, "pretrain.what", ("prior", "reward", "value"))
    networks.check_process(config)
    training.train(config, config.pretrain.what, workdir)
