"""ImageReward (Xu et al. 2023) as the reward, asked on the host: what people prefer, of pictures and their prompts.

BLIP's text encoder reads the prompt and, by cross-attention, the picture; five linear layers make a number of the state
at its first token, standardised as published. The weights keep their published names; BLIP's networks are those of
transformers.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import hugging_face
from experiments.text_to_image.hosted import Hosted, linear_layers, tensors

WEIGHTS, TEXT = "ImageReward.safetensors", "med_config.json"
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # Of the scores of the published model's data.
LENGTH = 35  # Tokens of a prompt, padding included.
HEAD_WIDTH = 64  # Of an attention head in every vision transformer of BLIP's.
# What is read of the text encoder's config, which is one of BERT's.
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
)
# A block's parts as published, and as transformers calls them.
_NAMES = {
    r"^cls_token": "embeddings.class_embedding",
    r"^pos_embed": "embeddings.position_embedding",
    r"^patch_embed\.proj": "embeddings.patch_embedding",
    r"^norm\.": "post_layernorm.",
    r"^blocks\.": "encoder.layers.",
    r"\.norm(\d)\.": r".layer_norm\1.",
    r"\.attn\.qkv\.": ".self_attn.qkv.",
    r"\.attn\.proj\.": ".self_attn.projection.",
}


class HostedImageReward(Hosted):
    """A standardised preference score."""

    def __init__(self, model: str, prompts: Sequence[str]):
        """Reads the model.

        Args:
          model: a folder with ``ImageReward.safetensors`` (the published weights under their names),
            ``med_config.json``, and the tokenizer's ``vocab.txt``; or the hub id of one.
          prompts: those that places stand for.

        Raises:
          UserError: torch or transformers are missing.
          DataError: no such folder or hub id, or none that holds this model.
        """
        torch, transformers = hugging_face.packages("reward.image_reward")
        with hugging_face.reading("reward.image_reward", model, "no ImageReward model") as folder:
            found = tensors(folder / WEIGHTS)
            for name in (TEXT, "vocab.txt"):
                if not (folder / name).is_file():
                    raise FileNotFoundError(f"there is no {name}")
            network = torch.nn.ModuleDict(
                {
                    "vision": _vision(transformers, _part(found, "blip.visual_encoder.")),
                    "text": _text(
                        transformers, _part(found, "blip.text_encoder."), json.loads((folder / TEXT).read_text())
                    ),
                    "head": linear_layers(torch, found, "mlp.layers."),
                }
            )
            words = transformers.BertTokenizer.from_pretrained(folder, local_files_only=True)
        side = network["vision"].config.image_size
        look = transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side)
        self._network, self.fingerprint = hugging_face.ready(network, torch)
        super().__init__(torch, look, next(network.parameters()).device)
        read = words(list(prompts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        self._tokens, self._mask = read.input_ids.to(self._device), read.attention_mask.to(self._device)

    def score(self, pixels: Any, place: Any) -> Any:
        seen = self._network["vision"](pixel_values=pixels).last_hidden_state
        states = self._network["text"](
            self._tokens[place],
            attention_mask=self._mask[place],
            encoder_hidden_states=seen,
            encoder_attention_mask=self._torch.ones(seen.shape[:2], dtype=self._torch.long, device=self._device),
        ).last_hidden_state
        return (self._network["head"](states[:, 0])[:, 0] - MEAN) / STD


def _part(found: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    part = {name[len(prefix) :]: tensor for name, tensor in found.items() if name.startswith(prefix)}
    if not part:
        raise ValueError(f"there are no weights {prefix}*")
    return part


def _vision(transformers: Any, found: Mapping[str, Any]) -> Any:
    """BLIP's vision transformer, whose sizes are those of its weights."""
    width, channels, patch, _ = found["patch_embed.proj.weight"].shape
    config = transformers.BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(found["blocks.0.mlp.fc1.bias"]),
        num_hidden_layers=sum(name.endswith(".norm1.bias") for name in found),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=patch * round((found["pos_embed"].shape[1] - 1) ** 0.5),
        patch_size=patch,
        num_channels=channels,
        layer_norm_eps=1e-6,
    )
    renamed = {}
    for name, tensor in found.items():
        for pattern, new in _NAMES.items():
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    return _loaded(transformers.BlipVisionModel(config), renamed)


def _text(transformers: Any, found: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """BLIP's text encoder with cross-attention."""
    width = found["encoder.layer.0.crossattention.self.key.weight"].shape[1]  # Of what the picture says.
    config = transformers.BlipTextConfig(**{name: settings[name] for name in _SIZES}, encoder_hidden_size=width)
    kept = {name: tensor for name, tensor in found.items() if not name.endswith("position_ids")}
    return _loaded(transformers.BlipTextModel(config, add_pooling_layer=False), kept)


def _loaded(network: Any, found: Mapping[str, Any]) -> Any:
    network.load_state_dict(found)
    return network
