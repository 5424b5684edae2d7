"""Stories of a file and of the grammar, and their tokens."""

import csv
import unicodedata

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.data import DataError
from experiments.stories import corpus, grammar
from experiments.stories.words import Bytes, Words, split

STORIES = [
    ("Ann's dog ran off.", "She cried.", "It was late!", "A boy found the dog.", "She hugged him."),
    ("Tom was hungry.", "He had no money.", "He saw a bakery.", "The baker gave him bread.", "He ate it all, happily."),
    ("Max ran.", "He fell.", "It hurt.", "A nurse came.", "He ran on."),
]


def data(**fields):
    return ConfigDict(dict(path="", test_stories=2, tokenizer="words", min_count=1) | fields)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "stories.csv"
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["storyid", "storytitle", *corpus.COLUMNS])
        writer.writerows([f"id{i}", "a title", *story] for i, story in enumerate(STORIES))
    return path


@pytest.fixture
def byte_pairs(tmp_path):
    from tokenizers import ByteLevelBPETokenizer

    made = ByteLevelBPETokenizer()
    text = [" ".join(story) for story in STORIES] * 3
    made.train_from_iterator(
        text, vocab_size=300, min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False
    )
    made.save_model(str(tmp_path))
    return Bytes(tmp_path), made


def test_a_file_is_read_as_it_is(file):
    assert corpus.read(file) == STORIES


def test_a_mark_of_utf_8_before_the_first_column_is_none_of_it(tmp_path):
    path = tmp_path / "marked.csv"
    path.write_text("\n".join(map(",".join, [corpus.COLUMNS, ["a.", "b.", "c.", "d.", "e."]])), encoding="utf-8-sig")
    assert corpus.read(path) == [("a.", "b.", "c.", "d.", "e.")]


def test_the_first_stories_are_held_out_and_their_lengths_say_nothing(file):
    found = corpus.load(data(path=str(file)), count=10)
    assert found.test == STORIES[:2] and found.source == "stories.csv"
    # Longest parts: 14 words and marks of story 2, 6 of its middle, 7 of its ending with the end of the story.
    assert [slot.shape[1] for slot in found.test_tokens] == [slot.shape[1] for slot in found.train_tokens] == [14, 6, 8]
    # Words of held-out stories are not known unless another story has them.
    known = found.vocabulary
    assert known.decode(found.train_tokens.middle[0]) == "a nurse came ."
    assert known.decode(found.test_tokens.middle[1]) == "<unknown> <unknown> <unknown> <unknown> <unknown> ."
    assert found.train_tokens.after[0].tolist()[-5:] == [*known.encode("."), known.end, known.pad, known.pad, known.pad]


def test_a_file_is_described_as_it_is_loaded(file, capsys):
    with file.open("a", newline="") as out:
        csv.writer(out).writerow(["id3", "told again", *STORIES[1]])
    corpus.load(data(path=str(file)), count=10)
    # Of 12 + 6 + 5 and 14 + 6 + 8 words, marks and ends, the first story has 12 that no story to train on has.
    assert capsys.readouterr().out == (
        "stories.csv: 2 stories held out and 2 to train on; the longest beginning, middle and ending have 14, 6 and 8 "
        "tokens; 23.5% of the held-out words are unknown; 1 of the held-out stories are also among those to train on.\n"
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b\n1,2\n", r"columns sentence1, sentence2, sentence3, sentence4, sentence5; it has a, b"),
        ("", "it has nothing"),
        (",".join(corpus.COLUMNS[1:]) + "\n", "it has sentence2, sentence3, sentence4, sentence5"),
        (",".join(corpus.COLUMNS) + "\n1,2,3,4\n", "story 1 has fewer than five sentences"),
        (
            ",".join(corpus.COLUMNS) + '\n"a, b",c,d,e,f\na, b,c,d,e,f\n',
            "story 2 has more fields than the file has columns; a sentence with a comma must stand in quotation marks",
        ),
    ],
)
def test_another_file_is_one_sentence_that_names_the_columns(text, message, tmp_path):
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        corpus.read(path)


