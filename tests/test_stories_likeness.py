"""Likeness of infills to a reference by vectors of their words; BERTScore by a tiny random encoder made here."""

import numpy as np
import pytest
from shrunk import changed

from configs.stories import get_config
from experiments.errors import ConfigError, UserError
from experiments.stories import corpus, likeness, networks
from experiments.stories.words import Words

REFERENCE = "a dog gave her a rope ."
INFILLS = ["a kind dog threw her a rope .", "rope", "the nurse sold him a cake and he was happy ."]


def test_words_are_matched_wherever_they_stand_and_by_their_vectors():
    words = Words(["dog", "hound", "ran", "."])
    table = np.zeros((words.size, 3))
    table[words.encode("dog hound ran .")] = [[1, 0, 0], [0.8, 0.6, 0], [0, 0, 2], [0, 3, 0]]
    like = likeness.by_words(table, words)
    assert like("dog ran", ["ran dog"]) == pytest.approx(1.0)
    assert like("dog ran", ["hound ran"]) == pytest.approx((0.8 + 1.0) / 2)


def test_the_shipped_vectors_rank_events_by_what_they_share():
    config = get_config()
    found = corpus.load(config.data, 1)
    like = likeness.make(config, found.vocabulary, networks.load(config, "reward", found))
    assert like.keys() == {"embedding_f1"}
    told = [REFERENCE, "a dog lent her a rope .", "a dog lent her a cake .", "a nurse sold her a cake ."]
    values = [like["embedding_f1"](REFERENCE, [infill]) for infill in told]
    assert values[0] == pytest.approx(1.0, abs=1e-6) and values == sorted(values, reverse=True) and values[-1] < 0.9


@pytest.fixture(scope="module")
def folder(packages, tmp_path_factory):
    torch, transformers = packages
    path = tmp_path_factory.mktemp("bert")
    words = sorted({word for text in (REFERENCE, *INFILLS) for word in text.split()})
    (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    transformers.BertTokenizerFast(vocab=str(path / "vocab.txt")).save_pretrained(path)
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, vocab_size=40)
    transformers.BertModel(transformers.BertConfig(**sizes, initializer_range=0.6)).save_pretrained(path)
    return path


def test_bert_score_is_that_of_its_definition_one_text_at_a_time(packages, folder):
    torch, transformers = packages
    network = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)

    def states(text):
        """Of the second layer; [CLS] first, [SEP] last."""
        with torch.no_grad():
            found = network(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[2][0]
        return torch.nn.functional.normalize(found.double(), dim=-1)

    def f1(infill):
        a, b = states(infill), states(REFERENCE)
        precision = np.mean([max(float(x @ y) for y in b) for x in a[1:-1]])
        recall = np.mean([max(float(x @ y) for x in a) for y in b[1:-1]])
        return 2 * precision * recall / (precision + recall)

    expected = [f1(infill) for infill in INFILLS]
    score = likeness.BertScore(str(folder), layer=2, baseline=0.0)
    assert np.std(expected) > 0.02
    np.testing.assert_allclose([score(REFERENCE, [infill]) for infill in INFILLS], expected, atol=1e-5)
    many = INFILLS * likeness.AT_ONCE
    assert score(REFERENCE, many) == pytest.approx(np.mean(expected), abs=1e-5)
    rescaled = likeness.BertScore(str(folder), layer=2, baseline=0.5)
    assert rescaled(REFERENCE, INFILLS) == pytest.approx((np.mean(expected) - 0.5) / 0.5, abs=1e-5)
    assert rescaled(REFERENCE, [REFERENCE]) == pytest.approx(1.0, abs=1e-5)


def test_a_config_with_an_encoder_has_both(folder):
    config = changed(get_config(), eval__bert_score__model=str(folder), eval__bert_score__layer=1)
    words, table = Words(["rope"]), {"tokens": {"embedding": np.ones((4, 2))}}
    assert likeness.make(config, words, table).keys() == {"embedding_f1", "bert_score"}
    assert likeness.make(config, words, None).keys() == {"bert_score"}
    with pytest.raises(ConfigError, match="config.eval.bert_score.layer must lie in 1..3, got 4"):
        likeness.BertScore(str(folder), layer=4, baseline=0.0)


def test_without_the_packages_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(UserError, match=r"config.eval.bert_score.model needs .*pip install -e \"\.\[lm\]\""):
        likeness.BertScore("anywhere", layer=1, baseline=0.0)
