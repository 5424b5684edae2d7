"""Networks of Hugging Face diffusers and transformers, read from and written to their model folders.

`load` reads a network by the class that its config names, `build` makes one with fresh parameters from a config, `save`
writes a folder that diffusers loads again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from rtbjax.nets.pretrained import folder as _folder
from rtbjax.nets.pretrained import unet
from rtbjax.nets.pretrained.folder import PretrainedError as PretrainedError
from rtbjax.types import PRNGKey

_CLASSES = {
    "UNet2DModel": (unet.from_config, "diffusion_pytorch_model"),
    "UNet2DConditionModel": (unet.from_config, "diffusion_pytorch_model"),
}


class Model(NamedTuple):
    """A network with its parameters.

    Attributes:
      module: to be applied as ``module.apply({"params": params}, ...)``.
      params: a tree of arrays, named as in diffusers.
      config: as in ``config.json``.
    """

    module: nn.Module
    params: PyTree
    config: dict[str, Any]


def load(model: str | Path, component: str = "", dtype: Any = jnp.float32) -> Model:
    """Reads a network.

    Args:
      model: a folder, or a hub id (``owner/name``).
      component: the folder within it, as ``unet`` in a pipeline's; a pipeline's U-Net is found without.
      dtype: of the parameters.

    Raises:
      PretrainedError: a missing or unreadable file, or a network that is not supported.
    """
    folder = _folder.locate(model)
    if not component and not (folder / "config.json").is_file() and (folder / "unet").is_dir():
        component = "unet"
    folder = folder / component
    if not folder.is_dir():
        raise PretrainedError(f"The model folder {folder.parent} has no component {component!r}.")
    config = _folder.read_config(folder)
    module, stem = _module(config)
    return Model(module, _folder.read_params(folder, stem, _shapes(module), dtype), config)


def build(key: PRNGKey, config: Mapping[str, Any]) -> Model:
    """A network with fresh parameters from a config, whose ``_class_name`` says what it is.

    Raises:
      PretrainedError: a network that is not supported.
    """
    module, _ = _module(config)
    arguments = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), module.example())
    return Model(module, jax.jit(module.init)(key, *arguments)["params"], dict(config))


def save(folder: str | Path, model: Model) -> None:
    """Writes a folder that `load` and diffusers or transformers read."""
    _, stem = _module(model.config)
    _folder.write(Path(folder), model.config, stem, model.params)


def _module(config: Mapping[str, Any]) -> tuple[nn.Module, str]:
    name = config.get("_class_name", "nothing")
    if name not in _CLASSES:
        raise PretrainedError(f"Networks of the class {name!r} are not supported, only {', '.join(_CLASSES)}.")
    from_config, stem = _CLASSES[name]
    return from_config(config), stem


def _shapes(module: nn.Module) -> PyTree:
    return jax.eval_shape(module.init, jax.random.key(0), *module.example())["params"]
