"""The worked examples of CONTRIBUTING.md do what they are said to do."""

import re
import sys
import tomllib
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from check_workdir import problems

from experiments import run

ROOT = Path(__file__).resolve().parents[1]
PROCESS, DOMAIN, CONFIG = re.findall(r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)


def module(name, source):
    made = types.ModuleType(name)
    exec(compile(source, name, "exec"), made.__dict__)
    return made


@pytest.mark.parametrize("i", [0, 3, 6])
def test_the_process_of_the_example_reverses_its_noising(key, i):
    """Given the data, noising to i directly and one step back is noising to i + 1, jointly with xs[i]."""
    rate, steps, count, data = 3.0, 8, 40_000, 1.5
    process = module("example", PROCESS).ornstein_uhlenbeck(steps, rate)
    keys = jax.random.split(key, (3, count))
    x0 = jnp.full((count, 1), data)
    before = process.marginal(keys[0], x0, i, None)
    after = process.target(x0, before, i).sample(keys[1])
    noised = process.forward(keys[2], after, i, None)
    kept = np.exp(-rate * (1.0 - np.arange(steps + 1) / steps))
    error = 5.0 / np.sqrt(count)
    for x, at in ((before, i), (after, i + 1), (noised, i)):
        np.testing.assert_allclose(x.mean(), kept[at] * data, atol=error)
        np.testing.assert_allclose(x.var(), 1.0 - kept[at] ** 2, atol=2 * error)
    covariance = np.exp(-rate / steps) * (1.0 - kept[i + 1] ** 2)
    np.testing.assert_allclose(np.cov(before[:, 0], after[:, 0])[0, 1], covariance, atol=2 * error)


@pytest.mark.slow
def test_the_domain_of_the_example_reaches_the_posterior_that_it_names(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "experiments.domains.uphill", module("experiments.domains.uphill", DOMAIN))
    config = module("configs.uphill", CONFIG).get_config()
    config.devices = 1
    config.eval.exact_cache = str(tmp_path / "exact")
    summary = run.execute(config, tmp_path / "w").summary
    assert problems(tmp_path / "w") == []
    # The prior is N(0, 5), hence the posterior N(0.3 * 5, 5), and log Z = 2 * 0.3^2 * 5 / 2.
    assert abs(summary["metrics"]["rtb"]["mean"] - 1.5) < 0.2
    assert abs(summary["certificate"]["log_z_is"] - 0.45) < 0.01
    assert summary["certificate"]["verdict"] == "consistent"
    assert "rewarded for going up" in (tmp_path / "w" / "report.html").read_text()


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"] and citation["license"] == project["license"]
    assert project["version"] in re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]


def test_hooks_are_the_checks_that_ci_ends_with():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert "\n".join(hook["entry"] for hook in local["hooks"]) in (ROOT / ".ci" / "run").read_text()
