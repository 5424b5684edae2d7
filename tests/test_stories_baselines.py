"""What infills are compared with."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from test_transformer import randomised

from experiments.stories import infiller, language_model
from experiments.stories.words import Bytes, Words
from rtbjax import left_to_right, rollout
from rtbjax.nets.transformer import CausalTransformer

PAD, STOP, SIZE = 0, 4, 5  # As of these words.
WORDS = Words(["a", "."])
NET = CausalTransformer(vocab_size=SIZE, width=8, depth=1, heads=2)


def test_a_language_model_is_sampled_from_its_own_law_until_it_closes_the_sentence():
    """Frequencies of sentences against probabilities by enumeration; padding of a prompt changes nothing."""
    params = randomised(language_model.init(NET, jax.random.key(0)), jax.random.key(1))
    count = 8_000
    slots = {"a": jnp.array([[2, 3, PAD]], jnp.int32), "b": jnp.array([[PAD, 1]], jnp.int32)}
    cond = {name: jnp.tile(slot, (count, 1)) for name, slot in slots.items()}
    writer = infiller.policy(NET, params, ("a", "b"), WORDS)
    chain = left_to_right(2, SIZE)
    draw = jax.jit(lambda key: rollout(key, chain, writer, shape=(count, 2), cond=cond).xs[-1])
    drawn = np.asarray(draw(jax.random.key(2)))
    ends, counts = np.unique(drawn, axis=0, return_counts=True)

    def law(text):
        p = np.array(jax.nn.softmax(NET.apply({"params": params}, jnp.array([text]))[0, -1]), np.float64)
        p[PAD] = 0.0
        return p / p.sum()

    first = law([2, 3, 1])
    expected = {(STOP, PAD): first[STOP]}
    expected |= {(a, b): first[a] * law([2, 3, 1, a])[b] for a in range(1, STOP) for b in range(1, SIZE)}
    found = {tuple(end.tolist()): n for end, n in zip(ends, counts, strict=True)}
    assert found.keys() <= expected.keys()
    observed = [found.get(end, 0) for end in expected]
    assert scipy.stats.chisquare(observed, count * np.array(list(expected.values())), sum_check=False).pvalue > 1e-3


def test_marks_that_close_a_sentence(tmp_path):
    words = Words(["a", ".", "!"])
    assert set(infiller.closing_tokens(words)) == {words.encode(".")[0], words.encode("!")[0]}
    # Byte pairs have a mark with and without a space before it, and may join it to a quotation mark.
    pieces = ["<|endoftext|>", "A", ",", ".", "?", '"', "\u0120", "\u0120A", "\u0120.", "\u0120,", '."']
    (tmp_path / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text('#version: 0.2\n\u0120 A\n\u0120 .\n\u0120 ,\n. "\n')
    pairs = Bytes(tmp_path)
    assert {pieces[token] for token in infiller.closing_tokens(pairs)} == {".", "?", "\u0120.", '."'}
    for sentence in ("A, A.", "A .", 'A."'):
        assert pairs.decode(pairs.encode(sentence)) == sentence
        assert [token in infiller.closing_tokens(pairs) for token in pairs.encode(sentence)][-1]
