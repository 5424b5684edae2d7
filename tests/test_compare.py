"""A comparison goes on where one of its variations cannot, and says so."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from configs.gmm import get_config
from experiments import compare
from experiments.finite import Diverged


class Execute:
    """In place of `run.execute`: sets of samples, nearer to the exact ones the later; those named diverge."""

    def __init__(self, *diverging):
        self.diverging, self.count, self.titles = {compare.slug(name) for name in diverging}, 0, []

    def __call__(self, config, workdir, mode):
        if workdir.name in self.diverging:
            raise Diverged("14 steps in a row were skipped.")
        self.count += 1
        workdir.mkdir(parents=True)
        np.savez(workdir / "samples.npz", x=np.zeros((2, 2)), prior=np.ones((2, 2)))
        values = {"sliced_w2": 1.0 / self.count, "mode_tv": 0.1, "off_mode_mass": 0.05}
        certificate = {"log_z_is": 0.1, "log_z_reference": 0.0, "path_kl": 0.2, "ess": 0.5, "verdict": "consistent"}
        summary = {
            "metrics": {"prior": values, "rtb": values, "exact": values, "prior_ess": 0.1},
            "certificate": certificate,
            "seconds": {"train": 1.0},
        }
        exact = SimpleNamespace(samples=np.zeros((1, 2, 2)), first=lambda: np.zeros((2, 2)))
        return compare.Finished(SimpleNamespace(plot=self.plot, shown=lambda x: x), summary, lambda: exact)

    def plot(self, path, panels):
        path.touch()
        self.titles = list(panels)


def test_a_variation_that_diverges_is_a_row_of_its_own(tmp_path):
    config = get_config("figure1")
    last = config.compare.tuned[-1]
    execute = Execute(last)
    text = compare.run(config, tmp_path, execute, "train", lambda one: None)
    assert execute.count == len(config.compare.runs) - 1
    line = next(line for line in text.splitlines() if line.startswith(f"| {last} "))
    assert [cell.strip() for cell in line.strip("|").split("|")] == [last, "", "", "", "", "", "", "`diverged`", ""]
    assert json.loads((tmp_path / "comparison.json").read_text())[last]["reason"] == "14 steps in a row were skipped."
    assert last not in execute.titles and f"{config.compare.tuned[-2]}\n(the best of its kind)" in execute.titles


def test_without_the_first_there_is_nothing_to_compare_with(tmp_path):
    with pytest.raises(Diverged, match="14 steps"):
        compare.run(get_config("figure1"), tmp_path, Execute("RTB"), "train", lambda one: None)
