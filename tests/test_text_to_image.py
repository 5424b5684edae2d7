"""The domain of text to image: guidance, rewards, posterior, bad input, a run."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from check_workdir import problems
from shrunk import changed

from configs.text_to_image import get_config
from experiments import loop, objectives, records, run, weights
from experiments.domains import text_to_image
from experiments.errors import ConfigError, UserError
from experiments.text_to_image import captions, contrastive, networks, rewards
from experiments.text_to_image.export import export
from rtbjax import rollout, score
from rtbjax.nets import pretrained
from rtbjax.nets.pretrained import PretrainedError, adapters
from rtbjax.rewards import RewardError

pytest.importorskip("tokenizers", reason="text to image needs the extra 'text'")
pytestmark = pytest.mark.slow


ONE_LEVEL = {
    "block_out_channels": [24],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline of the embedded networks, the U-Net of one level, with fresh parameters, none of them zero."""
    root, keys = tmp_path_factory.mktemp("pipeline"), jax.random.split(jax.random.key(0), 4)
    words = {"vocab_size": networks.write_tokenizer(root / "tokenizer")}
    configs = {"unet": networks.UNET | ONE_LEVEL, "vae": networks.VAE, "text_encoder": networks.TEXT | words}
    for key, (name, config) in zip(keys, configs.items(), strict=False):
        model = pretrained.build(key, config)
        leaves, tree = jax.tree.flatten(model.params)
        noise = jax.random.split(key, len(leaves))
        leaves = [a + 0.05 * jax.random.normal(k, a.shape) for k, a in zip(noise, leaves, strict=True)]
        pretrained.save(root / name, model._replace(params=jax.tree.unflatten(tree, leaves)))
    records.write_json(root / "scheduler" / "scheduler_config.json", networks.SCHEDULER)
    records.write_json(root / "model_index.json", networks.INDEX | {"_trained_on": "nothing"})
    networks.write_tokenizer(root / "reward" / "tokenizer")
    net = contrastive.towers(networks.TEXT | words, pretrained.tokenizer.load(root))
    contrastive.save(root / "reward", networks.TEXT | words, contrastive.init(net, keys[3]), {})
    return root


@pytest.fixture(scope="module")
def config(folder, tmp_path_factory):
    return changed(
        get_config("smoke"),
        devices=1,
        prompt="a green three",
        prior__folder=str(folder),
        reward__folder=str(folder / "reward"),
        eval__num_samples=8,
        eval__batch_size=8,
        eval__exact_samples=2,
        eval__exact_cache=str(tmp_path_factory.mktemp("exact")),
    )


@pytest.fixture(scope="module")
def domain(config):
    return text_to_image.build(config)


@pytest.fixture(scope="module")
def pair(config):
    """Two prompts, one posterior."""
    return text_to_image.build(changed(config, prompt="a green three | two red ones"))


def noisy(domain, count=4):
    return jax.random.normal(jax.random.key(1), (count, *domain.event_shape))


def outputs(domain, cond=None):
    return np.asarray(jax.jit(domain.prior.apply_fn)(domain.prior.params, noisy(domain), jnp.float32(500.0), cond))


def test_guidance_of_scale_1_is_the_conditional_prediction_and_of_0_the_unconditional(config, pair):
    at = {s: outputs(text_to_image.build(changed(config, prior__guidance=s))) for s in (0.0, 1.0, 2.0)}
    unet, contexts = pair.prior.params["unet"], pair.prior.params["contexts"]
    module = pretrained.load(config.prior.folder, "unet").module
    for scale, row in ((0.0, 0), (1.0, 1)):
        context = jnp.broadcast_to(contexts[row], (4, *contexts.shape[1:]))
        plain = jax.jit(module.apply)({"params": unet}, noisy(pair), jnp.float32(500.0), context)
        np.testing.assert_allclose(at[scale], plain, atol=1e-5)
    np.testing.assert_allclose(at[2.0], 2.0 * at[1.0] - at[0.0], atol=1e-5)
    assert np.abs(at[1.0] - at[0.0]).max() > 1e-3


