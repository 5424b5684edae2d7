"""Networks: shapes, zero at initialisation, one time for all samples, steps under vmap."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtbjax.nets.classifier import Classifier
from rtbjax.nets.convolution import Conv, by_convolution, by_products
from rtbjax.nets.mlp import PISNet, TimeEmbedding
from rtbjax.nets.unet import UNet, timestep_embedding
from rtbjax.nets.value import NoisyClassifier, from_denoiser

UNET = UNet(patch=2, channels=(4, 8), num_blocks=(1, 1), embed_dim=8, num_heads=2, num_classes=3)
PIS = PISNet(features=2, width=8)
CASES = {
    "pisnet": (PIS, (4, 2), jnp.float32(0.3), jax.random.normal(jax.random.key(7), (4, 3))),
    "unet": (UNET, (4, 8, 4, 1), jnp.float32(300.0), jnp.asarray([0, 1, 2, 1], jnp.int32)),
}


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    """A jitted network, its initial parameters, some away from the zeros these hold, and inputs."""
    net, shape, t, cond = CASES[request.param]
    x = jax.random.normal(jax.random.key(2), shape)
    params = jax.device_get(jax.jit(net.init)(jax.random.key(0), x, t, cond))
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape).astype(np.float32), params)
    return jax.jit(net.apply), params, moved, x, t, cond


def test_denoisers_start_at_zero(case):
    apply, params, _, x, t, cond = case
    out = apply(params, x, t, cond)
    assert out.shape == x.shape and out.dtype == jnp.float32
    np.testing.assert_array_equal(out, np.zeros(x.shape))


def test_one_time_for_all_one_per_sample_and_one_per_step_agree(case):
    apply, _, moved, x, t, cond = case
    whole, half = apply(moved, x, t, cond), apply(moved, x, 0.5 * t, cond)
    mixed = apply(moved, x, jnp.asarray([1.0, 1.0, 0.5, 0.5]) * t, cond)
    steps = jax.jit(jax.vmap(apply, in_axes=(None, None, 0, None)))(moved, x, jnp.stack([t, 0.5 * t]), cond)
    np.testing.assert_allclose(mixed[:2], whole[:2], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mixed[2:], half[2:], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(steps, np.stack([whole, half]), rtol=1e-4, atol=1e-4)
    assert np.abs(half - whole).max() > 1e-2  # time matters
    assert np.abs(apply(moved, x, t, jnp.roll(cond, 1, axis=0)) - whole).max() > 1e-2  # so does the condition


def test_samples_do_not_see_each_other(case):
    apply, _, moved, x, t, cond = case
    full, other = apply(moved, x, t, cond), apply(moved, x.at[1:].multiply(-3.0), t, cond)
    np.testing.assert_allclose(full[0], other[0], rtol=1e-4, atol=1e-4)
    assert np.abs(full[1] - other[1]).max() > 1e-2


def test_pisnet_without_a_condition():
    net = PISNet(features=3, width=8)
    x = jnp.ones((5, 2))
    out, _ = jax.jit(net.init_with_output)(jax.random.key(0), x, jnp.float32(0.1))
    np.testing.assert_array_equal(out, np.zeros((5, 3)))
    embedding = TimeEmbedding(width=6, num_rates=4)
    shapes = jax.eval_shape(lambda: embedding.init_with_output(jax.random.key(0), jnp.zeros((3,))))
    assert shapes[0].shape == (3, 6)


def test_unet_sizes_and_labels_are_checked():
    x, t = jnp.zeros((1, 8, 8, 1)), jnp.float32(0.0)

    def shape_of(net, x, t, cond=None):
        return jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), x, t, cond))[0].shape

    plain = UNet(patch=2, channels=(4, 8), embed_dim=8, num_heads=0, out_channels=3)
    assert shape_of(plain, x, t) == (1, 8, 8, 3)
    assert shape_of(UNET, x, t) == (1, 8, 8, 1)  # the absent label
    with pytest.raises(ValueError, match=r"\(6, 8\) do not divide by 4"):
        shape_of(plain, x[:, :6], t)
    with pytest.raises(ValueError, match="num_classes=None"):
        shape_of(plain, x, t, jnp.zeros((1,), jnp.int32))
    with pytest.raises(ValueError, match=r"got shape \(1, 1\)"):
        shape_of(plain, x, t.reshape(1, 1))


def test_timestep_embedding_separates_every_timestep():
    waves = np.asarray(timestep_embedding(jnp.arange(1000.0), 32))
    assert waves.shape == (1000, 32)
    np.testing.assert_allclose(np.sum(waves**2, axis=1), 16.0, rtol=1e-4)
    distance = np.linalg.norm(waves[:, None] - waves[None], axis=-1) + 10 * np.eye(1000)
    assert distance.min() > 0.5
    np.testing.assert_allclose(waves[0], [0.0] * 16 + [1.0] * 16, atol=1e-6)


@pytest.mark.parametrize("size, padding", [((3, 3), "SAME"), ((4, 1), "SAME"), ((3, 2), "VALID")], ids=str)
def test_convolution_is_that_of_flax_with_its_gradients(size, padding):
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    ours, flax = Conv(6, size, padding), nn.Conv(6, size, padding=padding)

    @jax.jit
    def both(x):
        params = flax.init(jax.random.key(1), x)
        assert jax.tree.map(jnp.shape, ours.init(jax.random.key(1), x)) == jax.tree.map(jnp.shape, params)
        params = jax.tree.map(lambda p: p + 0.1, params)

        def total(net):
            return lambda params, x: jnp.sum(jnp.sin(net.apply(params, x)))

        return [(net.apply(params, x), jax.grad(total(net), argnums=(0, 1))(params, x)) for net in (ours, flax)]

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *both(x))


def test_a_kernels_gradient_is_the_same_on_every_platform(key):
    x, grad = jax.random.normal(key, (3, 7, 6, 2)), jax.random.normal(jax.random.key(1), (3, 5, 3, 4))
    found = jax.jit(lambda *arrays: (by_convolution(*arrays), by_products(*arrays)))(x, grad)
    assert found[0].shape == (3, 4, 2, 4)
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


def test_classifier_shapes_features_and_head():
    net = Classifier(num_classes=5, channels=(3, 4), num_features=6)
    x = jax.random.normal(jax.random.key(0), (2, 28, 28, 1))

    @jax.jit
    def run(x):
        params = net.init(jax.random.key(1), x)
        features = net.apply(params, x, method="features")
        head = params["params"]["head"]
        return net.apply(params, x), features, features @ head["kernel"] + head["bias"][None], net.apply(params, x[:1])

    logits, features, by_hand, alone = run(x)
    assert logits.shape == (2, 5) and features.shape == (2, 6) and logits.dtype == jnp.float32
    assert np.min(features) >= 0.0 and np.max(features) > 0.0
    np.testing.assert_allclose(logits, by_hand, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_noisy_classifier_starts_undecided_on_the_layers_of_a_denoiser(key):
    sizes = dict(patch=2, channels=(4, 8), num_blocks=(1, 1), embed_dim=8, num_heads=2)
    net, unet = NoisyClassifier(**sizes, num_classes=5, squeeze=3, hidden=6), UNet(**sizes)
    x, t = jax.random.normal(key, (3, 8, 8, 1)), jnp.asarray([10.0, 500.0, 900.0])
    denoiser = unet.init(jax.random.key(1), x, t)["params"]
    fresh = net.init(jax.random.key(2), x, t)["params"]
    params = from_denoiser(fresh, denoiser)
    assert set(fresh) - set(denoiser) == {"norm_out", "squeeze", "hidden", "film", "classes"}
    for name, layer in params.items():
        jax.tree.map(np.testing.assert_array_equal, layer, denoiser.get(name, fresh[name]))
    wider = UNet(**sizes | {"channels": (4, 16)}).init(jax.random.key(1), x, t)["params"]
    with pytest.raises(ValueError, match="of the denoiser has other sizes"):
        from_denoiser(fresh, wider)
    apply = jax.jit(lambda params, x, t: net.apply({"params": params}, x, t))
    np.testing.assert_allclose(apply(params, x, t), np.log(0.2), rtol=1e-5)
    moved = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(key, p.shape), params)
    log_p = apply(moved, x, t)
    np.testing.assert_allclose(jax.nn.logsumexp(log_p, axis=-1), 0.0, atol=1e-5)
    np.testing.assert_allclose(log_p[1:2], apply(moved, x[1:2], t[1]), rtol=1e-3, atol=1e-4)
    assert float(jnp.max(jnp.abs(log_p - apply(moved, x, t[::-1])))) > 1e-3  # time matters
