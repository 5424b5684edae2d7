"""Weights travel as safetensors: flat names, never unpickled."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

from experiments.errors import UserError
from experiments.files import replacing

REPOSITORY = Path(__file__).resolve().parents[1]


class WeightsError(UserError):
    """A weights file that is missing, unreadable, or for another network."""


def _names(tree: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def locate(path: str) -> Path:
    """A path of a config: absolute, or relative to the repository."""
    return Path(path) if Path(path).is_absolute() else REPOSITORY / path


def save(path: Path, params: PyTree, metadata: dict | None = None) -> None:
    """Writes a tree of arrays, names joined by ``/``; ``metadata`` says where the weights come from."""
    flat = {name: np.asarray(leaf, order="C") for name, leaf in _names(jax.device_get(params)).items()}
    with replacing(path) as partial:
        safetensors.numpy.save_file(flat, partial, {"rtbjax": json.dumps(metadata or {})})


def load(path: Path, like: PyTree) -> PyTree:
    """Reads weights that must have the names and shapes of ``like`` (arrays or ``ShapeDtypeStruct``); float32.

    Raises:
      WeightsError: the file is missing or corrupt, or its names or shapes differ.
    """
    if not path.is_file():
        raise WeightsError(f"There is no weights file {path}.")
    try:
        flat = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}.") from error
    expected = {name: tuple(leaf.shape) for name, leaf in _names(like).items()}
    found = {name: tuple(leaf.shape) for name, leaf in flat.items()}
    if found != expected:
        different = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        name = different[0]
        raise WeightsError(
            f"{path} holds other weights than the network expects: {len(different)} tensors differ, the first is "
            f"{name!r} (file: {found.get(name, 'missing')}, network: {expected.get(name, 'missing')})."
        )
    leaves = [np.asarray(flat[name], np.float32) for name in expected]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def metadata(path: Path) -> dict:
    """What `save` was told about the weights."""
    with safetensors.safe_open(path, "numpy") as file:
        return json.loads((file.metadata() or {}).get("rtbjax", "{}"))


def fingerprint(*parts: PyTree) -> str:
    """A hash of arrays and of anything else by its ``repr``: changes when any of the parts does."""
    digest = hashlib.sha256()
    for part in parts:
        for name, leaf in _names(part).items():
            digest.update(name.encode())
            digest.update(np.asarray(leaf, order="C").tobytes() if hasattr(leaf, "shape") else repr(leaf).encode())
    return digest.hexdigest()[:16]
