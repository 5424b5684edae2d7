"""The domain of offline reinforcement learning: its target, its parametrisations, its metrics, a run of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrunk import changed

from configs.d4rl import get_config
from experiments import run, weights
from experiments.control import iql, networks, play, transitions
from experiments.control.tasks import TASKS
from experiments.data import DataError
from experiments.domains import control
from experiments.errors import ConfigError, UserError
from rtbjax import rollout


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Networks of 16 units, trained for no longer than it takes to make their files."""
    folder = tmp_path_factory.mktemp("pretrained")
    small = changed(
        get_config("smoke"),
        devices=1,
        prior__width=16,
        iql__width=16,
        posterior__width=16,
        posterior__rank=2,
        pretrain__steps=50,
        pretrain__batch_size=64,
        iql__steps=200,
        iql__batch_size=32,
        eval__exact_cache=str(folder / "exact"),
    )
    for what in ("prior", "reward"):
        control.pretrain(changed(small, pretrain__what=what), folder / what)
        (path,) = (folder / what).glob("*.safetensors")
        small = changed(small, **{f"{what}__weights": str(path)})
    return small


@pytest.fixture(scope="module")
def domain(config):
    return control.build(config)


def states(domain, count):
    return domain.conditions.values[:count]


def test_what_is_pretrained_says_what_it_was_trained_on(config):
    for section in ("prior", "reward"):
        notes = weights.metadata(weights.locate(config[section].weights))
        assert notes["environment"] == "hopper"
        assert notes["trained_on"].endswith("of hopper-medium-replay-100k.npz")
    found = transitions.load("", TASKS["hopper"])
    assert notes["reward_scale"] == pytest.approx(1000.0 / np.ptp(found.returns))


def test_log_r_is_the_smaller_critic_at_the_action_and_nothing_else(config, domain):
    """In NumPy from the weights file. The reference adds log (1 - tanh(u)^2), which no part of the target has."""
    params, norm = networks.load_values(config)
    rng = np.random.default_rng(0)
    u, s = rng.normal(0.0, 1.5, (50, 3)).astype(np.float32), np.asarray(states(domain, 50))
    inputs = np.concatenate([(s - norm.mean) / norm.std, np.tanh(u)], axis=1).astype(np.float64)
    critics = []
    for k in range(iql.CRITICS):
        h = inputs
        for layer in range(3):
            dense = params["q"][f"Dense_{layer}"]
            h = h @ dense["kernel"][k] + dense["bias"][k]
            h = np.maximum(h, 0.0) if layer < 2 else h
        critics.append(h[:, 0])
    expected = np.minimum(*critics) / config.reward.alpha
    np.testing.assert_allclose(domain.log_reward(jnp.asarray(u), jnp.asarray(s)), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["correction", "full", "lora"])
@pytest.mark.parametrize("langevin, learn_variance", [(False, False), (True, True)])
def test_every_posterior_starts_as_the_prior(kind, langevin, learn_variance, config, key):
    changes = dict(posterior__kind=kind, posterior__langevin=langevin, posterior__learn_variance=learn_variance)
    built = control.build(changed(config, **changes))
    cond = states(built, 32)
    found = jax.jit(lambda key, prior, learner: rollout(key, built.process, prior, learner, shape=(32, 3), cond=cond))(
        key, built.prior, built.posterior
    )
    np.testing.assert_allclose(found.log_ratio, 0.0, atol=1e-5)


def test_the_langevin_term_is_a_scale_for_each_dimension_times_the_clipped_gradient(config, domain, key):
    clip = 0.05
    built = control.build(changed(config, posterior__langevin_clip=clip))
    s, u = states(built, 40), jax.random.normal(key, (40, 3))
    t = built.process.time(jnp.int32(2))
    output = built.prior(u, t, s)
    features = built.posterior.look(output, u, t, s)
    # The gradient by central differences of log r.
    step = 1e-2
    shifts = step * jnp.eye(3)
    slopes = jnp.stack(
        [(built.log_reward(u + d[None], s) - built.log_reward(u - d[None], s)) / (2 * step) for d in shifts], axis=1
    )
    clipped = jnp.clip(slopes, -clip, clip)
    assert 0.1 < float(jnp.mean(jnp.abs(clipped) == clip)) < 1.0
    params = built.posterior.params
    factors = jnp.asarray([1.0, -2.0, 0.0])
    last = params["scale"]["Dense_0"] | {"bias": factors}
    moved = params | {"scale": params["scale"] | {"Dense_0": last}}
    change = built.posterior.replace(params=moved)(u, t, s, features) - built.posterior(u, t, s, features)
    # Kinks of the rectified units lie between some of the differences.
    error = jnp.abs(change - factors[None] * clipped / clip)
    assert float(jnp.median(error)) < 1e-3 and float(jnp.quantile(error, 0.9)) < 0.1


