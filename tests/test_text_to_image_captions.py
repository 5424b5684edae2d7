"""Captioned digits: the law of captions, and what is painted for each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from experiments.data import DataError, Images
from experiments.text_to_image import captions, networks
from rtbjax.nets import pretrained


@pytest.fixture(scope="module")
def digits():
    return captions.digits(data.embedded_mnist())


def test_captions_are_read_as_they_are_numbered():
    colours, plurals = tuple(captions.COLOURS), captions.PLURALS
    for number, caption in enumerate(captions.CAPTIONS):
        first, colour, digit = caption.split()
        assert colour == colours[number // 20]
        assert digit == (captions.DIGITS if first == "a" else plurals)[number % 20 // 2]
    assert len(set(captions.CAPTIONS)) == 120


def test_every_digit_has_one_rare_colour(digits):
    numbers = np.arange(120)
    rare = np.array([captions.rare(number) for number in numbers])
    for digit in range(10):
        assert sorted(rare[numbers % 20 // 2 == digit]) == [False] * 10 + [True] * 2
    assert rare[captions.CAPTIONS.index("a green three")]
    law = captions.law()
    assert law.sum() == pytest.approx(1.0) and law[rare].sum() == pytest.approx(captions.RARE_SHARE)
    _, drawn = captions.draw(jax.random.key(0), digits, 20_000)
    found = np.bincount(drawn, minlength=120) / 20_000
    np.testing.assert_allclose(found, law, atol=4 * np.sqrt(law.max() / 20_000))


def test_a_picture_has_the_colour_and_the_number_of_its_caption(digits):
    numbers = jnp.arange(120)
    x = np.asarray(captions.pictures(jax.random.key(0), digits, numbers)) / 2.0 + 0.5
    assert x.shape == (120, 32, 32, 3) and x.min() == 0.0 and x.max() <= 1.0
    for number, picture in enumerate(x):
        colour = np.array(list(captions.COLOURS.values()))[number // 20]
        np.testing.assert_allclose(picture, picture.max(axis=-1, keepdims=True) / colour.max() * colour, atol=1e-5)
        ink = picture.sum(axis=(0, 2))
        if number % 2:  # One digit in each half.
            assert ink[:16].sum() > 5.0 and ink[16:].sum() > 5.0


def test_the_digits_of_a_picture_are_its_captions():
    """Digits of which every pixel is as bright as the label says."""
    labels = np.arange(10).repeat(3)[::-1].astype(np.int32)
    images = np.broadcast_to(labels[:, None, None, None] / 9.0 * 2.0 - 1.0, (30, 28, 28, 1)).astype(np.float32)
    painted = captions.digits(Images(images, labels, "levels"))
    x = np.asarray(captions.pictures(jax.random.key(0), painted, jnp.arange(100, 120)))  # White ones.
    np.testing.assert_allclose(x.max(axis=(1, 2, 3)), np.arange(10).repeat(2) / 9.0 * 2.0 - 1.0, atol=1e-5)


def test_digits_of_which_one_is_missing_are_refused():
    found = data.embedded_mnist()
    kept = found.labels != 4
    with pytest.raises(DataError, match="holds no four"):
        captions.digits(Images(found.images[kept], found.labels[kept], "some.npz"))


def test_every_word_of_a_caption_is_a_token_and_any_text_can_be_read(tmp_path):
    pytest.importorskip("tokenizers")
    size = networks.write_tokenizer(tmp_path / "tokenizer")
    read = pretrained.tokenizer.load(tmp_path)
    tokens = read(captions.CAPTIONS)
    assert (tokens[:, 0] == read.begin).all() and (tokens[:, 4:] == read.end).all()
    assert (tokens[:, 1:4] < read.begin).all() and len(np.unique(tokens, axis=0)) == 120
    assert tokens.max() == size - 1
    unknown = read(["a café"])[0]
    assert read.encoder.decode([t for t in unknown if t < read.begin]).replace("</w>", " ").strip() == "a café"
