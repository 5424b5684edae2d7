"""The table of stories: which runs fill it, and its numbers by hand."""

import json

import pytest
from shrunk import changed

from configs.stories import get_config
from experiments import compare, run, settings, weights
from experiments.domains import stories
from experiments.errors import ConfigError
from experiments.finite import Diverged
from experiments.stories import tables


class Recorder:
    """In place of `run.execute`: remembers configs and folders, and answers with numbers that say whose they are."""

    def __init__(self):
        self.ran = []

    def __call__(self, config, workdir, mode):
        self.ran.append((config, workdir))
        masked = config.process.reveals == "one_by_one"
        values = {"log_reward": -2.0 - config.seed, "bleu": 0.2 if masked else 0.3, "gleu": None}
        sets = dict.fromkeys(("prior", "rtb", "exact"), values) | {"grammar": {"bleu": 0.25}}
        certificate = {"log_z_is": -3.3, "log_z_reference": -3.2, "path_kl": 0.1, "ess": 0.9, "verdict": "consistent"}
        return type("Done", (), {"summary": {"metrics": sets, "certificate": certificate}})


def pretrain(config, workdir):
    """In place of training: the file alone."""
    weights.save(workdir / f"stories_{config.pretrain.what}.safetensors", {})


@pytest.fixture
def config():
    return changed(get_config("table3"), compare__seeds=2)


def filled(config, workdir, execute):
    return compare.run(config, workdir, execute, "train", settings.check, tables.collect)


def test_every_seed_has_both_runs_and_what_learns_from_endings_is_made_once(config, tmp_path, monkeypatch):
    monkeypatch.setattr(stories, "pretrain", pretrain)
    execute = Recorder()
    text = filled(config, tmp_path / "w", execute)
    kinds = [(one.process.reveals, one.seed) for one, _ in execute.ran]
    assert kinds == [(reveals, seed) for reveals in ("one_by_one", "left_to_right") for seed in (0, 1)]
    assert len({folder for _, folder in execute.ran}) == 4
    for one, _ in execute.ran:
        named = tuple(bool(weight) for weight in one.baselines.values())
        assert named == ((True, True) if one.process.reveals == "one_by_one" else (False, False))
        assert all(weights.locate(weight).is_file() for weight in one.baselines.values() if weight)
    monkeypatch.setattr(stories, "pretrain", None)
    assert filled(config, tmp_path / "w", Recorder()) == text == (tmp_path / "w" / "comparison.md").read_text()


def test_rows_are_means_over_seeds_beside_the_papers(config, tmp_path, monkeypatch):
    monkeypatch.setattr(stories, "pretrain", pretrain)
    lines = filled(config, tmp_path / "w", Recorder()).splitlines()
    paper = "paper's BLEU-4 | paper's GLEU-4 | paper's BERTScore"
    assert lines[2] == f"| infills | log r | BLEU-4 | {paper} |"  # No column without a number.
    assert "| diffusion, RTB | -2.500 ± 0.707 | 0.200 ± 0.000 | .025±.002 | .045±.002 | .156±.003 |" in lines
    gflownet = "| -2.500 ± 0.707 | 0.300 ± 0.000 | .019±.001 | .031±.002 | .102±.005 |"
    assert f"| language model, GFlowNet (RTB) {gflownet}" in lines
    assert "| true p(z given x, y) |  | 0.250 ± 0.000 |  |  |  |" in lines
    assert "| diffusion, SMC |  |  |  |  |  |" in lines  # A set that no run drew.
    assert "| language model | 1 | -3.3 | -3.2 | 0.1 | 0.9 | `consistent` | -3 | -3 |" in lines
    found = json.loads((tmp_path / "w" / "comparison.json").read_text())
    assert found["rows"]["diffusion, RTB"]["log_reward"]["seeds"] == [-2.0, -3.0]


def test_a_table_that_was_stopped_shows_what_there_is(config, tmp_path, monkeypatch):
    monkeypatch.setattr(stories, "pretrain", pretrain)
    answer = Recorder()

    def stops(config, workdir, mode):
        if config.process.reveals == "left_to_right":
            raise KeyboardInterrupt
        return answer(config, workdir, mode)

    with pytest.raises(KeyboardInterrupt):
        filled(config, tmp_path / "w", stops)
    lines = (tmp_path / "w" / "comparison.md").read_text().splitlines()
    assert "2 of the diffusion and 0 of the language model" in lines[0]
    assert "| language model, GFlowNet (RTB) |  |  | .019±.001 | .031±.002 | .102±.005 |" in lines
    assert sum("`consistent`" in line for line in lines) == 2


def test_a_seed_that_diverges_has_no_infills_and_the_others_do(config, tmp_path, monkeypatch):
    monkeypatch.setattr(stories, "pretrain", pretrain)
    answer = Recorder()

    def diverges(config, workdir, mode):
        if config.process.reveals == "left_to_right" or config.seed == 0:
            raise Diverged("14 steps in a row were skipped.")
        return answer(config, workdir, mode)

    lines = filled(config, tmp_path / "w", diverges).splitlines()
    assert "1 of the diffusion and 0 of the language model" in lines[0]
    assert "| diffusion, RTB | -3.000 | 0.200 | .025±.002 | .045±.002 | .156±.003 |" in lines
    assert "| language model, GFlowNet (RTB) |  |  | .019±.001 | .031±.002 | .102±.005 |" in lines
    assert "| diffusion | 0 |  |  |  |  | `diverged` |  |  |" in lines
    assert "| diffusion | 1 | -3.3 | -3.2 | 0.1 | 0.9 | `consistent` | -3 | -3 |" in lines
    runs = json.loads((tmp_path / "w" / "comparison.json").read_text())["runs"]
    assert [run["reason"] for run in runs["language model"]] == ["14 steps in a row were skipped."] * 2


def test_one_seed_has_no_spread_and_none_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(stories, "pretrain", pretrain)
    text = filled(changed(config, compare__seeds=1), tmp_path / "w", Recorder())
    assert "| diffusion, RTB | -2.000 | 0.200 |" in text and "±" not in text.splitlines()[8].split(" | ")[1]
    with pytest.raises(ConfigError, match="config.compare.seeds must be at least 1, got 0"):
        filled(changed(config, compare__seeds=0), tmp_path / "none", run.execute)
    assert not (tmp_path / "none").exists()


def test_sets_of_the_table_are_those_of_the_runs(config):
    """What the config's runs call their sets; see test_stories.py."""
    masked = {"prior", "rtb", "clamped", "autoregressive", "best_of", "smc", "grammar", *tables.SUPERVISED}
    assert {row.set for row in tables.ROWS if row.run == tables.DIFFUSION} == masked
    assert {row.run for row in tables.ROWS} == {name for name, _ in config.compare.runs}
