"""The digits' domain: what it pretrains can be used, and its value is about the label that was asked for."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from check_workdir import problems
from safetensors.numpy import save_file
from shrunk import changed

from configs import cifar10, mnist
from configs.mnist import get_config
from experiments import data, run, settings, weights
from experiments.domains import images
from experiments.errors import ConfigError
from experiments.images import evaluation, networks, posteriors, rewards, training
from rtbjax import rollout
from rtbjax.train import make_rollout


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A file of 200 digits."""
    found = data.embedded_mnist()
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    pixels = np.round((found.images[::25, ..., 0] + 1.0) * 127.5).astype(np.uint8)
    np.savez(path, images=pixels, labels=found.labels[::25])
    return path


@pytest.mark.slow
@pytest.mark.parametrize("what", ["prior", "reward", "value"])
def test_what_is_pretrained_serves_a_run(what, digits, tmp_path, capsys):
    config = changed(
        get_config("smoke"),
        data__path=str(digits),
        eval__batch_size=8,
        pretrain__what=what,
        pretrain__paths=16,
        pretrain__steps=20,
        pretrain__batch_size=8,
        value__refine__steps=2,
        value__refine__batch_size=8,
    )
    images.pretrain(config, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    assert str(path) in capsys.readouterr().out
    assert "200 digits from digits.npz" in weights.metadata(path)["trained_on"]
    config = changed(config, **{f"{what}__weights": str(path)})
    domain = images.build(config)
    made = {"prior": domain.prior.params, "value": domain.value.params}.get(what)
    if what == "reward":
        made = networks.load_classifier(config)[1]
    shipped = weights.locate(get_config()[what].weights)
    assert weights.fingerprint(made) == weights.fingerprint(weights.load(path, made))
    assert weights.fingerprint(made) != weights.fingerprint(weights.load(shipped, made))


@pytest.mark.slow
def test_a_value_is_refined_at_the_means_of_the_prior_s_steps_and_on_what_became_of_them(digits):
    config = changed(get_config("smoke"), data__path=str(digits), eval__batch_size=8, pretrain__paths=16)
    found = training.value_data(config, networks.make_process(config), jnp.zeros((3, 28, 28, 1)), jax.random.key(0))
    process, prior = networks.make_process(config), networks.load_prior(config)
    means, times, probabilities = found.means
    assert means.shape == (2 * 4 * 8, 28, 28, 1)  # Two batches of paths, and every step but the last.
    np.testing.assert_array_equal(probabilities[:32], np.tile(found.samples[1][:8], (4, 1)))
    roll_key = jax.random.split(jax.random.key(0))[0]
    xs = make_rollout(process, (8, 28, 28, 1))(jax.random.fold_in(roll_key, 0), prior).xs
    np.testing.assert_allclose(found.samples[0][:8], xs[-1], atol=2e-3)
    for i in map(jnp.int32, range(4)):
        law = process.reverse(prior(xs[i], process.time(i), None), xs[i], i)
        there = np.asarray(times[:32]) == float(process.time(i + 1))
        np.testing.assert_allclose(means[:32][there], law.mean, atol=5e-3)


def test_the_shipped_value_reads_the_labels_classes_of_noisy_digits():
    """At a noise of three quarters of the signal's variance most digits are told."""
    found = data.embedded_mnist()
    domains = {label: images.build(changed(get_config(), reward__label=label)) for label in ("3", "even")}
    process = domains["3"].process
    i = int(np.argmin(np.abs(np.asarray([float(process.time(i)) for i in range(process.num_steps)]) - 450.0)))
    x0 = jnp.asarray(found.images[::25])
    x = process.marginal(jax.random.split(jax.random.key(0), len(x0)), x0, i, None)
    for label, classes in (("3", [3]), ("even", [0, 2, 4, 6, 8])):
        value = domains[label].value
        says = np.asarray(value.log_h(value.params, x, process.time(i), None)) > np.log(0.5)
        assert np.mean(says == np.isin(found.labels[::25], classes)) > 0.9, label


@pytest.mark.slow
def test_one_posterior_for_many_labels(tmp_path):
    """The whole path in small; and the label matters to every part that knows of it."""
    config = changed(
        get_config("smoke"),
        devices=1,
        reward__label="parity",
        train__steps=2,
        train__batch_size=8,
        objective__group=4,
        behaviour__accepted=0.0,
        eval__num_samples=32,
        eval__batch_size=64,
        eval__exact_samples=16,
        eval__exact_cache=str(tmp_path / "exact"),
    )
    done = run.execute(config, tmp_path / "run")
    assert problems(tmp_path / "run") == []
    each = done.summary["certificate"]["per_condition"]
    assert [one["condition"] for one in each] == ["even", "odd"]
    metrics = done.summary["metrics"]
    assert [one["condition"] for one in metrics["per_condition"]] == ["even", "odd"]
    for name in ("log_reward", "accuracy"):
        mean = np.mean([one["rtb"][name] for one in metrics["per_condition"]])
        assert metrics["rtb"][name] == pytest.approx(mean)
    assert sum(metrics["rtb"]["classes"].values()) == pytest.approx(1.0)
    # Exact samples are of their own label.
    assert all(one["exact"]["log_reward"] > one["prior"]["log_reward"] for one in metrics["per_condition"])
    domain = done.domain
    x = jnp.asarray(done.exact().samples[:, :8].reshape(16, *networks.shape(config)))
    right, wrong = jnp.repeat(jnp.arange(2), 8), jnp.repeat(1 - jnp.arange(2), 8)
    assert (domain.log_reward(x, right) > domain.log_reward(x, wrong)).mean() > 0.8
    # As after training: at the start the last layer is zero, and so is the score.
    leaves, tree = jax.tree.flatten(domain.posterior.params)
    noise = jax.random.split(jax.random.key(1), len(leaves))
    moved = [a + 0.1 * jax.random.normal(k, a.shape) for k, a in zip(noise, leaves, strict=True)]
    params = jax.tree.unflatten(tree, moved)
    paths = rollout(
        jax.random.key(0), domain.process, domain.prior, shape=(4, *networks.shape(config)), look=domain.posterior.look
    )
    features = jax.tree.map(lambda f: f[2], paths.features)

    def score(label):
        cond = jnp.full(4, label)
        return domain.posterior.apply_fn(params, paths.xs[2], domain.process.time(jnp.int32(2)), cond, features).score

    assert float(jnp.abs(score(0) - score(1)).max()) > 1e-4


def test_a_posterior_guided_by_the_value_starts_as_that_guide():
    """Which at the last step is log r itself; and its score then moves it, of which `inverse` has the same."""
    config = changed(get_config("smoke"), objective__beta=0.25, value__strength=2.0, steer__steps=0)
    domain = images.build(config)
    process, value = domain.process, rewards.load_value(config)
    x = jax.random.normal(jax.random.key(0), (3, 28, 28, 1))

    def score_and_gradient(i, log_h, params=domain.posterior.params):
        t = process.time(i)
        output = domain.prior(x, t, None)
        features = domain.posterior.look(output, x, t, None)
        mean = process.reverse(output, x, i).mean
        gradient = jax.grad(lambda x: jnp.sum(log_h(x)))(mean)
        assert float(jnp.abs(gradient).max()) > 0.01
        return domain.posterior.apply_fn(params, x, t, None, features).score, gradient

    def log_h_at(i):
        return lambda x: value.log_h(value.params, x, process.time(i), None)

    i, last = jnp.int32(2), jnp.int32(process.num_steps - 1)
    for step, log_h in ((i, log_h_at(i + 1)), (last, lambda x: domain.log_reward(x, None))):
        found, gradient = score_and_gradient(step, log_h)
        np.testing.assert_allclose(found, 0.5 * gradient, rtol=1e-3, atol=1e-5)
    params = domain.posterior.params
    stronger = params | {"log_strength": params["log_strength"].at[i].set(jnp.log(2.0))}
    found, gradient = score_and_gradient(i, log_h_at(i + 1), stronger)
    np.testing.assert_allclose(found, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"posterior__kind": "value_guided"}, "value_guided follows a value, and this config has no section"),
        ({"pretrain__what": "value"}, "config.pretrain.what must be prior or reward: this config has no section"),
    ],
)
def test_a_config_without_a_value_says_so(changes, message, tmp_path):
    config = changed(get_config("smoke"), **changes)  # One of the user's own may have none.
    with config.unlocked():
        del config.value
    with pytest.raises(ConfigError, match=message):
        images.pretrain(config, tmp_path) if "pretrain__what" in changes else images.build(config)


