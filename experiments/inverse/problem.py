"""Problems of a config: an operator, and measurements of images, made or one's own."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from experiments import data, weights
from experiments.errors import ConfigError, checking
from experiments.settings import one_of
from experiments.streams import stream
from rtbjax import inverse

OPERATORS = ("inpainting", "super_resolution", "deblurring", "phase_retrieval")


@dataclasses.dataclass(frozen=True)
class Problems:
    """N measurements through one operator.

    Attributes:
      operator: A.
      noise: standard deviation of a measurement.
      y: ``[N, h, w, D]``.
      truth: ``[N, H, W, C]``, or None where it is not known.
      source: of the truths, for ``summary.json``.
      of_prior: whether the truths are the prior's: of others even the exact posteriors are not calibrated.
    """

    operator: inverse.Operator
    noise: float
    y: Float[Array, "N h w D"]
    truth: Float[np.ndarray, "N H W C"] | None
    source: str
    of_prior: bool = False


def make_operator(config: ConfigDict, shape: tuple[int, int, int]) -> inverse.Operator:
    """The operator of ``config.reward``.

    Raises:
      ConfigError: an unknown one, or one that does not fit images of this shape.
    """
    one_of(config, "reward.operator", OPERATORS)
    asked = config.reward
    with checking():
        if asked.operator == "super_resolution":
            return inverse.super_resolution(shape, asked.factor)
        if asked.operator == "deblurring":
            return inverse.deblurring(shape, asked.width)
        if asked.operator == "phase_retrieval":
            return inverse.phase_retrieval(shape, asked.oversampling)
        return inverse.inpainting(seen_outside(tuple(asked.box), shape))


def described(config: ConfigDict) -> list:
    """All that an operator and its noise depend on."""
    asked = config.reward
    return [asked.operator, asked.noise, *asked.box, asked.factor, asked.width, asked.oversampling]


def seen_outside(box: tuple[int, ...], shape: tuple[int, int, int]) -> np.ndarray:
    """All pixels but those of a box ``(top, left, height, width)``.

    Raises:
      ConfigError: the box does not lie within the image.
    """
    rows, cols, _ = shape
    whole = len(box) == 4 and all(type(side) is int for side in box)
    inside = whole and min(box) >= 0 and box[0] + box[2] <= rows and box[1] + box[3] <= cols
    if not inside:
        raise ConfigError(
            f"config.reward.box must be (top, left, height, width) within the {rows} x {cols} pixels, got {box}."
        )
    top, left, height, width = box
    seen = np.ones(shape, bool)
    seen[top : top + height, left : left + width] = False
    return seen


def count(config: ConfigDict) -> int:
    """Measurements that a config needs: one, or those to train on and those to evaluate.

    Raises:
      ConfigError: a number that is negative, or one of the two without the other.
    """
    asked = config.reward
    if min(asked.problems, asked.evaluated) < 0 or bool(asked.problems) != bool(asked.evaluated):
        raise ConfigError(
            "config.reward.problems and evaluated must both be 0, for one measurement, or both at least 1, "
            f"got {asked.problems} and {asked.evaluated}."
        )
    return max(1, asked.problems + asked.evaluated)


def make(config: ConfigDict, shape: tuple[int, int, int], from_prior: Float[np.ndarray, "M H W C"]) -> Problems:
    """The problems of a config; ``from_prior`` are samples of the prior, to be truths.

    Raises:
      ConfigError: a field that is not allowed.
      DataError: the images or the measurement cannot be read.
    """
    one_of(config, "reward.truth", ("data", "prior"))
    asked, operator, wanted = config.reward, make_operator(config, shape), count(config)
    if not 0.0 < asked.noise < float("inf"):
        raise ConfigError(f"config.reward.noise must be positive, got {asked.noise}.")
    if asked.measurement:
        if wanted > 1:
            raise ConfigError("config.reward.problems must be 0 with config.reward.measurement: it is a single one.")
        path = weights.locate(asked.measurement)
        y = read(path, operator.measured.shape)
        return Problems(operator, asked.noise, jnp.asarray(y[None]), None, path.name)
    if asked.truth == "data":
        found = data.load(config.data.set, config.data.path, "test")
        images, source = found.images, found.source
    else:
        images, source = from_prior, "samples of the prior"
    if not 0 <= asked.index <= len(images) - wanted:
        raise ConfigError(
            f"config.reward.index must lie in 0..{len(images) - wanted} for {wanted} of {len(images)} images "
            f"({source}), got {asked.index}."
        )
    truth = np.asarray(images[asked.index : asked.index + wanted], np.float32)
    exact = operator.measure(jnp.asarray(truth))
    error = jax.random.normal(stream(config.seed, "measurement"), exact.shape)
    y = exact + asked.noise * error * jnp.asarray(operator.measured, jnp.float32)[None]
    return Problems(operator, asked.noise, y, truth, source, of_prior=asked.truth == "prior")


def read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A measurement of one's own: array ``y`` of an npz file, in units of pixels in [-1, 1].

    Raises:
      DataError: no such file, or no finite numbers of this shape.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            y = np.asarray(file["y"], np.float32)
    except FileNotFoundError:
        raise data.DataError(f"There is no measurement {path}.") from None
    except Exception as error:
        raise data.DataError(f"{path} must be an npz file with an array 'y' of numbers ({error}).") from error
    if y.shape != shape or not np.isfinite(y).all():
        raise data.DataError(f"{path}: y must be finite numbers of shape {shape}, got shape {y.shape}.")
    return y