def test_a_file_that_is_missing_no_text_or_too_short(file, tmp_path):
    with pytest.raises(DataError, match="There is no data file .*columns sentence1"):
        corpus.read(tmp_path / "none.csv")
    binary = tmp_path / "stories.bin"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match="no CSV file in UTF-8"):
        corpus.read(binary)
    header = tmp_path / "header.csv"
    header.write_text(",".join(corpus.COLUMNS))
    with pytest.raises(DataError, match="header.csv holds 0 stories, and config.data.test_stories=2 are held out"):
        corpus.load(data(path=str(header)), count=1)
    with pytest.raises(DataError, match="holds 3 stories, and config.data.test_stories=3 are held out"):
        corpus.load(data(path=str(file), test_stories=3), count=1)


def test_the_grammar_fills_its_slots():
    found = corpus.load(data(test_stories=50), count=2_000)
    assert found.vocabulary.unknown not in np.concatenate([found.test_tokens.middle, found.train_tokens.middle])
    held_out, trained = (
        set(map(bytes, np.concatenate(tokens, axis=1))) for tokens in (found.test_tokens, found.train_tokens)
    )
    assert len(held_out) == 50 and len(trained) > 1_900 and not held_out & trained
    for slot in found.train_tokens:
        used = (slot != found.vocabulary.pad).sum(axis=1)
        assert used.max() == slot.shape[1]
    assert (found.train_tokens.middle[:, -1] == found.vocabulary.pad).any()
    for story, middle in zip(found.test, found.test_tokens.middle, strict=True):
        assert found.vocabulary.decode(middle) == story[3] and grammar.read_event(story[3]) is not None
    assert (found.test_tokens.after == found.vocabulary.end).sum(axis=1).tolist() == [1] * 50


def test_words_come_back():
    words = Words.of(sentence for story in STORIES for sentence in story)
    assert words.decode(words.encode("Ann's dog, tom!")) == "ann's dog , tom !"
    assert words.decode([words.pad, *words.encode("she cried"), words.pad, words.end]) == "she cried"
    assert words.encode("zebra") == [words.unknown]
    often = Words.of((sentence for story in STORIES for sentence in story), min_count=3)
    assert set(often.words[3:]) == {".", "he", "a", "she", "it", "ran"} & set(often.words)
    assert "he" in often.words and "zebra" not in often.words and "nurse" not in often.words


def test_words_may_have_accents():
    words = ["el", "niño", "comió", ":", "¡", "qué", "bien", "!"]
    for form in ("NFC", "NFD"):
        assert split(unicodedata.normalize(form, "El niño comió: ¡qué bien!")) == words
    assert split("x\u0302 n\u0308o!") == ["x\u0302", "n\u0308o", "!"]


def test_byte_pairs_of_sentences_laid_end_to_end_are_those_of_the_text(byte_pairs):
    ours, theirs = byte_pairs
    for story in STORIES:
        joined = [token for sentence in story for token in ours.encode(sentence)]
        assert joined == theirs.encode(" " + " ".join(story)).ids
        assert ours.decode([*joined, ours.end, ours.pad]) == " ".join(story)
    assert ours.end == theirs.token_to_id("<|endoftext|>") and ours.pad == 300 and ours.size == 301


def test_other_byte_pairs_of_the_same_number_are_another_vocabulary(byte_pairs, tmp_path):
    """Their names differ, and so weights of the one are refused with the other."""
    ours, _ = byte_pairs
    again = Bytes(tmp_path).name
    merges = (tmp_path / "merges.txt").read_text().splitlines()
    (tmp_path / "merges.txt").write_text("\n".join([merges[0], *merges[:0:-1]]))
    other = Bytes(tmp_path)
    assert other.size == ours.size and ours.name == again != other.name


def test_byte_pairs_from_nowhere(tmp_path):
    with pytest.raises(DataError, match="a folder with vocab.json and merges.txt"):
        Bytes(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(DataError, match="must be those of GPT-2"):
        Bytes(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text("{")
    with pytest.raises(DataError, match="no byte pairs that can be read"):
        Bytes(tmp_path)
