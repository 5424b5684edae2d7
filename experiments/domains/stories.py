"""Story infilling: the middle z of a story from p(z | x) r(z)^beta, given its beginning x and ending y.

The prior p(z | x) is a masked diffusion trained on beginnings and middles alone, the reward r a causal language model's
likelihood of the ending, p(y | x, z), or a function of one's own. Every story is a condition with a posterior of its
own, and the posterior's network sees both x and y. An infill fills a slot that is as long as the longest middle, padded
at will. Written from left to right, the prior is the reward's language model itself, and RTB what is called GFlowNet
fine-tuning.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from experiments import weights
from experiments.domains.base import Conditions, Domain, rows
from experiments.errors import ConfigError
from experiments.settings import no_strength, no_warm_start, one_of, patience
from experiments.stories import (
    baselines,
    corpus,
    hosted,
    language_model,
    likeness,
    networks,
    priors,
    training,
)
from experiments.stories.corpus import Corpus, Tokens
from experiments.stories.evaluation import Evaluation
from experiments.stories.priors import Prior
from experiments.streams import stream
from rtbjax import Policy, Process, RewardFn, absorbing, left_to_right, one_by_one, posterior, rewards
from rtbjax.schedules import linear_mask_rate, loglinear_mask_rate


def check(config: ConfigDict) -> None:
    """Raises a ConfigError on a field of this domain that is not allowed."""
    one_of(config, "posterior.kind", ("correction", "lora"))
    one_of(config, "prior.head", ("mdlm", "sedd"))
    one_of(config, "process.reveals", ("one_by_one", "independent", "left_to_right"))
    one_of(config, "precision", ("float32",))
    no_warm_start(config)
    no_strength(config)
    if config.process.reveals == "left_to_right" and config.behaviour.noised:
        raise ConfigError(
            "config.behaviour.noised must be 0 for config.process.reveals=left_to_right: a middle that is no single "
            "closed sentence has probability 0 there."
        )
    baseline = config.eval.bert_score.baseline
    if not 0.0 <= baseline < 1.0:
        raise ConfigError(f"config.eval.bert_score.baseline must be at least 0 and below 1, got {baseline}.")
    for section in ("prior", "reward"):
        sizes = config[section]
        if sizes.heads < 1 or sizes.depth < 1 or sizes.width % (2 * sizes.heads):
            raise ConfigError(
                f"config.{section}.width must be a multiple of twice config.{section}.heads={sizes.heads}, "
                f"and depth at least 1, got {sizes.width} and {sizes.depth}."
            )
    if config.reward.function and config.reward.model:
        raise ConfigError(
            "config.reward.function and config.reward.model must not both be given: log r is of one of them, got "
            f"{config.reward.function!r} and {config.reward.model!r}."
        )
    if config.eval.stories > config.data.test_stories:
        raise ConfigError(
            f"config.eval.stories must be at most config.data.test_stories={config.data.test_stories}, "
            f"got {config.eval.stories}."
        )


def pretrain(config: ConfigDict, workdir: Path) -> None:
    """Trains what ``pretrain.what`` names, one of `networks.FIELDS`, and writes its weights to the workdir.

    Raises:
      ConfigError: a field that is not allowed.
      DataError: the stories cannot be read.
    """
    one_of(config, "pretrain.what", tuple(networks.FIELDS))
    check(config)
    training.train(config, corpus.load(config.data, config.data.stories), config.pretrain.what, workdir)


def make_posterior(config: ConfigDict, prior: Prior, key: Array) -> Policy:
    """The prior's output plus that of a copy of its network which also reads the ending, and starts at zero."""
    learner = copy = prior.correction(key)
    if config.posterior.kind == "lora":
        learner = posterior.lora(
            jax.random.fold_in(key, 1), copy, config.posterior.rank, select=config.posterior.select
        )
    return posterior.correction(
        learner.params,
        lambda params, z, t, cond, _: learner.apply_fn(params, z, t, cond),
        look=lambda output, z, t, cond: (),
    )


def make_process(config: ConfigDict, found: Corpus) -> Process:
    """The chain of a config.

    Raises:
      ConfigError: one token per step, and not as many steps as the slot has places.
    """
    steps, size, length = config.process.num_steps, found.vocabulary.size, found.train_tokens.middle.shape[1]
    if config.process.reveals == "independent":
        rates = {"mdlm": linear_mask_rate, "sedd": loglinear_mask_rate}[config.prior.head]
        return absorbing(rates(steps), size, head=config.prior.head)
    if steps != length:
        raise ConfigError(
            f"config.process.num_steps must be {length}, the places of an infill, for config.process.reveals="
            f"{config.process.reveals}, got {steps}."
        )
    return left_to_right(length, size) if config.process.reveals == "left_to_right" else one_by_one(length, size)


