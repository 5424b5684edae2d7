"""Rewards of texts, asked on the host: a causal language model of Hugging Face, or a function of one's own.

The former is log p(ending | beginning, middle). The run's tokens are turned into text and that into the model's own
tokens, prompt and ending each by itself and then joined: the ending's tokens are the same whatever comes before them,
and log r is the sum over these alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from experiments import functions, hugging_face
from experiments.stories.words import Vocabulary

AT_ONCE = 16  # Texts in a forward pass: their logits over GPT-2's vocabulary fill a quarter of a gigabyte.


class HostedLanguageModel:
    """Attributes:
    fingerprint: changes with the model's weights.
    """

    def __init__(self, model: str, vocabulary: Vocabulary):
        """Reads the model and its tokenizer.

        Args:
          model: a folder (config, tokenizer files, safetensors), or a hub id, which is fetched.
          vocabulary: of the run's tokens.

        Raises:
          UserError: torch or transformers are missing.
          DataError: no such folder or hub id, or none that holds a causal language model.
        """
        torch, transformers = hugging_face.packages("reward.model")
        with hugging_face.reading("reward.model", model, "no causal language model") as folder:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            network = transformers.AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        self._torch, self._vocabulary = torch, vocabulary
        self._network, self.fingerprint = hugging_face.ready(network, torch)

    def log_reward(self, z: Array, cond: dict[str, Array]) -> Float[np.ndarray, " B"]:
        """log p(y | x, z) of infills in their stories, on the host."""
        beginnings, middles, endings = texts(self._vocabulary, z, cond)
        prompts = [f"{beginning} {middle}".strip() for beginning, middle in zip(beginnings, middles, strict=True)]
        return self.log_likelihood(prompts, [f" {ending}" for ending in endings])

    def log_likelihood(self, prompts: Sequence[str], endings: Sequence[str]) -> Float[np.ndarray, " B"]:
        """log p(ending | prompt) of each pair, summed over the tokens of the ending; nats.

        Raises:
          ValueError: a prompt without tokens, or more tokens than the model takes.
        """
        pairs = [
            (self._tokenizer(prompt).input_ids, self._tokenizer(ending, add_special_tokens=False).input_ids)
            for prompt, ending in zip(prompts, endings, strict=True)
        ]
        longest = getattr(self._network.config, "max_position_embeddings", None)
        for (prompt, ending), text in zip(pairs, prompts, strict=True):
            if not prompt:
                raise ValueError("A language model gives no law of the first token: a prompt is empty.")
            if longest is not None and len(prompt) + len(ending) > longest:
                raise ValueError(
                    f"The language model takes {longest} tokens, and a story has {len(prompt) + len(ending)}: {text!r}."
                )
        parts = [self._score(pairs[first : first + AT_ONCE]) for first in range(0, len(pairs), AT_ONCE)]
        return np.concatenate(parts)

    def _score(self, pairs: list[tuple[list[int], list[int]]]) -> Float[np.ndarray, " b"]:
        torch = self._torch
        length = max(len(prompt) + len(ending) for prompt, ending in pairs)
        tokens, text, asked = (torch.zeros(len(pairs), length, dtype=torch.long) for _ in range(3))
        for row, (prompt, ending) in enumerate(pairs):
            whole = len(prompt) + len(ending)
            tokens[row, :whole] = torch.tensor(prompt + ending)
            text[row, :whole] = 1
            asked[row, len(prompt) : whole] = 1
        tokens, text, asked = (a.to(self._network.device) for a in (tokens, text, asked))
        with torch.inference_mode():
            law = self._network(input_ids=tokens, attention_mask=text).logits[:, :-1].float().log_softmax(-1)
            found = law.gather(-1, tokens[:, 1:, None])[..., 0]
            return torch.where(asked[:, 1:] == 1, found, 0.0).sum(1).cpu().numpy()


class NamedFunction:
    """Attributes:
    fingerprint: see `functions.fingerprint`.
    """

    def __init__(self, function: str, vocabulary: Vocabulary):
        """Imports a Python function ``(beginnings, infills, endings) -> log r`` of lists of B texts.

        Args:
          function: as ``module:function``.
          vocabulary: of the run's tokens.

        Raises:
          ConfigError: see `functions.load`.
        """
        self._function, self._vocabulary = functions.load("reward.function", function), vocabulary
        self.fingerprint = functions.fingerprint(function)

    def log_reward(self, z: Array, cond: dict[str, Array]) -> Any:
        """What the function says of infills in their stories."""
        return self._function(*texts(self._vocabulary, z, cond))


def texts(vocabulary: Vocabulary, z: Array, cond: dict[str, Array]) -> tuple[list[str], list[str], list[str]]:
    """Beginnings, infills and endings of B stories, without their padding."""
    beginnings, infills, endings = (
        [vocabulary.decode(row) for row in np.asarray(a)] for a in (cond["before"], z, cond["after"])
    )
    return beginnings, infills, endings
