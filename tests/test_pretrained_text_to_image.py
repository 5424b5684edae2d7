"""Stable Diffusion against diffusers and transformers: autoencoder, text encoder, tokenizer, a guided step."""

import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtbjax.nets import pretrained
from rtbjax.nets.pretrained import stable_diffusion
from rtbjax.process.pretrained import from_scheduler

torch = pytest.importorskip("torch", reason="parity needs the extra 'parity'")
diffusers = pytest.importorskip("diffusers", reason="parity needs the extra 'parity'")
transformers = pytest.importorskip("transformers", reason="parity needs the extra 'parity'")
tokenizers = pytest.importorskip("tokenizers", reason="parity needs the extra 'parity'")

from test_pretrained_unet import TEXT, assert_read_again, channels_last, randomised  # noqa: E402

VAE = {
    "block_out_channels": [4, 8],
    "norm_num_groups": 2,
    "latent_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
VAES = {
    "as Stable Diffusion": VAE | {"layers_per_block": 2},
    "without the outer convolutions": VAE | {"use_quant_conv": False, "use_post_quant_conv": False},
    "no attention, another scale": VAE | {"mid_block_add_attention": False, "scaling_factor": 0.5},
    "one level": {
        "block_out_channels": [4],
        "norm_num_groups": 2,
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
    },
    "of the size of Stable Diffusion's": pytest.param(
        {
            "block_out_channels": [128, 256, 512, 512],
            "layers_per_block": 2,
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
        },
        marks=pytest.mark.slow,
    ),
}
CLIP = {
    "vocab_size": 60,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 9,
    "bos_token_id": 58,
    "eos_token_id": 59,
}
CLIPS = {
    "quick_gelu": CLIP,
    "gelu": CLIP | {"hidden_act": "gelu"},
    "of the size of Stable Diffusion's": pytest.param(
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}, marks=pytest.mark.slow
    ),
}
SENTENCES = [
    "A green three, two red ones!",
    "it's  the\tcat's 42nd café   (don't ask)",
    "",
    "日本 <|endoftext|> naïve THREE... '' _x",
    "green red green red green red green red",
]


@pytest.mark.parametrize("config", VAES.values(), ids=VAES.keys())
def test_an_autoencoder_gives_the_numbers_of_diffusers_and_goes_back(config, tmp_path):
    theirs = randomised(diffusers.AutoencoderKL(**config))
    theirs.save_pretrained(tmp_path / "theirs")
    model = pretrained.load(tmp_path / "theirs")
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 16, 16, generator=generator)
    with torch.no_grad():
        law = theirs.encode(x).latent_dist
        decoded = theirs.decode(law.mean).sample

    @jax.jit
    def both(params, x):
        mean, std = model.module.apply({"params": params}, x, method="encode")
        return mean, std, model.module.apply({"params": params}, mean, method="decode")

    mean, std, image = both(model.params, channels_last(x))
    scale = theirs.config.scaling_factor
    np.testing.assert_allclose(mean, scale * channels_last(law.mean), atol=1e-4)
    np.testing.assert_allclose(std, scale * channels_last(law.std), atol=1e-4)
    np.testing.assert_allclose(image, channels_last(decoded), atol=1e-4)
    assert_read_again(theirs, model, tmp_path / "ours")


