"""A language model of Hugging Face as the reward: a tiny random GPT-2 that the test itself makes."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrunk import changed

from configs.stories import get_config
from experiments.data import DataError
from experiments.domains import stories
from experiments.errors import UserError
from experiments.stories import grammar, hosted
from experiments.stories.words import Words
from rtbjax import rewards

VOCABULARY = Words(grammar.WORDS)
PROMPTS = ["anna went to the lake .", "he ran home", "a dog gave her a rope , and it was old and very long ."]
ENDINGS = [" she laughed .", " it rained until the next day !", " no"]


def test_without_the_packages_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(UserError, match=r"config.reward.model needs .*pip install -e \"\.\[lm\]\" \(torch is missing"):
        hosted.HostedLanguageModel("anywhere", VOCABULARY)


@pytest.fixture(scope="module")
def folder(packages, tmp_path_factory):
    torch, transformers = packages
    import tokenizers

    path = tmp_path_factory.mktemp("gpt2")
    pairs = tokenizers.Tokenizer(tokenizers.models.BPE())
    pairs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    pairs.train_from_iterator([" ".join(story) for story in grammar.sample(np.random.default_rng(0), 100)], trainer)
    pairs.model.save(str(path))
    transformers.GPT2TokenizerFast(vocab=str(path / "vocab.json"), merges=str(path / "merges.txt")).save_pretrained(
        path
    )
    torch.manual_seed(0)
    sizes = dict(n_embd=16, n_layer=2, n_head=2, n_positions=90, initializer_range=0.6)
    config = transformers.GPT2Config(vocab_size=pairs.get_vocab_size(), bos_token_id=0, eos_token_id=0, **sizes)
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return hosted.HostedLanguageModel(str(folder), VOCABULARY)


def one_token_at_a_time(packages, folder, prompt, ending):
    """The sum of log-probabilities of the ending's tokens, each after a text without padding."""
    torch, transformers = packages
    network = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    tokenizer = transformers.GPT2TokenizerFast.from_pretrained(folder)
    tokens, total = tokenizer(prompt).input_ids, 0.0
    for token in tokenizer(ending).input_ids:
        with torch.no_grad():
            law = network(torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1)
        total += law[token].item()
        tokens.append(token)
    return total


def test_log_r_is_of_the_endings_own_tokens_and_padding_counts_for_nothing(packages, folder, model):
    expected = [one_token_at_a_time(packages, folder, *pair) for pair in zip(PROMPTS, ENDINGS, strict=True)]
    assert np.std(expected) > 1.0
    np.testing.assert_allclose(model.log_likelihood(PROMPTS, ENDINGS), expected, rtol=1e-4)
    many = 2 * hosted.AT_ONCE // len(PROMPTS) + 1
    np.testing.assert_allclose(model.log_likelihood(PROMPTS * many, ENDINGS * many), expected * many, rtol=1e-4)


def test_infills_are_scored_as_text_wherever_their_padding_is(packages, folder, model):
    *told, middle, after = grammar.sample(np.random.default_rng(3), 1)[0]
    before = " ".join(told)
    tokens = [VOCABULARY.encode(text) for text in (before, middle, after)]
    z = np.array([tokens[1] + [VOCABULARY.pad] * 3, [VOCABULARY.pad] * 3 + tokens[1]], np.int32)
    cond = {
        "before": jnp.asarray([[*tokens[0], VOCABULARY.pad]] * 2),
        "after": jnp.asarray([[*tokens[2], VOCABULARY.end, VOCABULARY.pad]] * 2),
    }
    assert VOCABULARY.decode(tokens[0]) == before and VOCABULARY.decode(tokens[1]) == middle
    expected = one_token_at_a_time(packages, folder, f"{before} {middle}", f" {after}")
    np.testing.assert_allclose(model.log_reward(jnp.asarray(z), cond), [expected] * 2, rtol=1e-4)


def test_what_it_cannot_score_is_one_sentence(model):
    with pytest.raises(ValueError, match="a prompt is empty"):
        model.log_likelihood([""], [" it rained ."])
    with pytest.raises(rewards.RewardError, match="takes 90 tokens, and a story has"):
        rewards.evaluate(lambda x, cond: model.log_likelihood(["old " * 90], [" no"]), np.zeros((1, 1)))


def test_a_domain_whose_reward_is_hosted(folder, model, tmp_path, key):
    config = changed(get_config("smoke"), devices=1, reward__model=str(folder), eval__stories=2)
    built = stories.build(config)
    cond = jax.tree.map(lambda a: a[:4], built.conditions.values)
    z = built.conditions.examples[:4]
    assert built.log_bound is None
    np.testing.assert_array_equal(built.log_reward(z, cond), model.log_reward(z, cond))
    values = built.evaluate({"rtb": np.tile(np.asarray(z).reshape(2, 2, -1), (1, 10, 1))})
    assert values["best_of"]["log_reward"] > values["rtb"]["log_reward"]
    own = stories.build(changed(config, reward__model=""))
    assert own.fingerprint != built.fingerprint


def test_a_hub_id_without_a_network_fails_in_seconds_and_names_the_folder(packages, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    start = time.monotonic()
    with pytest.raises(
        DataError, match="config.reward.model: 'nobody/nothing' .*path of a folder that holds the model"
    ):
        hosted.HostedLanguageModel("nobody/nothing", VOCABULARY)
    assert time.monotonic() - start < 20


def test_folders_that_hold_no_model_are_refused(packages, tmp_path):
    with pytest.raises(DataError, match="There is no model folder nowhere"):
        hosted.HostedLanguageModel("nowhere", VOCABULARY)
    with pytest.raises(DataError, match="holds no causal language model"):
        hosted.HostedLanguageModel(str(tmp_path), VOCABULARY)
