"""Methods by labels by seeds: what is run, what is left alone, and the numbers of the table by hand."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from oracles import LinearGaussian
from shrunk import bare_domain, changed

from configs import gmm, mnist
from experiments import loop, records, run, settings, table, weights
from experiments.compare import Finished
from experiments.errors import ConfigError
from experiments.finite import Diverged
from experiments.images import rewards
from rtbjax import Policy

SMALL = dict(table__labels=("3", "7"), table__seeds=(0,), table__methods=("rtb", "smc_rtb", "best_of"))


def config(**changes):
    return changed(mnist.get_config("table2"), **SMALL | changes)


def summary(label, seed, sampler):
    """Numbers that say whose they are; selected samples have no certificate."""
    values = {"log_reward": -0.1 * int(label) - 0.01 * seed, "diversity": 0.2, "c2st": 0.6}
    weighted = sampler == "paths"
    certificate = dict.fromkeys(("log_z_is", "elbo", "path_kl", "ess", "verdict")) | {"log_z_reference": np.log(0.1)}
    certificate |= {"log_z_is_ci": [-2.4, -2.2], "log_z_reference_ci": [-2.4, -2.2], "log_z_reference_source": "it"}
    certificate |= {"reason": "they have no weights"} if not weighted else {"eubo": None, "num_paths": 4, "reason": "-"}
    if weighted:
        certificate |= {"log_z_is": -2.4, "elbo": -3.0, "path_kl": 0.7, "ess": 0.5, "verdict": "consistent"}
    return {
        "steps": 30 if weighted else 0,
        "certificate": certificate,
        "metrics": {"prior": values, "rtb": values, "exact": values, "prior_ess": 0.1},
        "seconds": {"train": 100.0, "sample": 0.5, "prior_sample": 0.03},
    }


class Recorder:
    """In place of `run.execute`: leaves what a run leaves, and remembers the configs."""

    def __init__(self):
        self.ran, self.plotted = [], {}

    def __call__(self, config, workdir, mode):
        found = records.read_summary(workdir)
        if found is None or mode == "evaluate":
            self.ran.append((config, workdir))
            if mode == "train":
                records.claim(workdir, config.to_dict())
            found = summary(config.reward.label, config.seed, config.eval.sampler)
            np.savez(workdir / "samples.npz", x=np.ones((2, 1)), prior=np.zeros((2, 1)))
            records.write_json(workdir / "summary.json", found)
        exact = SimpleNamespace(first=lambda: np.full((2, 1), 2.0))
        return Finished(SimpleNamespace(plot=self.plot, shown=lambda x: x), found, lambda: exact)

    def plot(self, path, panels):
        path.touch()
        self.plotted = panels


def test_the_posterior_that_a_cell_starts_from_is_found_wherever_the_table_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    method = table.chosen(config())[1]
    one, place = table.cell(config(), method, "3", 0, Path("w"))
    assert place == Path("w/smc-rtb/3/seed-0")
    assert one.posterior.start == str(tmp_path / "w" / "rtb" / "3" / "seed-0" / "final_params.safetensors")


def test_every_cell_is_run_once_and_a_table_may_grow(tmp_path):
    execute = Recorder()
    table.run(config(), tmp_path, execute, "train", rewards.labels)
    folders = [str(folder.relative_to(tmp_path)) for _, folder in execute.ran]
    assert folders == [f"{name}/{label}/seed-0" for label in "37" for name in ("rtb", "smc-rtb", "best-of")]
    asked = {folder: (one.reward.label, one.seed, one.eval.sampler) for one, folder in execute.ran}
    assert asked[tmp_path / "best-of" / "7" / "seed-0"] == ("7", 0, "best_of")
    starts = {folder.parts[-3]: one.posterior.start for one, folder in execute.ran[:3]}
    assert starts == {
        "rtb": "",
        "smc-rtb": str(tmp_path / "rtb" / "3" / "seed-0" / "final_params.safetensors"),
        "best-of": "",
    }
    for one, _ in execute.ran:
        settings.check(one)
        assert not one.table
    assert list(execute.plotted) == ["prior", "exact", "RTB", "SMC, RTB proposes", "best of 10"]
    assert [(tmp_path / f"samples-{label}.png").exists() for label in "37"] == [True, True]
    before = len(execute.ran)
    text = table.run(config(), tmp_path, execute, "train", rewards.labels)
    assert len(execute.ran) == before and text == (tmp_path / "table.md").read_text()
    table.run(config(table__seeds=(0, 1), table__methods=("best_of",)), tmp_path, execute, "train", rewards.labels)
    assert [str(folder.relative_to(tmp_path)) for _, folder in execute.ran[before:]] == [
        "best-of/3/seed-1",
        "best-of/7/seed-1",
    ]
    with pytest.raises(records.OtherRun, match="steer.steps: 0 there, 5 here"):
        table.run(config(steer__steps=5), tmp_path, execute, "train", rewards.labels)
    before = len(execute.ran)
    table.run(config(eval__batch_size=10), tmp_path, execute, "evaluate", rewards.labels)
    assert len(execute.ran) == before + 6


def test_what_is_written(tmp_path):
    text = table.run(config(), tmp_path, Recorder(), "train", rewards.labels)
    lines = text.splitlines()
    cells = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in lines if "|" in line}
    header = cells.pop("method")
    del cells["---"]
    rows = {name: dict(zip(header, values, strict=True)) for name, values in cells.items()}
    assert rows["RTB"]["E[log r]"] == "-0.5 ± 0.28" and rows["RTB"]["path-KL"] == "0.7 ± 0"
    assert rows["RTB"]["published E[log r]"] == "-0.1734 ± 0.194" and rows["RTB"]["published FID"].startswith("1.1823")
    for name in ("SMC, RTB proposes", "best of 10"):
        assert [rows[name][c] for c in ("path-KL", "ESS", "log Z error", "training, s")] == ["–"] * 4
        assert f"no certificate of {name}: they have no weights." in text
    assert rows["best of 10"]["published FID"] == ""
    # One in ten prior samples of 0.03 s is accepted.
    assert rows["exact (rejection)"]["s a sample"] == "0.3 ± 0" and rows["prior"]["s a sample"] == "0.03 ± 0"
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["methods"]["rtb"]["cells"]["7"]["0"]["log_reward"] == pytest.approx(-0.7)
    assert found["methods"]["rtb"]["published"][0] == "-0.1734 ± 0.194" and "arXiv" in found["published_source"]


class Diverging(Recorder):
    """One that fails of one method for sevens."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def __call__(self, config, workdir, mode):
        if workdir.parts[-3:-1] == (self.name, "7"):
            raise Diverged("14 steps in a row were skipped.")
        return super().__call__(config, workdir, mode)


