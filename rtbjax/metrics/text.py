"""Texts as lists of words: how near they are to a reference, and how much they repeat themselves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

Words = Sequence[str]


class Embedded(NamedTuple):
    """A text as vectors.

    Attributes:
      vectors: of its tokens, ``f[n, D]``.
      scored: ``bool[n]``; marks around a text are tokens to be matched with, and are not scored themselves.
    """

    vectors: Float[np.ndarray, "n D"]
    scored: Bool[np.ndarray, " n"]


def bleu(reference: Words, texts: Sequence[Words]) -> float:
    """Mean BLEU-4 of single sentences, smoothed by method 1 of Chen & Cherry (2014), by nltk.

    Raises:
      ImportError: nltk is not installed.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method1
    return _mean([sentence_bleu([reference], text, smoothing_function=smooth) for text in texts])


def gleu(reference: Words, texts: Sequence[Words]) -> float:
    """Mean GLEU-4 of single sentences (Wu et al. 2016), by nltk.

    Raises:
      ImportError: nltk is not installed.
    """
    from nltk.translate.gleu_score import sentence_gleu

    return _mean([sentence_gleu([reference], text) for text in texts])


def greedy_f1(reference: Embedded, texts: Sequence[Embedded]) -> float:
    """Mean F1 of texts whose tokens are matched by the cosine of their vectors, as in BERTScore (Zhang et al. 2020).

    Precision is the mean over a text's scored tokens of the cosine with the nearest token of the reference, recall the
    same from the reference to the text. A text without a scored token has 0.
    """
    return _mean([_greedy_f1(reference, text) for text in texts])


def _greedy_f1(reference: Embedded, text: Embedded) -> float:
    if not (reference.scored.any() and text.scored.any()):
        return 0.0
    a, b = (e.vectors / np.linalg.norm(e.vectors, axis=1, keepdims=True) for e in (text, reference))
    cosines = a @ b.T
    precision = cosines.max(axis=1)[text.scored].mean()
    recall = cosines.max(axis=0)[reference.scored].mean()
    total = precision + recall
    return float(2.0 * precision * recall / total) if total else 0.0


def distinct(texts: Sequence[Words], n: int) -> float:
    """Different n-grams as a share of all n-grams of the texts (Li et al. 2016); 0 if there are none."""
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[Words]) -> float:
    """Mean BLEU-4 of each text against all the others (Zhu et al. 2018): 1 if they are all the same, less if diverse.

    Raises:
      ImportError: nltk is not installed.
      ValueError: fewer than two texts.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    if len(texts) < 2:
        raise ValueError(f"Self-BLEU compares texts with each other and needs two, got {len(texts)}.")
    smooth = SmoothingFunction().method1
    others = [[*texts[:number], *texts[number + 1 :]] for number in range(len(texts))]
    return _mean(
        [sentence_bleu(rest, text, smoothing_function=smooth) for rest, text in zip(others, texts, strict=True)]
    )


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)
