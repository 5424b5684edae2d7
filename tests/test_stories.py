"""The domain of stories: its prior and posterior, its metrics, a run of it."""

import csv
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrunk import changed
from test_transformer import randomised

from configs.stories import get_config
from experiments import run, weights
from experiments.data import DataError
from experiments.domains import stories
from experiments.errors import ConfigError
from experiments.stories import (
    baselines,
    corpus,
    evaluation,
    grammar,
    infilling_prior,
    language_model,
    networks,
    priors,
    training,
)
from experiments.stories.words import Words
from rtbjax import absorbing, rollout
from rtbjax.rewards import RewardError
from rtbjax.schedules import loglinear_mask_rate

SETS = {"clamped", "autoregressive", "best_of", "smc"}


def pretrained(config, folder):
    """The config with networks that were trained for no longer than it takes to make their files."""
    for what in ("prior", "reward"):
        stories.pretrain(changed(config, pretrain__what=what), folder / what)
        (path,) = (folder / what).glob("*.safetensors")
        config = changed(config, **{f"{what}__weights": str(path)})
    return config


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return changed(
        get_config("smoke"),
        devices=1,
        data__stories=500,
        **{
            f"{section}__{name}": size
            for section in ("prior", "reward")
            for name, size in (("width", 16), ("depth", 1))
        },
        posterior__rank=2,
        pretrain__steps=50,
        pretrain__batch_size=32,
        eval__exact_samples=2,
        eval__exact_cache=str(tmp_path_factory.mktemp("exact")),
    )


@pytest.fixture(scope="module")
def config(small, tmp_path_factory):
    return pretrained(small, tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="module")
def domain(config):
    return stories.build(config)


def conditions(domain, count):
    return jax.tree.map(lambda a: a[:count], domain.conditions.values)


def paths(domain, key, cond):
    count = len(cond["before"])
    roll = jax.jit(
        lambda key, prior, learner: rollout(
            key, domain.process, prior, learner, shape=(count, *domain.event_shape), cond=cond
        )
    )
    return roll(key, domain.prior, domain.posterior)


@pytest.mark.parametrize(
    "kind, reveals",
    [
        ("correction", "one_by_one"),
        ("lora", "one_by_one"),
        ("correction", "independent"),
        ("correction", "left_to_right"),
        ("lora", "left_to_right"),
    ],
)
def test_every_posterior_starts_as_the_prior(kind, reveals, config, key):
    steps = 3 if reveals == "independent" else 8
    built = stories.build(
        changed(config, posterior__kind=kind, process__reveals=reveals, process__num_steps=steps, objective__chunk=1)
    )
    found = paths(built, key, conditions(built, 16))
    np.testing.assert_allclose(found.log_ratio, 0.0, atol=1e-5)
    assert found.xs.dtype == jnp.int32 and (found.xs[0] == found.xs.max()).all()
    assert found.features["seen"] == ()


@pytest.mark.parametrize("reveals", ["one_by_one", "left_to_right"])
@pytest.mark.parametrize("kind", ["correction", "lora"])
def test_the_posterior_sees_beginning_and_ending_and_the_prior_no_ending(kind, reveals, config, key):
    built = stories.build(changed(config, posterior__kind=kind, process__reveals=reveals))
    cond = conditions(built, 8)
    t = built.process.time(jnp.int32(1))
    z = paths(built, key, cond).xs[1]
    moved = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(key, a.shape), built.posterior.params)
    learner = built.posterior.replace(params=moved)

    def change(policy, name):
        other = cond | {name: jnp.roll(cond[name], 1, axis=0)}
        outputs = []
        for c in (cond, other):
            output = built.prior(z, t, c)
            outputs.append(output if policy is built.prior else policy(z, t, c, built.posterior.look(output, z, t, c)))
        possible = jnp.isfinite(outputs[0])
        np.testing.assert_array_equal(possible, jnp.isfinite(outputs[1]))
        return float(jnp.abs(jnp.where(possible, outputs[0], 0.0) - jnp.where(possible, outputs[1], 0.0)).max())

    assert change(built.prior, "after") == 0.0 and change(built.prior, "before") > 1e-4
    assert change(learner, "after") > 1e-4 and change(learner, "before") > 1e-4


