"""Sets of infills to compare with, each of the same stories and through the same metrics."""

from collections.abc import Callable
from functools import partial
from typing import Any

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
from rtbjax import Policy, Process, left_to_right, one_by_one, rollout, smc

LogReward = Callable[[Array, Any], Array]
Draw = Callable[[Array, dict[str, Array]], Array]  # (key, cond of n paths) -> i32[n, L]


def of_prior(
    config: ConfigDict, found: Corpus, process: Process, prior: Policy, log_reward: LogReward
) -> dict[str, Draw]:
    """What selection makes of the prior: ``best_of`` several draws, and ``smc``, which selects on the way.

    From left to right there is no ``smc``: a law of the next token is no estimate of a whole infill to select by.
    """

    def best(key, cond):
        count = config.eval.best_of
        repeated = jax.tree.map(lambda a: jnp.repeat(a, count, axis=0), cond)
        x = rollout(key, process, prior, shape=shape_of(found, repeated), cond=repeated).xs[-1]
        return smc.best_of(count, x, log_reward(x, repeated))

    def selected(key, cond):
        beta = config.objective.beta
        return smc.steer(key, process, prior, log_reward, shape=shape_of(found, cond), cond=cond, beta=beta).x

    return {"best_of": best} | ({} if config.process.reveals == "left_to_right" else {"smc": selected})


def shape_of(found: Corpus, cond: dict[str, Array]) -> tuple[int, int]:
    return len(cond["before"]), found.train_tokens.middle.shape[1]


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
) -> Callable[[int], Samples]:
    """`of_prior` and `chains` of the evaluated stories: ``count -> {name: i32[N, count, L]}``.

    Raises:
      WeightsError: see `networks.load`.
    """

    def drawn(chain: Process, policy: Policy) -> Draw:
        return lambda key, cond: rollout(key, chain, policy, shape=shape_of(found, cond), cond=cond).xs[-1]

    others = chains(config, found, process, prior, causal_params)
    runs = {name: drawn(*other) for name, other in others.items()}
    runs |= of_prior(config, found, process, prior.policy, log_reward)
    stories = range(len(evaluated["before"]))

    def draw(count: int) -> Samples:
        for name in ("supervised", "supervised_autoregressive"):
            if not get(config, field := networks.FIELDS[name]):
                hosts.say(
                    f"There is no set {name!r}: config.{field} names no weights (--mode=pretrain "
                    f"--config.pretrain.what={name} makes them)."
                )
        key = stream(config.seed, "baselines")
        conds = [rows(evaluated, np.full(count, story)) for story in stories]
        jitted = {name: jax.jit(run) for name, run in runs.items()}
        return {
            name: np.stack([run(jax.random.fold_in(key, story), conds[story]) for story in stories])
            for name, run in jitted.items()
        }

    return draw
