"""Baselines are found, played and put into tables beside the paper's numbers."""

import json
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from shrunk import changed

from configs.d4rl import get_config
from experiments import compare, run, settings, weights
from experiments.control import baselines, behaviour_prior, iql, networks, play, published, tables, transitions
from experiments.control.tasks import TASKS
from experiments.domains import control
from experiments.errors import ConfigError
from experiments.finite import Diverged

SIZES = (8, 11, 3)  # Width, observations and actions of Hopper.


@cache
def embedded():
    return transitions.load("", TASKS["hopper"])


def write(path, params, environment="hopper", **notes):
    notes = networks.notes_of(embedded()) | notes
    norm = {"mean": np.zeros(11, np.float32), "std": np.ones(11, np.float32)}
    path.parent.mkdir(parents=True, exist_ok=True)
    weights.save(path, {"params": params, "observations": norm}, {"environment": environment} | notes)
    return str(path)


def small(variant, folder, key):
    """Networks of 8 units that have learned nothing."""
    config = changed(get_config(variant), devices=1, prior__width=8, iql__width=8, baseline__width=8)
    smallest = dict(
        process__num_steps=3,
        posterior__width=8,
        train__steps=2,
        train__batch_size=8,
        objective__group=4,
        eval__states=2,
        eval__num_samples=16,
        eval__batch_size=16,
        eval__exact_samples=16,
        eval__exact_cache=str(folder / "exact"),
        baseline__steps=200,
        baseline__batch_size=16,
        baseline__states=8,
        baseline__support=2,
        prior__weights=write(folder / "prior.safetensors", behaviour_prior.init(key, *SIZES)),
        reward__weights=write(folder / "values.safetensors", iql.init(key, *SIZES)),
    )
    return changed(config, **smallest)


@pytest.mark.slow
def test_what_was_pretrained_is_played_and_nothing_else(tmp_path, key):
    config = small("", tmp_path, key)
    for name in ("awr", "cql", "dql", "qgpo"):
        path = baselines.weights_file(config, tmp_path / "pretrain" / name, name)
        write(path, baselines.BASELINES[name].init(key, *SIZES))
    found = baselines.actors(config, tmp_path / "pretrain")
    assert found.keys() == {"awr", "cql", "dql", "qgpo"}
    observations = jnp.asarray(np.random.default_rng(0).normal(size=(5, 11)), jnp.float32)
    for actor in found.values():
        actions = np.asarray(actor(key, observations))
        assert actions.shape == (5, 3) and np.abs(actions).max() <= 1.0 and len(np.unique(actions[:, 0])) == 5


def test_a_baseline_of_another_environment_is_refused(tmp_path, key):
    config = small("", tmp_path, key)
    path = baselines.weights_file(config, tmp_path / "pretrain" / "awr", "awr")
    write(path, baselines.BASELINES["awr"].init(key, *SIZES), "walker2d")
    with pytest.raises(weights.WeightsError, match="was trained in walker2d"):
        baselines.actors(config, tmp_path / "pretrain")


def test_a_baseline_of_other_transitions_is_refused(tmp_path, key):
    config = small("", tmp_path, key)
    path = baselines.weights_file(config, tmp_path / "pretrain" / "awr", "awr")
    write(path, baselines.BASELINES["awr"].init(key, *SIZES), transitions="others")
    with pytest.raises(weights.WeightsError, match="not the transitions that config.data.path has .*what=awr"):
        baselines.actors(config, tmp_path / "pretrain")


def test_a_data_set_is_found_under_either_name_and_the_embedded_one_without_a_folder(tmp_path):
    for name in ("hopper-medium.npz", "walker2d_medium_replay-v2.hdf5", "hopper-medium-replay.txt"):
        (tmp_path / name).touch()
    assert tables.find(str(tmp_path), "hopper-medium") == str((tmp_path / "hopper-medium.npz").resolve())
    assert tables.find(str(tmp_path), "walker2d-medium-replay").endswith("walker2d_medium_replay-v2.hdf5")
    assert tables.find(str(tmp_path), "hopper-medium-replay") is None
    assert tables.find("", "hopper-medium-replay") == ""
    assert tables.find("", "hopper-medium") is None
    (tmp_path / "hopper_medium-v2.hdf5").touch()
    with pytest.raises(ConfigError, match="has 2 files of hopper-medium: hopper-medium.npz, hopper_medium-v2.hdf5"):
        tables.find(str(tmp_path), "hopper-medium")
    with pytest.raises(ConfigError, match="must be a folder of data sets"):
        tables.find(str(tmp_path / "hopper-medium.npz"), "hopper-medium")


