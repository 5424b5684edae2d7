"""The sweep of reward against diversity: its rows, its curves, its figure, and a run of it in small."""

import json
from types import SimpleNamespace

import pytest
from check_workdir import problems
from shrunk import changed

from configs.text_to_image import SWEEP, get_config
from experiments import compare, run, settings
from experiments.finite import Diverged
from experiments.text_to_image import sweep

PRIOR = {"log_reward": -3.0, "accuracy": 0.2, "diversity": 0.4}


class Recorder:
    """In place of a run: reward rises and diversity falls with what the reward weighs."""

    def __init__(self):
        self.ran = []

    def __call__(self, config, folder, mode):
        settings.check(config)
        self.ran.append((config.objective.loss, folder.name))
        weight = sweep.strength(config) or 100.0
        ours = {"log_reward": -1.0 / weight, "accuracy": 0.5, "diversity": 0.1 / weight}
        exact = {"log_reward": -0.5 / config.objective.beta, "accuracy": 1.0, "diversity": 0.2}
        certificate = {"log_z_is": -1.0, "log_z_reference": -1.2, "path_kl": 0.3, "ess": 0.5, "verdict": "consistent"}
        metrics = {"prior": PRIOR, "rtb": ours, "exact": exact, "prior_ess": 0.1}
        return SimpleNamespace(summary={"metrics": metrics, "certificate": certificate, "seconds": {"train": 7.0}})


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    execute, workdir = Recorder(), tmp_path_factory.mktemp("sweep")
    text = compare.run(get_config("sweep"), workdir, execute, "train", settings.check, sweep.collect)
    return execute, workdir, text


def test_every_method_is_run_at_every_beta_and_ddpo_once(swept):
    execute, workdir, _ = swept
    losses = [loss for loss, _ in execute.ran]
    assert [losses.count(loss) for loss in ("rtb", "dpok", "ddpo")] == [len(SWEEP), len(SWEEP), 1]
    assert len({folder for _, folder in execute.ran}) == len(execute.ran)
    rows = json.loads((workdir / "comparison.json").read_text())
    assert list(rows)[:2] == ["prior", "exact, beta 0.01"] and len(rows) == len(execute.ran) + 1 + len(SWEEP)
    assert rows["DPOK, beta 10"]["beta"] == pytest.approx(10.0) and rows["DDPO"]["beta"] is None
    assert rows["RTB, beta 0.1"]["log_reward"] == pytest.approx(-10.0) and rows["RTB, beta 0.1"]["seconds"] == 7.0
    assert (workdir / "figure.png").stat().st_size > 1000


def test_a_method_that_diverges_has_a_row_and_no_point(tmp_path):
    class Diverging(Recorder):
        def __call__(self, config, folder, mode):
            if config.objective.loss == "ddpo":
                raise Diverged("14 steps in a row were skipped.")
            return super().__call__(config, folder, mode)

    text = compare.run(get_config("sweep"), tmp_path, Diverging(), "train", settings.check, sweep.collect)
    assert "| DDPO |  |  |  |  |  | `diverged` |" in text
    rows = json.loads((tmp_path / "comparison.json").read_text())
    assert rows["DDPO"]["method"] == "DDPO" and "DDPO" not in sweep.curves(rows) and "DPOK" in sweep.curves(rows)


def test_a_curve_goes_from_the_weakest_reward_to_the_strongest():
    rows = {str(beta): {"method": "RTB", "beta": beta, "log_reward": 0.0} for beta in (1.0, 0.01, 10.0)}
    found = sweep.curves({"prior": {"method": "prior", "beta": 0.0, "log_reward": -1.0}, **rows})
    assert [row["beta"] for row in found["RTB"]] == [0.01, 1.0, 10.0] and len(found["prior"]) == 1


def test_the_table_has_the_papers_numbers_beside_ours(swept):
    lines = {line.split("|")[1].strip(): line for line in swept[2].splitlines() if line.startswith("|")}
    assert lines["RTB, beta 1"].startswith(
        "| RTB, beta 1 | -1 | 0.1 | 0.5 | 0.3 | 0.5 | `consistent` | 7 | 1.756 | 0.0436"
    )
    assert lines["prior"].endswith("| -0.113 | 0.597 |") and lines["exact, beta 1"].endswith("|  |  |")
    assert sweep.PAPER.keys() <= lines.keys()


@pytest.mark.slow
def test_a_sweep_in_small_is_runs_that_are_left_alone_the_next_time(tmp_path):
    pytest.importorskip("tokenizers", reason="text to image needs the extra 'text'")
    small = {
        "devices": 1,
        "process__num_steps": 4,
        "train__steps": 2,
        "train__batch_size": 8,
        "log__every": 1,
        "eval__num_samples": 40,
        "eval__batch_size": 40,
        "eval__exact_samples": 4,
        "eval__exact_cache": str(tmp_path / "exact"),
    }
    config = changed(get_config("sweep"), **small)
    config.compare.runs = [one for one in config.compare.runs if one[0] in ("RTB, beta 0.01", "DDPO")]
    workdir = tmp_path / "sweep"
    text = compare.run(config, workdir, run.execute, "train", settings.check, sweep.collect)
    rows = json.loads((workdir / "comparison.json").read_text())
    assert set(rows) == {"prior", "exact, beta 0.01", "exact, beta 1", "RTB, beta 0.01", "DDPO"}
    # The posterior of a small beta is the prior, also in exact samples.
    assert rows["RTB, beta 0.01"]["path_kl"] < 0.1 and rows["RTB, beta 0.01"]["ess"] > 0.9
    for name in ("rtb-beta-0.01", "ddpo"):
        assert problems(workdir / name) == []
    assert compare.run(config, workdir, run.execute, "train", settings.check, sweep.collect) == text