def test_noised_recorded_actions_are_the_conditions_own(domain):
    found = transitions.load("", TASKS["hopper"])
    row = 1234
    np.testing.assert_array_equal(domain.conditions.values[row], found.observations[row])
    np.testing.assert_allclose(
        np.tanh(domain.conditions.examples[row]), np.clip(found.actions[row], -0.99, 0.99), atol=1e-6
    )
    assert domain.conditions.count == len(found.rewards)
    for name, state in zip(domain.conditions.names, domain.conditions.evaluated, strict=True):
        np.testing.assert_array_equal(state, found.observations[int(name.removeprefix("state "))])


def resampled(rng, domain, x):
    """Exact samples of the tilted law of each state's own draws."""
    out = []
    for u, s in zip(x, domain.conditions.evaluated, strict=True):
        log_r = np.asarray(domain.log_reward(jnp.asarray(u), jnp.repeat(s[None], len(u), axis=0)), np.float64)
        w = np.exp(log_r - np.logaddexp.reduce(log_r))
        out.append(u[rng.choice(len(u), len(u), p=w / w.sum())])
    return np.stack(out)


def test_the_metrics_tell_the_posterior_from_the_prior(config):
    """Against a broad prior of three normal latents, log r of a few nats."""
    config = changed(config, eval__states=12, reward__alpha=0.3)
    built = control.build(config)
    rng = np.random.default_rng(0)
    prior, again, third = rng.normal(0.0, 1.5, (3, 12, 4_000, 3)).astype(np.float32)
    exact = built.evaluate({"prior": prior, "rtb": resampled(rng, built, again)})
    wrong = built.evaluate({"prior": prior, "rtb": third})
    assert exact["reference"]["trusted"] == wrong["reference"]["trusted"] == 1.0
    assert exact["rtb"]["q_standardised"] < 2.0 < 4.0 < wrong["rtb"]["q_standardised"]
    assert abs(exact["rtb"]["q_minus_reference"]) < 0.2 * abs(wrong["rtb"]["q_minus_reference"])
    assert wrong["rtb"]["q_minus_reference"] < 0.0
    assert exact["states"].keys() == set(built.conditions.names)


def test_states_whose_reference_rests_on_few_samples_count_for_nothing(config):
    built = control.build(changed(config, reward__alpha=1e-4))
    x = np.random.default_rng(0).normal(0.0, 1.5, (4, 200, 3)).astype(np.float32)
    metrics = built.evaluate({"prior": x, "rtb": x})
    assert metrics["reference"]["trusted"] == 0.0
    assert metrics["rtb"]["q_minus_reference"] is metrics["rtb"]["q_standardised"] is None


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"environment": "ant"}, ConfigError, "config.environment must be one of halfcheetah, hopper, walker2d"),
        ({"posterior__kind": "steered"}, ConfigError, "config.posterior.kind must be one of correction, full, lora"),
        ({"reward__alpha": 0.0}, ConfigError, "config.reward.alpha must be positive, got 0.0"),
        ({"objective__beta": 2.0}, ConfigError, "config.objective.beta must be 1 .*config.reward.alpha sets"),
        ({"iql__expectile": 1.0}, ConfigError, "config.iql.expectile must lie between 0 and 1, got 1.0"),
        ({"eval__states": 0}, ConfigError, "config.eval.states must be at least 1, got 0"),
        ({"eval__states": 10**6}, ConfigError, "config.eval.states must be at most"),
        ({"steer__steps": 5}, ConfigError, "config.steer.steps must be 0"),
        ({"data__path": "missing.npz"}, DataError, "There is no data file or folder .*missing.npz"),
        ({"environment": "walker2d"}, DataError, "Walker2d-v5 has 17 and 6: set config.environment"),
        ({"prior__width": 8}, weights.WeightsError, "holds other weights than the network expects"),
    ],
)
def test_what_cannot_be_is_one_sentence(changes, error, message, config):
    with pytest.raises(error, match=message):
        control.build(changed(config, **changes))


def test_weights_and_data_of_another_environment_are_named_as_such(config, tmp_path):
    """Not by their shapes, which say less, or of HalfCheetah and Walker2d nothing."""
    for loaded in (networks.load_prior, networks.load_values):
        with pytest.raises(weights.WeightsError, match="was trained in hopper, and config.environment is walker2d"):
            loaded(changed(config, environment="walker2d"))
    (tmp_path / "Walker2d-medium.npz").write_bytes(b"")
    with pytest.raises(DataError, match="Walker2d-medium.npz is of walker2d by its name"):
        transitions.load(str(tmp_path / "Walker2d-medium.npz"), TASKS["halfcheetah"])