def test_a_method_that_diverges_leaves_its_cells_empty_and_the_others_run(tmp_path):
    execute = Diverging("best-of")
    text = table.run(config(table__seeds=(0, 1)), tmp_path, execute, "train", rewards.labels)
    assert len(execute.ran) == 2 * 2 * 3 - 2
    assert "runs: prior 4, exact (rejection) 4, RTB 4, SMC, RTB proposes 4, best of 10 2." in text
    assert "- best of 10 diverged and has no numbers: 7, seed 0; 7, seed 1.\n" in text
    cells = json.loads((tmp_path / "table.json").read_text())["methods"]["best_of"]["cells"]
    assert cells["7"]["0"] == {} and cells["3"]["0"]["log_reward"] < 0.0
    assert list(execute.plotted) == ["prior", "exact", "RTB", "SMC, RTB proposes"]


def test_what_starts_from_a_run_that_diverged_stays_empty_also_when_the_table_goes_on(tmp_path):
    execute = Diverging("rtb")
    text = table.run(config(), tmp_path, execute, "train", rewards.labels)
    assert [str(folder.relative_to(tmp_path)) for _, folder in execute.ran[3:]] == ["best-of/7/seed-0"]
    for title in ("RTB", "SMC, RTB proposes"):
        assert f"- {title} diverged and has no numbers: 7, seed 0.\n" in text
    assert table.run(config(), tmp_path, execute, "train", rewards.labels) == text and len(execute.ran) == 4
    assert list(execute.plotted) == ["prior", "exact", "best of 10"]
    only = config(table__labels=("7",), table__methods=("rtb",))
    assert "runs: RTB 0." in table.run(only, tmp_path, execute, "train", rewards.labels)


