"""Text to token numbers and back: whole words, or the byte pairs of GPT-2.

A sentence is encoded by itself, with the space before it, so that the tokens of sentences laid end to end are those of
the text. Beside the text's own tokens a vocabulary has ``end``, which closes a story, and ``pad``, which fills a slot
and stands for nothing.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int

from experiments.data import DataError
from experiments.errors import UserError

PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"
END_OF_TEXT = "<|endoftext|>"  # As GPT-2 calls it.
_WORD = re.compile(r"(?:[\w'][\u0300-\u036f]*)+|[^\w\s]")  # With accents that no letter of its own has.


class Vocabulary(Protocol):
    """Attributes:
    size: V.
    pad: the number of what fills a slot.
    end: the number of what closes a story.
    name: says which vocabulary it is; weights are of one.
    """

    size: int
    pad: int
    end: int
    name: str

    def encode(self, sentence: str) -> list[int]:
        """The numbers of a sentence's tokens."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, wherever among them there is padding."""
        ...


class Words:
    """Lower-case words and punctuation marks; any other is unknown."""

    pad, end, unknown = 0, 1, 2

    def __init__(self, words: Sequence[str]):
        self.words = (PAD, END, UNKNOWN, *words)
        self.size = len(self.words)
        self._number = {word: number for number, word in enumerate(self.words)}
        self.name = f"{len(words)} words: {' '.join(words)}"

    @classmethod
    def of(cls, sentences: Iterable[str], min_count: int = 1) -> "Words":
        """The words that occur at least so often, in alphabetical order."""
        counts = Counter(word for sentence in sentences for word in split(sentence))
        return cls(sorted(word for word, count in counts.items() if count >= min_count))

    def encode(self, sentence: str) -> list[int]:
        return [self._number.get(word, self.unknown) for word in split(sentence)]

    def decode(self, tokens: Iterable[int]) -> str:
        return " ".join(self.words[token] for token in tokens if token not in (self.pad, self.end))


def split(sentence: str) -> list[str]:
    """Words and punctuation marks, lower-case; an accent belongs to its letter, however it is written."""
    return _WORD.findall(unicodedata.normalize("NFC", sentence.lower()))


class Bytes:
    """Byte pairs as GPT-2's, of which there are 50,257: one ends a text, and one more is for padding."""

    def __init__(self, folder: Path):
        """Reads ``vocab.json`` and ``merges.txt``.

        Raises:
          UserError: the package ``tokenizers`` is missing.
          DataError: the files are missing or unreadable.
        """
        try:
            import tokenizers
        except ImportError as error:
            raise UserError('Byte pairs need the package tokenizers: pip install -e ".[text]".') from error
        files = (folder / "vocab.json", folder / "merges.txt")
        for file in files:
            if not file.is_file():
                raise DataError(
                    f"There is no {file}: byte pairs are read from a folder with vocab.json and merges.txt."
                )
        try:
            pairs = tokenizers.models.BPE.from_file(*map(str, files))
        except Exception as error:  # The library raises bare exceptions.
            raise DataError(f"{folder} holds no byte pairs that can be read ({error}).") from error
        self._tokenizer = tokenizers.Tokenizer(pairs)
        self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.decoder = tokenizers.decoders.ByteLevel()
        own, end = self._tokenizer.get_vocab_size(), self._tokenizer.token_to_id(END_OF_TEXT)
        if end is None:
            raise DataError(f"{folder / 'vocab.json'} has no {END_OF_TEXT}: byte pairs must be those of GPT-2.")
        self.end, self.pad, self.size = end, own, own + 1
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
        self.name = f"{own} byte pairs {digest}"

    def encode(self, sentence: str) -> list[int]:
        return self._tokenizer.encode(f" {sentence.strip()}").ids

    def decode(self, tokens: Iterable[int]) -> str:
        return self._tokenizer.decode([int(t) for t in tokens if t not in (self.pad, self.end)]).strip()


def padded(rows: Sequence[Sequence[int]], length: int, pad: int) -> Int[np.ndarray, "N L"]:
    """One row of ``length`` for each, filled up at its end; a longer one raises a ValueError."""
    out = np.full((len(rows), length), pad, np.int32)
    for into, row in zip(out, rows, strict=True):
        into[: len(row)] = row
    return out
