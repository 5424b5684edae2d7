"""The two transformers: what a position sees, and how it knows where it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtbjax.nets.transformer import CausalTransformer, MaskedTransformer, rotary

SIZES = dict(vocab_size=11, width=16, depth=2, heads=2)


def randomised(params, key):
    """Zeros of the start would hide what a network does."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, drawn)


@pytest.fixture
def masked(key):
    net = MaskedTransformer(**SIZES)
    params = net.init(key, jnp.zeros((1, 6), jnp.int32), jnp.float32(0.5))
    return net, randomised(params, key)


@pytest.fixture
def causal(key):
    net = CausalTransformer(**SIZES)
    return net, randomised(net.init(key, jnp.zeros((1, 6), jnp.int32)), key)


def test_rotary_products_depend_on_the_distance_alone(key):
    q, k = jax.random.normal(key, (2, 1, 1, 1, 8))
    q, k = (rotary(jnp.broadcast_to(x, (1, 12, 1, 8)))[0, :, 0] for x in (q, k))
    products = np.asarray(q @ k.T)
    for distance in range(-5, 6):
        along = np.diagonal(products, distance)
        np.testing.assert_allclose(along, along[0], atol=1e-5)
    assert np.ptp(products[0]) > 0.1
    np.testing.assert_allclose(np.linalg.norm(q, axis=-1), np.linalg.norm(q[0]), rtol=1e-5)


def test_a_language_model_never_sees_what_comes_later(causal, key):
    net, params = causal
    tokens = jax.random.randint(key, (3, 8), 0, 11)
    logits = net.apply(params, tokens)
    for place in range(1, 8):
        other = net.apply(params, tokens.at[:, place].set((tokens[:, place] + 1) % 11))
        np.testing.assert_allclose(other[:, :place], logits[:, :place], atol=1e-5)
        assert (np.abs(other[:, place:] - logits[:, place:]).max(axis=(0, 2)) > 1e-3).all()


def test_a_denoiser_sees_every_token_the_mask_and_the_time(masked, key):
    net, params = masked
    tokens = jax.random.randint(key, (2, 6), 0, 11)
    logits = net.apply(params, tokens, jnp.float32(0.5))
    assert logits.shape == (2, 6, 11)
    for place in range(6):
        other = net.apply(params, tokens.at[:, place].set(11), jnp.float32(0.5))
        assert (np.abs(other - logits).max(axis=(0, 2)) > 1e-4).all()
    assert np.abs(net.apply(params, tokens, jnp.float32(0.6)) - logits).max() > 1e-3


def test_a_time_of_each_sample_is_that_samples_scalar_time(masked, key):
    net, params = masked
    tokens, times = jax.random.randint(key, (3, 6), 0, 12), jnp.array([0.1, 0.5, 0.9])
    together = net.apply(params, tokens, times)
    for row, t in enumerate(times):
        np.testing.assert_allclose(net.apply(params, tokens[row : row + 1], t)[0], together[row], rtol=1e-5, atol=1e-5)


def test_a_span_is_a_part_of_the_whole(masked, key):
    net, params = masked
    tokens = jax.random.randint(key, (3, 6), 0, 12)
    whole = net.apply(params, tokens, jnp.float32(0.3))
    np.testing.assert_allclose(net.apply(params, tokens, jnp.float32(0.3), (2, 3)), whole[:, 2:5], atol=1e-5)


def test_a_context_reaches_every_position_and_its_order_does_not_matter(key):
    net = MaskedTransformer(**SIZES)
    tokens, context = jnp.zeros((2, 6), jnp.int32), jnp.array([[1, 2, 3], [4, 5, 6]])
    params = randomised(net.init(key, tokens, jnp.float32(0.3), None, context), key)

    def logits(context):
        return net.apply(params, tokens, jnp.float32(0.3), None, context)

    other = logits(context.at[:, 0].set(7))
    assert (np.abs(other - logits(context)).max(axis=(0, 2)) > 1e-3).all()
    np.testing.assert_allclose(logits(context[:, ::-1]), logits(context), atol=1e-5)
