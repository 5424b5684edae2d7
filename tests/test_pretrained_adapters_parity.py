"""Adapters between rtbjax and diffusers: whoever wrote them, the two predict alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtbjax import Policy, lora, posterior
from rtbjax.nets import pretrained
from rtbjax.nets.pretrained import PretrainedError, adapters

torch = pytest.importorskip("torch", reason="parity needs the extra 'parity'")
diffusers = pytest.importorskip("diffusers", reason="parity needs the extra 'parity'")
peft = pytest.importorskip("peft", reason="parity needs the extra 'parity'")

from test_pretrained_unet import TEXT, channels_last, randomised  # noqa: E402

RANK = 3
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
# What has adapters: as `rtbjax.posterior.lora` selects it, and as peft does.
SELECTED = {
    "attention, as Stable Diffusion": ("unet/.*attn.*kernel", ATTENTION),
    "convolutions and time too": (
        "unet/.*(attn|conv1|conv_shortcut|linear_1|proj_in).*kernel",
        [*ATTENTION, "conv1", "conv_shortcut", "linear_1", "proj_in"],
    ),
}
T = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("unet")
    randomised(diffusers.UNet2DConditionModel(**TEXT)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def prior(folder):
    model = pretrained.load(folder)
    denoise = model.policy().apply_fn
    return Policy({"unet": model.params}, lambda params, x, t, cond: denoise(params["unet"], x, t, cond))


@pytest.fixture(scope="module")
def asked():
    """Latents and what a text encoder said, in PyTorch's layout."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 5, 12, generator=draw)


def pipeline(unet):
    """A pipeline, of which only the U-Net is there: adapters ask for no more."""
    names = ("vae", "text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor")
    return diffusers.StableDiffusionPipeline(unet=unet, **dict.fromkeys(names), requires_safety_checker=False)


def theirs(unet, asked):
    with torch.no_grad():
        return channels_last(unet(asked[0], T, asked[1]).sample)


def ours(policy, asked):
    return np.asarray(
        jax.jit(policy.apply_fn)(policy.params, channels_last(asked[0]), jnp.float32(T), asked[1].numpy())
    )


@pytest.mark.parametrize("select", SELECTED.values(), ids=SELECTED.keys())
def test_a_pipeline_that_loads_our_adapters_predicts_as_we_do(select, folder, prior, asked, tmp_path):
    learner = posterior.lora(jax.random.key(0), prior, RANK, select=select[0])
    keys = iter(jax.random.split(jax.random.key(1), len(learner.params)))
    trained = {
        path: one | {"b": 0.3 * jax.random.normal(next(keys), one["b"].shape)} for path, one in learner.params.items()
    }
    adapters.save(tmp_path, trained, prior.params)
    loaded = pipeline(diffusers.UNet2DConditionModel.from_pretrained(folder))
    before = theirs(loaded.unet, asked)
    loaded.load_lora_weights(tmp_path)
    after = theirs(loaded.unet, asked)
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_allclose(ours(learner.replace(params=trained), asked), after, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"lora_alpha": 2 * RANK}, {"lora_alpha": 2, "use_rslora": True}])
@pytest.mark.parametrize("select", SELECTED.values(), ids=SELECTED.keys())
def test_adapters_that_peft_wrote_predict_as_they_did_there(select, settings, folder, prior, asked, tmp_path):
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder)
    write(tmp_path, unet, select[1], settings)
    learner = posterior.lora(jax.random.key(0), prior, RANK, select=select[0])
    before = ours(learner, asked)
    found = learner.replace(params=adapters.load(tmp_path, learner.params, prior.params))
    assert np.abs(ours(found, asked) - before).max() > 0.1
    np.testing.assert_allclose(ours(found, asked), theirs(unet, asked), atol=1e-4)


def test_a_layer_with_an_alpha_of_its_own_is_refused(folder, prior, tmp_path):
    select, targets = SELECTED["attention, as Stable Diffusion"]
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder)
    write(tmp_path, unet, targets, {"alpha_pattern": {"to_q": 7}})
    like = lora.init(jax.random.key(0), prior.params, RANK, select)
    with pytest.raises(PretrainedError, match="has an alpha of their own for some layers, which is not supported"):
        adapters.load(tmp_path, like, prior.params)


def write(to, unet, targets, settings):
    """Gives a U-Net random adapters, and writes them as diffusers' training scripts do."""
    config = peft.LoraConfig(**{"r": RANK, "lora_alpha": RANK, "target_modules": targets} | settings)
    torch.manual_seed(0)
    unet.add_adapter(config)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    diffusers.StableDiffusionPipeline.save_lora_weights(
        to,
        unet_lora_layers=peft.get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=config.to_dict(),
    )
