"""The prior p(z | x) of a config: the reward's language model from left to right, else a masked diffusion.

The latter is one that the project has trained, or SEDD or MDLM as they are published.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from jaxtyping import Array
from ml_collections import ConfigDict

from experiments.stories import infiller, infilling_prior, networks, published_prior
from experiments.stories.corpus import Corpus
from rtbjax import Policy


class Prior(NamedTuple):
    """Attributes:
    policy: of its ``cond`` it sees the beginning.
    clamped: the same with the ending laid behind the infill; None from left to right.
    correction: by a key, a copy that also reads the ending and whose output, zero at first, is added to the prior's.
    """

    policy: Policy
    clamped: Policy | None
    correction: Callable[[Array], Policy]


def load(config: ConfigDict, found: Corpus) -> Prior:
    """The prior.

    Raises:
      WeightsError: see `networks.load`.
      ConfigError: see `published_prior.load`.
    """
    if config.process.reveals == "left_to_right":
        return _causal(config, found)
    if config.prior.weights.endswith(".safetensors"):
        return _masked(config, found)
    return _published(config, found)


def _causal(config: ConfigDict, found: Corpus) -> Prior:
    net, params, vocabulary = networks.causal(config, found), networks.load(config, "reward", found), found.vocabulary
    writer = infiller.policy(net, params, ("before",), vocabulary)
    return Prior(writer, None, lambda key: infiller.correction(net, params, vocabulary.pad))


def _masked(config: ConfigDict, found: Corpus) -> Prior:
    net, params = networks.masked(config, found), networks.load(config, "prior", found)
    policy = partial(infilling_prior.policy, net, config.prior.head, params)
    correction = partial(infilling_prior.correction, net, params)
    return Prior(policy(sees_ending=False), policy(sees_ending=True), correction)


def _published(config: ConfigDict, found: Corpus) -> Prior:
    model, vocabulary = published_prior.load(config, found.vocabulary), found.vocabulary
    policy = partial(published_prior.policy, model, vocabulary)
    correction = published_prior.correction(model, vocabulary)
    return Prior(policy(sees_ending=False), policy(sees_ending=True), lambda key: correction)
