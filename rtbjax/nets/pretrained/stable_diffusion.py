"""A Stable Diffusion pipeline's folder (1.x and 2.x), and its guided prediction."""

from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from rtbjax.nets.pretrained import folder as folders
from rtbjax.nets.pretrained import model as models
from rtbjax.nets.pretrained import tokenizer as tokenizers
from rtbjax.nets.pretrained.folder import PretrainedError
from rtbjax.types import Denoiser

_PIPELINE = "StableDiffusionPipeline"
_EXPECTED = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}


class Pipeline(NamedTuple):
    """What text-to-image sampling needs.

    Attributes:
      unet: a conditional `UNet`.
      vae: an `AutoencoderKL`.
      text_encoder: a CLIP `TextEncoder`.
      tokenizer: texts to its tokens.
      scheduler: config for `rtbjax.process.pretrained.from_scheduler`.
    """

    unet: models.Model
    vae: models.Model
    text_encoder: models.Model
    tokenizer: tokenizers.Tokenizer
    scheduler: dict[str, Any]


def load(model: str | Path, dtype: Any = jnp.float32) -> Pipeline:
    """Reads a pipeline from a folder or hub id, its networks in this dtype.

    Raises:
      PretrainedError: another architecture, or a component that is missing, unreadable or of another class.
    """
    folder = folders.locate(model)
    name = folders.read_config(folder, "model_index.json").get("_class_name")
    if name != _PIPELINE:
        raise PretrainedError(
            f"{folder} holds a {name}, which is not supported: only {_PIPELINE}, that is Stable Diffusion 1.x and 2.x, "
            "neither XL nor 3."
        )
    for component in (*_EXPECTED, "tokenizer", "scheduler"):
        if not (folder / component).is_dir():
            raise PretrainedError(f"The model folder {folder} has no component {component!r}.")
    networks = {component: models.load(folder, component, dtype) for component in _EXPECTED}
    for component, expected in _EXPECTED.items():
        found = models.class_name(networks[component].config)
        if found != expected:
            raise PretrainedError(f"The component {component!r} of {folder} is a {found}, not a {expected}.")
    return Pipeline(**networks, tokenizer=tokenizers.load(folder), scheduler=models.load_scheduler(folder))


def guided(denoiser: Denoiser, scale: float, empty: Float[Array, "L E"]) -> Denoiser:
    """A denoiser with classifier-free guidance (Ho & Salimans 2022).

    The output is that for the empty text plus ``scale`` times its difference from that for the condition; both come
    from one call on a batch of twice the size.

    Args:
      denoiser: its condition is tokens ``[B, L, E]``: ``pipeline.unet.policy().apply_fn``.
      scale: 1 is the plain conditional prediction.
      empty: what the text encoder says of the empty text.
    """

    def apply(params: Any, x: Array, t: Float[Array, ""], cond: Float[Array, "B L E"]) -> Array:
        both = jnp.concatenate([jnp.broadcast_to(empty[None], cond.shape), cond])
        without, given = jnp.split(denoiser(params, jnp.concatenate([x, x]), t, both), 2)
        return without + scale * (given - without)

    return apply
