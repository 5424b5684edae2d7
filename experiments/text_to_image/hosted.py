"""Models of Hugging Face as rewards, asked on the host: CLIP's score, PickScore with its weights, and aesthetics.

A score of CLIP's is the model's scale times the cosine of picture and prompt (Radford et al. 2021; Kirstain et al.
2023). The aesthetic predictor (Schuhmann 2022) reads the picture's unit vector alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from experiments import hugging_face
from experiments.text_to_image.rewards import to_bytes

AT_ONCE = 32  # Pictures in a forward pass.
HEAD = "aesthetic.safetensors"


class Hosted:
    """A `experiments.text_to_image.rewards.PictureReward` of networks in PyTorch, a few pictures at a time.

    Attributes:
      fingerprint: changes with the weights.
    """

    fingerprint: str

    def __init__(self, torch: Any, look: Any, device: Any):
        """``look`` turns a list of pictures, uint8, into pixels as the network reads them."""
        self._torch, self._look, self._device = torch, look, device

    def __call__(self, x: Float[Array, "B H W 3"], asked: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
        """The score of pictures in [-1, 1], each for the prompt at its place."""
        pictures, places = to_bytes(x), np.asarray(asked)
        parts = []
        with self._torch.inference_mode():
            for first in range(0, len(pictures), AT_ONCE):
                some = slice(first, first + AT_ONCE)
                pixels = self._look(list(pictures[some]), return_tensors="pt")["pixel_values"].to(self._device)
                place = self._torch.as_tensor(places[some], device=self._device, dtype=self._torch.long)
                parts.append(self.score(pixels, place).float().cpu().numpy())
        return np.concatenate(parts)

    def score(self, pixels: Any, place: Any) -> Any:
        """One number a picture, ``[b]``, of pixels ``[b, 3, h, w]`` and the places of their prompts, ``[b]``."""
        raise NotImplementedError


class HostedClip(Hosted):
    """Alignment with the prompt."""

    def __init__(self, model: str, prompts: Sequence[str]):
        """Reads the model, its image processor and its tokenizer.

        Args:
          model: a folder (config, preprocessor, tokenizer files, safetensors), or a hub id, which is fetched.
          prompts: those that places stand for.

        Raises:
          UserError: torch or transformers are missing.
          DataError: no such folder or hub id, or none that holds a CLIP model.
        """
        torch, transformers = hugging_face.packages("reward.clip")
        with hugging_face.reading("reward.clip", model, "no CLIP model") as folder:
            network, look = _clip(folder, torch, transformers)
            tokenizer = transformers.CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
        self._network, self.fingerprint = hugging_face.ready(network, torch)
        super().__init__(torch, look, self._network.device)
        words = tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            texts = self._network.text_projection(self._network.text_model(**words).pooler_output)
            self._texts = self._network.logit_scale.exp() * _unit(texts)

    def score(self, pixels: Any, place: Any) -> Any:
        return (self._texts[place] * _seen(self._network, pixels)).sum(-1)


class HostedAesthetic(Hosted):
    """How well a picture looks, by people's ratings; prompts are not read."""

    def __init__(self, model: str, prompts: Sequence[str]):
        """Reads a CLIP model and the predictor's linear layers on top of it.

        Args:
          model: a folder as of `HostedClip` (no tokenizer is needed), with the layers in ``aesthetic.safetensors``,
            named ``layers.N.weight`` and ``layers.N.bias`` as published.
          prompts: not read.

        Raises:
          UserError: torch or transformers are missing.
          DataError: no such folder, or none that holds both.
        """
        del prompts
        torch, transformers = hugging_face.packages("reward.aesthetic")
        with hugging_face.reading("reward.aesthetic", model, "no CLIP model with an aesthetic predictor") as folder:
            head = linear_layers(torch, tensors(folder / HEAD), "layers.")
            network, look = _clip(folder, torch, transformers)
            if head[0].in_features != network.config.projection_dim:
                raise ValueError(f"{HEAD} is for vectors of {head[0].in_features} numbers, the model's are of others")
        network.head = head
        self._network, self.fingerprint = hugging_face.ready(network, torch)
        super().__init__(torch, look, self._network.device)

    def score(self, pixels: Any, place: Any) -> Any:
        return self._network.head(_seen(self._network, pixels))[:, 0]


def tensors(file: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, on the CPU in float32.

    Raises:
      FileNotFoundError: there is none; the message is part of a sentence.
    """
    import safetensors.torch

    if not file.is_file():
        raise FileNotFoundError(f"there is no {file.name}")
    return {name: tensor.float() for name, tensor in safetensors.torch.load_file(file).items()}


def linear_layers(torch: Any, found: Mapping[str, Any], prefix: str) -> Any:
    """The linear layers ``PREFIX N.weight`` and ``.bias``, one after the other, the last one with one output.

    Raises:
      ValueError: there are none, or they do not fit together.
    """
    numbers = sorted(
        int(name[len(prefix) : -7]) for name in found if name.startswith(prefix) and name.endswith(".weight")
    )
    layers = []
    for number in numbers:
        weight, bias = (found[f"{prefix}{number}.{part}"] for part in ("weight", "bias"))
        if layers and layers[-1].out_features != weight.shape[1]:
            raise ValueError(f"layer {prefix}{number} does not fit the one before")
        layers.append(torch.nn.Linear(weight.shape[1], weight.shape[0]))
        layers[-1].load_state_dict({"weight": weight, "bias": bias})
    if not layers or layers[-1].out_features != 1:
        raise ValueError(f"there are no linear layers {prefix}N that end in one number")
    return torch.nn.Sequential(*layers)


def _clip(folder: Path, torch: Any, transformers: Any) -> tuple[Any, Any]:
    """A CLIP model and its image processor."""
    network = transformers.CLIPModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    return network, transformers.CLIPImageProcessor.from_pretrained(folder, local_files_only=True)


def _seen(network: Any, pixels: Any) -> Any:
    """Unit vectors of pictures."""
    return _unit(network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output))


def _unit(vectors: Any) -> Any:
    return vectors / vectors.norm(dim=-1, keepdim=True)