@pytest.mark.parametrize("config", CLIPS.values(), ids=CLIPS.keys())
def test_a_text_encoder_gives_the_numbers_of_transformers_and_goes_back(config, tmp_path):
    config = transformers.CLIPTextConfig(**config)
    theirs = randomised(transformers.CLIPTextModel(config))
    theirs.save_pretrained(tmp_path / "theirs")
    model = pretrained.load(tmp_path / "theirs")
    length = config.max_position_embeddings
    tokens = torch.randint(0, config.vocab_size - 2, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).last_hidden_state.numpy()
    found = jax.jit(model.module.apply)({"params": model.params}, tokens.numpy().astype(np.int32))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    pretrained.save(tmp_path / "ours", model)
    again = transformers.CLIPTextModel.from_pretrained(tmp_path / "ours")
    weights, same = theirs.state_dict(), again.state_dict()
    assert weights.keys() == same.keys() and all(torch.equal(weights[name], same[name]) for name in weights)
    with pytest.raises(ValueError, match=f"at most {length} tokens, got {length + 1}"):
        jax.eval_shape(model.module.apply, {"params": model.params}, jnp.zeros((1, length + 1), jnp.int32))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A tokenizer folder: byte pairs learned from a few sentences."""
    folder = tmp_path_factory.mktemp("tokenizer")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator([text.lower() for text in SENTENCES] * 3, trainer)
    bpe.model.save(str(folder))
    tokens = json.loads((folder / "vocab.json").read_text())
    for letter in alphabet:
        tokens.setdefault(f"{letter}</w>", len(tokens))
    for token in ("<|startoftext|>", "<|endoftext|>"):
        tokens.setdefault(token, len(tokens))
    (folder / "vocab.json").write_text(json.dumps(tokens))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 40, "pad_token": "<|endoftext|>"}))
    return folder


def test_a_tokenizer_gives_the_tokens_of_transformers(vocabulary, tmp_path):
    theirs = transformers.CLIPTokenizer(
        str(vocabulary / "vocab.json"), str(vocabulary / "merges.txt"), model_max_length=40
    )
    expected = theirs(SENTENCES, padding="max_length", truncation=True, return_tensors="np").input_ids
    assert len(np.unique(expected)) > 25
    ours = pretrained.tokenizer.load(vocabulary, "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ours(SENTENCES)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)
    theirs.save_pretrained(tmp_path)
    np.testing.assert_array_equal(pretrained.tokenizer.load(tmp_path, "")(SENTENCES), expected)


def test_a_long_text_is_cut_with_a_warning_that_quotes_the_rest(vocabulary):
    ours = pretrained.tokenizer.load(vocabulary, "")
    text = " ".join(["green"] * 38 + ["red", "three"])
    whole = ours([" ".join(["green"] * 38)])
    assert whole.shape == (1, 40) and len(np.unique(whole)) == 3
    with pytest.warns(UserWarning, match="reads 40 tokens; this is cut off: 'red three'"):
        np.testing.assert_array_equal(ours([text]), whole)


@pytest.fixture(scope="module")
def pipeline_folder(vocabulary, tmp_path_factory):
    """A whole pipeline of tiny random networks, written by diffusers and transformers."""
    folder = tmp_path_factory.mktemp("pipeline")
    randomised(diffusers.UNet2DConditionModel(**TEXT, in_channels=3, out_channels=3)).save_pretrained(folder / "unet")
    randomised(diffusers.AutoencoderKL(**VAE)).save_pretrained(folder / "vae")
    config = transformers.CLIPTextConfig(**CLIP | {"vocab_size": 1000, "max_position_embeddings": 40})
    randomised(transformers.CLIPTextModel(config)).save_pretrained(folder / "text_encoder")
    shutil.copytree(vocabulary, folder / "tokenizer")
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, skip_prk_steps=True
    )
    scheduler.register_to_config(clip_sample=False)
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


def test_one_guided_ddim_step_of_a_pipeline_is_that_of_diffusers(pipeline_folder, monkeypatch):
    """From two prompts to the mean and the standard deviation of the next latent, scale 7.5, eta 1."""
    prompts, scale = ["a green three", "two red ones"], 7.5
    unet = diffusers.UNet2DConditionModel.from_pretrained(pipeline_folder / "unet")
    encoder = transformers.CLIPTextModel.from_pretrained(pipeline_folder / "text_encoder").eval()
    tokens = transformers.CLIPTokenizer.from_pretrained(pipeline_folder / "tokenizer")
    scheduler = diffusers.DDIMScheduler.from_pretrained(pipeline_folder / "scheduler")
    scheduler.set_timesteps(50)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    step = 20
    with torch.no_grad():
        padded = tokens(["", "", *prompts], padding="max_length", truncation=True, return_tensors="pt").input_ids
        t = scheduler.timesteps[step]
        without, given = unet(torch.cat([x, x]), t, encoder(padded).last_hidden_state).sample.chunk(2)
        output = without + scale * (given - without)
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    states = []
    for noise in (0.0, 1.0):
        monkeypatch.setattr(module, "randn_tensor", lambda shape, noise=noise, **_: torch.full(tuple(shape), noise))
        states.append(channels_last(scheduler.step(output, t, x, eta=1.0).prev_sample))

    pipeline = stable_diffusion.load(pipeline_folder)
    process = from_scheduler(pipeline.scheduler, 50, sampler="ddim")
    encode = jax.jit(pipeline.text_encoder.module.apply)
    said = encode({"params": pipeline.text_encoder.params}, pipeline.tokenizer(["", *prompts]))
    denoiser = stable_diffusion.guided(pipeline.unet.policy().apply_fn, scale, said[0])

    @jax.jit
    def law(params, x, cond):
        i = jnp.int32(step)
        kernel = process.reverse(denoiser(params, x, process.time(i), cond), x, i)
        return kernel.mean, jnp.broadcast_to(kernel.std, x.shape)

    mean, std = law(pipeline.unet.params, channels_last(x), said[1:])
    np.testing.assert_allclose(mean, states[0], atol=1e-4)
    np.testing.assert_allclose(std, states[1] - states[0], atol=1e-4)
    assert np.abs(np.asarray(given - without)).max() > 0.01  # the prompt has effect


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: shutil.rmtree(f / "vae"), "has no component 'vae'"),
        (lambda f: shutil.rmtree(f / "tokenizer"), "has no component 'tokenizer'"),
        (lambda f: (f / "tokenizer" / "vocab.json").unlink(), "neither vocab.json and merges.txt nor tokenizer.json"),
        (lambda f: (f / "tokenizer" / "vocab.json").write_text("["), "tokenizer files in .* are not readable"),
        (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "has no scheduler_config.json"),
        (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
        (
            lambda f: (f / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}'),
            "holds a StableDiffusionXLPipeline, which is not supported: only StableDiffusionPipeline",
        ),
        (
            lambda f: (f / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}'),
            "holds a StableDiffusion3Pipeline, which is not supported.* neither XL nor 3",
        ),
        (
            lambda f: (shutil.rmtree(f / "text_encoder"), shutil.copytree(f / "vae", f / "text_encoder")),
            "component 'text_encoder' of .* is a AutoencoderKL, not a CLIPTextModel",
        ),
    ],
)
def test_a_pipeline_that_lacks_something_says_what(pipeline_folder, tmp_path, damage, message):
    folder = tmp_path / "pipeline"
    shutil.copytree(pipeline_folder, folder)
    damage(folder)
    with pytest.raises(pretrained.PretrainedError, match=message):
        stable_diffusion.load(folder)


def test_wrong_images_and_latents_name_the_right_shape(pipeline_folder):
    model = pretrained.load(pipeline_folder, "vae")

    def call(method, x):
        jax.eval_shape(lambda x: model.module.apply({"params": model.params}, x, method=method), x)

    with pytest.raises(ValueError, match=r"images \[B, H, W, 3\] with sides that divide by 2, got \(1, 8, 7, 3\)"):
        call("encode", jnp.zeros((1, 8, 7, 3)))
    with pytest.raises(ValueError, match=r"latents \[B, h, w, 3\], got \(1, 8, 8, 4\)"):
        call("decode", jnp.zeros((1, 8, 8, 4)))
