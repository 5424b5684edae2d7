"""CLIP's text encoder, ``CLIPTextModel`` of transformers."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rtbjax.nets.pretrained.blocks import attend, layer_norm
from rtbjax.nets.pretrained.config import Reader


class TextEncoder(nn.Module):
    """A causal transformer over tokens; what it says of all of them is the condition of Stable Diffusion.

    Attributes:
      vocabulary: number of tokens.
      max_length: longest sequence.
      width: E.
      hidden: units of the layers between attentions.
      num_layers: number of transformer blocks.
      heads: of their attention.
      activation: ``quick_gelu`` (x times the sigmoid of 1.702 x) or ``gelu``.
      eps: of the layer normalisations.
    """

    vocabulary: int
    max_length: int
    width: int
    hidden: int
    num_layers: int
    heads: int
    activation: str
    eps: float

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L E"]:
        """The last hidden states, normalised.

        Raises:
          ValueError: more tokens than ``max_length``.
        """
        length = tokens.shape[1]
        if length > self.max_length:
            raise ValueError(f"The text encoder takes at most {self.max_length} tokens, got {length}.")
        positions = nn.Embed(self.max_length, self.width, name="embeddings.position_embedding")
        h = nn.Embed(self.vocabulary, self.width, name="embeddings.token_embedding")(tokens)
        h += positions(jnp.arange(length))[None]
        for i in range(self.num_layers):
            h = _Layer(self.hidden, self.heads, self.activation, self.eps, name=f"encoder.layers.{i}")(h)
        return layer_norm(h, "final_layer_norm", self.eps)

    def example(self) -> tuple[Any, ...]:
        """Shapes of arguments, to initialise with."""
        return (jax.ShapeDtypeStruct((1, 1), jnp.int32),)


class _Layer(nn.Module):
    hidden: int
    heads: int
    activation: str
    eps: float

    @nn.compact
    def __call__(self, h: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
        width, length = h.shape[-1], h.shape[1]
        tokens = layer_norm(h, "layer_norm1", self.eps)
        q, k, v = (
            nn.Dense(width, name=f"self_attn.{name}_proj")(tokens).reshape(*h.shape[:2], self.heads, -1)
            for name in "qkv"
        )
        mixed = attend(q, k, v, jnp.tril(jnp.ones((length, length), bool))).reshape(h.shape)
        h += nn.Dense(width, name="self_attn.out_proj")(mixed)
        r = nn.Dense(self.hidden, name="mlp.fc1")(layer_norm(h, "layer_norm2", self.eps))
        r = r * nn.sigmoid(1.702 * r) if self.activation == "quick_gelu" else nn.gelu(r, approximate=False)
        return h + nn.Dense(width, name="mlp.fc2")(r)


_DEFAULTS = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


def from_config(config: Mapping[str, Any]) -> TextEncoder:
    """The text encoder of a config; options of training and of pooling are left alone.

    Raises:
      PretrainedError: an activation that is not supported, or heads that do not divide the width.
    """
    read = Reader("CLIPTextModel", {key: config[key] for key in _DEFAULTS if key in config}, _DEFAULTS, {})
    if read["hidden_size"] % read["num_attention_heads"]:
        read.refuse(f"{read['num_attention_heads']} heads do not divide hidden_size={read['hidden_size']}")
    return TextEncoder(
        vocabulary=read["vocab_size"],
        max_length=read["max_position_embeddings"],
        width=read["hidden_size"],
        hidden=read["intermediate_size"],
        num_layers=read["num_hidden_layers"],
        heads=read["num_attention_heads"],
        activation=read.one_of("hidden_act", read["hidden_act"], ("quick_gelu", "gelu")),
        eps=read["layer_norm_eps"],
    )
