"""Model folders: what is written is read again, former names are understood, and what is wrong is said."""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from rtbjax import lora, rollout
from rtbjax.nets import pretrained
from rtbjax.process.pretrained import from_scheduler

CONFIG = {
    "_class_name": "UNet2DModel",
    "sample_size": 4,
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": [4, 8],
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model():
    return pretrained.build(jax.random.key(0), CONFIG)


@pytest.fixture
def folder(model, tmp_path):
    pretrained.save(tmp_path, model)
    return tmp_path


def assert_same(params, same):
    assert jax.tree.structure(params) == jax.tree.structure(same)
    jax.tree.map(np.testing.assert_array_equal, params, same)


def test_a_written_folder_is_read_again(model, folder):
    read = pretrained.load(folder)
    assert read.config == CONFIG
    assert_same(read.params, model.params)


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "AutoencoderKL", "block_out_channels": [2], "norm_num_groups": 1, "latent_channels": 1},
        {"architectures": ["CLIPTextModel"], "vocab_size": 5, "hidden_size": 4, "num_attention_heads": 2}
        | {"num_hidden_layers": 1, "intermediate_size": 3, "max_position_embeddings": 2},
    ],
    ids=["autoencoder", "text encoder"],
)
def test_so_are_the_other_networks(config, tmp_path):
    made = pretrained.build(jax.random.key(0), config)
    pretrained.save(tmp_path, made)
    read = pretrained.load(tmp_path)
    assert read.config == config
    assert_same(read.params, made.params)


def test_a_folder_is_a_prior_with_its_process(model, tmp_path):
    pretrained.save(tmp_path / "unet", model)
    for place in (tmp_path, tmp_path / "scheduler"):
        place.mkdir(exist_ok=True)
        scheduler = {"_class_name": "DDPMScheduler", "variance_type": "fixed_large", "where": str(place)}
        (place / "scheduler_config.json").write_text(json.dumps(scheduler))
        assert pretrained.load_scheduler(tmp_path) == scheduler
    process = from_scheduler(scheduler, 3)
    prior = pretrained.load(tmp_path).policy()
    trajectory = jax.jit(lambda key: rollout(key, process, prior, shape=(2, 4, 4, 2)))(jax.random.key(0))
    assert trajectory.xs.shape == (4, 2, 4, 4, 2) and np.all(np.abs(trajectory.xs[-1]) < 1.1)  # x0 is clipped


def test_lora_selects_layers_by_the_names_of_diffusers(model):
    """The targets of the paper's image experiments: one layer down, one in the middle, two up."""
    adapters = lora.init(jax.random.key(0), model.params, 2, r"to_(q|k|v|out\.0)/kernel$")
    assert len(adapters) == 4 * (1 + 1 + 2)
    assert "up_blocks.0/attentions.1/to_out.0/kernel" in adapters
    assert_same(lora.merge(model.params, adapters), model.params)


@pytest.mark.slow
def test_recomputed_blocks_keep_less_for_the_same_gradient(model):
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 2))

    def loss(module):
        return lambda params: jnp.mean(jnp.square(module.apply({"params": params}, x, jnp.float32(30.0))))

    def kept(module):
        """Numbers that wait for the backward pass."""
        pullback = jax.eval_shape(lambda params: jax.vjp(loss(module), params)[1], model.params)
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    module, lean = model.module, model.module.clone(remat=True)
    assert kept(lean) < 0.5 * kept(module)
    gradients = [jax.jit(jax.grad(loss(each)))(model.params) for each in (module, lean)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *gradients)


def test_weights_are_read_into_another_dtype(model, folder):
    read = pretrained.load(folder, dtype=jnp.bfloat16)
    assert_same(read.params, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params))
    x = jax.random.normal(jax.random.key(1), (1, 4, 4, 2))
    whole, half = (jax.jit(lambda p, x: p(x, jnp.float32(3.0), None))(each.policy(), x) for each in (model, read))
    assert half.dtype == jnp.float32
    assert 0.0 < np.max(np.abs(half - whole)) < 0.05 * np.max(np.abs(whole))
    pretrained.save(folder / "half", read)
    assert_same(pretrained.load(folder / "half", dtype=jnp.bfloat16).params, read.params)


@pytest.mark.parametrize("as_convolution", [False, True])
def test_attention_by_its_former_names_is_understood(model, folder, as_convolution):
    flat = safetensors.numpy.load_file(folder / WEIGHTS)
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, array in flat.items():
        for now, before in former.items():
            if f".{now}.weight" in name and as_convolution:
                array = array[:, :, None, None]
            name = name.replace(f".{now}.", f".{before}.")
        renamed[name] = array
    assert sum(".query." in name for name in renamed) == 8
    safetensors.numpy.save_file(renamed, folder / WEIGHTS)
    assert_same(pretrained.load(folder).params, model.params)


def test_weights_in_several_files_are_read_by_their_index(model, folder):
    flat = safetensors.numpy.load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    index = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(flat)}
    for part in set(index.values()):
        safetensors.numpy.save_file({name: flat[name] for name in flat if index[name] == part}, folder / part)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": index}))
    assert_same(pretrained.load(folder).params, model.params)
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(pretrained.PretrainedError, match="has no part-1.safetensors, which its index names"):
        pretrained.load(folder)