def test_the_mean_and_its_two_spreads_by_hand():
    """Labels' means 2 and 6, seeds' means 3 and 5; a label without a number counts for nothing."""
    blank = dict.fromkeys(table.COLUMNS)
    cells = {"3": {0: 1.0, 1: 3.0}, "7": {0: 5.0, 1: 7.0}}
    rows = {label: {seed: blank | {"ess": ess} for seed, ess in of.items()} for label, of in cells.items()}
    found = table.statistics(rows)
    assert found["ess"] == {
        "mean": 4.0,
        "std_labels": pytest.approx(8**0.5),
        "std_seeds": pytest.approx(2**0.5),
        "labels": 2,
        "seeds": 2,
    }
    assert found["path_kl"] == {"mean": None, "std_labels": None, "std_seeds": None, "labels": 0, "seeds": 0}
    assert table.shown(found["ess"]) == "4 ± 2.8 (± 1.4)" and table.shown(found["path_kl"]) == "–"
    rows["7"][1]["ess"] = None
    assert table.statistics(rows)["ess"]["seeds"] == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(table__methods=("rtb", "ppo")), "methods must be of rtb, smc_rtb, .*, got 'ppo'"),
        (dict(table__methods=("smc_rtb",)), "must hold 'rtb' too: 'smc_rtb' starts from it"),
        (dict(table__labels=("3", "ten")), "config.reward.label must be 0..9, .* got 'ten'"),
        (dict(table__labels=()), "config.table.labels must not be empty"),
        (dict(eval__particles=1), "config.eval.particles must be at least 2"),
        (dict(eval__batch_size=128), "config.eval.best_of must divide config.eval.batch_size=128, got 10"),
        (dict(behaviour__accepted=0.5, table__methods=("ddpo",)), "ddpo is a policy gradient"),
        (dict(table__seeds=("0",)), "config.table.seeds must be whole numbers, got '0'"),
        (dict(table__seeds=(0.5,)), "config.table.seeds must be whole numbers, got 0.5"),
    ],
)
def test_a_table_that_cannot_be_run_is_refused_before_anything_is(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        table.run(config(**changes), tmp_path / "w", Recorder(), "train", rewards.labels)
    assert not (tmp_path / "w").exists()


def test_the_tables_of_the_configs_name_methods_that_exist():
    for variant in ("table2", "table2_even_odd", "table2_smoke"):
        found = mnist.get_config(variant)
        names = [method.name for method in table.chosen(found)]
        assert set(found.table.published["rows"]) <= set(names)
        for method in table.chosen(found):
            for label in found.table.labels:
                settings.check(table.cell(found, method, label, 0, Path("w"))[0])


def test_a_run_starts_from_the_parameters_that_another_left(tmp_path):
    chain = LinearGaussian(num_steps=3)
    here = bare_domain(chain, Policy(chain.zero_shift, chain.shifted_apply), (2,))
    path = tmp_path / "final_params.safetensors"

    def starts(left, log_z):
        weights.save(path, left, {})
        config = changed(gmm.get_config("smoke"), posterior__start=str(path), objective__log_z=log_z)
        found = loop.started(config, here)
        np.testing.assert_array_equal(found["policy"]["shift"], chain.exact_shift["shift"])
        return found

    policy = {"policy": chain.exact_shift}
    assert starts(policy, "vargrad").keys() == {"policy"}
    # A log Z is taken along where both have one, and is no reason to refuse where only one has.
    assert starts(policy | {"log_z": np.float32(5.0)}, "learned")["log_z"] == 5.0
    assert starts(policy, "learned")["log_z"] == 0.0
    assert starts(policy | {"log_z": np.float32(5.0)}, "vargrad").keys() == {"policy"}
    with pytest.raises(weights.WeightsError, match="holds other weights"):
        starts(policy | {"log_y": np.float32(5.0)}, "learned")
    with pytest.raises(weights.WeightsError, match="nowhere"):
        loop.started(changed(gmm.get_config("smoke"), posterior__start=str(tmp_path / "nowhere")), here)


@pytest.mark.slow
def test_a_small_table_of_real_runs(tmp_path):
    small = changed(
        mnist.get_config("table2_smoke"),
        devices=1,
        table__methods=("posterior_sampling", "smc"),
        eval__exact_cache=str(tmp_path / "exact"),
    )
    text = table.run(small, tmp_path / "w", run.execute, "train", run.prepare)
    found = json.loads((tmp_path / "w" / "table.json").read_text())["methods"]
    assert list(found) == ["prior", "exact", "posterior_sampling", "smc"]
    one = {name: values["cells"]["7"]["0"] for name, values in found.items()}
    for name in ("posterior_sampling", "smc"):
        assert one[name]["log_reward"] > one["prior"]["log_reward"]
    assert one["posterior_sampling"]["path_kl"] is not None and one["smc"]["log_z_error"] is not None
    assert one["smc"]["path_kl"] is one["smc"]["ess"] is one["smc"]["verdict"] is None
    assert one["smc"]["reason"] in text
    assert (tmp_path / "w" / "samples-7.png").read_bytes().startswith(b"\x89PNG")
