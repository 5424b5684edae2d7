"""The experiments in process, shrunk: what a run leaves behind, resuming, and every kind of bad input."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from check_workdir import problems
from oracles import QuadraticGaussian, assert_moments
from shrunk import assert_same_run, bare_domain, changed, latest_step, log_of
from shrunk import gmm as gmm_of

from configs import mnist as mnist_config
from configs import stories as stories_config
from configs.gmm import get_config
from experiments import compare, data, exact, loop, records, run, settings, weights
from experiments.checkpoint import CheckpointError
from experiments.control import transitions
from experiments.control.tasks import TASKS
from experiments.domains import gmm, images
from experiments.errors import UserError
from experiments.plots import plt
from experiments.stories import corpus
from rtbjax import Policy, brownian_bridge
from rtbjax.rewards import RewardError
from rtbjax.sharding import data_mesh


@pytest.fixture
def config(tmp_path):
    return gmm_of(tmp_path)


def test_a_run_leaves_its_files_and_a_second_one_finds_it_finished(config, tmp_path, capsys):
    workdir = tmp_path / "run"
    first = run.execute(config, workdir)
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "report.html",
        "final_params.safetensors",
        "samples.png",
        "samples.npz",
        "checkpoints",
        "lock",
    }
    assert problems(workdir) == []
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    cached = list(Path(config.eval.exact_cache).iterdir())
    for path in cached:
        path.unlink()  # Which a finished run does not need.
    second = run.execute(config, workdir)
    assert not any(path.exists() for path in cached)
    assert "already finished" in capsys.readouterr().out
    assert second.summary == json.loads((workdir / "summary.json").read_text())
    again = run.execute(config, workdir, "evaluate")
    assert records.plain(again.summary["certificate"]) == records.plain(first.summary["certificate"])
    assert problems(workdir) == []  # With the report of the evaluation.
    # How long a run took does not change when it is evaluated anew.
    seconds, later = first.summary["seconds"], again.summary["seconds"]
    sampling = {"sample", "prior_sample"}  # Which an evaluation measures anew.
    assert {name: later[name] for name in seconds.keys() - sampling} == {
        name: seconds[name] for name in seconds.keys() - sampling
    }
    assert 0 < seconds["first_step"] < seconds["total"] and 0 < seconds["train"] < seconds["total"]
    # A log-weight belongs to the very sample.
    with np.load(workdir / "samples.npz") as file:
        assert file["x"].dtype == file["prior"].dtype == np.float32
        np.testing.assert_allclose(file["log_reward"], np.asarray(gmm.log_reward(file["x"])), rtol=1e-5, atol=1e-5)
    metrics = first.summary["metrics"]
    # The bridge starts at one point, so there is nothing for the reward to remember.
    assert abs(metrics["start_excess"]) < 4 * metrics["start_excess_error"]


def test_a_clock_listens_to_jax_only_where_it_is_entered():
    with loop.Clock() as clock:
        jax.jit(lambda x: x + 1)(0)
    seconds = clock.compiling
    jax.jit(lambda x: x + 2)(0)
    assert clock.compiling == seconds > 0


def test_exploration_is_not_logged_as_the_posterior_own_paths(config, tmp_path):
    config = changed(config, behaviour__widen=0.5, behaviour__widen_hold=1, behaviour__widen_until=3)
    loop.run(config, gmm.build(config), tmp_path, data_mesh(1), loop.Clock())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert ["ess" in line for line in lines] == [False, False, False, True]


def test_the_first_step_of_a_warm_up_is_one_with_a_smaller_beta(config, tmp_path):
    """Bit for bit in all that is logged; the log r is that of the samples, whatever beta."""
    own = {f"behaviour__{name}": 0.0 for name in ("accepted", "noised", "replay")}
    one = changed(config, train__steps=1, **own)
    ways = {"warm": {"objective__beta_warmup": 3}, "cold": {"objective__beta": 0.25}, "whole": {}}
    for name, way in ways.items():
        changed_one = changed(one, **way)
        loop.run(changed_one, gmm.build(changed_one), tmp_path / name, data_mesh(1), loop.Clock())
    warm, cold, whole = (log_of(tmp_path / name)[0] for name in ways)
    assert warm == cold and warm["grad_norm"] != whole["grad_norm"] and warm["log_reward"] == whole["log_reward"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("devices, fsdp", [(1, 1), (2, 1), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(config, tmp_path, monkeypatch, devices, fsdp):
    config = changed(config, devices=devices, fsdp=fsdp)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run.execute(config, whole)
    write = records.Metrics.write

    def dies_at_three(self, step, values):
        write(self, step, values)
        if step == 3:
            raise Killed

    monkeypatch.setattr(records.Metrics, "write", dies_at_three)
    with pytest.raises(Killed):
        run.execute(config, cut)
    monkeypatch.setattr(records.Metrics, "write", write)
    run.execute(config, cut)
    assert_same_run(cut, whole)
    seconds = json.loads((cut / "summary.json").read_text())["seconds"]
    assert seconds["train"] < seconds["total"]


def test_a_state_that_is_not_finite_is_not_saved_and_the_last_good_one_is_named(config, tmp_path, monkeypatch):
    make_update = loop.train.make_update

    def breaks_at_three(*arguments, **options):
        update = make_update(*arguments, **options)

        def step(state, trajectory, key):
            state, info = update(state, trajectory, key)
            broken = jax.tree.map(lambda x: x * np.float32(np.nan), state.params)
            return (state._replace(params=broken) if int(state.step) == 3 else state), info

        return step

    monkeypatch.setattr(loop.train, "make_update", breaks_at_three)
    domain, mesh = gmm.build(config), data_mesh(1)
    silent = changed(config, log__every=4)
    # What is not saved at once is skipped at step 4, whose samples are no numbers, and found when that is saved.
    for one, step in ((config, 4), (silent, 4), (changed(config, checkpoint__every=3), 3)):
        workdir = tmp_path / f"{one.log.every}-{one.checkpoint.every}"
        with pytest.raises(FloatingPointError, match=f"parameters are not finite at step {step}; "):
            loop.run(one, domain, workdir, mesh, loop.Clock())
        latest = latest_step(workdir)
        assert latest == (2 if one.checkpoint.every == 2 else None)
        assert not (workdir / "final_params.safetensors").exists()
    with pytest.raises(FloatingPointError, match="last good checkpoint is .*4-2/checkpoints/2\\."):
        loop.run(silent, domain, tmp_path / "4-2", mesh, loop.Clock())
    monkeypatch.setattr(loop.train, "make_update", make_update)
    loop.run(silent, domain, tmp_path / "4-2", mesh, loop.Clock())


def test_evaluating_what_was_never_trained(config, tmp_path):
    with pytest.raises(CheckpointError, match="train it first"):
        loop.restore(config, gmm.build(config), tmp_path)


@pytest.mark.parametrize("label", ["10", "seven", ""])
def test_an_unknown_class(label):
    with pytest.raises(settings.ConfigError, match="0..9, 'even', 'odd', or for many at once 'digits'"):
        images.build(changed(mnist_config.get_config("smoke"), reward__label=label))


@pytest.mark.parametrize("damage", ["missing", "truncated", "other network"])
def test_bad_weights(config, tmp_path, damage):
    path = tmp_path / "prior.safetensors"
    good = weights.locate(config.prior.weights)
    if damage == "truncated":
        path.write_bytes(good.read_bytes()[:1000])
    elif damage == "other network":
        weights.save(path, {"x": np.zeros(3, np.float32)})
    message = {"missing": "no weights file", "truncated": "not a readable", "other network": "other weights"}[damage]
    with pytest.raises(weights.WeightsError, match=message):
        gmm.build(changed(config, prior__weights=str(path)))


def broken(value):
    return lambda x, cond: jax.numpy.full((x.shape[0],), value)


@pytest.mark.parametrize(
    "reward, message",
    [
        (broken(np.nan), "nan for sample 0"),
        (broken(5.0), "above its declared bound"),
        (lambda x, cond: np.zeros((3,)), "one log r per sample"),
        (lambda x, cond: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_bad_reward_stops_the_run_and_loses_nothing(config, tmp_path, reward, message):
    settings, domain = changed(config, train__steps=2), gmm.build(config)
    workdir, clock = tmp_path / "w", loop.Clock()
    loop.run(settings, domain, workdir, run.data_mesh(1), clock)
    before = (workdir / "final_params.safetensors").read_bytes()
    with pytest.raises(RewardError, match=message):
        loop.run(config, dataclasses.replace(domain, log_reward=reward), workdir, run.data_mesh(1), clock)
    assert (workdir / "final_params.safetensors").read_bytes() == before
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 2
    loop.run(config, domain, workdir, run.data_mesh(1), clock)
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "read",
    [
        data.mnist,
        lambda path: transitions.load(path, TASKS["hopper"]),
        lambda path: corpus.load(changed(stories_config.get_config(), data__path=path).data, 2),
        lambda path: run.prepare(changed(get_config("smoke"), devices=1, posterior__start=path)),
        lambda path: run.prepare(changed(get_config("smoke"), devices=1, prior__weights=path)),
    ],
)
def test_paths_in_a_config_are_relative_to_the_repository_wherever_one_is(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowhere.npz").touch()
    with pytest.raises(UserError, match=f"There is no .* {weights.REPOSITORY / 'nowhere.npz'}"):
        read("nowhere.npz")


def test_data_files_that_are_not_what_they_should_be(tmp_path):
    with pytest.raises(data.DataError, match="no data file"):
        data.mnist(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(data.DataError, match="'images' and 'labels'"):
        data.mnist(str(tmp_path / "text.npz"))
    np.savez(tmp_path / "float.npz", images=np.zeros((2, 28, 28)), labels=np.zeros(2))
    with pytest.raises(data.DataError, match="uint8"):
        data.mnist(str(tmp_path / "float.npz"))
    for shape, labels, message in (
        ((2, 32, 32), [0, 1], "28 x 28"),
        ((2, 28, 28, 3), [0, 1], "28 x 28"),
        ((2, 28, 28), [0, 10], "0..9, got 0..10"),
        ((2, 28, 28), [-1, 3], "0..9, got -1..3"),
        ((2, 28, 28), [0.5, 3.0], "integers"),
    ):
        np.savez(tmp_path / "other.npz", images=np.zeros(shape, np.uint8), labels=np.array(labels))
        with pytest.raises(data.DataError, match=message):
            data.mnist(str(tmp_path / "other.npz"))
    with pytest.raises(data.DataError, match="neither"):
        data.mnist(str(tmp_path))


def test_embedded_digits():
    digits = data.embedded_mnist()
    assert digits.images.shape == (5000, 28, 28, 1)
    assert digits.images.min() == -1.0 and digits.images.max() == 1.0
    np.testing.assert_array_equal(np.bincount(digits.labels), np.full(10, 500))


def test_the_gmm_reward_is_bounded_as_declared_and_log_z_is_zero(key):
    x = gmm.sample_mixture(key, 200_000)
    log_r = np.asarray(gmm.log_reward(x), np.float64)
    assert log_r.max() <= gmm.LOG_BOUND + 1e-5
    # Z = 1 for the exact mixture; sd of r is below 2.
    assert abs(np.exp(log_r).mean() - 1.0) < 5 * 2 / np.sqrt(len(log_r))


def test_a_guide_of_the_mixture_is_tempered_as_its_reward_is(config, key):
    x, t = gmm.sample_mixture(key, 16), jnp.float32(0.5)

    def score(**changes):
        built = gmm.build(changed(config, posterior__kind="classifier_guidance", train__steps=0, **changes))
        return built.posterior.look(built.prior(x, t, None), x, t, None)["score"]

    np.testing.assert_allclose(score(posterior__strength=2.0), score(objective__beta=2.0), rtol=1e-5)
    assert float(jnp.abs(score()).max()) > 0.1


def test_a_sample_is_off_the_modes_beyond_three_standard_deviations():
    x = gmm.GRID[:4] + gmm.STD * np.outer([2.9, 3.1, 0.0, 4.0], [0.6, 0.8]).astype(np.float32)
    found = gmm.evaluate(dict.fromkeys(("prior", "rtb", "exact", "exact_again"), x))["rtb"]
    assert found["off_mode_mass"] == 0.5
    assert [found["modes"][f"{a:g}, {b:g}"] for a, b in gmm.GRID] == [0.25] * 4 + [0.0] * 21


@pytest.mark.slow
def test_a_comparison_runs_every_variation_and_writes_table_and_figure(config, tmp_path, monkeypatch):
    runs = [("RTB", []), ("guided", [("posterior.kind", "classifier_guidance"), ("train.steps", 0)])]
    config.compare = {"runs": runs, "tuned": ["guided"]}
    drawn = []
    monkeypatch.setattr(plt.Axes, "set_title", lambda self, title: drawn.append(title))
    workdir = tmp_path / "w"
    text = compare.run(config, workdir, run.execute, "train", run.prepare)
    names = ["prior", "exact, a second set", "RTB", "guided"]
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == names
    assert "| verdict |" in text.splitlines()[0]
    verdict = json.loads((workdir / "comparison.json").read_text())["guided"]["verdict"]
    assert f"| `{verdict}` |" in text.splitlines()[-1]
    assert drawn[-4:] == ["prior", "exact posterior", "RTB", "guided\n(the best of its kind)"]
    assert (workdir / "figure.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(records.OtherRun, match="train.steps: 4 there, 5 here"):
        compare.run(changed(config, train__steps=5), workdir, run.execute, "train", run.prepare)
    before = (workdir / "rtb" / "summary.json").stat().st_mtime_ns
    assert compare.run(config, workdir, run.execute, "evaluate", run.prepare) == text
    assert (workdir / "rtb" / "summary.json").stat().st_mtime_ns > before


@pytest.mark.parametrize("damage", ["truncated", "another precision"])
def test_a_damaged_exact_set_is_drawn_again_with_a_warning(config, caplog, damage):
    domain, mesh = gmm.build(config), data_mesh(1)
    first = exact.posterior(config, domain, mesh)
    path = exact.cache_file(config, domain)
    assert exact.cached(config, domain).samples.tobytes() == first.samples.tobytes()
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    else:
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **arrays | {"samples": arrays["samples"].astype(np.float16)})
    assert exact.posterior(config, domain, mesh).samples.tobytes() == first.samples.tobytes()
    assert "drawn anew" in caplog.text
    assert exact.cached(config, domain).log_z == first.log_z


def test_exact_samples_and_their_log_z_are_of_r_to_the_power_of_beta(config):
    """By closed form; the interval of log Z is of 95 %, and twice it is four standard errors."""
    chain, beta = QuadraticGaussian(), 0.5
    config = changed(config, objective__beta=beta, eval__exact_samples=2_000, eval__batch_size=2_000)
    known = exact.draw(config, bare_domain(chain, chain.prior, (1,)), data_mesh(1))
    target = chain.tempered(beta)
    assert known.samples.shape == (1, 4_000, 1)
    assert_moments(known.samples[0], target.mean, target.std)
    (found,) = known.log_z
    low, high = found.interval
    assert abs(found.log_z - target.log_z) < high - low


def test_a_hard_constraint_that_no_prior_sample_meets_gives_no_reference(config):
    """Were the floor taken for a reward, an untrained posterior, which is there as well, would be `consistent`."""
    chain = QuadraticGaussian()
    fields = {
        "log_floor": -30.0,
        "fingerprint": "",
        "log_reward": lambda x, cond: jnp.where(x[:, 0] > 1e6, 0.0, -jnp.inf),
    }
    domain = dataclasses.replace(bare_domain(chain, chain.prior, (1,)), log_bound=None, **fields)
    with pytest.raises(UserError, match="There is no reference log Z: None of 40 prior samples is above the floor"):
        exact.draw(changed(config, eval__exact_samples=40, eval__batch_size=40), domain, data_mesh(1))


def test_an_exact_set_of_images_is_the_same_whether_it_is_drawn_or_read(config):
    """The file holds half precision: a run that was killed after it was written must go on with what it had."""
    prior = Policy({}, lambda params, x, t, cond: -x)
    images_alike = dataclasses.replace(
        gmm.build(config),
        process=brownian_bridge(5, 2.0),
        event_shape=(2, 2, 1),
        prior=prior,
        posterior=prior,
        log_reward=lambda x, cond: -jnp.sum(x**2, axis=(1, 2, 3)),
        log_bound=0.0,
    )
    drawn, read = exact.draw(config, images_alike, data_mesh(1)), exact.cached(config, images_alike)
    assert drawn.samples.tobytes() == read.samples.tobytes() and drawn.log_z == read.log_z


def test_the_shipped_exact_sets_belong_to_the_shipped_prior_and_reward(tmp_path):
    config = mnist_config.get_config()
    config.eval.exact_cache = str(tmp_path)
    domain = images.build(config)
    shipped = exact.SHIPPED / exact.file_name(config, domain)
    assert shipped.exists(), (
        "Remake them: --mode=evaluate --config.eval.recompute_exact=True, then copy to weights/exact."
    )
    assert shipped.stat().st_size <= 2_000_000
    (found,) = exact.posterior(config, domain, data_mesh(1)).samples
    assert found.shape == (1500, 28, 28, 1)
    # Drawn with probability r, so almost all of them are what the label says, and no two are the same.
    log_reward = np.asarray(domain.log_reward(found, None))
    assert np.mean(log_reward > np.log(0.5)) > 0.85
    assert len(np.unique(found.reshape(1500, -1), axis=0)) == 1500
    config.reward.label = "3"
    assert not (exact.SHIPPED / exact.file_name(config, images.build(config))).exists()
