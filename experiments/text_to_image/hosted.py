"""A CLIP model of Hugging Face as the reward, asked on the host: CLIP's score, and with its weights PickScore.

Both are the model's scale times the cosine of picture and prompt (Radford et al. 2021; Kirstain et al. 2023).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float, Int

from experiments import hugging_face
from experiments.text_to_image.rewards import to_bytes

AT_ONCE = 32  # Pictures in a forward pass.


class HostedClip:
    """Attributes:
    fingerprint: changes with the model's weights.
    """

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
            network = transformers.CLIPModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
            tokenizer = transformers.CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
            self._look = transformers.CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        self._torch = torch
        self._network, self.fingerprint = hugging_face.ready(network, torch)
        words = tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt").to(self._network.device)
        with torch.inference_mode():
            texts = self._network.text_projection(self._network.text_model(**words).pooler_output)
            self._texts = self._network.logit_scale.exp() * texts / texts.norm(dim=-1, keepdim=True)

    def __call__(self, x: Float[Array, "B H W 3"], asked: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
        """The score of pictures in [-1, 1], each against the prompt at its place."""
        pictures = to_bytes(x)
        starts = range(0, len(pictures), AT_ONCE)
        parts = [self._score(pictures[i : i + AT_ONCE], asked[i : i + AT_ONCE]) for i in starts]
        return np.concatenate(parts)

    def _score(self, pictures: Int[np.ndarray, "b H W 3"], asked: Int[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
        torch, network = self._torch, self._network
        pixels = self._look(list(pictures), return_tensors="pt")["pixel_values"].to(network.device)
        with torch.inference_mode():
            seen = network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output)
            texts = self._texts[torch.as_tensor(np.asarray(asked), device=network.device, dtype=torch.long)]
            return (texts * seen / seen.norm(dim=-1, keepdim=True)).sum(-1).float().cpu().numpy()