def test_the_unet_of_a_pipeline_is_found(model, tmp_path):
    pretrained.save(tmp_path / "unet", model)
    assert_same(pretrained.load(tmp_path).params, model.params)
    with pytest.raises(pretrained.PretrainedError, match=f"{tmp_path} has no component 'vae'"):
        pretrained.load(tmp_path, "vae")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not readable JSON"),
        (lambda f: (f / "config.json").write_text("[1]"), "must hold a JSON object, got list"),
        (lambda f: (f / WEIGHTS).unlink(), f"has no {WEIGHTS}.$"),
        (
            lambda f: (f / WEIGHTS).rename(f / "diffusion_pytorch_model.bin"),
            "diffusion_pytorch_model.bin is a pickle, which is never read",
        ),
        (lambda f: (f / WEIGHTS).write_bytes(b"nothing"), f"{WEIGHTS} is not a readable safetensors file"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(folder, damage, message):
    damage(folder)
    with pytest.raises(pretrained.PretrainedError, match=message):
        pretrained.load(folder)


def test_weights_of_another_config_name_the_first_that_differs(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | {"in_channels": 3}))
    with pytest.raises(pretrained.PretrainedError, match=r"1 tensors differ.*'conv_in.weight' \(file: \(3, 3, 2, 4\)"):
        pretrained.load(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_class_embeds": 3}))
    with pytest.raises(pretrained.PretrainedError, match=r"class_embedding.weight' \(file: missing, config: \(3, 16\)"):
        pretrained.load(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"_class_name": "SD3Transformer2DModel"}, "class 'SD3Transformer2DModel' are not supported, only UNet2DModel"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "'SkipDownBlock2D' is not supported, only 'Down"),
        ({"down_block_types": ["DownBlock2D"]}, "down_block_types must be a list of 2 entries"),
        ({"act_fn": "mish"}, "act_fn='mish' is not supported, only 'silu', 'swish'"),
        ({"resnet_time_scale_shift": "spatial"}, "'spatial' is not supported, only 'default', 'scale_shift'"),
        ({"time_embedding_type": "learned"}, "needs num_train_timesteps"),
        ({"time_embedding_type": "none"}, "only 'positional', 'fourier', 'learned'"),
        ({"norm_num_groups": 3}, "norm_num_groups=3 does not divide 4 channels"),
        ({"attention_head_dim": 3}, "attention_head_dim=3 does not divide 4 channels"),
        ({"class_embed_type": "identity"}, "class_embed_type='identity' is not supported, only None"),
        ({"some_new_option": 7}, "option some_new_option=7 is not supported"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(change, message):
    with pytest.raises(pretrained.PretrainedError, match=message):
        pretrained.build(jax.random.key(0), CONFIG | change)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time"}, "Stable Diffusion XL are not"),
        ({"_class_name": "UNet2DConditionModel", "cross_attention_dim": [8, 8]}, "only one for all levels"),
        ({"_class_name": "UNet2DConditionModel", "attention_head_dim": 7}, "=7 heads do not divide 320 channels"),
        ({"_class_name": "AutoencoderKL", "down_block_types": ["AttnDownEncoderBlock2D"]}, "only 'DownEncoderBlock2D'"),
        ({"_class_name": "AutoencoderKL", "shift_factor": 0.1}, "option shift_factor=0.1 is not supported"),
        ({"architectures": ["CLIPTextModelWithProjection"]}, "class 'CLIPTextModelWithProjection' are not supported"),
        ({"architectures": ["CLIPTextModel"], "hidden_act": "relu"}, "only 'quick_gelu', 'gelu'"),
        ({"architectures": ["CLIPTextModel"], "num_attention_heads": 7}, "7 heads do not divide hidden_size=512"),
    ],
    ids=str,
)
def test_what_is_not_supported_of_other_networks_is_named(config, message):
    with pytest.raises(pretrained.PretrainedError, match=message):
        pretrained.build(jax.random.key(0), config)


def test_no_folder_and_no_network_name_the_alternative(tmp_path, monkeypatch):
    with pytest.raises(pretrained.PretrainedError, match="There is no model folder"):
        pretrained.load(tmp_path / "nowhere")
    # Nobody answers on the discard port: whatever fetches fails as it does without a network.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(pretrained.PretrainedError, match="'nobody/nothing' is no folder.* give the path of a folder"):
        pretrained.load("nobody/nothing")
    assert time.monotonic() - start < 30.0


def test_a_package_that_is_not_there_is_named(tmp_path, monkeypatch):
    for package in ("huggingface_hub", "tokenizers"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(pretrained.PretrainedError, match=r'pip install "rtbjax\[hub\]", or give the path of a folder'):
        pretrained.load("nobody/nothing")
    with pytest.raises(pretrained.PretrainedError, match=r'pip install "rtbjax\[text\]"'):
        pretrained.tokenizer.load(tmp_path)


def test_wrong_inputs_name_both_shapes(model):
    def call(x, cond=None):
        jax.eval_shape(model.module.apply, {"params": model.params}, x, jnp.float32(0.0), cond)

    with pytest.raises(ValueError, match=r"\[B, H, W, 2\] with sides that divide by 2, got \(1, 4, 4, 3\)"):
        call(jnp.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match=r"sides that divide by 2, got \(1, 4, 5, 2\)"):
        call(jnp.zeros((1, 4, 5, 2)))
    with pytest.raises(ValueError, match=r"has no condition, but one of shape \(1,\)"):
        call(jnp.zeros((1, 4, 4, 2)), jnp.zeros((1,), jnp.int32))
    with pytest.raises(ValueError, match=r"t must be a scalar or one value per sample, got shape \(2,\)"):
        jax.eval_shape(model.module.apply, {"params": model.params}, jnp.zeros((1, 4, 4, 2)), jnp.zeros((2,)))
    labelled, x = pretrained.unet.from_config(CONFIG | {"num_class_embeds": 3}), jnp.zeros((2, 4, 4, 2))
    for cond, message in (
        (None, r"needs labels of shape \(2,\)"),
        (jnp.zeros((1,)), r"must have shape \(2,\), got \(1,"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(labelled.init, jax.random.key(0), x, jnp.float32(0.0), cond)
