"""SEDD or MDLM with published weights as the prior p(z | x), over GPT-2's byte pairs, which it was trained on.

It knows no padding. To it, what fills a slot is the end of a text, which may follow the last sentence and precede the
first: so a beginning is moved to the end of its slot, where the middle goes on at once. No end of a text is in a middle
but this.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from experiments import weights
from experiments.errors import ConfigError, checking
from experiments.stories.words import Bytes, Vocabulary
from rtbjax.nets.pretrained import ddit
from rtbjax.nets.pretrained.ddit import DiffusionTransformer, MaskedLanguageModel
from rtbjax.types import Policy

HEAD = "output_layer.linear"


def load(config: ConfigDict, vocabulary: Vocabulary) -> MaskedLanguageModel:
    """The model in the folder, or of the hub id, that ``prior.weights`` names.

    Raises:
      ConfigError: it cannot be read, or is of another vocabulary or head than the config's.
    """
    with checking("prior.weights"):
        model = ddit.load(weights.locate_model(config.prior.weights))
    if model.module.head != config.prior.head:
        raise ConfigError(
            f"config.prior.head must be {model.module.head} for the model {config.prior.weights}, "
            f"got {config.prior.head}."
        )
    if not isinstance(vocabulary, Bytes) or vocabulary.pad != model.module.vocab_size:
        raise ConfigError(
            f"config.data.tokenizer must be a folder with the {model.module.vocab_size} byte pairs of the model "
            f"{config.prior.weights}, got {config.data.tokenizer}."
        )
    return model


def predict(
    net: DiffusionTransformer,
    vocabulary: Vocabulary,
    params: PyTree,
    z: Int[Array, "B L"],
    t: Float[Array, "*B"],
    before: Int[Array, "B X"],
    after: Int[Array, "B Y"] | None = None,
) -> Float[Array, "B L V"]:
    """Output at the middle of the text ``before, z`` (``after``), over the vocabulary's tokens, padding included."""
    pad, end = vocabulary.pad, vocabulary.end
    before = jnp.take_along_axis(before, jnp.argsort(before != pad, axis=1, stable=True), axis=1)
    text = jnp.concatenate([before, z] if after is None else [before, z, after], axis=1)
    # Padding is the last of our tokens, and what it stands for one of the model's; masks are the first beyond either's.
    text = jnp.where(text == pad, end, jnp.where(text == vocabulary.size, net.vocab_size, text))
    found: Any = net.apply({"params": params}, text, t, (before.shape[1], z.shape[1]))
    return jnp.concatenate([found.at[..., end].set(-jnp.inf), found[..., end : end + 1]], axis=-1)


def correction(model: MaskedLanguageModel, vocabulary: Vocabulary) -> Policy:
    """A copy that also reads the ending, and whose output is zero, to be added to that of the original."""
    # As MDLM, whose output is what its head says: that of SEDD is a score, which is not zero where the head is.
    net = model.module.clone(head="mdlm")
    copy = model.params | {HEAD: jax.tree.map(jnp.zeros_like, model.params[HEAD])}

    def apply_fn(params, z, t, cond):
        change = predict(net, vocabulary, params, z, t, cond["before"], cond["after"])
        return change.at[..., vocabulary.end].set(0.0)  # Impossible as it is.

    return Policy(copy, apply_fn)
