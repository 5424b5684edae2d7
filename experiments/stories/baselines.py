"""Sets of infills to compare with, each of the same stories and through the same metrics."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from experiments import hosts
from experiments.domains.base import Samples, rows
from experiments.settings import get
from experiments.stories import infiller, infilling_prior, networks
from experiments.stories.corpus import Corpus
from experiments.stories.priors import Prior, infill
from experiments.streams import stream
from rtbjax import Policy, Process, RewardFn, left_to_right, one_by_one, rollout, smc

LogReward = Callable[[Array, int], np.ndarray]  # (z[B, L], story) -> f[B]


def chains(
    config: ConfigDict, found: Corpus, process: Process, prior: Prior, causal_params: PyTree | None
) -> dict[str, tuple[Process, Policy]]:
    """Other networks with the chain that each is run on.

    ``clamped``: a masked prior with the ending laid behind the infill, where it has never seen one.
    ``autoregressive``: the project's language model continues the beginning, where there are weights of it.
    ``supervised`` and ``supervised_autoregressive``: a masked and a causal model that learned p(z | x, y) from data,
    where the config names their weights.

    Raises:
      WeightsError: see `networks.load`.
    """
    _, length = found.train_tokens.middle.shape
    writing, vocabulary = left_to_right(length, found.vocabulary.size), found.vocabulary
    masked, causal, head = networks.masked(config, found), networks.causal(config, found), config.prior.head
    found_chains = {}
    if prior.clamped is not None:
        found_chains["clamped"] = (process, prior.clamped)
    if prior.clamped is not None and causal_params is not None:
        continuing = infiller.policy(causal, causal_params, ("before",), vocabulary)
        found_chains["autoregressive"] = (writing, continuing)
    if config.baselines.supervised:
        params = networks.load(config, "supervised", found)
        filling = infill(partial(infilling_prior.predict, masked, head), params, sees_ending=True)
        found_chains["supervised"] = (one_by_one(length, vocabulary.size), filling)
    if config.baselines.supervised_autoregressive:
        params = networks.load(config, "supervised_autoregressive", found)
        writer = infiller.policy(causal, params, ("before", "after"), vocabulary)
        found_chains["supervised_autoregressive"] = (writing, writer)
    return found_chains


def make(
    config: ConfigDict,
    found: Corpus,
    process: Process,
    prior: Prior,
    causal_params: PyTree | None,
    log_reward: LogReward,
    evaluated: dict[str, Array],
    *,
    steering: RewardFn | None,
) -> Callable[[int], Samples]:
    """Sets of infills of the evaluated stories, ``count -> {name: i32[N, count, L]}``.

    Those of `chains`; ``best_of`` several draws of the prior; ``smc``, a system of ``count`` particles that selects
    among the prior's paths on the way. From left to right there is none: a law of the next token is no estimate of a
    whole infill to select by. Nor by a reward outside JAX.

    Args:
      log_reward: of infills of a story, by its number, checked.
      steering: log r in JAX with its ``cond``; None if there is none.

    Raises:
      WeightsError: see `networks.load`.
    """
    length, best_of, stories = found.train_tokens.middle.shape[1], config.eval.best_of, range(len(evaluated["before"]))
    selects = steering is not None and config.process.reveals != "left_to_right"

    def sampler(chain: Process, policy: Policy) -> Callable[[Array, int, int], np.ndarray]:
        """``(key, story, count) -> infills``, as many at once as ``eval.batch_size``."""

        @jax.jit
        def draw(key, index, cond):
            return rollout(key, chain, policy, shape=(len(index), length), cond=cond, index=index).xs[-1]

        def of_story(key, story, count):
            size = min(count, config.eval.batch_size)
            cond = rows(evaluated, np.full(size, story))
            parts = [draw(key, first + jnp.arange(size), cond) for first in range(0, count, size)]
            return np.concatenate(parts)[:count]

        return of_story

    of_prior = sampler(process, prior.policy)

    def best(key, story, count):
        x = of_prior(key, story, count * best_of)
        return smc.best_of(best_of, x, jnp.asarray(log_reward(x, story)))

    @partial(jax.jit, static_argnames="count")
    def steered(key, cond, count):
        arguments = {"shape": (count, length), "cond": cond, "beta": config.objective.beta}
        return smc.steer(key, process, prior.policy, steering, **arguments).x

    def selected(key, story, count):
        return steered(key, rows(evaluated, np.full(count, story)), count)

    others = chains(config, found, process, prior, causal_params)
    samplers = {name: sampler(*other) for name, other in others.items()} | {"best_of": best}
    samplers |= {"smc": selected} if selects else {}

    def draw(count: int) -> Samples:
        for name in ("supervised", "supervised_autoregressive"):
            if not get(config, field := networks.FIELDS[name]):
                hosts.say(
                    f"There is no set {name!r}: config.{field} names no weights (--mode=pretrain "
                    f"--config.pretrain.what={name} makes them)."
                )
        if steering is None and config.process.reveals != "left_to_right":
            hosts.say("There is no set 'smc': particles are judged within a jitted program, and the reward is outside.")
        key = stream(config.seed, "baselines")
        return {
            name: np.stack([sample(jax.random.fold_in(key, story), story, count) for story in stories])
            for name, sample in samplers.items()
        }

    return draw