def test_weights_of_another_environment_of_the_same_sizes_are_refused(config, tmp_path):
    path = tmp_path / "prior.safetensors"
    params, norm = networks.load_prior(config)
    weights.save(path, {"params": params.params, "observations": norm._asdict()}, {"environment": "walker2d"})
    with pytest.raises(weights.WeightsError, match="was trained in walker2d, and config.environment is hopper"):
        control.build(changed(config, prior__weights=str(path)))


def test_prior_and_values_of_other_transitions_are_refused(config, tmp_path):
    embedded, path = transitions.read_npz(transitions.EMBEDDED), tmp_path / "own.npz"
    own = changed(config, data__path=str(path))
    np.savez(path, **embedded)
    control.build(own)  # By any other name.
    actions = embedded["actions"].copy()
    actions[7, 1] = -actions[7, 1]
    np.savez(path, **embedded | {"actions": actions})
    message = "trained on .*100k.npz, which are not the transitions .* has .99575 of own.npz.: .*pretrain.what={}"
    with pytest.raises(weights.WeightsError, match=message.format("prior")):
        control.build(own)
    control.pretrain(own, tmp_path)
    with pytest.raises(weights.WeightsError, match=message.format("reward")):
        control.pretrain(changed(own, pretrain__what="awr"), tmp_path)
    with pytest.raises(weights.WeightsError, match=message.format("reward")):
        control.build(changed(own, prior__weights=str(tmp_path / "hopper_prior.safetensors")))


def test_transitions_that_differ_in_their_returns_alone_are_others():
    """Rewards are scaled by them."""
    found = transitions.load("", TASKS["hopper"])
    fewer = networks.notes_of(found._replace(returns=found.returns[:-1]))
    assert fewer["trained_on"] == networks.notes_of(found)["trained_on"]
    assert fewer["transitions"] != networks.notes_of(found)["transitions"]


@pytest.mark.slow
def test_a_run_trains_and_is_played(config, tmp_path, capsys):
    done = run.execute(config, tmp_path)
    assert done.summary["data_source"].startswith("hopper: ")
    assert len(done.summary["metrics"]["states"]) == config.eval.states
    found = play.scores([tmp_path], episodes=2, candidates=3)
    assert found["policies"].keys() == {"bc", "idql", "rtb"}
    for policy in found["policies"].values():
        low, high = policy["interval"]
        assert low <= policy["score"] <= high and policy["latency_ms"] > 0
    assert "| rtb |" in play.report(found)


def test_runs_that_differ_in_more_than_their_seed_are_not_put_together(config):
    play.same_but_seed([config, changed(config, seed=1)])
    with pytest.raises(UserError, match="differ in config.reward.alpha"):
        play.same_but_seed([config, changed(config, seed=1, reward__alpha=2.0)])


def test_a_workdir_of_another_domain_is_not_played(tmp_path):
    with pytest.raises(UserError, match="holds no run of configs/d4rl.py"):
        play.scores([tmp_path], 1, 1)


@pytest.fixture(scope="module")
def shipped():
    return control.build(changed(get_config(), devices=1))


def test_the_shipped_weights_say_what_they_were_trained_on_and_are_small():
    config = get_config()
    for section, steps in (("prior", config.pretrain.steps), ("reward", config.iql.steps)):
        path = weights.locate(config[section].weights)
        notes = weights.metadata(path)
        assert (notes["environment"], notes["steps"]) == ("hopper", steps)
        assert notes["trained_on"].endswith("of hopper-medium-replay-100k.npz")
        assert path.stat().st_size < 2e6


def test_the_shipped_prior_imitates_each_states_actions(shipped, key):
    """Its draws lie nearer to the recorded action than recorded actions of other states do, in every dimension."""
    rows = jax.random.choice(key, shipped.conditions.count, (2_000,), replace=False)
    cond, recorded = shipped.conditions.values[rows], np.tanh(shipped.conditions.examples[rows])
    run_prior = jax.jit(
        lambda key, prior, cond: rollout(key, shipped.process, prior, shape=(len(cond), 3), cond=cond).xs[-1]
    )
    drawn = np.tanh(run_prior(key, shipped.prior, cond))
    own, others = (np.mean((drawn - actions) ** 2, axis=0) for actions in (recorded, np.roll(recorded, 1, axis=0)))
    assert (own < 0.8 * others).all()
    # And they spread as the recorded actions do.
    np.testing.assert_allclose(drawn.std(axis=0), recorded.std(axis=0), rtol=0.15)


def test_the_shipped_values_go_with_what_was_earned_afterwards():
    found = transitions.load("", TASKS["hopper"])
    params, norm = networks.load_values(get_config())
    earned, ahead = np.zeros(len(found.rewards)), 0.0
    for row in range(len(earned) - 1, -1, -1):
        ahead = found.rewards[row] + (0.0 if found.terminals[row] else 0.99 * ahead)
        earned[row] = ahead
    values = np.asarray(iql.value(params["v"], jnp.asarray(norm(found.observations))))
    assert np.corrcoef(values, earned)[0, 1] > 0.5
