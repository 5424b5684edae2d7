"""Rewards of pictures that were asked for by a text."""

import io
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Array, Float, Int

from experiments import functions
from experiments.text_to_image import captions, contrastive
from experiments.text_to_image.contrastive import Contrastive

JPEG_QUALITY = 95
# Pictures in [-1, 1] and the places of their prompts, i32[B], to one number each.
PictureReward = Callable[[Float[Array, "B H W 3"], Int[np.ndarray, " B"]], Float[np.ndarray, " B"]]


def alignment(model: Contrastive, prompts: Sequence[str]) -> tuple[PictureReward, Callable[[Array], np.ndarray]]:
    """The contrastive model's log-probability of the prompt, at most 0, and which prompt it finds most probable.

    The prompts are held against each other and against all captions of training.

    Returns:
      The reward; and ``pictures -> i32[B]``, the place of the most probable text among the prompts, -1 if it is none.
    """
    texts, place = contrastive.asked_among(model.tokenizer(prompts), model.tokenizer(captions.CAPTIONS))
    texts = jnp.asarray(texts)

    @jax.jit
    def log_probability(x):
        return model.log_probability(x, texts)

    def reward(x, asked):
        return np.take_along_axis(np.asarray(log_probability(x)), place[asked][:, None], axis=1)[:, 0]

    def first_choice(x):
        chosen = np.argmax(log_probability(x), axis=1)
        same = chosen[:, None] == place[None]
        return np.where(same.any(axis=1), np.argmax(same, axis=1), -1)

    return reward, first_choice


def jpeg(x: Float[Array, "B H W 3"], asked: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """Minus the kilobytes of the picture as a JPEG of quality 95, as in DDPO (Black et al. 2024): compressibility."""
    return np.array([-_jpeg_size(one) / 1000.0 for one in to_bytes(x)], np.float32)


def named(function: str, prompts: Sequence[str]) -> PictureReward:
    """A Python function ``(images, prompts) -> scores``, of images ``f32[B, H, W, 3]`` in [0, 1].

    Args:
      function: as ``module:name``.
      prompts: those that places stand for.

    Raises:
      ConfigError: see `functions.load`.
    """
    score = functions.load("reward.function", function)

    def reward(x, asked):
        return np.asarray(score(to_unit(x), [prompts[place] for place in asked]))

    return reward


def weighted(terms: Sequence[tuple[float, PictureReward]]) -> PictureReward:
    """The sum of rewards times their weights."""

    def reward(x, asked):
        total = np.zeros(len(x), np.float32)
        for weight, term in terms:
            scores = term(x, asked)
            if scores.shape != total.shape:
                raise ValueError(f"a reward must give {len(x)} pictures one score each, got shape {scores.shape}")
            if scores.dtype == np.bool_:
                raise ValueError("a reward must give scores, not truth values: np.where(allowed, 0.0, -1000.0)")
            total = total + np.float32(weight) * scores.astype(np.float32)
        return total

    return reward


def to_unit(x: Float[Array, "B H W 3"]) -> Float[np.ndarray, "B H W 3"]:
    """From [-1, 1] to [0, 1], with what lies beyond cut off."""
    return np.clip((np.asarray(x, np.float32) + 1.0) / 2.0, 0.0, 1.0)


def to_bytes(x: Float[Array, "B H W 3"]) -> Int[np.ndarray, "B H W 3"]:
    """To uint8."""
    return np.round(255.0 * to_unit(x)).astype(np.uint8)


def _jpeg_size(picture: Int[np.ndarray, "H W 3"]) -> int:
    file = io.BytesIO()
    PIL.Image.fromarray(picture).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.tell()
