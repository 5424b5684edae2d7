"""Pictures and texts in one space, by CLIP's contrastive training (Radford et al. 2021) in small."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from experiments import records, weights
from experiments.text_to_image.captions import SIDE
from rtbjax.nets.pretrained import clip, tokenizer
from rtbjax.nets.pretrained import folder as folders
from rtbjax.nets.pretrained.tokenizer import Tokenizer

_WEIGHTS = "towers.safetensors"


class Towers(nn.Module):
    """A text encoder and a convolutional image encoder, each projected to unit vectors.

    Attributes:
      text: the text encoder.
      end: the token that closes a text, where its state is read.
      width: D of the common space.
      channels: of the convolutions, each of which halves the sides.
    """

    text: clip.TextEncoder
    end: int
    width: int = 32
    channels: Sequence[int] = (16, 32, 64)

    def setup(self):
        self.text_encoder = self.text.clone(name=None, parent=None)
        self.convolutions = [nn.Conv(width, (3, 3), 2) for width in self.channels]
        self.image_hidden = nn.Dense(2 * self.width)
        self.image_projection = nn.Dense(self.width)
        self.text_projection = nn.Dense(self.width, use_bias=False)
        self.log_scale = self.param("log_scale", lambda _: jnp.log(jnp.float32(10.0)))

    def image(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Unit vectors of pictures in [-1, 1], which are first averaged down to the side the tower reads.

        Raises:
          ValueError: sides that are no multiple of it.
        """
        batch, height, width, channels = x.shape
        if height % SIDE or width % SIDE:
            raise ValueError(f"The contrastive model reads pictures with sides that divide by {SIDE}, got {x.shape}.")
        x = x.reshape(batch, SIDE, height // SIDE, SIDE, width // SIDE, channels).mean(axis=(2, 4))
        for convolution in self.convolutions:
            x = nn.gelu(convolution(x))
        return _unit(self.image_projection(nn.gelu(self.image_hidden(x.reshape(batch, -1)))))

    def texts(self, tokens: Int[Array, "N L"]) -> Float[Array, "N D"]:
        """Unit vectors of texts."""
        states = self.text_encoder(tokens)
        last = jnp.argmax(tokens == self.end, axis=1)
        return _unit(self.text_projection(jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]))

    def __call__(self, x: Float[Array, "B H W 3"], tokens: Int[Array, "N L"]) -> Float[Array, "B N"]:
        """Log-probabilities of the texts given each picture."""
        return nn.log_softmax(jnp.exp(self.log_scale) * self.image(x) @ self.texts(tokens).T)


def _unit(h: Float[Array, "B D"]) -> Float[Array, "B D"]:
    return h / jnp.sqrt(jnp.sum(h**2, axis=-1, keepdims=True) + 1e-12)


def init(net: Towers, key: Array) -> PyTree:
    return jax.jit(net.init)(key, jnp.zeros((1, SIDE, SIDE, 3)), jnp.full((1, 1), net.end, jnp.int32))["params"]


def loss(net: Towers, params: PyTree, x: Float[Array, "B H W 3"], tokens: Any, answer: Int[Array, " B"]) -> Array:
    """Nats of each picture's own text among all texts, ``f32[B]``."""
    log_p: Any = net.apply({"params": params}, x, tokens)
    return -jnp.take_along_axis(log_p, answer[:, None], axis=1)[:, 0]


class Contrastive(NamedTuple):
    """A trained model.

    Attributes:
      towers: the network.
      params: of it.
      tokenizer: of its texts.
    """

    towers: Towers
    params: PyTree
    tokenizer: Tokenizer

    def embedding(self, x: Float[Array, "B H W 3"]) -> Any:
        """Unit vectors of pictures in [-1, 1], ``f32[B, D]``."""
        return self.towers.apply({"params": self.params}, x, method="image")

    def log_probability(self, x: Float[Array, "B H W 3"], tokens: Any) -> Any:
        """Log-probabilities of the texts given each picture, ``f32[B, N]``."""
        return self.towers.apply({"params": self.params}, x, tokens)


def towers(settings: Mapping[str, Any], words: Tokenizer) -> Towers:
    """The network whose text encoder has this config of transformers."""
    return Towers(clip.from_config(settings), words.end)


def save(folder: Path, settings: Mapping[str, Any], params: PyTree, notes: dict[str, Any]) -> None:
    """Writes what `load` reads beside the tokenizer, which is there already."""
    records.write_json(folder / "config.json", settings)
    weights.save(folder / _WEIGHTS, params, notes)


def load(folder: Path) -> Contrastive:
    """Reads a model.

    Raises:
      PretrainedError: config or tokenizer are missing or unreadable.
      WeightsError: the weights are, or are of another network.
    """
    words = tokenizer.load(folder)
    net = towers(folders.read_config(folder), words)
    params = weights.load(folder / _WEIGHTS, jax.eval_shape(lambda key: init(net, key), jax.random.key(0)))
    return Contrastive(net, jax.tree.map(jnp.asarray, params), words)


def asked_among(
    asked: Int[np.ndarray, "P L"], others: Int[np.ndarray, "C L"]
) -> tuple[Int[np.ndarray, "N L"], Int[np.ndarray, " P"]]:
    """The different texts among those asked for and others, and where among them those asked for are."""
    every, place = np.unique(np.concatenate([asked, others]), axis=0, return_inverse=True)
    return every, place.reshape(-1)[: len(asked)].astype(np.int32)
