"""Adapters in peft's format: what its layers compute is what the merged kernels do."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from rtbjax import lora
from rtbjax.nets import pretrained
from rtbjax.nets.pretrained import PretrainedError, adapters

UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 4,
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 2,
    "cross_attention_dim": 6,
    "norm_num_groups": 2,
}


@pytest.fixture(scope="module")
def unet():
    return pretrained.build(jax.random.key(0), UNET)


@pytest.fixture(scope="module")
def trained(unet):
    """Adapters of every kernel with no part zero."""
    found = lora.init(jax.random.key(1), {"unet": unet.params}, 3, "kernel")
    keys = jax.random.split(jax.random.key(2), len(found))
    return {
        path: adapter | {"b": jax.random.normal(key, adapter["b"].shape)}
        for key, (path, adapter) in zip(keys, found.items(), strict=True)
    }


def test_the_product_of_the_layers_is_the_change_of_the_weights(unet, trained, tmp_path):
    """In PyTorch's layout, against two U-Nets written for diffusers: the base and the one with the adapters merged."""
    file = adapters.save(tmp_path, trained, {"unet": unet.params})
    merged = lora.merge({"unet": unet.params}, trained, alpha=3.0)["unet"]
    written = []
    for name, params in (("base", unet.params), ("merged", merged)):
        pretrained.save(tmp_path / name, unet._replace(params=params))
        written.append(safetensors.numpy.load_file(tmp_path / name / "diffusion_pytorch_model.safetensors"))
    base, after = written
    layers = safetensors.numpy.load_file(file)
    changed = {name for name in base if not np.array_equal(base[name], after[name])}
    assert {name.replace(".lora_A", "") for name in layers if ".lora_A" in name} == {f"unet.{name}" for name in changed}
    for name in changed:
        first, second = (layers[f"unet.{name}".replace(".weight", f".lora_{part}.weight")] for part in "AB")
        # A layer of rank outputs, then a pointwise one: the composition is one layer with the product of the weights.
        product = np.einsum("or,r...->o...", second.reshape(second.shape[:2]), first)
        np.testing.assert_allclose(product, after[name] - base[name], atol=1e-5)


def test_adapters_come_back_as_they_were(unet, trained, tmp_path):
    adapters.save(tmp_path, trained, {"unet": unet.params})
    again = adapters.load(tmp_path, trained, {"unet": unet.params})
    jax.tree.map(np.testing.assert_array_equal, trained, again)


@pytest.mark.parametrize("alpha", [None, 3.0, 12.0])
def test_an_alpha_is_part_of_what_is_saved(alpha, unet, trained, tmp_path):
    params = {"unet": unet.params}
    adapters.save(tmp_path, trained, params, alpha=alpha)
    again = lora.merge(params, adapters.load(tmp_path, trained, params), alpha=3.0)
    expected = lora.merge(params, trained, alpha=alpha or 3.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), again, expected)


def test_other_adapters_are_refused(unet, trained, tmp_path):
    params = {"unet": unet.params}
    with pytest.raises(PretrainedError, match="has no pytorch_lora_weights.safetensors"):
        adapters.load(tmp_path, trained, params)
    adapters.save(tmp_path, trained, params)
    fewer = lora.init(jax.random.key(0), params, 3, "to_q/kernel")
    with pytest.raises(PretrainedError, match="holds adapters of other layers"):
        adapters.load(tmp_path, fewer, params)
    larger = lora.init(jax.random.key(0), params, 5, "kernel")
    with pytest.raises(PretrainedError, match="holds adapters of other sizes"):
        adapters.load(tmp_path, larger, params)
    (tmp_path / adapters.NAME).write_bytes(b"nothing")
    with pytest.raises(PretrainedError, match="not a readable safetensors file"):
        adapters.load(tmp_path, trained, params)
    with pytest.raises(ValueError, match="Only kernels have adapters in peft's format, not 'unet/conv_in/bias'"):
        adapters.save(tmp_path, {"unet/conv_in/bias": {}}, params)
