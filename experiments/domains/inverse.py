"""Inverse problems: p(x) N(y | A(x), sigma^2), the prior one of the images' domain.

The posterior starts as a guide, whose gradient of the likelihood goes through the prior's estimate of x0
(`rtbjax.guidance.reconstruction`); training scales it step by step, adds the score of a small network to it, and may
learn the step variances. Many measurements can share one posterior, which is told y by the guide alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import weights
from experiments.domains.base import Conditions, Domain
from experiments.errors import ConfigError
from experiments.images import networks, posteriors
from experiments.inverse import problem
from experiments.inverse.evaluation import Evaluation
from experiments.inverse.problem import Problems
from experiments.settings import data_unread, no_strength, no_warm_start, one_of, other_precision
from experiments.streams import stream
from rtbjax import Policy, Process, guidance, inverse, posterior, rollout


def build(config: ConfigDict) -> Domain:
    """The domain of a config.

    Raises:
      ConfigError: a field that is not allowed.
      DataError: the images or the measurement cannot be read.
      WeightsError: the prior's weights cannot be read.
    """
    one_of(config, "posterior.kind", ("guided",))
    no_warm_start(config)
    no_strength(config)
    if config.reward.truth == "prior" or config.reward.measurement:
        data_unread(config)
    if not 0.0 < config.eval.dps_strength < float("inf"):
        raise ConfigError(f"config.eval.dps_strength must be positive, got {config.eval.dps_strength}.")
    if config.objective.beta != 1.0:
        raise ConfigError("config.objective.beta must be 1: tempering a measurement is another reward.noise.")
    shape = networks.shape(config)
    wanted = problem.count(config)
    prior, process = networks.load_prior(config), networks.make_process(config)
    problems = problem.make(config, shape, truths(config, process, prior, wanted))
    trained_on, evaluated = split(config, problems)
    operator, noise = problems.operator, problems.noise

    def measured(cond):
        """Of each path, or the one there is."""
        return trained_on.y if cond is None else cond

    def misfit(x, cond):
        return inverse.misfit(operator, measured(cond), x, noise)

    def log_reward(x, cond=None):
        return inverse.log_likelihood(operator, measured(cond), x, noise)

    level = networks.make_schedule(config).alpha_bar
    guide = guidance.reconstruction(process, prior, misfit, (1.0 - level) / np.sqrt(level))
    evaluation = Evaluation(evaluated)
    return Domain(
        name="inverse",
        data_source=f"prior trained on {networks.trained_on(config)}; {config.reward.operator} of {problems.source}",
        process=process,
        event_shape=shape,
        prior=prior,
        posterior=guided(config, process, guide, operator),
        log_reward=jax.jit(log_reward),
        log_bound=inverse.log_bound(operator, noise),
        rare=config.reward.rare,
        fingerprint=weights.fingerprint(
            prior.params, config.process.to_dict(), evaluated.y, problem.described(config), *other_precision(config)
        ),
        evaluate=evaluation.metrics,
        plot=evaluation.plot,
        conditions=make_conditions(config, trained_on, evaluated) if wanted > 1 else None,
        baselines={"dps": guidance.posterior_sampling(process, prior, log_reward, strength=config.eval.dps_strength)},
    )


def truths(config: ConfigDict, process: Process, prior: Policy, wanted: int) -> np.ndarray:
    """Samples of the prior, as many as may be measured; none where data are."""
    shape = networks.shape(config)
    if config.reward.truth != "prior":
        return np.zeros((0, *shape), np.float32)
    count = max(config.reward.index, 0) + wanted
    roll = jax.jit(lambda key, prior: rollout(key, process, prior, shape=(count, *shape)).xs[-1])
    return np.asarray(roll(stream(config.seed, "truth"), prior))


def split(config: ConfigDict, problems: Problems) -> tuple[Problems, Problems]:
    """Those to train on, and those to evaluate: the same one where there is one."""
    first = config.reward.problems
    if not first:
        return problems, problems
    truth = problems.truth
    assert truth is not None

    def part(chosen: slice) -> Problems:
        return dataclasses.replace(problems, y=problems.y[chosen], truth=truth[chosen])

    return part(slice(None, first)), part(slice(first, None))


def make_conditions(config: ConfigDict, trained_on: Problems, evaluated: Problems) -> Conditions:
    """A condition is a measurement; the evaluated ones are others than those that are trained on."""
    first = config.reward.index + len(trained_on.y)
    names = tuple(f"image {first + number}" for number in range(len(evaluated.y)))
    return Conditions(values=trained_on.y, evaluated=evaluated.y, names=names)


def guided(config: ConfigDict, process: Process, guide: Policy, operator: inverse.Operator) -> Policy:
    """The guide with a strength for each step, the score of a small U-Net, and perhaps step variances."""
    net, steps = networks.make_small_unet(config), process.num_steps
    learner = posteriors.with_score(stream(config.seed, "posterior"), config, process, guide, net)
    if not config.posterior.learn_variance:
        return learner
    # Of every step one number for all pixels, and one for those that were seen: a measurement narrows these alone.
    mask = jnp.asarray(operator.seen, jnp.float32)[None]
    table = {"all": jnp.zeros((steps, 1, 1, 1)), "seen": jnp.zeros((steps, 1, 1, 1))}

    def head(table, x, t, cond):
        i = process.step_at(t)
        return table["all"][i][None] + mask * table["seen"][i][None]

    return posterior.learned_std(learner, table, head)