def test_the_papers_table_is_that_of_the_paper():
    table = published.TABLES["table4"]
    assert table.keys() == {name for name, _ in get_config("table4").compare.sets}
    # RTB's mean over the nine sets, and IQL's published total of 692.6 / 9 up to rounding.
    means = {name: np.mean([float(row[name].split("±")[0]) for row in table.values()]) for name in ("RTB", "awr")}
    np.testing.assert_allclose([means["RTB"], means["awr"]], [83.04, 76.96], atol=0.05)


def test_path_kl_is_of_states_whose_reference_counts():
    def summary(*states):
        return {
            "certificate": {"per_condition": [{"condition": f"state {i}", "path_kl": kl} for i, (_, kl) in states]},
            "metrics": {"states": {f"state {i}": {"reference_ess": ess} for i, (ess, _) in states}},
        }

    assert tables.path_kl(summary(*enumerate([(150.0, 0.2), (1.0, -30.0), (100.0, 0.4)]))) == pytest.approx(0.3)
    assert tables.path_kl(summary((0, (99.0, 0.2)))) is None


def test_scores_stand_above_the_papers():
    policy = {"score": 12.34, "interval": (10.0, 14.0), "latency_ms": 0.02}
    values = {"alpha": 0.1, "path_kl": 0.25, "ess": 0.5, "q_minus_prior": 1.0, "q_minus_reference": None}
    values |= {"trusted": 0.75, "seconds": 60.0, "verdicts": ["consistent"] * 2}
    one = {"seeds": 2, "policies": {"bc": policy}, "runs": {"RTB": values}}
    paper = {"hopper-medium": {"bc": "52.9", "diffuser": "58.5"}}
    text = tables.table({"sets": {"hopper-medium": one}, "left out": ["walker2d-medium"], "paper": paper})
    lines = text.splitlines()
    assert "| set | seeds | BC | Diffuser (quoted) |" in lines
    assert "| hopper-medium | 2 | 12.3 (10.0 to 14.0) |  |" in lines
    assert "| the paper, D4RL v2 |  | 52.9 | 58.5 |" in lines
    assert "| ms an action |  | 0.02 |  |" in lines
    assert "| hopper-medium | RTB | 0.1 | 0.25 | 0.5 | 1 |  | 0.75 | 60 | consistent |" in lines
    assert lines[-1] == "No data for walker2d-medium."