def test_a_value_of_r_does_not_steer_a_power_of_r():
    with pytest.raises(ConfigError, match="steer.steps must be 0 unless config.objective.beta is 1"):
        images.build(changed(get_config(), objective__beta=2.0, steer__steps=5))


def test_guidance_has_nothing_to_train():
    with pytest.raises(ConfigError, match="train.steps must be 0: posterior.kind=loss_guidance has nothing to train"):
        images.build(changed(get_config(), posterior__kind="loss_guidance"))


@pytest.mark.parametrize("kind", posteriors.KINDS)
def test_every_kind_is_built_of_either_set(kind):
    for file in (mnist, cifar10):
        config = changed(file.get_config("smoke"), devices=1, posterior__kind=kind, steer__steps=0)
        config = changed(config, **({"train__steps": 0} if kind in posteriors.GUIDED else {}))
        if kind == "value_guided" and file is cifar10:  # No value of pictures is shipped.
            with pytest.raises(weights.WeightsError, match="pretrain.what=value"):
                images.build(config)
        else:
            assert images.build(config).posterior.look is not None or kind in ("full", "lora")


def test_strength_is_of_guides_alone():
    images.check(changed(get_config(), posterior__kind="posterior_sampling", posterior__strength=2.0, train__steps=0))
    with pytest.raises(ConfigError, match="posterior.strength must be 1: posterior.kind=value_guided has no use"):
        images.check(changed(get_config(), posterior__strength=2.0))


