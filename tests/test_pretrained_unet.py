"""U-Nets read from diffusers' folders: the same numbers, and folders that diffusers reads again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtbjax.nets import pretrained

torch = pytest.importorskip("torch", reason="parity needs the extra 'parity'")
diffusers = pytest.importorskip("diffusers", reason="parity needs the extra 'parity'")

# Ho et al.'s CIFAR-10 denoiser as published, google/ddpm-cifar10-32.
CIFAR10 = {
    "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
TINY = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
IMAGE = {
    "as the digits of xkronosx/ddpm-mnist-32": TINY | {"in_channels": 1, "out_channels": 1, "layers_per_block": 2},
    "attention above, one head, as the CIFAR-10 denoiser": TINY
    | {
        "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D"],
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "embedding that scales": TINY | {"resnet_time_scale_shift": "scale_shift"},
    "embedding that scales, groups in the middle": TINY
    | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2},
    "sides changed by residual blocks": TINY
    | {
        "down_block_types": ["AttnDownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D"],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "no attention in the middle": TINY | {"add_attention": False, "mid_block_scale_factor": 1.4},
    "no middle, inputs centred": TINY | {"mid_block_type": None, "center_input_sample": True},
    "a divided middle": TINY | {"mid_block_scale_factor": 1.4},
    "labels": TINY | {"num_class_embeds": 5, "time_embedding_dim": 12},
    "Fourier times": TINY | {"time_embedding_type": "fourier"},
    "learned times": TINY | {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "three levels of other widths": TINY
    | {
        "block_out_channels": [8, 12, 4],
        "down_block_types": ["DownBlock2D"] * 3,
        "up_block_types": ["UpBlock2D"] * 3,
    },
}


TEXT = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
CONDITIONAL = {
    "as Stable Diffusion 1.5": TEXT | {"layers_per_block": 2},
    "as Stable Diffusion 2.1": TEXT
    | {
        "use_linear_projection": True,
        "attention_head_dim": [2, 4],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "upcast_attention": True,
    },
    "deeper where coarser": TEXT | {"layers_per_block": [1, 2], "transformer_layers_per_block": [1, 2]},
    "no attention in the middle": TEXT | {"mid_block_type": "UNetMidBlock2D"},
    "embedding that scales": TEXT | {"resnet_time_scale_shift": "scale_shift"},
}


def randomised(model):
    """Diffusers starts some layers at zero or one, which would hide a mistake in the others."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.1 * noise if parameter.ndim == 1 else noise / parameter[0].numel() ** 0.5)
    return model.eval()


def channels_last(x):
    return np.asarray(x.detach()).transpose(0, 2, 3, 1)


def public(config):
    return {key: value for key, value in config.items() if not key.startswith("_")}


def assert_read_again(theirs, model, folder):
    """What we write diffusers reads, and finds every weight and option as it was."""
    pretrained.save(folder, model)
    again = type(theirs).from_pretrained(folder)
    assert public(again.config) == public(theirs.config)
    weights, same = theirs.state_dict(), again.state_dict()
    assert weights.keys() == same.keys() and all(torch.equal(weights[name], same[name]) for name in weights)


def assert_parity(theirs, folder, cond=None, sides=(8, 8), batch=2):
    """Their folder read by us gives their output, one time per sample; both networks."""
    theirs = randomised(theirs)
    theirs.save_pretrained(folder / "theirs")
    model = pretrained.load(folder / "theirs")
    x = torch.randn(batch, theirs.config.in_channels, *sides, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3, 700][:batch])
    with torch.no_grad():
        expected = channels_last(theirs(x, t, cond).sample)
    cond = None if cond is None else cond.numpy()
    cond = cond.astype(np.int32) if cond is not None and cond.ndim == 1 else cond
    found = jax.jit(model.module.apply)(
        {"params": model.params}, channels_last(x), jnp.asarray(t.numpy(), jnp.float32), cond
    )
    assert 0.1 < np.abs(expected).max() < 10.0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    return theirs, model


@pytest.mark.parametrize("config", IMAGE.values(), ids=IMAGE.keys())
def test_a_tiny_image_unet_gives_the_numbers_of_diffusers_and_goes_back(config, tmp_path):
    labels = torch.tensor([4, 0]) if "num_class_embeds" in config else None
    assert_read_again(*assert_parity(diffusers.UNet2DModel(**config), tmp_path, labels), tmp_path / "ours")


@pytest.mark.parametrize("config", CONDITIONAL.values(), ids=CONDITIONAL.keys())
def test_a_tiny_conditional_unet_gives_the_numbers_of_diffusers_and_goes_back(config, tmp_path):
    tokens = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2))
    pair = assert_parity(diffusers.UNet2DConditionModel(**config), tmp_path, tokens)
    assert_read_again(*pair, tmp_path / "ours")


def test_the_published_cifar10_unet_gives_the_numbers_of_diffusers(tmp_path):
    theirs, ours = assert_parity(diffusers.UNet2DModel(**CIFAR10), tmp_path, sides=(32, 32), batch=1)
    assert_read_again(theirs, ours, tmp_path / "ours")
    num_params = sum(leaf.size for leaf in jax.tree.leaves(ours.params))
    assert num_params == 35_746_307  # as published: 35.7 million


@pytest.mark.slow
def test_the_unet_of_stable_diffusion_gives_the_numbers_of_diffusers_at_its_full_width(tmp_path):
    """Diffusers' defaults are its shapes; random weights, latents of 8 x 8."""
    tokens = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(2))
    _, ours = assert_parity(diffusers.UNet2DConditionModel(cross_attention_dim=768), tmp_path, tokens, batch=1)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(ours.params))
    assert num_params == 859_520_964  # as published: 860 million
