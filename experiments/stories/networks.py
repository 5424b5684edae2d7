"""The networks of a config's stories and their weights.

``prior`` and ``supervised`` are masked transformers of the sizes in ``config.prior``, ``reward`` and
``supervised_autoregressive`` causal ones of the sizes in ``config.reward``.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from experiments import weights
from experiments.settings import get
from experiments.stories import infilling_prior, language_model
from experiments.stories.corpus import Corpus
from rtbjax.nets.transformer import CausalTransformer, MaskedTransformer

# Where a config names the weights of each; a run can do without those of baselines.
FIELDS = {
    "prior": "prior.weights",
    "reward": "reward.weights",
    "supervised": "baselines.supervised",
    "supervised_autoregressive": "baselines.supervised_autoregressive",
}
MASKED = ("prior", "supervised")
HEADS = "number of heads"  # Its name in a file's notes; it is in no shape.


def masked(config: ConfigDict, found: Corpus) -> MaskedTransformer:
    p = config.prior
    return MaskedTransformer(found.vocabulary.size, p.width, p.depth, p.heads)


def causal(config: ConfigDict, found: Corpus) -> CausalTransformer:
    r = config.reward
    return CausalTransformer(found.vocabulary.size, r.width, r.depth, r.heads)


def load(config: ConfigDict, what: str, found: Corpus) -> PyTree:
    """The weights of one of `FIELDS`.

    Raises:
      WeightsError: they cannot be read, or are of other sizes, another vocabulary or another head.
    """
    path = weights.locate(get(config, FIELDS[what]))
    notes = weights.metadata(path)
    for name, here in notes_of(config, what, found).items():  # Before the sizes, which follow from them.
        if notes.get(name) != here:
            found_there = f"was trained with another {name}" if name in notes else f"does not say its {name}"
            raise weights.WeightsError(
                f"config.{FIELDS[what]}: {path} {found_there}; weights for this config are made by --mode=pretrain "
                f"--config.pretrain.what={what}."
            )
    init = (
        partial(infilling_prior.init, masked(config, found))
        if what in MASKED
        else partial(language_model.init, causal(config, found))
    )
    return jax.tree.map(jnp.asarray, weights.load(path, jax.eval_shape(init, jax.random.key(0))))


def notes_of(config: ConfigDict, what: str, found: Corpus) -> dict[str, str]:
    """What weights must agree with beside their shapes."""
    sizes = config.prior if what in MASKED else config.reward
    notes = {"network": what, "vocabulary": weights.fingerprint(found.vocabulary.name), HEADS: str(sizes.heads)}
    return notes | ({"head": config.prior.head} if what in MASKED else {})
