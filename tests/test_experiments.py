"""The experiments in process, shrunk: what a run leaves behind, resuming, and every kind of bad input."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import gmm as gmm_config
from configs import mnist as mnist_config
from experiments import compare, data, exact, loop, records, run, settings, weights
from experiments.checkpoint import CheckpointError, Checkpoints
from experiments.domains import gmm, images
from rtbjax.rewards import RewardError
from rtbjax.sharding import data_mesh

REPOSITORY = Path(__file__).resolve().parents[1]


def changed(config: ConfigDict, **changes) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


@pytest.fixture
def config(tmp_path):
    return changed(
        gmm_config.get_config("smoke"),
        devices=1,
        process__num_steps=10,
        train__steps=4,
        train__batch_size=32,
        log__every=1,
        checkpoint__every=2,
        behaviour__accepted=0.25,
        behaviour__noised=0.25,
        behaviour__replay=0.25,
        behaviour__capacity=16,
        behaviour__warm_accepted=8,
        eval__num_samples=64,
        eval__batch_size=64,
        eval__exact_samples=16,
        eval__exact_cache=str(tmp_path / "exact"),
    )


def test_a_run_leaves_its_files_and_a_second_one_finds_it_finished(config, tmp_path, capsys):
    workdir = tmp_path / "run"
    first = run.execute(config, workdir)
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "final_params.safetensors",
        "samples.png",
        "samples.npz",
        "checkpoints",
    }
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    second = run.execute(config, workdir)
    assert "already finished" in capsys.readouterr().out
    assert second.summary == json.loads((workdir / "summary.json").read_text())
    again = run.execute(config, workdir, "evaluate")
    assert records.plain(again.summary["certificate"]) == records.plain(first.summary["certificate"])


class Killed(BaseException):
    pass


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(config, tmp_path, monkeypatch):
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
    assert (cut / "final_params.safetensors").read_bytes() == (whole / "final_params.safetensors").read_bytes()

    def without_time(path):
        lines = (path / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]

    assert without_time(cut) == without_time(whole)


def test_a_corrupt_checkpoint_falls_back_to_the_one_before(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for step in (1, 2):
        checkpoints.save(step, {"x": np.full(3, step, np.float32)})
    for path in (tmp_path / "c" / "2").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\0" * 7)
    step, tree = checkpoints.restore({"x": np.zeros(3, np.float32)})
    assert step == 1
    np.testing.assert_array_equal(tree["x"], 1.0)
    shutil.rmtree(tmp_path / "c" / "1" / "default")
    with pytest.raises(CheckpointError, match="None of the checkpoints"):
        checkpoints.restore({"x": np.zeros(3, np.float32)})


def test_a_workdir_of_another_config_is_refused_with_the_difference(config, tmp_path):
    records.claim(tmp_path / "w", config.to_dict())
    other = changed(config, train__learning_rate=0.5)
    with pytest.raises(
        records.WorkdirError, match=f"train.learning_rate: {config.train.learning_rate} there, 0.5 here"
    ):
        records.claim(tmp_path / "w", other.to_dict())
    records.claim(tmp_path / "w", changed(config, eval__num_samples=5).to_dict(), ignore=("eval",))


def test_evaluating_what_was_never_trained(config, tmp_path):
    with pytest.raises(CheckpointError, match="train it first"):
        loop.restore(config, gmm.build(config), tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(objective__grad_steps=101), r"grad_steps must be None or lie in 1..10"),
        (dict(objective__chunk=3), "chunk must divide the 10 steps"),
        (dict(objective__log_z="conditional"), "vargrad, learned"),
        (dict(objective__loss="ppo"), "rtb, reinforce"),
        (dict(train__optimizer="sgd"), "adam, muon"),
        (dict(train__batch_size=1), "VarGrad group of one"),
        (dict(train__batch_size=0), "at least 1"),
        (dict(process__num_steps=0), "at least 1"),
        (dict(train__steps=-1), "at least 0"),
        (dict(train__learning_rate=0.0), "positive"),
    ],
)
def test_a_field_out_of_range_says_what_is_allowed(config, changes, message):
    with pytest.raises(settings.ConfigError, match=message):
        settings.check(changed(config, **changes))


def test_fractions_that_do_not_fit(config, tmp_path):
    with pytest.raises(ValueError, match="sum to at most 1"):
        run.execute(changed(config, behaviour__accepted=0.8), tmp_path / "w")


def test_a_batch_that_does_not_divide_over_the_devices(config, tmp_path):
    with pytest.raises(ValueError, match="does not divide over 8 devices"):
        run.execute(changed(config, devices=8, train__batch_size=36, behaviour__replay=0.0), tmp_path / "w")


@pytest.mark.parametrize("label", ["10", "seven", ""])
def test_an_unknown_class(label):
    with pytest.raises(settings.ConfigError, match="0..9, 'even' or 'odd'"):
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
    workdir, clock = tmp_path / "w", loop.CompileClock()
    loop.run(settings, domain, workdir, run.data_mesh(1), clock)
    before = (workdir / "final_params.safetensors").read_bytes()
    with pytest.raises(RewardError, match=message):
        loop.run(config, dataclasses.replace(domain, log_reward=reward), workdir, run.data_mesh(1), clock)
    assert (workdir / "final_params.safetensors").read_bytes() == before
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 2
    loop.run(config, domain, workdir, run.data_mesh(1), clock)
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 4


def test_data_files_that_are_not_what_they_should_be(tmp_path):
    with pytest.raises(data.DataError, match="no data file"):
        data.mnist(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(data.DataError, match="'images' and 'labels'"):
        data.mnist(str(tmp_path / "text.npz"))
    np.savez(tmp_path / "float.npz", images=np.zeros((2, 28, 28)), labels=np.zeros(2))
    with pytest.raises(data.DataError, match="uint8"):
        data.mnist(str(tmp_path / "float.npz"))
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


def test_a_comparison_runs_every_variation_and_writes_table_and_figure(config, tmp_path):
    runs = [("RTB", []), ("guided", [("posterior.kind", "classifier_guidance"), ("train.steps", 0)])]
    config.compare = {"runs": runs}
    text = compare.run(config, tmp_path / "w", run.execute)
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == ["exact, a second set", "RTB", "guided"]
    assert (tmp_path / "w" / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config=configs/gmm.py", "--config.train.stepz=3"], "no field 'stepz'; did you mean 'steps'?"),
        (["--config=configs/gmm.py", "--config.train.steps=abc"], "invalid literal for int"),
        (["--config=configs/gmm.py:huge"], "no variant 'huge'"),
        (["--config=configs/nope.py"], "configs/nope.py cannot be loaded"),
        ([], "--config is required"),
        (["--config=configs/gmm.py", "--config.domain=audio"], "must be one of gmm, images, got 'audio'"),
    ],
)
def test_a_bad_command_line_is_one_sentence(arguments, message):
    command = [sys.executable, "experiments/run.py", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_the_shipped_exact_sets_belong_to_the_shipped_prior_and_reward(tmp_path):
    config = mnist_config.get_config()
    config.eval.exact_cache = str(tmp_path)
    domain = images.build(config)
    shipped = exact.SHIPPED / exact.file_name(config, domain)
    assert shipped.exists(), (
        "Remake them: --mode=evaluate --config.eval.recompute_exact=True, then copy to weights/exact."
    )
    assert shipped.stat().st_size <= 2_000_000
    found = exact.posterior(config, domain, data_mesh(1))
    assert found.samples.shape == (1500, 28, 28, 1)
    # Drawn with probability r, so almost all of them are what the label says, and no two are the same.
    log_reward = np.asarray(domain.log_reward(found.samples, None))
    assert np.mean(log_reward > np.log(0.5)) > 0.85
    assert len(np.unique(found.samples.reshape(1500, -1), axis=0)) == 1500
    config.reward.label = "3"
    assert not (exact.SHIPPED / exact.file_name(config, images.build(config))).exists()
