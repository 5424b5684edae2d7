"""Weights travel as safetensors: flat names, never unpickled."""

import hashlib
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Array, PyTree

from experiments import hosts
from experiments.errors import UserError
from experiments.files import replacing

REPOSITORY = Path(__file__).resolve().parents[1]
MANY = 50_000_000


class WeightsError(UserError):
    """A weights file that is missing, unreadable, or for another network, or holds no numbers."""


def _names(tree: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def locate(path: str) -> Path:
    """A path of a config: absolute, or relative to the repository."""
    return REPOSITORY / Path(path).expanduser()


def locate_model(name: str) -> Path | str:
    """A model of a config: its folder, as `locate` finds it, or else what must be its hub id."""
    folder = locate(name)
    return folder if folder.is_dir() else name


def save(path: Path, params: PyTree, metadata: dict | None = None) -> None:
    """Writes a tree of arrays, names joined by ``/``; ``metadata`` says where the weights come from."""
    flat = {name: np.asarray(hosts.whole(leaf), order="C") for name, leaf in _names(params).items()}
    with replacing(path) as partial:
        # Opened here: a disk that is full is then an OSError, as with any other file.
        partial.write_bytes(safetensors.numpy.save(flat, {"rtbjax": json.dumps(metadata or {})}))


def abstract_params(module: nn.Module, *inputs: Array) -> PyTree:
    """The shapes of a network's parameters, for `load`, without computing them."""
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def load(path: Path, like: PyTree, *, optional: str = "") -> PyTree:
    """Reads weights that must have the names and shapes of ``like`` (arrays or ``ShapeDtypeStruct``); float32.

    Args:
      path: a safetensors file.
      like: what is wanted.
      optional: an entry of ``like`` that one of the two may lack: what the file lacks of it is left as it is.

    Raises:
      WeightsError: the file is missing or corrupt, its names or shapes differ, or not all of its numbers are finite.
    """
    _check_there(path)
    try:
        flat = safetensors.numpy.load_file(path)
    except Exception as error:  # Of many kinds, and none of them is about anything but the file.
        raise WeightsError(f"{path} is not a readable safetensors file: {error}.") from error
    wanted = _names(like)
    if optional:
        lacked = {name for name in wanted.keys() ^ flat.keys() if name.split("/")[0] == optional}
        flat = {name: leaf for name, leaf in flat.items() if name not in lacked}
        flat |= {name: leaf for name, leaf in wanted.items() if name in lacked}
    expected = {name: tuple(leaf.shape) for name, leaf in wanted.items()}
    found = {name: tuple(leaf.shape) for name, leaf in flat.items()}
    if found != expected:
        different = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        name = different[0]
        raise WeightsError(
            f"{path} holds other weights than the network expects: {len(different)} tensors differ, the first is "
            f"{name!r} (file: {found.get(name, 'missing')}, network: {expected.get(name, 'missing')})."
        )
    leaves = [np.asarray(flat[name], np.float32) for name in expected]
    broken = next((name for name, leaf in zip(expected, leaves, strict=True) if not np.isfinite(leaf).all()), None)
    if broken is not None:
        raise WeightsError(f"{path}: {broken!r} holds numbers that are not finite.")
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _check_there(path: Path) -> None:
    if not path.is_file():
        hint = " That is a folder; a finished run's weights are its final_params.safetensors." if path.is_dir() else ""
        raise WeightsError(f"There is no weights file {path}.{hint}")


def keep_out_of_programs(params: PyTree) -> None:
    """From `MANY` parameters on, what a program closes over becomes its argument instead of a constant in it."""
    if sum(leaf.size for leaf in jax.tree.leaves(params)) > MANY:
        jax.config.update("jax_use_simplified_jaxpr_constants", True)


def metadata(path: Path) -> dict:
    """What `save` was told about the weights.

    Raises:
      WeightsError: the file is missing or corrupt, or says nothing that can be read.
    """
    _check_there(path)
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return dict(json.loads((file.metadata() or {}).get("rtbjax", "{}")))
    except Exception as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}.") from error


def fingerprint(*parts: PyTree) -> str:
    """A hash of arrays and of anything else by its ``repr``: changes when any of the parts does."""
    digest = hashlib.sha256()
    for part in parts:
        for name, leaf in _names(part).items():
            digest.update(name.encode())
            digest.update(np.asarray(leaf, order="C").tobytes() if hasattr(leaf, "shape") else repr(leaf).encode())
    return digest.hexdigest()[:16]
