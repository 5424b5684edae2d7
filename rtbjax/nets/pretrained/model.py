"""Reading, making and writing one network of a model folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from rtbjax.nets.pretrained import autoencoder, clip, unet
from rtbjax.nets.pretrained import folder as folders
from rtbjax.nets.pretrained.folder import PretrainedError
from rtbjax.types import Policy, PRNGKey

# By class: what makes the module, the weights' file, and what its names begin with when written.
_CLASSES = {
    "UNet2DModel": (unet.from_config, "diffusion_pytorch_model", ""),
    "UNet2DConditionModel": (unet.from_config, "diffusion_pytorch_model", ""),
    "AutoencoderKL": (autoencoder.from_config, "diffusion_pytorch_model", ""),
    "CLIPTextModel": (clip.from_config, "model", "text_model."),
}
_SCHEDULER = "scheduler_config.json"


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

    def policy(self) -> Policy:
        """A denoiser as a prior, or as the start of a posterior; computes in the dtype of its parameters."""

        def apply(params: PyTree, x: Array, t: Array, cond: Any) -> Array:
            dtype = jax.tree.leaves(params)[0].dtype
            if cond is not None and jnp.issubdtype(cond.dtype, jnp.floating):
                cond = cond.astype(dtype)
            return jnp.asarray(self.module.apply({"params": params}, x.astype(dtype), t, cond)).astype(x.dtype)

        return Policy(self.params, apply)


def load(model: str | Path, component: str = "", dtype: Any = jnp.float32) -> Model:
    """Reads a network.

    Args:
      model: a folder, or a hub id (``owner/name``).
      component: the folder within it, as ``unet`` in a pipeline's; a pipeline's U-Net is found without.
      dtype: of the parameters.

    Raises:
      PretrainedError: a missing or unreadable file, or a network that is not supported.
    """
    folder = folders.locate(model)
    if not component and not (folder / "config.json").is_file() and (folder / "unet").is_dir():
        component = "unet"
    folder = folder / component
    if not folder.is_dir():
        raise PretrainedError(f"The model folder {folder.parent} has no component {component!r}.")
    config = folders.read_config(folder)
    module, stem, _ = _module(config)
    return Model(module, folders.read_params(folder, stem, _shapes(module), dtype), config)


def load_scheduler(model: str | Path) -> dict[str, Any]:
    """The scheduler config beside a network, for `rtbjax.process.pretrained.from_scheduler`.

    Raises:
      PretrainedError: there is none, or it is unreadable.
    """
    folder = folders.locate(model)
    return folders.read_config(folder / "scheduler" if (folder / "scheduler").is_dir() else folder, _SCHEDULER)


def build(key: PRNGKey, config: Mapping[str, Any]) -> Model:
    """A network with fresh parameters from a config, whose ``_class_name`` or ``architectures`` says what it is.

    Raises:
      PretrainedError: a network that is not supported.
    """
    module, _, _ = _module(config)
    arguments = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), module.example())
    return Model(module, jax.jit(module.init)(key, *arguments)["params"], dict(config))


def save(folder: str | Path, model: Model) -> None:
    """Writes a folder that `load` and diffusers or transformers read."""
    _, stem, prefix = _module(model.config)
    folders.write(Path(folder), model.config, stem, model.params, prefix)


def class_name(config: Mapping[str, Any]) -> str:
    """The class a config of diffusers or transformers is for."""
    return config.get("_class_name") or (config.get("architectures") or ["nothing"])[0]


def _module(config: Mapping[str, Any]) -> tuple[nn.Module, str, str]:
    name = class_name(config)
    if name not in _CLASSES:
        raise PretrainedError(f"Networks of the class {name!r} are not supported, only {', '.join(_CLASSES)}.")
    from_config, stem, prefix = _CLASSES[name]
    return from_config(config), stem, prefix


def _shapes(module: nn.Module) -> PyTree:
    return jax.eval_shape(module.init, jax.random.key(0), *module.example())["params"]
