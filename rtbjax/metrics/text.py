"""Texts as lists of words: how near they are to a reference, and how much they repeat themselves."""

from collections.abc import Sequence
from typing import Any

Words = Sequence[str]


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


def distinct(texts: Sequence[Words], n: int) -> float:
    """Different n-grams as a share of all n-grams of the texts (Li et al. 2016); 0 if there are none."""
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)
