"""Inverse problems: images that are seen through a known operator and noise, ``y = A(x) + sigma eps``.

The reward of such a problem is the likelihood ``r(x) = N(y | A(x), sigma^2)``, so that Z is the evidence p(y).
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rtbjax.types import check_shape

_TINY = 1e-12  # Keeps the gradient of an amplitude finite where it vanishes.


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """What is measured of an image.

    Attributes:
      measure: A, ``[B, H, W, C] -> [B, h, w, D]``; a measurement is an image too, so that it can be looked at.
      measured: which entries of y are measurements, ``bool[h, w, D]``; the others are blank.
      seen: which pixels some measurement depends on, ``bool[H, W, C]``.
    """

    measure: Callable[[Float[Array, "B H W C"]], Float[Array, "B h w D"]]
    measured: Bool[np.ndarray, "h w D"]
    seen: Bool[np.ndarray, "H W C"]


def inpainting(seen: Bool[np.ndarray, "H W C"]) -> Operator:
    """The pixels in ``seen``; the others are blank.

    Raises:
      ValueError: no pixel is seen, or ``seen`` is not that of an image with channels.
    """
    seen = np.asarray(seen, bool)
    check_shape("seen", seen, ("H", "W", "C"))
    if not seen.any():
        raise ValueError("Inpainting needs at least one pixel that is seen.")
    return Operator(lambda x: x * jnp.asarray(seen, x.dtype)[None], seen, seen)


def super_resolution(shape: tuple[int, int, int], factor: int) -> Operator:
    """Means over squares of ``factor`` pixels.

    Raises:
      ValueError: ``factor`` does not divide the sides.
    """
    rows, cols, channels = shape
    if factor < 1 or rows % factor or cols % factor:
        raise ValueError(f"factor must divide the sides {rows} and {cols} of the image, got {factor}.")
    small = (rows // factor, cols // factor, channels)

    def measure(x):
        return x.reshape(len(x), small[0], factor, small[1], factor, channels).mean(axis=(2, 4))

    return Operator(measure, np.ones(small, bool), np.ones(shape, bool))


def deblurring(shape: tuple[int, int, int], width: float) -> Operator:
    """The image under a Gaussian blur of standard deviation ``width`` pixels, renormalised at the border.

    Raises:
      ValueError: ``width`` is not positive.
    """
    if not width > 0.0:
        raise ValueError(f"width must be positive, got {width}.")
    down, across = (_blur(side, width) for side in shape[:2])

    def measure(x):
        return jnp.einsum("ih,bhwc,jw->bijc", jnp.asarray(down, x.dtype), x, jnp.asarray(across, x.dtype))

    return Operator(measure, np.ones(shape, bool), np.ones(shape, bool))


def _blur(side: int, width: float) -> Float[np.ndarray, "side side"]:
    place = np.arange(side)
    weight = np.exp(-0.5 * ((place[:, None] - place[None]) / width) ** 2)
    return weight / weight.sum(axis=1, keepdims=True)


def phase_retrieval(shape: tuple[int, int, int], oversampling: int = 2) -> Operator:
    """Amplitudes of the Fourier transform of the brightness, ``(x + 1) / 2``, padded to ``oversampling`` its sides.

    The transform is unitary. An image, itself turned by 180 degrees, and itself moved where it is dark around, have the
    same amplitudes: a posterior of several modes.

    Raises:
      ValueError: ``oversampling`` is not positive.
    """
    if oversampling < 1:
        raise ValueError(f"oversampling must be at least 1, got {oversampling}.")
    rows, cols, channels = shape
    padded = (oversampling * rows, oversampling * cols)

    def measure(x):
        waves = jnp.fft.rfft2(0.5 * (x + 1.0), padded, axes=(1, 2), norm="ortho")
        return jnp.sqrt(waves.real**2 + waves.imag**2 + _TINY)

    measured = np.ones((padded[0], padded[1] // 2 + 1, channels), bool)
    return Operator(measure, measured, np.ones(shape, bool))


def misfit(
    operator: Operator, y: Float[Array, "#B h w D"], x: Float[Array, "B H W C"], noise: float
) -> Float[Array, "B h w D"]:
    """``(y - A(x)) / noise`` where there are measurements, 0 elsewhere.

    Raises:
      ValueError: images or measurements of other shapes than the operator's.
    """
    check_shape("x", x, ("B", *operator.seen.shape))
    check_shape("y", y, ("B", *operator.measured.shape))
    return (y - operator.measure(x)) * jnp.asarray(operator.measured, x.dtype)[None] / noise


def log_likelihood(
    operator: Operator, y: Float[Array, "#B h w D"], x: Float[Array, "B H W C"], noise: float
) -> Float[Array, " B"]:
    """``log N(y | A(x), noise^2)`` over the measurements.

    Args:
      operator: A.
      y: one measurement for all images, or one for each.
      x: images.
      noise: standard deviation of a measurement.
    """
    return log_bound(operator, noise) - 0.5 * jnp.sum(misfit(operator, y, x, noise) ** 2, axis=(1, 2, 3))


def log_bound(operator: Operator, noise: float) -> float:
    """`log_likelihood` of an image that fits exactly: no image has more."""
    return -0.5 * float(operator.measured.sum()) * float(np.log(2.0 * np.pi * noise**2))
