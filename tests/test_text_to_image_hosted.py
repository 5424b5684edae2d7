"""A CLIP model of Hugging Face as the reward of pictures: a tiny random one that the test itself makes."""

import numpy as np
import pytest
from shrunk import changed

from configs.text_to_image import get_config
from experiments.data import DataError
from experiments.domains import text_to_image
from experiments.errors import ConfigError, UserError
from experiments.text_to_image import hosted, networks

PROMPTS = ["a red eight", "two green nines", "a yellow five"]


def test_without_the_packages_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(UserError, match=r"config.reward.clip needs .*pip install -e \"\.\[lm\]\" \(torch is missing"):
        hosted.HostedClip("anywhere", PROMPTS)


def test_the_term_needs_a_model():
    config = changed(get_config("smoke"), reward__terms__clip=1.0)
    with pytest.raises(ConfigError, match="config.reward.terms.clip needs config.reward.clip: the folder or hub id"):
        text_to_image.check(config)


@pytest.fixture(scope="module")
def folder(packages, tmp_path_factory):
    torch, transformers = packages
    path = tmp_path_factory.mktemp("clip")
    vocab = networks.write_tokenizer(path)
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.CLIPConfig(
        text_config=dict(vocab_size=vocab, bos_token_id=vocab - 2, eos_token_id=vocab - 1, **sizes),
        vision_config=dict(image_size=32, patch_size=8, **sizes),
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(path)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(path)
    return path


def pictures(count):
    return np.random.default_rng(0).uniform(-1.2, 1.2, (count, 32, 32, 3)).astype(np.float32)


def test_scores_are_those_of_transformers_for_each_picture_and_its_own_prompt(packages, folder):
    torch, transformers = packages
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizerFast.from_pretrained(folder)
    processor = transformers.CLIPImageProcessor.from_pretrained(folder)
    x, asked = pictures(2 * hosted.AT_ONCE + 1), np.arange(2 * hosted.AT_ONCE + 1) % 3
    seen = [np.round(127.5 * (np.clip(one, -1, 1) + 1)).astype(np.uint8) for one in x]
    with torch.no_grad():
        words = tokenizer(PROMPTS, padding=True, return_tensors="pt")
        law = model(**words, **processor(seen, return_tensors="pt")).logits_per_image.numpy()
    expected = law[np.arange(len(x)), asked]
    assert expected.std() > 1e-3
    np.testing.assert_allclose(hosted.HostedClip(str(folder), PROMPTS)(x, asked), expected, rtol=1e-4, atol=1e-4)


def test_a_domain_whose_reward_is_hosted(packages, folder):
    terms = dict(reward__terms__clip=0.5, reward__terms__contrastive=0.0)
    config = changed(get_config("smoke"), devices=1, reward__clip=str(folder), **terms)
    built = text_to_image.build(config)
    assert built.log_bound is None
    z = np.random.default_rng(0).normal(size=(2, *built.event_shape)).astype(np.float32)
    decoded = text_to_image.decoder(text_to_image.load_pipeline(config))(z)
    score = hosted.HostedClip(str(folder), [config.prompt])(decoded, np.zeros(2, np.int32))
    np.testing.assert_allclose(built.log_reward(z), 0.5 * score, rtol=1e-5)


def test_folders_that_hold_no_model_are_refused(packages, tmp_path):
    with pytest.raises(DataError, match="config.reward.clip: There is no model folder nowhere"):
        hosted.HostedClip("nowhere", PROMPTS)
    with pytest.raises(DataError, match="holds no CLIP model"):
        hosted.HostedClip(str(tmp_path), PROMPTS)
