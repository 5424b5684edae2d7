"""Metrics of texts against texts whose values are known by hand."""

import numpy as np
import pytest

from rtbjax.metrics import text

REFERENCE = "a guard lent her a rope .".split()


def test_distinct_n_grams():
    texts = ["a b a b".split(), "a b c".split()]
    # 1-grams: a, b, c of seven; 2-grams: ab, ba, ab, ab, bc.
    assert text.distinct(texts, 1) == pytest.approx(3 / 7)
    assert text.distinct(texts, 2) == pytest.approx(3 / 5)
    assert text.distinct([["a"]], 2) == 0.0


@pytest.mark.parametrize("metric", [text.bleu, text.gleu])
def test_likeness_is_one_of_the_same_and_falls_with_every_other_word(metric):
    near, far = "a guard lent her a ladder .".split(), "two horses ran home in time !".split()
    assert metric(REFERENCE, [REFERENCE]) == pytest.approx(1.0)
    assert 1.0 > metric(REFERENCE, [near]) > metric(REFERENCE, [far]) >= 0.0
    assert metric(REFERENCE, [REFERENCE, far]) == pytest.approx((1.0 + metric(REFERENCE, [far])) / 2)


def test_gleu_by_hand():
    """Of a text of the same length it is the share of common 1- to 4-grams: 6 + 4 + 3 + 2 of 7 + 6 + 5 + 4."""
    near = "a guard lent her a ladder .".split()
    assert text.gleu(REFERENCE, [near]) == pytest.approx((6 + 4 + 3 + 2) / 22)


def test_self_bleu_is_one_of_copies_and_falls_with_every_text_that_is_unlike_the_others():
    near, far = "a guard lent her a ladder .".split(), "two horses ran home in time !".split()
    assert text.self_bleu([REFERENCE, REFERENCE, REFERENCE]) == pytest.approx(1.0)
    assert 1.0 > text.self_bleu([REFERENCE, near]) > text.self_bleu([REFERENCE, far])
    # Each against the rest: the two that are alike find themselves again, the third finds nothing.
    alone = text.bleu(REFERENCE, [far])
    assert text.self_bleu([REFERENCE, far, REFERENCE]) == pytest.approx((2.0 + alone) / 3)
    with pytest.raises(ValueError, match="needs two, got 1"):
        text.self_bleu([REFERENCE])


def vectors(*numbers, scored=None):
    """A text of unit vectors, of unlike lengths, that are orthogonal unless their numbers are the same."""
    found = np.eye(5)[list(numbers)] * np.arange(1, len(numbers) + 1)[:, None]
    return text.Embedded(found, np.ones(len(numbers), bool) if scored is None else np.array(scored))


def test_greedy_f1_of_words_that_are_the_same_or_not():
    """Half of (0, 3) is in the reference, a third of the reference is in it: 2 / (2 + 3)."""
    reference = vectors(0, 1, 2)
    assert text.greedy_f1(reference, [vectors(0, 3)]) == pytest.approx(0.4)
    assert text.greedy_f1(reference, [vectors(2, 0, 1), vectors(0, 3)]) == pytest.approx((1.0 + 0.4) / 2)
    assert text.greedy_f1(reference, [vectors(3, 4)]) == 0.0 == text.greedy_f1(reference, [vectors()])


def test_greedy_f1_of_words_that_are_near():
    angle = 0.3
    near = text.Embedded(np.array([[np.cos(angle), np.sin(angle), 0.0, 0.0, 0.0]]), np.ones(1, bool))
    assert text.greedy_f1(vectors(0), [near]) == pytest.approx(np.cos(angle))


def test_marks_around_a_text_can_be_matched_and_are_not_scored():
    reference = vectors(0, 1, 4, scored=[True, True, False])
    # Of the text 0 and 4 are found, of the reference 0 alone.
    assert text.greedy_f1(reference, [vectors(0, 4)]) == pytest.approx(2 * 1.0 * 0.5 / 1.5)
    assert text.greedy_f1(reference, [vectors(0, 4, scored=[False, False])]) == 0.0
