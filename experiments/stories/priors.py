"""The prior p(z | x) of a config: the reward's language model from left to right, else a masked diffusion.

The latter is one that the project has trained, or SEDD or MDLM as they are published.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from experiments.stories import infiller, infilling_prior, networks, published_prior
from experiments.stories.corpus import Corpus
from rtbjax import Policy

Predict = Callable[..., Array]  # (params, z, t, before, after or None) -> output of a masked model at z


class Prior(NamedTuple):
    """Attributes:
    policy: of its ``cond`` it sees the beginning.
    clamped: the same with the ending laid behind the infill; None from left to right.
    correction: by a key, a copy that also reads the ending and whose output, zero at first, is added to the prior's.
    """

    policy: Policy
    clamped: Policy | None
    correction: Callable[[Array], Policy]


def load(config: ConfigDict, found: Corpus, causal_params: PyTree | None) -> Prior:
    """The prior; ``causal_params`` are the weights of the reward's, where there are any.

    Raises:
      WeightsError: see `networks.load`.
      ConfigError: see `published_prior.load`.
    """
    if config.process.reveals == "left_to_right":
        return _causal(config, found, causal_params)
    if config.prior.weights.endswith(".safetensors"):
        return _masked(config, found)
    return _published(config, found)


def _causal(config: ConfigDict, found: Corpus, params: PyTree) -> Prior:
    net, vocabulary = networks.causal(config, found), found.vocabulary
    writer = infiller.policy(net, params, ("before",), vocabulary)
    return Prior(writer, None, lambda key: infiller.correction(net, params, vocabulary.pad))


def _masked(config: ConfigDict, found: Corpus) -> Prior:
    net, params = networks.masked(config, found), networks.load(config, "prior", found)
    predict = partial(infilling_prior.predict, net, config.prior.head)
    return _infilling(predict, params, partial(infilling_prior.correction, net, params))


def _published(config: ConfigDict, found: Corpus) -> Prior:
    model = published_prior.load(config, found.vocabulary)
    correction = published_prior.correction(model, found.vocabulary)
    predict = partial(published_prior.predict, model.module, found.vocabulary)
    return _infilling(predict, model.params, lambda key: correction)


def _infilling(predict: Predict, params: PyTree, correction: Callable[[Array], Policy]) -> Prior:
    return Prior(infill(predict, params, sees_ending=False), infill(predict, params, sees_ending=True), correction)


def infill(predict: Predict, params: PyTree, *, sees_ending: bool) -> Policy:
    """Fills the middle in behind ``cond["before"]``, and before ``cond["after"]`` if it sees the ending."""

    def apply_fn(params, z, t, cond):
        return predict(params, z, t, cond["before"], cond["after"] if sees_ending else None)

    return Policy(params, apply_fn)
