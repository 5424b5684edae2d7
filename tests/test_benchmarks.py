"""The benchmark compares like with like: its rows do the same work, and its table and JSON say so."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from benchmarks import time_to_quality
from benchmarks.steps import ours, rows, shapes, variance
from experiments import loop, objectives, run
from rtbjax import rollout

ROOT = Path(__file__).resolve().parents[1]


def benchmark(*command):
    """What it prints, with the devices that a user has."""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_train_step(tmp_path):
    out = tmp_path / "a" / "b.json"
    shown = benchmark("benchmarks/train_step.py", "--shapes=gmm", "--rounds=1", "--steps=1", f"--out={out}")
    found = json.loads(out.read_text())["gmm"]
    scaling = found["scaling"]
    assert all(name in shown for name in found["rows"])
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
@pytest.mark.parametrize(("name", "log_z"), [("gmm", "learned"), *((name, "vargrad") for name in shapes.CONFIGS)])
def test_pytorch_has_the_same_networks_and_both_of_its_steps_learn_alike(name, log_z, key):
    torch = pytest.importorskip("torch")
    from benchmarks.steps import networks, pytorch

    config = shapes.config_of(name)
    config.train.batch_size, config.objective.group = 16, config.objective.group and 4
    config.objective.log_z = log_z
    domain = shapes.build(config)
    assert pytorch.disagreement(config, domain, key) <= pytorch.AGREEMENT[name]
    net = pytorch.problem(config, domain).networks[1]
    jax.tree.map(
        np.testing.assert_array_equal, networks.weights_of(net, domain.posterior.params), domain.posterior.params
    )

    def after_a_step(make):
        found = pytorch.problem(config, domain)
        learned = [*found.networks[1].parameters(), *([] if found.log_z is None else [found.log_z])]
        before = [p.detach().clone() for p in learned]
        torch.manual_seed(0)
        make(config, found)()
        return torch.cat([(p - b).flatten() for p, b in zip(learned, before, strict=True)])

    one, other = after_a_step(pytorch.autograd), after_a_step(pytorch.two_pass)
    assert one.abs().max() > 1e-4
    # Adam's first step is the sign of the gradient, which rounding decides where there is hardly any.
    assert (one - other).abs().mean() < 0.02 * one.abs().mean()


@pytest.mark.slow
def test_a_training_that_is_timed_is_the_run_itself_bit_for_bit(tmp_path):
    small = {"train.steps": 3, "train.batch_size": 80, "behaviour.capacity": 64, "behaviour.warm_accepted": 64}
    config = rows.config_of(small, seed=1)
    domain, mesh = run.prepare(config)
    *_, last = (jax.device_get(params) for params in ours.training(config, domain, mesh))
    with loop.Clock() as clock:
        trained = loop.run(config, domain, tmp_path, mesh, clock)
    jax.tree.map(np.testing.assert_array_equal, last, jax.device_get(trained.policy.params))


def test_variance_of_a_gradient_by_some_steps_is_that_of_all_choices_of_them(key):
    config = shapes.config_of("gmm")
    config.process.num_steps = 4
    domain = shapes.build(config)
    paths = rollout(key, domain.process, domain.prior, domain.posterior, shape=(16, 2))
    paths = paths._replace(log_reward=domain.log_reward(paths.xs[-1], None))
    params = objectives.initial_params(config, domain)
    whole = objectives.make(config, domain)
    found = jax.jit(lambda p: variance.step_gradients(whole, domain, p, paths))(params)
    expected = ravel_pytree(jax.grad(lambda p: whole(p, paths, key=key, axis_name=None)[0])(params))[0]
    np.testing.assert_allclose(found.total, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    for steps, choices in ((1, 4), (2, 6), (3, 4)):
        config.objective.grad_steps = steps
        some = objectives.make(config, domain)
        draw = jax.jit(lambda k, some=some: jax.grad(lambda p: some(p, paths, key=k, axis_name=None)[0])(params))
        drawn = [np.asarray(ravel_pytree(draw(k))[0], np.float64) for k in jax.random.split(key, 60)]
        apart = {tuple(np.round(g[:8] / np.abs(drawn[0]).max(), 3)): g for g in drawn}
        assert len(apart) == choices
        spread = np.stack(list(apart.values())) - np.asarray(expected)
        np.testing.assert_allclose(variance.subsampling(found.spread, steps, 4), (spread**2).sum(1).mean(), rtol=1e-2)


@pytest.mark.slow
def test_time_to_quality_beside_pytorch(tmp_path):
    out = tmp_path / "a.json"
    command = ["benchmarks/time_to_quality.py", "--steps=4", "--every=2", f"--out={out}"]
    benchmark(*command, "--groups=default")
    (first,) = json.loads(out.read_text()).values()
    curve = first["0"]["curve"]
    assert first["0"]["done"] and curve["step"] == [1, 2, 4]
    assert sorted(curve["process_seconds"]) == curve["process_seconds"]
    has_torch = importlib.util.find_spec("torch") is not None
    shown = benchmark(*command, "--groups=default,pytorch" if has_torch else "--groups=default")
    found = json.loads(out.read_text())
    assert found["default"] == first  # Not measured again.
    assert (rows.PYTORCH in found) == has_torch and all(f"{name}, seed 0" in shown for name in found)


@pytest.mark.slow
def test_gradient_variance(tmp_path):
    out = tmp_path / "a.json"
    benchmark("benchmarks/gradient_variance.py", "gmm", "--batches=2", f"--out={out}")
    (found,) = json.loads(out.read_text()).values()
    assert found["paths"] > 0 and found["added_by_steps"].keys() == {"100", "50", "25", "10"}
    assert found["added_by_steps"]["100"] == 0


def test_a_quality_that_has_lost_modes_is_not_reached():
    verdicts = {0.1: "importance_weight", 0.95: "modes_missing", 0.65: "consistent", 0.6: "consistent"}
    curve = [{"ess": ess, "verdict": verdict, "process_seconds": 1 / ess} for ess, verdict in verdicts.items()]
    found = time_to_quality.summary(curve)
    assert found["to_ess"] == {0.5: 1 / 0.65, 0.6: 1 / 0.65, 0.7: None, 0.8: None, 0.85: None, 0.9: None}
    assert found["best"]["ess"] == 0.65 and found["last"]["ess"] == 0.6
