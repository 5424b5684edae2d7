"""Stories of five sentences: the grammar's, or a file of ROCStories; and their tokens in slots of fixed lengths."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from experiments import hosts
from experiments.data import DataError
from experiments.stories import grammar
from experiments.stories.words import Bytes, Vocabulary, Words, padded
from experiments.weights import locate

COLUMNS = tuple(f"sentence{number}" for number in range(1, 6))
TEST_SEED, TRAIN_SEED = 1, 2  # Of the grammar's stories, which are the same in every run.

Story = tuple[str, ...]


class Tokens(NamedTuple):
    """N stories. Every slot is as long as the longest text of the corpus, so that its length says nothing.

    Attributes:
      before: sentences 1 to 3, ``i32[N, X]``.
      middle: sentence 4, ``i32[N, L]``.
      after: sentence 5 and the end of the story, ``i32[N, Y]``.
    """

    before: Int[np.ndarray, "N X"]
    middle: Int[np.ndarray, "N L"]
    after: Int[np.ndarray, "N Y"]


class Corpus(NamedTuple):
    """Attributes:
    vocabulary: of the tokens.
    test: stories nothing is trained on.
    test_tokens: theirs.
    train_tokens: of those to train on.
    source: for ``summary.json``.
    """

    vocabulary: Vocabulary
    test: list[Story]
    test_tokens: Tokens
    train_tokens: Tokens
    source: str


def load(data: ConfigDict, count: int) -> Corpus:
    """Stories by ``config.data``: of a file, or of the grammar.

    Args:
      data: ``path`` of a file or "", ``test_stories`` to hold out (the first of a file), ``tokenizer``: "words", or the
        folder of byte pairs, ``min_count`` of a word in a file to be known.
      count: how many stories to train on; all of a file's if there are fewer.

    Raises:
      DataError: a file that cannot be read, or holds too few stories.
    """
    held_out = int(data.test_stories)
    if data.path:
        stories = read(locate(data.path))
        if len(stories) <= held_out:
            raise DataError(
                f"{data.path} holds {len(stories)} stories, and config.data.test_stories={held_out} are held "
                "out: none is left to train on."
            )
        test, train = stories[:held_out], stories[held_out:]
        source, longest = Path(data.path).name, stories
    else:
        test = grammar.sample(np.random.default_rng(TEST_SEED), held_out)
        train = grammar.sample(np.random.default_rng(TRAIN_SEED), count)
        source, longest = "the grammar of experiments/stories", grammar.longest_stories()
    if data.tokenizer != "words":
        vocabulary = Bytes(locate(data.tokenizer))
    elif data.path:
        vocabulary = Words.of((sentence for story in train for sentence in story), data.min_count)
    else:
        vocabulary = Words(grammar.WORDS)
    slots = lengths(encode(longest, vocabulary))
    tokens = [in_slots(encode(stories, vocabulary), slots, vocabulary.pad) for stories in (test, train[:count])]
    found = Corpus(vocabulary, test, tokens[0], tokens[1], source)
    if data.path:
        hosts.say(described(found, repeated=len(set(test) & set(train))))
    return found


def described(found: Corpus, repeated: int) -> str:
    """What a reader of a file of their own wants to know of it; ``repeated``: held-out stories that are trained on."""
    before, middle, after = (slot.shape[1] for slot in found.train_tokens)
    said = (
        f"{found.source}: {len(found.test)} stories held out and {len(found.train_tokens.middle)} to train on; the "
        f"longest beginning, middle and ending have {before}, {middle} and {after} tokens"
    )
    if isinstance(found.vocabulary, Words):
        tokens = np.concatenate([slot.ravel() for slot in found.test_tokens])
        unknown = np.mean(tokens[tokens != found.vocabulary.pad] == found.vocabulary.unknown)
        said += f"; {unknown:.1%} of the held-out words are unknown"
    return said + (f"; {repeated} of the held-out stories are also among those to train on." if repeated else ".")


def read(path: Path) -> list[Story]:
    """The stories of a ROCStories file: CSV with the columns sentence1 to sentence5.

    Raises:
      DataError: no such file, other columns, a sentence that is missing, or a field too many.
    """
    if not path.is_file():
        raise DataError(f"There is no data file {path}: stories are read from a CSV file with columns {_columns()}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Spreadsheets mark their UTF-8.
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or (), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file in UTF-8 ({error}); its columns must be {_columns()}.") from error
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        found = ", ".join(columns) or "nothing"
        raise DataError(f"{path} must be a CSV file with columns {_columns()}; it has {found}.")
    # DictReader puts what has no column under None.
    shifted = next((number for number, row in enumerate(rows, start=1) if None in row), None)
    if shifted is not None:
        raise DataError(
            f"{path}: story {shifted} has more fields than the file has columns; a sentence with a comma must stand in "
            "quotation marks."
        )
    stories = [tuple((row[column] or "").strip() for column in COLUMNS) for row in rows]
    empty = next((number for number, story in enumerate(stories, start=1) if not all(story)), None)
    if empty is not None:
        raise DataError(f"{path}: story {empty} has fewer than five sentences.")
    return stories


def _columns() -> str:
    return ", ".join(COLUMNS)


def encode(stories: list[Story], vocabulary: Vocabulary) -> list[tuple[list[int], list[int], list[int]]]:
    """Beginning, middle and ending of each story, the ending closed by the end of the story."""
    known: dict[str, list[int]] = {}

    def tokens(sentence: str) -> list[int]:
        if sentence not in known:
            known[sentence] = vocabulary.encode(sentence)
        return known[sentence]

    return [
        (tokens(a) + tokens(b) + tokens(c), tokens(middle), [*tokens(ending), vocabulary.end])
        for a, b, c, middle, ending in stories
    ]


def lengths(parts: list[tuple[list[int], list[int], list[int]]]) -> tuple[int, int, int]:
    """Of the longest beginning, middle and ending."""
    before, middle, after = (max(map(len, column)) for column in zip(*parts, strict=True))
    return before, middle, after


def in_slots(parts: list[tuple[list[int], list[int], list[int]]], slots: tuple[int, int, int], pad: int) -> Tokens:
    """Every part in a slot of its own."""
    columns = zip(*parts, strict=True)
    return Tokens(*(padded(column, length, pad) for column, length in zip(columns, slots, strict=True)))
