"""The small networks of the embedded pipeline, as configs of diffusers and transformers, and its tokenizer's files."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

from experiments import records
from experiments.errors import UserError
from experiments.text_to_image import captions

LENGTH = 8  # Tokens, both ends included.
LATENT = 8  # Sides of a latent.
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": LATENT,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [24, 40],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "sample_size": captions.SIDE,
    "latent_channels": 4,
    "block_out_channels": [8, 16, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
    "scaling_factor": 1.0,
}
TEXT: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH,
}
# Cosine and v: pure noise at the start of a chain of any length, so that prior and posterior may share it.
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
}
INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
}
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path) -> int:
    """Writes the files of a CLIP tokenizer and returns its number of tokens.

    As in CLIP's, every byte is a token, within a word and at its end, so that any text can be read; the words of the
    captions are one token each.

    Raises:
      UserError: the package ``tokenizers`` is missing.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise UserError('A tokenizer needs the package tokenizers: pip install -e ".[text]".') from error
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = _merges(sorted({word for caption in captions.CAPTIONS for word in caption.split()}))
    tokens += dict.fromkeys("".join(pair) for pair in merges)
    tokens += [_BEGIN, _END]
    records.write_json(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    records.write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "bos_token": _BEGIN,
            "eos_token": _END,
            "pad_token": _END,
            "unk_token": _END,
            "model_max_length": LENGTH,
        },
    )
    return len(tokens)


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al. 2016): always the most frequent pair, until every word is one token."""
    split = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for parts in split for pair in itertools.pairwise(parts)):
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        split = [_merged(parts, merges[-1]) for parts in split]
    return merges


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged
