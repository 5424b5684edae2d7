"""Captioned pictures of coloured digits: "a green three", "two red ones".

Every digit has one colour that it almost never has in training, so that a prior is poor at captions that ask for it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.data import DataError, Images

SIDE = 32
RARE_SHARE = 0.01  # Of a digit's pictures that have its rare colour.
COLOURS = {
    "red": (1.0, 0.2, 0.2),
    "green": (0.2, 0.9, 0.2),
    "blue": (0.3, 0.4, 1.0),
    "yellow": (1.0, 0.9, 0.1),
    "purple": (0.8, 0.2, 0.9),
    "white": (1.0, 1.0, 1.0),
}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = ("zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines")
# Caption 20 c + 2 d + n is of the colour c, the digit d, and one (n = 0) or two (n = 1) of it.
CAPTIONS = tuple(
    text.format(colour)
    for colour in COLOURS
    for pair in zip(DIGITS, PLURALS, strict=True)
    for text in (f"a {{}} {pair[0]}", f"two {{}} {pair[1]}")
)
_HALF = SIDE // 2
_WHOLE = 28  # Pixels of a side of a digit.


class Digits(NamedTuple):
    """Grey digits in the order of their labels.

    Attributes:
      whole: ``f32[N, 28, 28]`` in [0, 1].
      half: ``f32[N, 16, 16]``, the same made small.
      first: ``i32[10]``, where each label begins.
      count: ``i32[10]``, how many there are of it.
    """

    whole: Array
    half: Array
    first: Array
    count: Array


def digits(found: Images) -> Digits:
    """Of images ``[N, 28, 28, 1]`` in [-1, 1] with labels 0..9, at least one of each.

    Raises:
      DataError: a digit is missing.
    """
    count = np.bincount(found.labels, minlength=10)
    if (count == 0).any():
        raise DataError(f"{found.source} holds no {DIGITS[int(np.argmin(count))]}: captions need all ten digits.")
    whole = (found.images[np.argsort(found.labels, kind="stable"), ..., 0] + 1.0) / 2.0
    margin = 3  # Empty in MNIST, whose digits fill 20 x 20 pixels.
    inner = jnp.asarray(whole[:, margin:-margin, margin:-margin])
    half = jax.image.resize(inner, (len(whole), _HALF, _HALF), "linear")
    first = np.cumsum(count) - count
    return Digits(jnp.asarray(whole), half, jnp.asarray(first, jnp.int32), jnp.asarray(count, jnp.int32))


def rare(caption: int) -> bool:
    """Whether a caption, by its number, asks for a digit in its rare colour."""
    return caption // 20 == (caption % 20 // 2 + 4) % len(COLOURS)


def law() -> Float[np.ndarray, " C"]:
    """The probability of every caption in training."""
    common = (1.0 - RARE_SHARE) / (len(COLOURS) - 1)
    colour = np.array([RARE_SHARE if rare(caption) else common for caption in range(len(CAPTIONS))])
    return colour / len(DIGITS) / 2


def draw(key: Array, found: Digits, count: int) -> tuple[Float[Array, "B 32 32 3"], Int[Array, " B"]]:
    """Pictures in [-1, 1] with the numbers of their captions, which follow `law`."""
    choose, paint = jax.random.split(key)
    captions = jax.random.categorical(choose, jnp.log(jnp.asarray(law(), jnp.float32)), shape=(count,))
    return pictures(paint, found, captions), captions


def pictures(key: Array, found: Digits, captions: Int[Array, " B"]) -> Float[Array, "B 32 32 3"]:
    """One picture in [-1, 1] for each caption."""
    return jax.vmap(_picture, in_axes=(0, None, 0))(jax.random.split(key, len(captions)), found, captions)


def _picture(key: Array, found: Digits, caption: Int[Array, ""]) -> Float[Array, "32 32 3"]:
    pick, place = jax.random.split(key)
    digit = caption % 20 // 2
    chosen = found.first[digit] + jax.random.randint(pick, (2,), 0, found.count[digit])
    row, column, other = jax.random.randint(place, (3,), 0, jnp.array([_HALF + 1, SIDE - _WHOLE + 1, _HALF + 1]))
    blank = jnp.zeros((SIDE, SIDE))
    one = jax.lax.dynamic_update_slice(blank, found.whole[chosen[0]], (other % (SIDE - _WHOLE + 1), column))
    two = jax.lax.dynamic_update_slice(blank, found.half[chosen[0]], (row, 0))
    two = jax.lax.dynamic_update_slice(two, found.half[chosen[1]], (other, _HALF))
    grey = jnp.where(caption % 2 == 0, one, two)
    colour = jnp.array(list(COLOURS.values()))[caption // 20]
    return 2.0 * grey[..., None] * colour[None, None, :] - 1.0
