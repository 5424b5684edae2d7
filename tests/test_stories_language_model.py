"""The reward of an infill: a normalised law of endings that no padding changes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_transformer import randomised

from experiments.stories import language_model
from rtbjax.nets.transformer import CausalTransformer

PAD, END, SIZE = 0, 1, 5
NET = CausalTransformer(vocab_size=SIZE, width=8, depth=2, heads=2)
BEFORE, MIDDLE = [2, 3, 4], [4, 2]


@pytest.fixture(scope="module")
def params():
    return randomised(language_model.init(NET, jax.random.key(0)), jax.random.key(1))


def log_likelihood(params, before, middle, after):
    rows = (jnp.array([part], jnp.int32) for part in (before, middle, after))
    return float(language_model.log_likelihood(NET, params, *rows, PAD)[0])


def test_it_is_the_sum_over_the_endings_tokens_each_given_all_before_it(params):
    after = [3, 3, END]
    text, total = [*BEFORE, *MIDDLE], 0.0
    for token in after:
        logits = NET.apply({"params": params}, jnp.array([text]))[0, -1]
        total += float(jax.nn.log_softmax(logits)[token])
        text.append(token)
    assert log_likelihood(params, BEFORE, MIDDLE, after) == pytest.approx(total, abs=1e-5)


def test_endings_of_a_length_have_probability_one_together(params):
    every = jnp.array(list(itertools.product(range(1, SIZE), repeat=3)), jnp.int32)
    before, middle = (jnp.tile(jnp.array([part], jnp.int32), (len(every), 1)) for part in (BEFORE, MIDDLE))
    shares = jnp.exp(language_model.log_likelihood(NET, params, before, middle, every, PAD))
    # What is missing is what the random network gives to padding, which no text has.
    text, missing = [*BEFORE, *MIDDLE], 0.0
    for length in range(3):
        for ending in itertools.product(range(1, SIZE), repeat=length):
            laws = jax.nn.softmax(NET.apply({"params": params}, jnp.array([[*text, *ending]]))[0], axis=-1)
            chance = np.prod([laws[len(text) - 1 + i, token] for i, token in enumerate(ending)])
            missing += chance * float(laws[-1, PAD])
    assert float(shares.sum()) + missing == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    "before, middle, after",
    [
        ([*BEFORE, PAD, PAD], [*MIDDLE, PAD], [3, END, PAD]),
        (BEFORE, [4, PAD, PAD, 2], [3, END]),
        ([PAD, *BEFORE], MIDDLE, [3, END, PAD, PAD, PAD]),
    ],
)
def test_padding_stands_for_nothing_wherever_it_is(before, middle, after, params):
    plain = log_likelihood(params, BEFORE, MIDDLE, [3, END])
    assert log_likelihood(params, before, middle, after) == pytest.approx(plain, abs=1e-5)


def test_the_ending_is_scored_and_the_middle_matters(params):
    found = log_likelihood(params, BEFORE, MIDDLE, [3, END])
    assert abs(log_likelihood(params, BEFORE, MIDDLE, [2, END]) - found) > 1e-3
    assert abs(log_likelihood(params, BEFORE, [4, 3], [3, END]) - found) > 1e-3
    # An ending of no token has nothing to be scored.
    assert log_likelihood(params, BEFORE, MIDDLE, [PAD]) == 0.0


def test_the_loss_of_a_story_is_all_its_tokens_but_the_first(params):
    parts = tuple(jnp.array([part], jnp.int32) for part in (BEFORE, MIDDLE, [3, END, PAD]))
    ending = log_likelihood(params, BEFORE, MIDDLE, [3, END])
    rest = log_likelihood(params, [BEFORE[0]], [PAD], [*BEFORE[1:], *MIDDLE])
    assert float(language_model.loss(NET, params, parts, PAD)[0]) == pytest.approx(-(ending + rest), abs=1e-5)