def test_every_path_has_the_prompt_of_its_condition(config, pair):
    both = outputs(pair, jnp.array([0, 1, 0, 1]))
    alone = [outputs(text_to_image.build(changed(config, prompt=prompt))) for prompt in pair.conditions.names]
    np.testing.assert_allclose(both[::2], alone[0][::2], atol=1e-5)
    np.testing.assert_allclose(both[1::2], alone[1][1::2], atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3


@pytest.mark.parametrize("learn_variance", [False, True])
def test_the_posterior_starts_as_the_prior(learn_variance, config):
    built = text_to_image.build(changed(config, posterior__learn_variance=learn_variance))
    roll = jax.jit(lambda key: rollout(key, built.process, built.prior, built.posterior, shape=(4, *built.event_shape)))
    np.testing.assert_allclose(roll(jax.random.key(0)).log_ratio, 0.0, atol=1e-3)


def trained(domain, seed=5):
    """The posterior with adapters that do something."""
    keys = iter(jax.random.split(jax.random.key(seed), len(domain.posterior.params)))
    changed = {
        path: one | {"b": 0.1 * jax.random.normal(next(keys), one["b"].shape)}
        for path, one in domain.posterior.params.items()
    }
    return domain.posterior.replace(params=changed)


def rewarded_paths(domain, posterior, count=4):
    roll = jax.jit(
        lambda key: rollout(key, domain.process, domain.prior, posterior, shape=(count, *domain.event_shape))
    )
    paths = roll(jax.random.key(3))
    return paths._replace(log_reward=jnp.asarray(domain.log_reward(paths.xs[-1], None)))


# Defects T1 to T6 of the paper's text-to-image code, each as what must hold instead.


def test_log_probabilities_are_sums_over_the_whole_latent(domain):
    """T1: not means. In float64, from the two laws of every step."""
    posterior = trained(domain)
    paths = rewarded_paths(domain, posterior)

    @jax.jit
    def law(policy, x, i):
        kernel = domain.process.reverse(policy(x, domain.process.time(i), None), x, i)
        return kernel.mean, jnp.broadcast_to(kernel.std, x.shape)

    for i in range(domain.process.num_steps):
        x, after = paths.xs[i], np.float64(paths.xs[i + 1])
        log_p = []
        for policy in (domain.prior, posterior):
            mean, std = map(np.float64, law(policy, x, jnp.int32(i)))
            log_p.append(np.sum(-((after - mean) ** 2) / (2.0 * std**2) - np.log(std), axis=(1, 2, 3)))
        expected = log_p[0] - log_p[1]
        assert np.abs(expected).max() > 0.5
        np.testing.assert_allclose(paths.log_ratio[i], expected, atol=0.02, rtol=2e-3)


def test_log_probabilities_are_float32_whatever_the_networks_are(config):
    """T3: not half precision."""
    built = text_to_image.build(changed(config, precision="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(built.prior.params)} == {jnp.dtype("bfloat16")}
    paths = rewarded_paths(built, trained(built))
    values = np.asarray(paths.log_ratio)
    assert values.dtype == paths.log_prior.dtype == paths.xs.dtype == np.float32
    # Half precision would have rounded them.
    assert (np.asarray(jnp.asarray(values).astype(jnp.bfloat16), np.float32) != values).any()


def test_a_replayed_path_is_scored_anew_and_by_itself(config, domain):
    """T2, T4, T5: no term of another policy, of another path, or of fewer steps in the residual."""
    config = changed(config, objective__grad_steps=2)
    paths, now = rewarded_paths(domain, domain.posterior), trained(domain)
    objective = objectives.make(config, domain)
    stored = paths._replace(log_ratio=None)

    @jax.jit
    def gap(paths, key):
        return objective({"policy": now.params}, paths, key=key, axis_name=None)[1].gap

    scored = score(domain.process, domain.prior, stored.xs, None, now)
    np.testing.assert_allclose(paths.log_prior, scored.log_prior, rtol=1e-4, atol=1e-2)
    found = gap(stored, jax.random.key(0))
    expected = np.asarray(scored.log_ratio).sum(axis=0) + paths.log_reward
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)
    assert np.abs(found - paths.log_reward).max() > 0.1  # As it would be by the ratio of the policy that drew it.
    np.testing.assert_array_equal(found, gap(stored, jax.random.key(1)))
    order = np.array([2, 0, 3, 1])
    mixed = stored._replace(
        xs=stored.xs[:, order], log_prior=stored.log_prior[:, order], log_reward=stored.log_reward[order]
    )
    np.testing.assert_allclose(gap(mixed, jax.random.key(0)), found[order], rtol=1e-4, atol=1e-3)


def test_diversity_is_a_distance_over_a_hundred_pictures_or_more(domain):
    """T6: not a similarity, not of 15."""
    same = np.repeat(np.asarray(noisy(domain, 1)), 3, axis=0)
    assert domain.evaluate({"rtb": same})["rtb"]["diversity"] == pytest.approx(0.0, abs=1e-5)
    for variant in ("", "prompts", "sweep", "sd15"):
        assert get_config(variant).eval.num_samples >= 100


def test_the_posterior_is_adapters_on_the_unet_alone(domain):
    base = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(domain.prior.params)
    }
    assert domain.posterior.params.keys() <= base
    assert all(name.startswith("unet/") and name.endswith("kernel") for name in domain.posterior.params)


def test_latents_are_decoded_to_pictures(config, domain):
    pipeline = text_to_image.load_pipeline(config)
    x = text_to_image.decoder(pipeline)(noisy(domain))
    assert domain.event_shape == (8, 8, 4) and x.shape == (4, 32, 32, 3) and x.dtype == jnp.float32


def test_the_contrastive_reward_is_a_law_over_texts(folder):
    model = contrastive.load(folder / "reward")
    x = jax.random.normal(jax.random.key(0), (3, 32, 32, 3))
    reward, first_choice = rewards.alignment(model, captions.CAPTIONS)
    every = np.stack([reward(x, np.full(3, place)) for place in range(len(captions.CAPTIONS))])
    np.testing.assert_allclose(np.exp(every).sum(axis=0), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(first_choice(x), every.argmax(axis=0))
    # A prompt that is no caption is held against the captions too, and no caption is then a choice.
    other, choice = rewards.alignment(model, ["a blue dog"])
    assert (other(x, np.zeros(3, int)) < 0.0).all() and set(choice(x)) <= {0, -1}
    # Larger pictures are averaged down.
    large = jnp.repeat(jnp.repeat(x, 4, axis=1), 4, axis=2)
    np.testing.assert_allclose(reward(large, np.arange(3)), reward(x, np.arange(3)), atol=1e-4)


def test_jpeg_likes_plain_pictures():
    noise = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1.0)
    plain, busy = rewards.jpeg(jnp.zeros((2, 32, 32, 3)), np.zeros(2, int)), rewards.jpeg(noise, np.zeros(2, int))
    assert plain.shape == (2,) and (busy + 0.5 < plain).all() and (plain < 0.0).all()


def brightness(images, prompts):
    """A reward of the kind a user brings."""
    assert images.min() >= 0.0 and images.max() <= 1.0
    return [image.mean() + 10.0 * ("red" in prompt) for image, prompt in zip(images, prompts, strict=True)]


def one_too_few(images, prompts):
    return np.zeros(len(images) - 1)


def is_bright(images, prompts):
    return images.mean(axis=(1, 2, 3)) > 0.5


def test_a_reward_of_ones_own_sees_pictures_and_prompts(config):
    terms = {f"reward__terms__{name}": weight for name, weight in (("contrastive", 0.0), ("function", 2.0))}
    own = changed(config, prompt="a green three | two red ones", reward__function=f"{__name__}:brightness", **terms)
    built = text_to_image.build(own)
    assert built.log_bound is None
    z = noisy(built)
    log_r = built.log_reward(z, jnp.array([0, 1, 0, 1]))
    x = rewards.to_unit(text_to_image.decoder(text_to_image.load_pipeline(config))(z))
    np.testing.assert_allclose(log_r, 2.0 * (x.mean(axis=(1, 2, 3)) + [0, 10, 0, 10]), rtol=1e-5)
    wrong = text_to_image.build(changed(own, reward__function=f"{__name__}:one_too_few"))
    with pytest.raises(ValueError, match=r"give 4 pictures one score each, got shape \(3,\)"):
        wrong.log_reward(z, jnp.array([0, 1, 0, 1]))
    wrong = text_to_image.build(changed(own, reward__function=f"{__name__}:is_bright"))
    with pytest.raises(ValueError, match="must give scores, not truth values"):
        wrong.log_reward(z, jnp.array([0, 1, 0, 1]))


def test_an_evaluation_asks_again_as_training_does_and_takes_no_number_for_granted(config, monkeypatch):
    terms = {f"reward__terms__{name}": weight for name, weight in (("contrastive", 0.0), ("function", 1.0))}
    patience = dict(reward__retries=1, reward__retry_seconds=0.0)
    own = changed(config, reward__function=f"{__name__}:brightness", **terms, **patience)
    answers = iter([RuntimeError("the scorer is away"), 1.0, np.nan, np.nan])

    def moody(images, prompts):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return np.full(len(images), answer)

    monkeypatch.setitem(globals(), "brightness", moody)
    built = text_to_image.build(own)
    z = np.asarray(noisy(built))
    assert built.evaluate({"rtb": z})["rtb"]["log_reward"] == 1.0
    with pytest.raises(RewardError, match=r"log r = nan for sample 0 of 4 \(2 tries\)"):
        built.evaluate({"rtb": z})


def test_terms_of_the_reward_are_added(config):
    built = [
        text_to_image.build(changed(config, reward__terms__contrastive=a, reward__terms__jpeg=b))
        for a, b in ((1.0, 0.0), (0.0, 1.0), (2.0, 3.0))
    ]
    z = noisy(built[0])
    one, other, both = (domain.log_reward(z, None) for domain in built)
    np.testing.assert_allclose(both, 2.0 * one + 3.0 * other, rtol=1e-5)
    assert len({domain.fingerprint for domain in built}) == 3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prompt": ""}, "config.prompt must be a text, or different ones"),
        ({"prompt": "one | one"}, "config.prompt must be a text, or different ones"),
        ({"posterior__kind": "full"}, "config.posterior.kind must be one of lora"),
        ({"prior__guidance": -1.0}, "config.prior.guidance must be at least 0"),
        ({"reward__terms__jpeg": -1.0}, "config.reward.terms.jpeg must be at least 0"),
        ({"reward__terms__contrastive": 0.0}, "One of config.reward.terms .* must be positive"),
        ({"reward__terms__function": 1.0}, "config.reward.function must be 'module:function'"),
        ({"reward__terms__function": 1.0, "reward__function": "json:missing"}, "config.reward.function must be"),
        ({"reward__terms__function": 1.0, "reward__function": "math:pi"}, "is a float, not a function"),
        ({"steer__steps": 5}, "config.steer.steps must be 0"),
    ],
)
def test_what_cannot_be_is_one_sentence(changes, message, config):
    with pytest.raises(ConfigError, match=message):
        text_to_image.build(changed(config, **changes))