def on_host(config: ConfigDict) -> bool:
    """Whether the reward is not in JAX."""
    return bool(config.reward.function or config.reward.model)


def load_reward(config: ConfigDict, found: Corpus, params: PyTree | None) -> tuple[RewardFn, Any]:
    """log r, ``(z[B, L], cond) -> f32[B]``, and what changes with it.

    That is what a function says, or log p(y | x, z) by a hosted model or by our own, whose weights are ``params``.

    Raises:
      UserError: the function or the model cannot be loaded.
    """
    if on_host(config):
        reward = (
            hosted.NamedFunction(config.reward.function, found.vocabulary)
            if config.reward.function
            else hosted.HostedLanguageModel(config.reward.model, found.vocabulary)
        )
        return reward.log_reward, reward.fingerprint
    net, pad = networks.causal(config, found), found.vocabulary.pad

    def log_reward(z, cond):
        return language_model.log_likelihood(net, params, cond["before"], z, cond["after"], pad)

    return jax.jit(log_reward), params


def condition(tokens: Tokens, count: int) -> dict[str, Array]:
    """Beginning and ending of the first stories."""
    return {"before": jnp.asarray(tokens.before[:count]), "after": jnp.asarray(tokens.after[:count])}


def build(config: ConfigDict) -> Domain:
    """The domain of a config.

    Raises:
      ConfigError: an unknown parametrisation or head, a number that is not allowed, or a published prior that cannot be
        read or does not fit.
      DataError: the stories cannot be read.
      WeightsError: the weights of prior or reward cannot be read, or are of another vocabulary.
      UserError: see `load_reward`.
    """
    check(config)
    if not config.reward.weights and (not on_host(config) or config.process.reveals == "left_to_right"):
        raise ConfigError(
            "config.reward.weights must name the weights of a language model: without them there is no prior from left "
            "to right, and no reward but that of config.reward.model or config.reward.function."
        )
    found = corpus.load(config.data, config.data.conditions)
    causal_params = networks.load(config, "reward", found) if config.reward.weights else None
    prior = priors.load(config, found, causal_params)
    weights.keep_out_of_programs(prior.policy.params)
    log_reward, reward = load_reward(config, found, causal_params)
    shown = config.eval.stories
    conditions = Conditions(
        values=condition(found.train_tokens, config.data.conditions),
        evaluated=condition(found.test_tokens, shown),
        names=tuple(f"story {number}" for number in range(shown)),
        examples=jnp.asarray(found.train_tokens.middle),
    )

    def log_reward_of(z, number):
        parts = (z[first : first + config.eval.batch_size] for first in range(0, len(z), config.eval.batch_size))
        return np.concatenate([log_reward_of_part(part, number) for part in parts]).astype(np.float64)

    def log_reward_of_part(z, number):
        cond = rows(conditions.evaluated, np.full(len(z), number))
        return rewards.evaluate(log_reward, jnp.asarray(z), cond, **patience(config))

    process = make_process(config, found)
    evaluation = Evaluation(
        found.test[:shown],
        found.vocabulary,
        log_reward_of,
        baselines.make(
            config,
            found,
            process,
            prior,
            causal_params,
            log_reward_of,
            conditions.evaluated,
            steering=None if on_host(config) else log_reward,
        ),
        likeness.make(config, found.vocabulary, causal_params),
        grammar=not config.data.path and not config.reward.function and config.objective.beta == 1.0,
        seed=config.seed,
    )
    return Domain(
        name="stories",
        data_source=f"{len(found.train_tokens.middle)} stories of {found.source}",
        process=process,
        event_shape=found.train_tokens.middle.shape[1:],
        prior=prior.policy,
        posterior=make_posterior(config, prior, stream(config.seed, "posterior")),
        log_reward=log_reward,
        # A probability; of long endings, or by a model of other texts, it is too small for rejection.
        log_bound=None if config.data.path or on_host(config) else 0.0,
        fingerprint=weights.fingerprint(
            prior.policy.params, reward, config.process.to_dict(), config.prior.head, conditions.evaluated
        ),
        evaluate=evaluation.metrics,
        plot=evaluation.plot,
        conditions=conditions,
    )
