"""The cost of an update: XLA's counts per scan against the closed form, and that they grow as they must."""

import jax
import pytest
from shrunk import changed

from benchmarks import text_to_image_cost as cost
from configs.text_to_image import get_config

UNET = cost.UNET | {
    "sample_size": 16,
    "block_out_channels": [320, 640],
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}


def update(**changes):
    return cost.update(changed(get_config("sd15"), train__batch_size=2, **changes), UNET, tokens=7)


def test_the_closed_form_is_what_xla_counts_of_a_call():
    """Beyond it are elementwise operations and the layers on the time: of so wide a network a few percent."""
    of = update()
    x = jax.ShapeDtypeStruct((4, *of.event_shape), "float32")
    context = jax.ShapeDtypeStruct((4, 7, 24), "float32")
    t = jax.ShapeDtypeStruct((), "float32")
    found = cost.counted(lambda p, *args: of.model.module.apply({"params": p}, *args), of.prior["unet"], x, t, context)
    assert 1.0 < found / (4 * cost.unet_flops(of.model.module, 7)) < 1.06


def test_a_rollout_costs_its_calls_and_a_gradient_its_steps_alone():
    of, longer = update(process__num_steps=10), update(process__num_steps=20)
    calls = 2 * 2 * 2 * 10 * cost.unet_flops(of.model.module, 7)
    assert 1.0 < cost.rollout_flops(of) / calls < 1.08
    assert cost.rollout_flops(longer) == pytest.approx(2 * cost.rollout_flops(of), rel=1e-2)
    assert cost.gradient_flops(longer) == pytest.approx(cost.gradient_flops(of), rel=1e-2)  # Eight steps either way.
    assert cost.kept_bytes(of, remat=True) < 0.5 * cost.kept_bytes(of, remat=False)
