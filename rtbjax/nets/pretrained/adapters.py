"""Low-rank adapters in the format of peft, which diffusers' ``load_lora_weights`` reads.

An adapter of `rtbjax.lora` is there two layers: ``lora_A`` of the shape of the adapted one with ``rank`` outputs, and
``lora_B`` from these to its outputs, a 1x1 convolution where the adapted one is a convolution. Scaled by alpha / rank,
which is 1 in files without an alpha, as in `rtbjax.posterior.lora` by default; an alpha in a file's metadata becomes
part of B.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Array, PyTree

from rtbjax.nets.pretrained.folder import PretrainedError

NAME = "pytorch_lora_weights.safetensors"
_METADATA = "lora_adapter_metadata"  # Where diffusers keeps peft's LoraConfig, its fields named COMPONENT.FIELD.
_KERNEL = "/kernel"


def save(
    folder: str | Path, adapters: Mapping[str, Mapping[str, Array]], params: PyTree, alpha: float | None = None
) -> Path:
    """Writes adapters of kernels to ``folder``, which is made, and returns the file.

    Args:
      folder: for ``load_lora_weights``.
      adapters: by the paths of `rtbjax.lora`, the first part of which is the component (``unet``).
      params: the adapted parameters, whose shapes tell a convolution.
      alpha: they were trained with (`rtbjax.posterior.lora`); each one's rank if None. It becomes part of B, so that
        what `load` gives of this file has an alpha of its rank.

    Raises:
      ValueError: an adapter of what is no kernel.
    """
    flat = {}
    for path, adapter in adapters.items():
        shape, name = _shape(params, path), _layer(path)
        a, b = np.asarray(adapter["a"], np.float32), np.asarray(adapter["b"], np.float32)
        b = b if alpha is None else b * np.float32(alpha / a.shape[-1])
        if len(shape) == 4:
            a, b = a.reshape(*shape[:3], -1).transpose(3, 2, 0, 1), b.T[:, :, None, None]
        else:
            a, b = a.T, b.T
        flat |= {f"{name}.lora_A.weight": np.ascontiguousarray(a), f"{name}.lora_B.weight": np.ascontiguousarray(b)}
    file = Path(folder) / NAME
    file.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(flat, file, {"format": "pt"})
    return file


def load(folder: str | Path, like: Mapping[str, Mapping[str, Any]], params: PyTree) -> dict[str, dict[str, Array]]:
    """Adapters that `save` or peft wrote, for the same layers and of the same rank as ``like``.

    Raises:
      PretrainedError: no such file, an unreadable one, other adapters, or an alpha of their own for some layers.
    """
    file = Path(folder) / NAME
    if not file.is_file():
        raise PretrainedError(f"The folder {folder} has no {NAME}.")
    try:
        flat = safetensors.numpy.load_file(file)
        with safetensors.safe_open(file, "np") as opened:
            settings = json.loads((opened.metadata() or {}).get(_METADATA, "{}"))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise PretrainedError(f"{file} is not a readable safetensors file: {error}.") from error
    wanted = {f"{_layer(path)}.lora_{part}.weight" for path in like for part in "AB"}
    if different := sorted(wanted ^ flat.keys()):
        raise PretrainedError(f"{file} holds adapters of other layers: {len(different)} differ, as {different[0]!r}.")
    found = {}
    for path, adapter in like.items():
        a, b = (flat[f"{_layer(path)}.lora_{part}.weight"] for part in "AB")
        if len(_shape(params, path)) == 4:
            a, b = a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0]), b[:, :, 0, 0].T
        else:
            a, b = a.T, b.T
        if (a.shape, b.shape) != (adapter["a"].shape, adapter["b"].shape):
            raise PretrainedError(
                f"{file} holds adapters of other sizes: {path} has {a.shape} and {b.shape}, wanted are "
                f"{adapter['a'].shape} and {adapter['b'].shape}."
            )
        scale = _scale(settings, path, a.shape[1], file)
        found[path] = {"a": jnp.asarray(a, jnp.float32), "b": scale * jnp.asarray(b, jnp.float32)}
    return found


def _scale(settings: Mapping[str, Any], path: str, rank: int, file: Path) -> float:
    """What peft multiplies the product of an adapter's layers by."""
    component = path.partition("/")[0]
    if settings.get(f"{component}.alpha_pattern"):
        raise PretrainedError(f"{file} has an alpha of their own for some layers, which is not supported.")
    alpha = settings.get(f"{component}.lora_alpha", rank)
    return alpha / (math.sqrt(rank) if settings.get(f"{component}.use_rslora") else rank)


def _layer(path: str) -> str:
    if not path.endswith(_KERNEL):
        raise ValueError(f"Only kernels have adapters in peft's format, not {path!r}.")
    return path.removesuffix(_KERNEL).replace("/", ".")


def _shape(params: PyTree, path: str) -> tuple[int, ...]:
    for part in path.split("/"):
        params = params[part]
    return params.shape