def test_a_calibrated_score_head_is_the_law_of_the_other_head(key):
    """Through the process: all its steps by either head, of one network's probabilities."""
    steps, size = 5, 7
    logits = jax.nn.log_softmax(jax.random.normal(key, (4, 3, size)))
    z = jnp.full((4, 3), size, jnp.int32).at[:, 0].set(2)
    for i in map(jnp.int32, range(steps)):
        laws = []
        for head in ("mdlm", "sedd"):
            process = absorbing(loglinear_mask_rate(steps), size, head=head)
            laws.append(process.reverse(infilling_prior.output(head, logits, process.time(i)), z, i).log_probs)
        np.testing.assert_allclose(jnp.exp(laws[0]), jnp.exp(laws[1]), atol=1e-5)


@pytest.mark.parametrize("head", ["mdlm", "sedd"])
def test_a_prior_of_either_head_learns_the_middles(head, small, tmp_path):
    """Its bound falls far below that of guessing, and so it reports; its chain is trained on by RTB."""
    one = changed(small, prior__head=head, pretrain__steps=400, pretrain__learning_rate=5e-3)
    stories.pretrain(one, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    found = corpus.load(one.data, 10)
    guessing = found.test_tokens.middle.shape[1] * np.log(found.vocabulary.size)
    nats = weights.metadata(path)["nats_per_middle_at_most"]
    entropy = np.mean([_surprise(story) for story in found.test])
    assert entropy - 0.3 < nats < 0.4 * guessing


def test_a_prior_is_trained_without_endings(small, key, tmp_path):
    """There are none to see; a model that is to learn from them cannot do without."""
    found = corpus.load(small.data, small.data.stories)
    train, test = (tokens._replace(after=None) for tokens in (found.train_tokens, found.test_tokens))
    blind = found._replace(train_tokens=train, test_tokens=test)
    _, measured = training.fit_masked(small, blind, "prior", key, tmp_path)
    assert np.isfinite(measured["nats_per_middle_at_most"])
    with pytest.raises((TypeError, ValueError), match="None"):
        training.fit_masked(small, blind, "supervised", key, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["supervised", "supervised_autoregressive"])
def test_what_learns_from_endings_is_a_set_of_the_run_and_no_prior_or_reward(what, small, config, tmp_path):
    one = changed(small, pretrain__what=what, pretrain__steps=400, pretrain__learning_rate=5e-3)
    stories.pretrain(one, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    found, notes = corpus.load(one.data, 10), weights.metadata(path)
    guessing = found.test_tokens.middle.shape[1] * np.log(found.vocabulary.size)
    assert notes["nats_per_middle_at_most" if what == "supervised" else "nats_per_middle"] < 0.4 * guessing
    built = stories.build(changed(config, eval__stories=1, **{f"baselines__{what}": str(path)}))
    values = built.evaluate({"rtb": np.stack([found.test_tokens.middle[:1]] * 3, axis=1)})
    assert set(values) == SETS | {"rtb", "grammar", what}
    other = "prior" if what == "supervised" else "reward"
    with pytest.raises(weights.WeightsError, match="was trained with another network"):
        stories.build(changed(config, **{f"{other}__weights": str(path)}))


def test_of_the_other_networks_those_that_should_see_the_ending_do(config, tmp_path, key):
    """The output of each at its first step, of random weights."""
    found = corpus.load(config.data, 10)
    made = {}
    for what in ("supervised", "supervised_autoregressive"):
        masked = what in networks.MASKED
        net = networks.masked(config, found) if masked else networks.causal(config, found)
        params = (infilling_prior if masked else language_model).init(net, key)
        made[what] = str(tmp_path / f"{what}.safetensors")
        weights.save(Path(made[what]), randomised(params, key), networks.notes_of(config, what, found))
    one = changed(config, **{f"baselines__{what}": path for what, path in made.items()})
    causal = randomised(language_model.init(networks.causal(one, found), key), key)
    others = baselines.chains(one, found, stories.make_process(one, found), priors.load(one, found, None), causal)
    cond = stories.condition(found.test_tokens, 4)
    z = jnp.full((4, found.test_tokens.middle.shape[1]), found.vocabulary.size, jnp.int32)

    def change(policy, part):
        first, second = (policy(z, jnp.float32(1.0), c) for c in (cond, cond | {part: jnp.roll(cond[part], 1, axis=0)}))
        return float(jnp.nanmax(jnp.abs(first - second)))

    reads = {name: {part for part in cond if change(policy, part) > 1e-4} for name, (_, policy) in others.items()}
    both = {"before", "after"}
    assert reads.pop("autoregressive") == {"before"}
    assert reads == dict.fromkeys(("clamped", "supervised", "supervised_autoregressive"), both)


def _surprise(story):
    law = grammar.event_law(grammar.read(story[:3]))
    return -np.log(law[grammar.EVENTS.index(grammar.read_event(story[3]))])


def test_log_r_is_asked_of_the_story_itself(domain, config):
    """Of its beginning and of its ending; wherever an infill has its padding, it is the same text."""
    found = corpus.load(config.data, 20)
    cond = stories.condition(found.test_tokens, 4)
    log_r = domain.log_reward(jnp.asarray(found.test_tokens.middle[:4]), cond)
    assert log_r.shape == (4,) and (np.asarray(log_r) < 0.0).all() and domain.log_bound == 0.0
    for part in cond:
        other = cond | {part: jnp.roll(cond[part], 1, axis=0)}
        assert np.abs(domain.log_reward(jnp.asarray(found.test_tokens.middle[:4]), other) - log_r).max() > 1e-3
    rolled = np.stack([np.roll(row, (row == found.vocabulary.pad).sum()) for row in found.test_tokens.middle[:4]])
    np.testing.assert_allclose(domain.log_reward(jnp.asarray(rolled), cond), log_r, atol=1e-4)


def test_noised_middles_are_the_stories_own(domain, config):
    found = corpus.load(config.data, config.data.conditions)
    np.testing.assert_array_equal(domain.conditions.examples, found.train_tokens.middle)
    np.testing.assert_array_equal(domain.conditions.values["after"], found.train_tokens.after)
    assert domain.conditions.count == config.data.conditions and len(domain.conditions.names) == config.eval.stories


@pytest.mark.slow
def test_the_metrics_tell_the_posterior_from_the_prior(domain, config):
    """Of exact samples of the grammar's p(z | x, y), of its p(z | x), and of what tells no event."""
    found = corpus.load(changed(config, eval__stories=4).data, 1)
    rng, count = np.random.default_rng(0), 500

    def tokens(events):
        parts = [(found.vocabulary.encode(text)) for text in events]
        return corpus.padded(parts, found.test_tokens.middle.shape[1], found.vocabulary.pad)

    def drawn(law, story):
        beginning = grammar.read(story[:3])
        events = rng.choice(len(grammar.EVENTS), size=count, p=law)
        return tokens([grammar.tell_event(grammar.EVENTS[event], beginning.name) for event in events])

    def truth(story):
        return grammar.posterior(grammar.read(story[:3]), grammar.read_ending(story[4]))

    told = found.test[: config.eval.stories]
    exact, again = (np.stack([drawn(truth(story), story) for story in told]) for _ in range(2))
    prior = np.stack([drawn(grammar.event_law(grammar.read(story[:3])), story) for story in told])
    garbage = np.full_like(exact, found.vocabulary.encode("rope")[0])
    values = domain.evaluate({"prior": prior, "rtb": exact, "exact": garbage, "exact_again": again})
    # Of 500 samples; a slot has at most 13 values.
    assert values["rtb"]["event_tv"] < 0.08 < 0.15 < values["prior"]["event_tv"]
    assert values["grammar"]["event_tv"] < 0.08 and values["exact"]["event_tv"] == pytest.approx(1.0)
    assert values["rtb"]["event_tv_to_exact"] < 0.1 and values["exact"]["no_event"] == 1.0
    assert values["rtb"]["no_event"] == values["prior"]["no_event"] == 0.0
    assert values["rtb"]["bleu"] > values["prior"]["bleu"] > values["exact"]["bleu"]
    assert values["rtb"]["gleu"] > values["prior"]["gleu"] > values["exact"]["gleu"]
    assert values["exact"]["distinct_1"] < 1e-3 < values["rtb"]["distinct_1"]
    assert values["exact"]["self_bleu"] > values["rtb"]["self_bleu"]


def test_an_event_of_another_person_is_none():
    story = ("anna went to the lake .", "she wanted to swim .", "but she lost the path .", "", "")
    assert story[0].split()[0] in grammar.SHE
    from experiments.stories import slots

    law = slots.frequencies(["a dog gave her a rope .", "a dog gave him a rope ."], "anna")
    assert law["helper"][-1] == law["thing"][-1] == 0.5


def a_rope_and_few_words(beginnings, infills, endings):
    """A reward of the kind a user brings, whose texts are whole sentences without padding."""
    assert all(text.count(".") == 3 for text in beginnings) and all(text.endswith(" .") for text in endings)
    return [
        5.0 * ("rope" in infill) - 0.1 * len(infill.split()) + 0.01 * len(beginning) + 0.001 * len(ending)
        for beginning, infill, ending in zip(beginnings, infills, endings, strict=True)
    ]


def no_numbers(beginnings, infills, endings):
    return np.full(len(infills), -np.inf)


def test_a_reward_of_ones_own_is_told_texts_and_takes_the_place_of_the_language_model(config, domain):
    own = changed(config, reward__function=f"{__name__}:a_rope_and_few_words", reward__weights="")
    built = stories.build(own)
    assert built.log_bound is None and built.fingerprint != domain.fingerprint
    told = grammar.sample(np.random.default_rng(corpus.TRAIN_SEED), own.data.conditions)[:16]
    expected = a_rope_and_few_words([" ".join(s[:3]) for s in told], [s[3] for s in told], [s[4] for s in told])
    assert np.ptp(expected) > 1.0
    log_r = built.log_reward(built.conditions.examples[:16], conditions(built, 16))
    np.testing.assert_allclose(log_r, expected, rtol=1e-6)


def test_weights_of_other_stories_are_said_to_be_made_anew_whatever_their_sizes(config, tmp_path):
    path = tmp_path / "stories.csv"
    path.write_text(",".join(corpus.COLUMNS) + "\n" + "He ran.,He fell.,It hurt.,A nurse came.,He ran on.\n" * 5)
    with pytest.raises(
        weights.WeightsError,
        match="config.reward.weights: .*another vocabulary; .* made by --mode=pretrain --config.pretrain.what=reward",
    ):
        stories.build(changed(config, data__path=str(path), data__test_stories=4, eval__stories=4))


@pytest.mark.slow
def test_infills_are_selected_and_shown_by_a_reward_of_ones_own(config, capsys):
    own = changed(config, reward__function=f"{__name__}:a_rope_and_few_words", reward__weights="", eval__stories=2)
    built = stories.build(own)
    infills = {"rtb": np.tile(built.conditions.examples[:8].reshape(2, 4, -1), (1, 5, 1))}
    values = built.evaluate(infills)
    # The grammar knows no posterior of this reward, and particles cannot ask it.
    assert set(values) == {"rtb", "clamped", "best_of"}
    assert "There is no set 'smc'" in capsys.readouterr().out
    assert values["best_of"]["log_reward"] > values["clamped"]["log_reward"]
    with pytest.raises(RewardError, match="log r = -inf for sample 0 of 64"):  # The first batch to choose the best of.
        stories.build(changed(own, reward__function=f"{__name__}:no_numbers")).evaluate(infills)


def test_dollars_in_a_story_are_no_formula(tmp_path):
    told = ["He had $5 & no plan .", "a _ b ^ c", "It cost $ 5 for the lamp .", "# 2 cost $ 3 .", "He $paid$ it ."]
    words = Words.of(told)
    shown = evaluation.Evaluation(
        [tuple(told)], words, lambda z, story: np.arange(4.0), dict, {}, grammar=False, seed=0
    )
    x = np.array([[words.encode(told[3])] * 4])
    shown.plot(tmp_path / "samples.png", {"prior": x, "posterior": x})
    assert (tmp_path / "samples.png").stat().st_size > 10_000


@pytest.mark.slow
def test_of_another_power_of_the_reward_the_grammar_knows_no_posterior(config):
    built = stories.build(changed(config, objective__beta=0.5, eval__stories=1))
    assert set(built.evaluate({"rtb": built.conditions.examples[None, :3]})) == SETS | {"rtb"}


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"posterior__kind": "full"}, ConfigError, "config.posterior.kind must be one of correction, lora"),
        ({"prior__head": "score"}, ConfigError, "config.prior.head must be one of mdlm, sedd"),
        ({"prior__heads": 3}, ConfigError, "config.prior.width must be a multiple of twice config.prior.heads=3"),
        ({"eval__stories": 101}, ConfigError, "config.eval.stories must be at most config.data.test_stories=100"),
        (
            {"eval__bert_score__baseline": 1.0},
            ConfigError,
            "config.eval.bert_score.baseline must be at least 0",
        ),
        ({"steer__steps": 5}, ConfigError, "config.steer.steps must be 0"),
        ({"process__reveals": "two"}, ConfigError, "config.process.reveals must be one of one_by_one, independent"),
        (
            {"process__reveals": "left_to_right", "process__num_steps": 7},
            ConfigError,
            "config.process.num_steps must be 8, .*left_to_right, got 7",
        ),
        (
            {"process__reveals": "left_to_right", "behaviour__noised": 0.25},
            ConfigError,
            "config.behaviour.noised must be 0 for config.process.reveals=left_to_right",
        ),
        ({"baselines__supervised": "nowhere"}, weights.WeightsError, "There is no weights file .*nowhere"),
        ({"reward__weights": ""}, ConfigError, "config.reward.weights must name the weights of a language model"),
        (
            {"reward__weights": "", "reward__model": "any", "process__reveals": "left_to_right"},
            ConfigError,
            "config.reward.weights must name the weights of a language model",
        ),
        ({"reward__function": "nowhere:f"}, ConfigError, "config.reward.function must be 'module:function'"),
        (
            {"reward__function": "math:sin", "reward__model": "any"},
            ConfigError,
            "config.reward.function and config.reward.model must not both be given",
        ),
        ({"process__num_steps": 7}, ConfigError, "config.process.num_steps must be 8, the places of an infill"),
        ({"data__path": "missing.csv"}, DataError, "There is no data file .*missing.csv.*columns sentence1"),
        ({"data__tokenizer": "nowhere"}, DataError, "There is no .*nowhere/vocab.json"),
        ({"prior__width": 8}, weights.WeightsError, "holds other weights than the network expects"),
        ({"prior__heads": 2}, weights.WeightsError, "config.prior.weights: .* another number of heads; .*what=prior"),
        ({"reward__heads": 2}, weights.WeightsError, "config.reward.weights: .* another number of heads; .*reward"),
        ({"prior__head": "sedd"}, weights.WeightsError, "was trained with another head"),
        (
            {"reward__weights": "weights/stories_prior.safetensors"},
            weights.WeightsError,
            "config.reward.weights: .* was trained with another network; .*pretrain.what=reward",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(changes, error, message, config):
    with pytest.raises(error, match=message):
        stories.build(changed(config, **changes))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "stories.csv"
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(corpus.COLUMNS)
        writer.writerows(grammar.sample(np.random.default_rng(7), 60))
    return path


def test_weights_that_do_not_say_their_heads_are_refused(config, tmp_path):
    path, shipped = tmp_path / "prior.safetensors", weights.locate(config.prior.weights)
    notes = {name: note for name, note in weights.metadata(shipped).items() if name != "number of heads"}
    weights.save(path, {}, notes)
    with pytest.raises(weights.WeightsError, match="prior.safetensors does not say its number of heads; .*what=prior"):
        stories.build(changed(config, prior__weights=str(path)))


def test_weights_of_another_vocabulary_of_the_same_size_are_refused(config, file):
    """Every word that the file lacks stands in it under another name."""
    missing = set(grammar.WORDS) - {word for story in corpus.read(file) for text in story for word in text.split()}
    with file.open("a") as out:
        out.writelines(f"x{word} .,a .,a .,a .,a .\n" for word in missing)
    path = changed(config, data__path=str(file), data__min_count=1, data__test_stories=4)
    assert corpus.load(path.data, 100).vocabulary.size <= len(grammar.WORDS) + 3
    with pytest.raises(weights.WeightsError, match="was trained with another vocabulary"):
        stories.build(path)


@pytest.mark.slow
def test_a_run_on_a_file_of_stories(small, file, tmp_path):
    """Their endings are too rare for rejection, and their middles are no events."""
    one = changed(small, data__path=str(file), data__min_count=1, data__test_stories=8, pretrain__steps=20)
    one = changed(one, process__reveals="independent", process__num_steps=4, objective__chunk=4)
    one = pretrained(one, tmp_path / "pretrained")
    done = run.execute(changed(one, eval__exact_samples=64), tmp_path / "run")
    assert done.domain.log_bound is None and done.summary["data_source"] == "20 stories of stories.csv"
    assert done.summary["metrics"].keys() >= {"prior", "rtb"} and "event_tv" not in done.summary["metrics"]["rtb"]
    assert done.summary["certificate"]["log_z_reference"] is not None


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    return changed(get_config("smoke"), devices=1, eval__exact_cache=str(tmp_path_factory.mktemp("exact")))


def sets_of(metrics):
    return {name for name, values in metrics.items() if isinstance(values, dict)}


@pytest.mark.slow
def test_a_run_of_the_embedded_stories_prints_infills(shipped, tmp_path, capsys):
    done = run.execute(shipped, tmp_path)
    metrics = done.summary["metrics"]
    assert sets_of(metrics) == {"prior", "rtb", "exact", "exact_again", "grammar"} | SETS
    assert min(metrics[name]["log_reward"] for name in ("best_of", "smc")) > metrics["prior"]["log_reward"]
    printed = capsys.readouterr().out
    assert "There is no set 'supervised': config.baselines.supervised names no weights" in printed
    first = corpus.load(shipped.data, 1).test[0]
    assert first[4] in printed and re.search(rf"reference +-[0-9.]+ {first[3]}\n", printed)


@pytest.mark.slow
def test_a_run_from_left_to_right_fine_tunes_the_language_model(shipped, tmp_path):
    """Its prior tells events, being the grammar's; two ways to log Z agree, whatever so few steps have taught."""
    one = changed(shipped, process__reveals="left_to_right", eval__num_samples=200)
    done = run.execute(one, tmp_path)
    metrics, certificate = done.summary["metrics"], done.summary["certificate"]
    assert sets_of(metrics) == {"prior", "rtb", "exact", "exact_again", "grammar", "best_of"}
    assert metrics["prior"]["no_event"] < 0.1
    assert certificate["elbo"] < certificate["log_z_reference"] < certificate["eubo"]
    assert abs(certificate["log_z_is"] - certificate["log_z_reference"]) < 0.3


def test_the_shipped_weights_say_what_they_were_trained_on_and_are_small():
    for variant, section in (("", "prior"), ("reward", "reward")):
        config = get_config(variant)
        path = weights.locate(config[section].weights)
        notes = weights.metadata(path)
        assert notes["steps"] == config.pretrain.steps and path.stat().st_size < 1.5e6
        assert notes["trained_on"] == f"{config.data.stories} stories of the grammar of experiments/stories"


def test_the_shipped_prior_is_the_grammars_law_of_the_middle():
    """Its bound on the surprise of held-out middles, against what their surprise truly is."""
    config = get_config()
    found = corpus.load(config.data, 1)
    notes = weights.metadata(weights.locate(config.prior.weights))
    truth = np.mean([_surprise(story) for story in found.test])
    assert truth - 4 * notes["standard_error"] < notes["nats_per_middle_at_most"] < truth + 0.2


def test_the_shipped_reward_is_the_grammars_law_of_the_ending(shipped):
    """On held-out stories, also with middles of other stories, whose endings are less likely."""
    built = stories.build(changed(shipped, eval__stories=100))
    found = corpus.load(shipped.data, 1)
    cond, columns = built.conditions.evaluated, [grammar.ENDINGS.index(grammar.read_ending(s[4])) for s in found.test]
    for shift in (0, 1):
        told = [grammar.read_event(story[3]) for story in np.roll(np.array(found.test), shift, axis=0)]
        truth = np.log([grammar.ENDING_LAW[grammar.EVENTS.index(e), y] for e, y in zip(told, columns, strict=True)])
        texts = [
            grammar.tell_event(event, grammar.read(story[:3]).name)
            for event, story in zip(told, found.test, strict=True)
        ]
        z = corpus.padded([found.vocabulary.encode(t) for t in texts], built.event_shape[0], found.vocabulary.pad)
        log_r = np.asarray(built.log_reward(jnp.asarray(z), cond), np.float64)
        assert np.mean(np.abs(log_r - truth)) < 0.15, shift
