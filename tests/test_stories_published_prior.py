"""SEDD and MDLM as they are published, of a few random numbers, as the prior of stories in byte pairs."""

import csv
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrunk import changed
from test_pretrained_ddit import CONFIGS

from configs.stories import get_config
from experiments import run, weights
from experiments.domains import stories
from experiments.errors import ConfigError
from experiments.stories import corpus, grammar, language_model, networks, priors, published_prior
from experiments.stories.words import END_OF_TEXT
from rtbjax import rollout
from rtbjax.nets.pretrained import ddit, folder

STORIES = grammar.sample(np.random.default_rng(5), 40)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of stories and a folder of byte pairs."""
    from tokenizers import ByteLevelBPETokenizer

    path = tmp_path_factory.mktemp("files")
    with (path / "stories.csv").open("w", newline="") as out:
        csv.writer(out).writerows([corpus.COLUMNS, *STORIES])
    pairs = ByteLevelBPETokenizer()
    pairs.train_from_iterator(
        [" ".join(story) for story in STORIES], vocab_size=400, special_tokens=[END_OF_TEXT], show_progress=False
    )
    pairs.save_model(str(path))
    return path, pairs.get_vocab_size()


def drawn(init, *inputs):
    """Random parameters of a network, without computing with it."""
    rng = np.random.default_rng(0)
    like = jax.eval_shape(init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: rng.normal(scale=0.4, size=leaf.shape).astype(np.float32), like)


def published(head, tokens, path):
    """A folder as of the hub."""
    size = {"tokens": tokens} if head == "sedd" else {"vocab_size": tokens + 1}
    params = drawn(ddit.from_config(CONFIGS[head] | size).init, jnp.zeros((1, 1), jnp.int32), jnp.float32(0.5))
    folder.write(path, CONFIGS[head] | size, "model", params["params"])
    return str(path)


@pytest.fixture
def config(head, files, tmp_path):
    """With a reward that has learned nothing."""
    path, tokens = files
    small = changed(
        get_config("smoke"),
        devices=1,
        data__path=str(path / "stories.csv"),
        data__tokenizer=str(path),
        data__test_stories=8,
        prior__head=head,
        prior__weights=published(head, tokens, tmp_path / "model"),
        reward__weights=str(tmp_path / "reward.safetensors"),
        reward__width=16,
        reward__depth=1,
        posterior__rank=2,
    )
    found = corpus.load(small.data, 20)
    params = drawn(partial(language_model.init, networks.causal(small, found)))
    weights.save(tmp_path / "reward.safetensors", params, networks.notes_of(small, "reward", found))
    return changed(small, process__num_steps=found.train_tokens.middle.shape[1])


@pytest.mark.parametrize("head", ["sedd"])
def test_the_model_reads_one_text_in_its_own_tokens(config):
    """Its logits of that text, written out by hand: ends, beginning, a middle with a mask and an end, the ending."""
    found = corpus.load(config.data, 20)
    words, model = found.vocabulary, ddit.load(config.prior.weights)
    mask, end, share = model.module.vocab_size, words.end, jnp.float32(0.5)
    told, ending = words.encode("anna ran ."), words.encode("she fell .")
    cond = {
        "before": jnp.array([[*told, words.pad, words.pad]], jnp.int32),
        "after": jnp.array([[*ending, words.end, words.pad]], jnp.int32),
    }
    z = jnp.array([[words.size, *words.encode("a"), words.pad]], jnp.int32)
    inside = [mask, *words.encode("a"), end]
    apply = jax.jit(model.module.apply)
    for sees_ending in (False, True):
        text = [end, end, *told, *inside] + ([*ending, end, end] if sees_ending else [])
        whole = apply({"params": model.params}, jnp.array([text], jnp.int32), share)
        expected = np.array(whole[0, len(told) + 2 : len(told) + 2 + len(inside)])
        policy = priors.infill(
            partial(published_prior.predict, model.module, words), model.params, sees_ending=sees_ending
        )
        ours = np.array(jax.jit(policy.apply_fn)(policy.params, z, share, cond)[0])
        np.testing.assert_allclose(ours[:, words.pad], expected[:, end], atol=1e-5)
        assert (ours[:, end] == -np.inf).all() and ours.shape[1] == words.size
        others = np.arange(mask) != end
        np.testing.assert_allclose(ours[:, :mask][:, others], expected[:, others], atol=1e-5)


@pytest.mark.parametrize("head, kind, reveals", [("mdlm", "correction", "one_by_one"), ("sedd", "lora", "independent")])
def test_its_posterior_starts_as_the_prior_and_alone_sees_the_ending(kind, reveals, config, key):
    built = stories.build(changed(config, posterior__kind=kind, process__reveals=reveals))
    cond = jax.tree.map(lambda a: a[:6], built.conditions.values)
    shape = (6, *built.event_shape)
    paths = jax.jit(lambda key: rollout(key, built.process, built.prior, built.posterior, shape=shape, cond=cond))(key)
    words = corpus.load(config.data, 20).vocabulary
    np.testing.assert_allclose(paths.log_ratio, 0.0, atol=1e-4)
    assert np.isfinite(paths.log_prior).all() and np.isfinite(built.log_reward(paths.xs[-1], cond)).all()
    assert (paths.xs[-1] < words.size).all() and not (paths.xs[-1] == words.end).any()

    z, t = paths.xs[1], built.process.time(jnp.int32(1))
    moved = built.posterior.replace(params=drawn(lambda _: built.posterior.params))

    @jax.jit
    def outputs(c):
        prior = built.prior(z, t, c)
        return prior, moved(z, t, c, moved.look(prior, z, t, c))

    (prior, learned), (same, other) = (outputs(cond | {"after": jnp.roll(cond["after"], n, axis=0)}) for n in (0, 1))
    np.testing.assert_array_equal(prior, same)
    possible = np.isfinite(prior)
    np.testing.assert_array_equal(possible, np.isfinite(learned))
    assert np.abs(np.subtract(learned, other, where=possible, out=np.zeros(possible.shape, np.float32))).max() > 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph")  # Random bytes are no letters of any font.
@pytest.mark.parametrize("head", ["mdlm"])
def test_a_run_from_a_published_prior(config, tmp_path):
    sizes = dict(train__steps=2, train__batch_size=8, data__conditions=8, eval__stories=2, eval__exact_samples=40)
    sizes |= dict(eval__num_samples=8, eval__batch_size=16, eval__best_of=2, eval__exact_cache=str(tmp_path / "exact"))
    done = run.execute(changed(config, log__every=1, checkpoint__every=2, **sizes), tmp_path / "run")
    metrics = done.summary["metrics"]
    assert metrics.keys() >= {"prior", "rtb", "clamped", "autoregressive", "best_of", "smc"}
    assert metrics["best_of"]["log_reward"] > metrics["prior"]["log_reward"]
    assert done.summary["certificate"]["log_z_reference"] is not None and done.summary["skipped"] == 0


@pytest.mark.parametrize("head", ["mdlm", "sedd"])
def test_what_does_not_fit_is_one_sentence(config):
    other = "sedd" if config.prior.head == "mdlm" else "mdlm"
    for changes, message in (
        ({"prior__head": other}, f"config.prior.head must be {config.prior.head} for the model .*, got {other}"),
        (
            {"data__tokenizer": "words"},
            "config.data.tokenizer must be a folder with the [0-9]+ byte pairs of the model",
        ),
        ({"prior__weights": "nowhere"}, "config.prior.weights: There is no model folder nowhere"),
    ):
        with pytest.raises(ConfigError, match=message):
            published_prior.load(one := changed(config, **changes), corpus.load(one.data, 20).vocabulary)