def copied(folder, to):
    return shutil.copytree(folder, to / "pipeline")


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component_is_named(component, config, folder, tmp_path):
    here = copied(folder, tmp_path)
    shutil.rmtree(here / component)
    with pytest.raises(PretrainedError, match=f"has no component '{component}'"):
        text_to_image.build(changed(config, prior__folder=str(here)))


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline"])
def test_another_architecture_is_named(name, config, folder, tmp_path):
    here = copied(folder, tmp_path)
    (here / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(PretrainedError, match=f"holds a {name}, which is not supported: .* neither XL nor 3"):
        text_to_image.build(changed(config, prior__folder=str(here)))


def test_components_that_do_not_fit_are_named(config, folder, tmp_path):
    here = copied(folder, tmp_path)
    pretrained.save(here / "unet", pretrained.build(jax.random.key(0), networks.UNET | {"cross_attention_dim": 16}))
    with pytest.raises(ConfigError, match="reads texts of width 16, the text encoder's are 32 wide"):
        text_to_image.build(changed(config, prior__folder=str(here)))
    pretrained.save(here / "unet", pretrained.build(jax.random.key(0), networks.UNET | {"in_channels": 9}))
    with pytest.raises(ConfigError, match="maps 9 to 4 channels"):
        text_to_image.build(changed(config, prior__folder=str(here)))


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(config):
    with pytest.warns(UserWarning, match="reads 8 tokens; this is cut off: 'three'"):
        text_to_image.build(changed(config, prompt="two red ones two red ones three"))


def test_a_run_of_one_prompt(config, tmp_path):
    # What has not been trained is sure of nothing: a small weight lets rejection accept.
    config = changed(config, reward__terms__contrastive=0.1)
    done = run.execute(config, tmp_path)
    metrics = done.summary["metrics"]
    for name in ("prior", "rtb", "exact"):
        assert metrics[name].keys() == {"log_reward", "accuracy", "diversity"}
    assert done.summary["data_source"] == "prior trained on nothing"
    assert problems(tmp_path) == []
    file = export(tmp_path)
    trained = loop.restore(config, done.domain, tmp_path).params
    again = adapters.load(file.parent, trained, done.domain.prior.params)
    jax.tree.map(np.testing.assert_array_equal, trained, again)
    goes_on = text_to_image.build(changed(config, posterior__adapters=str(file.parent)))
    jax.tree.map(np.testing.assert_array_equal, trained, goes_on.posterior.params)


def test_only_runs_of_this_domain_are_exported(tmp_path):
    with pytest.raises(UserError, match="holds no run of configs/text_to_image.py"):
        export(tmp_path)


def test_a_run_of_several_prompts_with_a_reward_without_a_bound(config, tmp_path):
    several = changed(
        config,
        prompt="a green three | two red ones",
        objective__group=4,
        behaviour__accepted=0.0,
        reward__terms__function=1.0,
        reward__function=f"{__name__}:brightness",
    )
    done = run.execute(several, tmp_path)
    each = done.summary["metrics"]["per_condition"]
    assert [one["condition"] for one in each] == ["a green three", "two red ones"]
    mean = np.mean([one["rtb"]["log_reward"] for one in each])
    assert done.summary["metrics"]["rtb"]["log_reward"] == pytest.approx(mean)


def test_the_shipped_pipeline_is_small_and_draws_what_it_is_asked_for():
    """Also where training hardly had it: a picture's colour is its prompt's, and most often the digit too."""
    root = weights.locate(get_config().prior.folder)
    assert 1e6 < sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) < 8e6
    built = text_to_image.build(changed(get_config(), devices=1, prompt="a green three", process__num_steps=10))
    roll = jax.jit(lambda key, prior: rollout(key, built.process, prior, shape=(32, *built.event_shape)).xs[-1])
    metrics = built.evaluate({"prior": roll(jax.random.key(0), built.prior)})
    assert metrics["prior"]["accuracy"] > 0.25 and metrics["prior"]["log_reward"] > -4.0
