"""Model folders of Hugging Face diffusers and transformers: a JSON config beside safetensors, never a pickle.

The parameters of a module in this package are named by diffusers' own names, cut at module borders, so the map between
the two is one rule per kind of array: ``scale`` and ``embedding`` are a ``weight`` as it is, a ``kernel`` is a
``weight`` with its axes turned (``[in, out]`` and ``[out, in]``; HWIO and OIHW).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

# Attention layers as they were called up to diffusers 0.15; the prefix of text encoders that transformers 5 dropped;
# that of MDLM.
_FORMER_NAMES = (
    (re.compile(r"(attentions\.\d+)\.query\."), r"\1.to_q."),
    (re.compile(r"(attentions\.\d+)\.key\."), r"\1.to_k."),
    (re.compile(r"(attentions\.\d+)\.value\."), r"\1.to_v."),
    (re.compile(r"(attentions\.\d+)\.proj_attn\."), r"\1.to_out.0."),
    (re.compile(r"^text_model\."), ""),
    (re.compile(r"^backbone\."), ""),
)
_BUFFERS = re.compile(r"(position_ids|rotary_emb\.inv_freq)$")  # saved in some files, not trained


class PretrainedError(ValueError):
    """A model folder that is missing, incomplete, or of a kind that is not supported; the message is one sentence."""


def locate(model: str | Path) -> Path:
    """The folder of a model: a path, or a hub id (``owner/name``), whose JSON, text and safetensors files are fetched.

    Raises:
      PretrainedError: no such folder, and no such model or no network to fetch it by.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        raise PretrainedError(f"There is no model folder {model}.")
    give = "give the path of a folder that holds the model instead (config.json and safetensors files)"
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise PretrainedError(
            f"{model!r} is no folder here, and to fetch it as a hub id needs the package huggingface-hub: "
            f'pip install "rtbjax[hub]", or {give}.'
        ) from error
    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(model), allow_patterns=["*.json", "*.txt", "*.safetensors"], etag_timeout=5.0
            )
        )
    except Exception as error:  # its errors of network, of HTTP and of its cache share no base class
        raise PretrainedError(
            f"{model!r} is no folder here and could not be fetched as a hub id ({type(error).__name__}): {give}."
        ) from error


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON file of a model folder.

    Raises:
      PretrainedError: it is missing or unreadable.
    """
    path = folder / name
    if not path.is_file():
        raise PretrainedError(f"The model folder {folder} has no {name}.")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise PretrainedError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(config, dict):
        raise PretrainedError(f"{path} must hold a JSON object, got {type(config).__name__}.")
    return config


def read_params(folder: Path, stem: str, like: PyTree, dtype: jnp.dtype = jnp.float32) -> PyTree:
    """The parameters in ``stem.safetensors``, which must have the names and shapes of ``like``.

    Args:
      folder: of the model.
      stem: file name without its suffix; several files with an index beside them are read as one.
      like: parameters of the module, arrays or ``ShapeDtypeStruct``.
      dtype: of the result, whatever the file's.

    Raises:
      PretrainedError: no such file, an unreadable one, or other weights than the module's.
    """
    leaves, structure = jax.tree.flatten_with_path(like)
    wanted = {_name(path): (_kind(path), tuple(leaf.shape)) for path, leaf in leaves}
    arrays = {}
    for path in _weight_files(folder, stem):
        try:
            with safetensors.safe_open(path, "flax") as file:  # one tensor at a time: a model may fill half the memory
                for key in file.keys():
                    name = _present_name(key)
                    if not _BUFFERS.search(name):
                        kind, shape = wanted.get(name, ("", ()))
                        array = np.asarray(file.get_tensor(key))  # JAX would compile a transposition for every shape
                        arrays[name] = jnp.asarray(_from_torch(kind, shape, array), dtype)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise PretrainedError(f"{path} is not a readable safetensors file: {error}.") from error
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    expected = {name: shape for name, (_, shape) in wanted.items()}
    if shapes != expected:
        different = sorted(n for n in expected.keys() | shapes.keys() if expected.get(n) != shapes.get(n))
        name = different[0]
        raise PretrainedError(
            f"The weights in {folder} are not those of its config: {len(different)} tensors differ, the first is "
            f"{name!r} (file: {shapes.get(name, 'missing')}, config: {expected.get(name, 'missing')})."
        )
    return jax.tree.unflatten(structure, [arrays[name] for name in wanted])


def write(folder: Path, config: Mapping[str, Any], stem: str, params: PyTree, prefix: str = "") -> None:
    """Writes ``config.json`` and ``stem.safetensors`` as diffusers and transformers read them; creates the folder.

    Every weight's name begins with ``prefix``.
    """
    leaves, _ = jax.tree.flatten_with_path(jax.device_get(params))
    flat = {prefix + _name(path): np.ascontiguousarray(_to_torch(_kind(path), leaf)) for path, leaf in leaves}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n")
    safetensors.numpy.save_file(flat, folder / f"{stem}.safetensors", {"format": "pt"})


def _weight_files(folder: Path, stem: str) -> list[Path]:
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        names = sorted(set(read_config(folder, index.name).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise PretrainedError(f"The model folder {folder} has no {missing[0]}, which its index names.")
        return [folder / name for name in names]
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    reason = f"; {pickles[0]} is a pickle, which is never read: convert it to safetensors" if pickles else ""
    raise PretrainedError(f"The model folder {folder} has no {whole.name}{reason}.")


def _present_name(name: str) -> str:
    for pattern, present in _FORMER_NAMES:
        name = pattern.sub(present, name)
    return name


def _kind(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path[-1:], simple=True)


def _name(path: tuple[Any, ...]) -> str:
    modules = jax.tree_util.keystr(path[:-1], simple=True, separator=".")
    leaf = "weight" if _kind(path) in ("kernel", "scale", "embedding") else _kind(path)
    return f"{modules}.{leaf}" if modules else leaf


def _to_torch(kind: str, array: np.ndarray) -> np.ndarray:
    if kind != "kernel":
        return array
    return array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)


def _from_torch(kind: str, shape: tuple[int, ...], array: np.ndarray) -> np.ndarray:
    if kind != "kernel":
        return array
    if len(shape) == 2 and array.shape[2:] == (1, 1):  # a matrix product stored as a 1x1 convolution
        array = array[:, :, 0, 0]
    if len(shape) != array.ndim:
        return array
    return array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
