"""CLIP's byte-pair tokenizer, from the files of its folder by the library ``tokenizers``."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from rtbjax.nets.pretrained import folder as folders
from rtbjax.nets.pretrained.folder import PretrainedError

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Texts to token numbers.

    Attributes:
      encoder: of the library ``tokenizers``, without special tokens around a text.
      begin: number of the token before a text; ``end`` after it, ``pad`` after that.
      length: L of every sequence.
    """

    encoder: Any
    begin: int
    end: int
    pad: int
    length: int

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "N L"]:
        """Token numbers ``int32[N, L]``; a longer text is cut, with a warning that quotes what is lost."""
        tokens = np.full((len(texts), self.length), self.pad, np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = self.encoder.encode(text, add_special_tokens=False).ids
            room = self.length - 2
            if len(ids) > room:
                lost = self.encoder.decode(ids[room:]).replace("</w>", " ").strip()
                warnings.warn(f"The text encoder reads {self.length} tokens; this is cut off: {lost!r}.", stacklevel=2)
            ids = [self.begin, *ids[:room], self.end]
            row[: len(ids)] = ids
        return tokens


def load(model: str | Path, component: str = "tokenizer") -> Tokenizer:
    """Reads ``vocab.json`` and ``merges.txt``, or else ``tokenizer.json``, from a folder or hub id.

    Raises:
      PretrainedError: the files are missing or unreadable, or the package ``tokenizers`` is.
    """
    folder = folders.locate(model) / component
    try:
        import tokenizers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise PretrainedError('Tokenizers need the package tokenizers: pip install "rtbjax[text]".') from error
    if not folder.is_dir():
        raise PretrainedError(f"The model folder {folder.parent} has no component {component!r}.")
    settings = {"begin": "<|startoftext|>", "end": "<|endoftext|>", "pad": None, "length": 77}
    keys = {"bos_token": "begin", "eos_token": "end", "pad_token": "pad", "model_max_length": "length"}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            for key, value in folders.read_config(folder, name).items():
                if key in keys:
                    settings[keys[key]] = value["content"] if isinstance(value, dict) else value
    settings["pad"] = settings["pad"] or settings["end"]
    special = [settings[key] for key in ("begin", "end", "pad")]
    encoder = _encoder(tokenizers, folder, str(settings["end"]))
    encoder.add_special_tokens([token for token in dict.fromkeys(special) if encoder.token_to_id(token) is not None])
    numbers = [encoder.token_to_id(token) for token in special]
    for token, number in zip(special, numbers, strict=True):
        if number is None:
            raise PretrainedError(f"The tokenizer in {folder} has no token {token!r}.")
    return Tokenizer(encoder, *numbers, length=int(settings["length"]))


def _encoder(tokenizers: Any, folder: Path, end: str) -> Any:
    vocabulary, merges, whole = folder / "vocab.json", folder / "merges.txt", folder / "tokenizer.json"
    try:
        if vocabulary.is_file() and merges.is_file():
            pairs = tokenizers.models.BPE.read_file(str(vocabulary), str(merges))
            bpe = tokenizers.models.BPE(*pairs, end_of_word_suffix="</w>", unk_token=end)
            return _as_clip(tokenizers, bpe)
        if whole.is_file():
            encoder = tokenizers.Tokenizer.from_file(str(whole))
            encoder.no_truncation()
            encoder.no_padding()
            return encoder
    except Exception as error:  # the library raises bare Exceptions
        raise PretrainedError(f"The tokenizer files in {folder} are not readable: {error}.") from error
    raise PretrainedError(f"The tokenizer folder {folder} has neither vocab.json and merges.txt nor tokenizer.json.")


def _as_clip(tokenizers: Any, bpe: Any) -> Any:
    """Lower case, single spaces, words split as by CLIP's regular expression, bytes as letters."""
    normalizers, pre = tokenizers.normalizers, tokenizers.pre_tokenizers
    encoder = tokenizers.Tokenizer(bpe)
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    encoder.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre.Split(tokenizers.Regex(_WORDS), "removed", invert=True)
    encoder.pre_tokenizer = pre.Sequence([words, pre.ByteLevel(add_prefix_space=False)])
    encoder.decoder = tokenizers.decoders.ByteLevel()
    return encoder
