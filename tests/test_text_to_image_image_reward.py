"""ImageReward and the aesthetic predictor against their definitions, in tiny random weights of the published names."""

import json
import shutil

import numpy as np
import pytest
from shrunk import changed
from test_text_to_image_hosted import PROMPTS, folder, pictures  # noqa: F401

from configs.text_to_image import get_config
from experiments.data import DataError
from experiments.domains import text_to_image
from experiments.errors import ConfigError
from experiments.text_to_image import hosted
from experiments.text_to_image.image_reward import HostedImageReward

SIDE, PATCH, VISION, WIDTH, BLOCKS, HEADS = 32, 16, 128, 24, 2, 2
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for prompt in PROMPTS for word in prompt.split()})]
LAYERS = (WIDTH, 12, 10, 8, 6, 1)
NUMBERS = (0, 2, 4, 6, 7)  # Of the published linear layers; what lies between them is dropout.


@pytest.mark.parametrize("name", ["aesthetic", "image_reward"])
def test_the_term_needs_a_model(name):
    config = changed(get_config("smoke"), **{f"reward__terms__{name}": 1.0})
    with pytest.raises(ConfigError, match=f"config.reward.terms.{name} needs config.reward.{name}: .*folder"):
        text_to_image.check(config)


@pytest.fixture(scope="module")
def published(packages):
    """Random tensors by the names in ImageReward.pt."""
    torch, _ = packages
    draw = torch.Generator().manual_seed(0)
    shapes = {"cls_token": (1, 1, VISION), "pos_embed": (1, 1 + (SIDE // PATCH) ** 2, VISION)}
    shapes |= {"patch_embed.proj.weight": (VISION, 3, PATCH, PATCH), "patch_embed.proj.bias": (VISION,)}
    shapes |= norm("norm", VISION)
    for block in range(BLOCKS):
        parts = {"attn.qkv": (3 * VISION, VISION), "attn.proj": (VISION, VISION)}
        parts |= {"mlp.fc1": (50, VISION), "mlp.fc2": (VISION, 50)}
        for part, shape in parts.items():
            shapes |= dense(f"blocks.{block}.{part}", *shape)
        shapes |= norm(f"blocks.{block}.norm1", VISION) | norm(f"blocks.{block}.norm2", VISION)
    found = {f"blip.visual_encoder.{name}": shape for name, shape in shapes.items()}
    shapes = {"word_embeddings.weight": (len(WORDS), WIDTH), "position_embeddings.weight": (40, WIDTH)}
    shapes = {f"embeddings.{name}": shape for name, shape in (shapes | norm("LayerNorm", WIDTH)).items()}
    for layer in range(BLOCKS):
        for kind, width in (("attention", WIDTH), ("crossattention", VISION)):
            here = f"encoder.layer.{layer}.{kind}"
            shapes |= dense(f"{here}.self.query", WIDTH, WIDTH) | dense(f"{here}.self.key", WIDTH, width)
            shapes |= dense(f"{here}.self.value", WIDTH, width) | dense(f"{here}.output.dense", WIDTH, WIDTH)
            shapes |= norm(f"{here}.output.LayerNorm", WIDTH)
        here = f"encoder.layer.{layer}"
        shapes |= dense(f"{here}.intermediate.dense", 30, WIDTH) | dense(f"{here}.output.dense", WIDTH, 30)
        shapes |= norm(f"{here}.output.LayerNorm", WIDTH)
    found |= {f"blip.text_encoder.{name}": shape for name, shape in shapes.items()}
    for number, inputs, outputs in zip(NUMBERS, LAYERS, LAYERS[1:], strict=False):
        found |= dense(f"mlp.layers.{number}", outputs, inputs)
    weights = {name: 0.3 * torch.randn(shape, generator=draw) for name, shape in found.items()}
    return weights | {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}


def dense(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


@pytest.fixture(scope="module")
def model(published, tmp_path_factory):
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("image_reward")
    save_file(published, path / "ImageReward.safetensors")
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    sizes = dict(vocab_size=len(WORDS), hidden_size=WIDTH, intermediate_size=30, num_hidden_layers=BLOCKS)
    of_bert = dict(model_type="bert", add_cross_attention=True, encoder_width=768, type_vocab_size=2)
    sizes |= dict(num_attention_heads=HEADS, max_position_embeddings=40, hidden_act="gelu", layer_norm_eps=1e-12)
    (path / "med_config.json").write_text(json.dumps(sizes | of_bert))
    return path


def by_definition(torch, weights, pixels, tokens, mask):
    """BLIP as published, layer by layer: a vision transformer with its norms first, BERT with its norms last."""
    F = torch.nn.functional

    def linear(name, x):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def normed(name, x, eps):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def attention(q, k, v, seen=None):
        q, k, v = (a.unflatten(-1, (HEADS, -1)).transpose(1, 2) for a in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return mixed.transpose(1, 2).flatten(2)

    name = "blip.visual_encoder"
    kernel, bias = (weights[f"{name}.patch_embed.proj.{part}"] for part in ("weight", "bias"))
    x = F.conv2d(pixels, kernel, bias, stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([weights[f"{name}.cls_token"].expand(len(x), -1, -1), x], 1) + weights[f"{name}.pos_embed"]
    for i in range(BLOCKS):
        block = f"{name}.blocks.{i}"
        x = x + linear(
            f"{block}.attn.proj",
            attention(*linear(f"{block}.attn.qkv", normed(f"{block}.norm1", x, 1e-6)).chunk(3, -1)),
        )
        x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", normed(f"{block}.norm2", x, 1e-6))))
    picture = normed(f"{name}.norm", x, 1e-6)

    name = "blip.text_encoder"
    h = weights[f"{name}.embeddings.word_embeddings.weight"][tokens]
    h = h + weights[f"{name}.embeddings.position_embeddings.weight"][: tokens.shape[1]]
    h = normed(f"{name}.embeddings.LayerNorm", h, 1e-12)
    for i in range(BLOCKS):
        layer = f"{name}.encoder.layer.{i}"
        for kind, of, seen in (("attention", None, mask[:, None, None, :].bool()), ("crossattention", picture, None)):
            q, k, v = (
                linear(f"{layer}.{kind}.self.{part}", h if of is None or part == "query" else of)
                for part in ("query", "key", "value")
            )
            h = normed(
                f"{layer}.{kind}.output.LayerNorm",
                h + linear(f"{layer}.{kind}.output.dense", attention(q, k, v, seen)),
                1e-12,
            )
        wide = F.gelu(linear(f"{layer}.intermediate.dense", h))
        h = normed(f"{layer}.output.LayerNorm", h + linear(f"{layer}.output.dense", wide), 1e-12)
    score = h[:, 0]
    for number in NUMBERS:
        score = linear(f"mlp.layers.{number}", score)
    return (score[:, 0] - 0.16717362830052426) / 1.0333394966054072


def test_image_reward_is_what_its_definition_says(packages, published, model):
    torch, transformers = packages
    x, asked = pictures(hosted.AT_ONCE + 3), np.arange(hosted.AT_ONCE + 3) % 3
    texts = [["[CLS]", *prompt.split(), "[SEP]"] for prompt in PROMPTS]
    tokens = torch.tensor([[WORDS.index(word) for word in text] + [0] * (35 - len(text)) for text in texts])
    seen = torch.from_numpy(np.round(127.5 * (np.clip(x, -1, 1) + 1)).astype(np.float32) / 255.0).permute(0, 3, 1, 2)
    mean, std = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    pixels = (seen - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    expected = by_definition(torch, published, pixels, tokens[asked], (tokens != 0).long()[asked]).numpy()
    assert expected.std() > 1e-2
    found = HostedImageReward(str(model), PROMPTS)(x, asked)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    other = HostedImageReward(str(model), PROMPTS)(x, (asked + 1) % 3)
    assert np.abs(other - found).max() > 1e-3  # The prompt counts.


def test_the_aesthetic_score_is_linear_layers_of_the_unit_vector_of_a_picture(packages, folder, tmp_path):  # noqa: F811
    torch, transformers = packages
    aesthetic(torch, folder, 8)
    clip = transformers.CLIPModel.from_pretrained(folder).eval()
    look = transformers.CLIPImageProcessor.from_pretrained(folder)
    x = pictures(3)
    seen = [np.round(127.5 * (np.clip(one, -1, 1) + 1)).astype(np.uint8) for one in x]
    with torch.no_grad():
        vectors = clip.get_image_features(**look(seen, return_tensors="pt"))
        vectors = getattr(vectors, "pooler_output", vectors).numpy()
    h = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for weight, bias in aesthetic(torch, folder, 8):
        h = h @ weight.T + bias
    found = hosted.HostedAesthetic(str(folder), PROMPTS)(x, np.zeros(3, int))
    assert h.std() > 1e-3
    np.testing.assert_allclose(found, h[:, 0], rtol=1e-4, atol=1e-4)


def aesthetic(torch, to, width):
    """Writes a predictor for vectors of this width, and returns its weights."""
    from safetensors.torch import save_file

    draw, layers, inputs = torch.Generator().manual_seed(1), [], width
    for outputs in (6, 4, 1):
        layers.append((torch.randn(outputs, inputs, generator=draw), torch.randn(outputs, generator=draw)))
        inputs = outputs
    named = zip((0, 2, 4), layers, strict=True)
    save_file(
        {f"layers.{n}.{k}": t for n, pair in named for k, t in zip(("weight", "bias"), pair, strict=True)},
        to / hosted.HEAD,
    )
    return [(weight.numpy(), bias.numpy()) for weight, bias in layers]


def test_a_domain_adds_them_up_with_weights(packages, folder, model):  # noqa: F811
    torch, _ = packages
    aesthetic(torch, folder, 8)
    terms = dict(reward__terms__contrastive=0.0, reward__terms__aesthetic=2.0, reward__terms__image_reward=0.5)
    models = dict(reward__aesthetic=str(folder), reward__image_reward=str(model))
    built = text_to_image.build(changed(get_config("smoke"), devices=1, **terms, **models))
    z = np.random.default_rng(0).normal(size=(2, *built.event_shape)).astype(np.float32)
    x = text_to_image.decoder(text_to_image.load_pipeline(get_config("smoke")))(z)
    asked, prompt = np.zeros(2, np.int32), [get_config().prompt]
    expected = 2.0 * hosted.HostedAesthetic(str(folder), prompt)(x, asked)
    expected = expected + 0.5 * HostedImageReward(str(model), prompt)(x, asked)
    np.testing.assert_allclose(built.log_reward(z), expected, rtol=1e-5)
    assert built.log_bound is None


@pytest.mark.parametrize("missing", ["ImageReward.safetensors", "med_config.json", "vocab.txt"])
def test_a_missing_part_is_named(missing, packages, model, tmp_path):
    here = shutil.copytree(model, tmp_path / "model")
    (here / missing).unlink()
    with pytest.raises(
        DataError, match=rf"config.reward.image_reward: .* holds no ImageReward .*there is no {missing}"
    ):
        HostedImageReward(str(here), PROMPTS)


def test_other_folders_are_refused(packages, folder, published, model, tmp_path):  # noqa: F811
    from safetensors.torch import save_file

    torch, _ = packages
    with pytest.raises(DataError, match="config.reward.image_reward: There is no model folder nowhere"):
        HostedImageReward("nowhere", PROMPTS)
    here = tmp_path / "model"
    here.mkdir()
    for name in ("med_config.json", "vocab.txt"):
        (here / name).write_text((model / name).read_text())
    save_file(
        {name: tensor for name, tensor in published.items() if name.startswith("mlp")}, here / "ImageReward.safetensors"
    )
    with pytest.raises(DataError, match=r"holds no ImageReward model \(there are no weights blip.visual_encoder"):
        HostedImageReward(str(here), PROMPTS)
    with pytest.raises(DataError, match=rf"holds no CLIP model with an .* \(there is no {hosted.HEAD}\)"):
        hosted.HostedAesthetic(str(here), PROMPTS)
    aesthetic(torch, folder, 5)
    with pytest.raises(DataError, match="is for vectors of 5 numbers, the model's are of others"):
        hosted.HostedAesthetic(str(folder), PROMPTS)