def test_a_run_that_diverges_has_no_numbers_and_the_others_have_theirs(tmp_path, key, monkeypatch):
    config = changed(small("alpha_sweep", tmp_path, key), compare__seeds=2)
    names = [name for name, _ in config.compare.runs]
    played = []

    def execute(one, workdir, mode):
        if workdir.name == compare.slug(names[0]) or one.seed == 1:
            raise Diverged("14 steps in a row were skipped.")
        metrics = {"rtb": {"q": 2.0, "q_minus_reference": 0.5}, "prior": {"q": 1.0}, "reference": {"trusted": 1.0}}
        certificate = {"ess": 0.5, "verdict": "consistent", "per_condition": [{"condition": "state 0", "path_kl": 0.2}]}
        states = {"states": {"state 0": {"reference_ess": 200.0}}}
        found = {"metrics": metrics | states, "certificate": certificate, "seconds": {"train": 60.0}}
        return type("Done", (), {"summary": found})

    def actors(one, runs, folder, candidates):
        played.append(list(runs))
        return dict.fromkeys(["bc", *runs])

    monkeypatch.setattr(play, "actors", actors)
    monkeypatch.setattr(play, "episodes_of", lambda *arguments: {"scores": [1.0, 3.0], "latency_ms": 0.1})
    lines = compare.run(config, tmp_path / "w", execute, "train", settings.check, tables.collect).splitlines()
    assert played == [names[1:], []]
    found = json.loads((tmp_path / "w" / "comparison.json").read_text())["sets"]["hopper-medium-replay"]
    assert found["policies"].keys() == {"bc", *names[1:]}
    assert np.shape(found["policies"]["bc"]["scores"]) == (2, 2)
    assert np.shape(found["policies"][names[1]]["scores"]) == (1, 2)
    assert found["runs"][names[0]]["path_kl"] is None and found["runs"][names[1]]["path_kl"] == 0.2
    assert [found["runs"][name]["verdicts"] for name in names[:2]] == [["diverged"] * 2, ["consistent", "diverged"]]
    assert f"{names[0]} diverged on hopper-medium-replay, seed 0, seed 1, and has no numbers of it." in lines
    assert f"{names[1]} diverged on hopper-medium-replay, seed 1, and has no numbers of it." in lines


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"compare__seeds": 0}, "config.compare.seeds must be at least 1, got 0"),
        ({"compare__alpha": -1.0}, "config.compare.alpha must be at least 0, got -1.0"),
        ({"reward__alpha": 0.5}, "config.reward.alpha is not read by a table: config.compare.alpha sets"),
        ({"data__path": "nowhere"}, "must be a folder of data sets"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(changes, message, tmp_path):
    config = changed(get_config("table4"), **changes)
    with pytest.raises(ConfigError, match=message):
        compare.run(config, tmp_path / "w", run.execute, "train", settings.check, tables.collect)
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_a_table_is_filled_once(tmp_path, key, monkeypatch):
    config = small("table4", tmp_path, key)
    config = changed(config, compare__seeds=1, compare__episodes=2, compare__candidates=2, compare__policies=("awr",))
    text = compare.run(config, tmp_path / "w", run.execute, "train", settings.check, tables.collect)
    found = json.loads((tmp_path / "w" / "comparison.json").read_text())
    policies = found["sets"]["hopper-medium-replay"]["policies"]
    assert policies.keys() == {"bc", "idql", "awr", "RTB"}
    assert np.shape(policies["RTB"]["scores"]) == (1, 2)
    assert len(found["left out"]) == 8 and "100.40±0.21" in text
    # Nothing is trained, evaluated or played again.
    monkeypatch.setattr(control, "pretrain", None)
    monkeypatch.setattr(play, "episodes_of", None)
    assert compare.run(config, tmp_path / "w", run.execute, "train", settings.check, tables.collect) == text


def test_every_seed_and_every_run_has_weights_and_settings_of_its_own(tmp_path, key, monkeypatch):
    """Without weights, a cell makes prior and values first, and its runs use them."""
    config = small("alpha_sweep", tmp_path, key)
    config = changed(config, prior__weights="", reward__weights="", compare__seeds=2)
    made, ran, there = [], [], []

    def pretrain(one, place):
        made.append((one.seed, one.pretrain.what))
        write(baselines.weights_file(one, place, one.pretrain.what), {})

    class Done:
        summary = {}

    def execute(one, workdir, mode):
        table = tmp_path / "w" / "comparison.json"
        there.append(json.loads(table.read_text())["sets"]["hopper-medium-replay"]["seeds"] if table.exists() else 0)
        ran.append((one.seed, one.reward.alpha, one.prior.weights, workdir))
        return Done

    monkeypatch.setattr(control, "pretrain", pretrain)
    monkeypatch.setattr(play, "actors", lambda *arguments: {})
    monkeypatch.setattr(tables, "gathered", lambda cells: {"seeds": len(cells), "policies": {}, "runs": {}})
    compare.run(config, tmp_path / "w", execute, "train", settings.check, tables.collect)
    assert made == [(0, "prior"), (0, "reward"), (1, "prior"), (1, "reward")]
    alphas = [dict(changes)["reward.alpha"] for _, changes in config.compare.runs]
    assert [r[:2] for r in ran] == [(seed, alpha) for seed in (0, 1) for alpha in alphas]
    assert len({r[2] for r in ran}) == 2 and len({r[3] for r in ran}) == len(ran)
    assert there == [0] * len(alphas) + [1] * len(alphas)  # A cell is in the table before the next one begins.