@pytest.mark.parametrize("label, group", [("digits", 6), ("digits_and_parity", 6), ("parity", 30)])
def test_the_labels_that_the_header_names_share_a_posterior(label, group):
    config = changed(mnist.get_config("conditional"), reward__label=label, objective__group=group)
    settings.check(config)
    images.check(config)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prior__network__patch": 3}, r"config.prior.network: Image sides \(28, 28\) do not divide by 6"),
        (
            {"prior__network__channels": (32,)},
            "prior.network: channels and num_blocks must be as many, .* got 1 and 2",
        ),
        ({"process__spacing": "foo"}, "config.process.spacing must be one of leading"),
        ({"process__num_steps": 2000, "pretrain__what": "value"}, "1000"),
    ],
)
def test_what_cannot_be_pretrained_is_one_sentence(changes, message, digits, tmp_path):
    config = changed(get_config("smoke"), data__path=str(digits), **changes)
    with pytest.raises(ConfigError, match=message):
        images.pretrain(config, tmp_path)


def test_every_label_has_rows_of_its_own_in_the_picture():
    few = np.ones((3, *networks.shape(get_config())), np.float32)
    assert evaluation.row(few).shape[0] == evaluation.IN_ROW
    side = networks.shape(get_config())[0]
    grid = evaluation.grid(np.concatenate([evaluation.row(few), evaluation.row(few)]))
    assert grid.shape[0] == 2 * side
    for line in (grid[:side], grid[side:]):
        assert (line[:, : 3 * side] == 1.0).all() and (line[:, 3 * side :] == -1.0).all()


def test_the_shipped_weights_say_what_they_were_trained_on_and_are_small():
    config = get_config()
    for path in (config.prior.weights, config.reward.weights, config.value.weights):
        assert re.search(r"60,?000 .*digits", weights.metadata(weights.locate(path))["trained_on"])
        assert weights.locate(path).stat().st_size < 5e6


def test_a_weights_file_of_another_network_is_refused(tmp_path):
    save_file({"other": np.zeros(3, np.float32)}, tmp_path / "value.safetensors")
    with pytest.raises(weights.WeightsError, match="value.safetensors holds other weights"):
        images.build(changed(get_config(), value__weights=str(tmp_path / "value.safetensors")))
