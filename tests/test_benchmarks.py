"""The benchmark compares like with like: its rows do the same work, and its table and JSON say so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.steps import ours, shapes
from experiments import objectives
from rtbjax import rollout

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_train_step(tmp_path):
    out = tmp_path / "a" / "b.json"
    command = [sys.executable, "benchmarks/train_step.py", "--shapes=gmm", "--rounds=1", "--steps=1", f"--out={out}"]
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # One device, as a user has.
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["gmm"]
    scaling = found["scaling"]
    assert all(name in done.stdout for name in found["rows"])
    assert ("PyTorch autograd" in found["rows"]) == (found["versions"]["torch"] is not None)
    assert found["compiled_while_timed"] == 0
    assert found["bytes"]["rtbjax"]["temporary"] < 0.2 * found["bytes"]["autodiff"]["temporary"]
    assert scaling["bytes"]["T=1000"]["temporary"] <= 1.05 * scaling["bytes"]["T=100"]["temporary"]
    assert scaling["exponent_in_steps"] < 1.2 and scaling["exponent_in_batch"] < 1.2


def test_plain_differentiation_is_of_the_same_objective(key):
    config = shapes.config_of("gmm")
    config.process.num_steps, config.objective.chunk = 4, 2
    domain = shapes.build(config)
    paths = rollout(key, domain.process, domain.prior, domain.posterior, shape=(16, 2))
    paths = paths._replace(log_reward=domain.log_reward(paths.xs[-1], None))
    params = objectives.initial_params(config, domain)

    def gradient(objective):
        differentiated = jax.jit(jax.value_and_grad(lambda p: objective(p, paths, key=key, axis_name=None)[0]))
        return jax.tree.leaves(differentiated(params))

    expected = gradient(objectives.make(config, domain))
    for checkpointed in (False, True):
        found = gradient(ours.autodiff(config, domain, checkpointed=checkpointed))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", shapes.CONFIGS)
def test_pytorch_has_the_same_networks_and_both_of_its_steps_learn_alike(name, key):
    torch = pytest.importorskip("torch")
    from benchmarks.steps import pytorch

    config = shapes.config_of(name)
    config.train.batch_size, config.objective.group = 16, config.objective.group and 4
    domain = shapes.build(config)
    assert pytorch.disagreement(config, domain, key) <= pytorch.AGREEMENT

    def after_a_step(make):
        found = pytorch.problem(config, domain)
        before = [p.detach().clone() for p in found.networks[1].parameters()]
        torch.manual_seed(0)
        make(config, found)()
        return torch.cat([(p - b).flatten() for p, b in zip(found.networks[1].parameters(), before, strict=True)])

    one, other = after_a_step(pytorch.autograd), after_a_step(pytorch.two_pass)
    assert one.abs().max() > 1e-4
    # Adam's first step is the sign of the gradient, which rounding decides where there is hardly any.
    assert (one - other).abs().mean() < 0.02 * one.abs().mean()
