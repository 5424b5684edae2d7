"""The domain of inverse problems: what is asked, what is refused, what the evaluation says, and whole runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from check_workdir import problems
from shrunk import changed

from configs.inverse import OPERATORS, get_config
from experiments import run
from experiments.data import DataError
from experiments.domains import inverse as domain
from experiments.errors import ConfigError
from experiments.inverse import problem
from experiments.inverse.evaluation import Evaluation
from experiments.inverse.problem import Problems
from rtbjax import inverse, rollout

SHAPE = (28, 28, 1)
TRUTHS = np.random.default_rng(0).uniform(-1.0, 1.0, (64, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("variant", OPERATORS)
def test_an_image_is_measured_by_the_operator_that_is_asked_for_with_noise_of_the_right_size(variant):
    config = changed(get_config(variant), reward__truth="prior", reward__index=3)
    made = problem.make(config, SHAPE, TRUTHS)
    np.testing.assert_array_equal(made.truth, TRUTHS[3:4])
    error = np.asarray(made.y - made.operator.measure(jnp.asarray(TRUTHS[3:4])))
    assert error.std() == pytest.approx(config.reward.noise, rel=4 / np.sqrt(2 * error.size))
    # What is missing stays blank.
    boxed = changed(get_config(), reward__truth="prior", reward__box=(2, 3, 5, 7))
    hidden = np.asarray(problem.make(boxed, SHAPE, TRUTHS).y)[0, ..., 0] == 0.0
    assert hidden[2:7, 3:10].all() and hidden.sum() == 35


def test_a_digit_of_the_data_is_chosen_by_its_index():
    first, second = (
        problem.make(changed(get_config(), reward__index=index), SHAPE, TRUTHS[:0]).truth for index in (0, 700)
    )
    assert first.shape == (1, *SHAPE) and np.abs(first - second).max() > 1.0


def test_a_measurement_of_ones_own_has_no_truth(tmp_path):
    y = np.zeros((7, 7, 1), np.float32)
    np.savez(tmp_path / "y.npz", y=y + 0.5)
    config = changed(get_config("super_resolution"), reward__measurement=str(tmp_path / "y.npz"))
    made = problem.make(config, SHAPE, TRUTHS)
    assert made.truth is None and made.source == "y.npz"
    np.testing.assert_array_equal(made.y, y[None] + 0.5)
    for content, message in ((y[:6], r"of shape \(7, 7, 1\), got shape \(6, 7, 1\)"), (y + np.nan, "finite")):
        np.savez(tmp_path / "y.npz", y=content)
        with pytest.raises(DataError, match=message):
            problem.make(config, SHAPE, TRUTHS)
    (tmp_path / "y.npz").write_text("no archive")
    with pytest.raises(DataError, match="npz file with an array 'y'"):
        problem.make(config, SHAPE, TRUTHS)
    with pytest.raises(DataError, match="no measurement"):
        problem.make(changed(config, reward__measurement="none.npz"), SHAPE, TRUTHS)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(reward__operator="blur"), "inpainting, super_resolution, deblurring, phase_retrieval, got 'blur'"),
        (dict(reward__truth="model"), "data, prior"),
        (dict(reward__noise=0.0), "reward.noise must be positive, got 0.0"),
        (dict(reward__box=(20, 0, 14, 28)), r"within the 28 x 28 pixels, got \(20, 0, 14, 28\)"),
        (dict(reward__box=(0, 0, 28, 28)), "at least one pixel"),
        (dict(reward__box=("a", 0, 14, 28)), r"within the 28 x 28 pixels, got \('a', 0, 14, 28\)"),
        (dict(reward__operator="super_resolution", reward__factor=5), "divide the sides 28 and 28"),
        (dict(reward__index=64), r"index must lie in 0..63 for 1 of 64 images \(samples of the prior\), got 64"),
        (dict(reward__problems=3), "both be 0, for one measurement, or both at least 1, got 3 and 0"),
        (dict(reward__problems=1, reward__evaluated=1, reward__measurement="y.npz"), "it is a single one"),
    ],
)
def test_a_problem_that_cannot_be(changes, message):
    config = changed(get_config(), **(dict(reward__truth="prior") | changes))
    with pytest.raises(ConfigError, match=message):
        problem.make(config, SHAPE, TRUTHS)


def test_only_guides_are_trained_and_a_comparison_needs_a_strength():
    with pytest.raises(ConfigError, match="posterior.kind must be one of guided"):
        domain.build(changed(get_config("smoke"), posterior__kind="lora"))
    with pytest.raises(ConfigError, match="dps_strength must be positive"):
        domain.build(changed(get_config("smoke"), eval__dps_strength=0.0))
    with pytest.raises(ConfigError, match="objective.beta must be 1: tempering a measurement is another reward.noise"):
        domain.build(changed(get_config("smoke"), objective__beta=0.5))
    with pytest.raises(ConfigError, match="posterior.strength must be 1: posterior.kind=guided has no use for it"):
        domain.build(changed(get_config("smoke"), posterior__strength=2.0))
    with pytest.raises(ConfigError, match="data.path=none.npz: there is no such file"):
        domain.build(changed(get_config("smoke"), data__path="none.npz", reward__truth="prior"))


class Pixels:
    """Many problems with pixels N(0, 1), half of them seen: each is known on its own, exactly."""

    def __init__(self, count=400, draws=19, noise=0.5):
        rng = np.random.default_rng(0)
        self.rng, self.size = rng, (count, draws, 4, 4, 1)
        seen = np.zeros((4, 4, 1), bool)
        seen[:2] = True
        truth = rng.normal(size=(count, 4, 4, 1)).astype(np.float32)
        y = (truth + noise * rng.normal(size=truth.shape)) * seen
        measured = jnp.asarray(y, jnp.float32)
        self.problems = Problems(inverse.inpainting(seen), noise, measured, truth, "normal", of_prior=True)
        gain = seen / (1.0 + noise**2)
        self.mean, self.std = gain * y, np.sqrt(1.0 - gain)

    def prior(self):
        return self.rng.normal(size=self.size).astype(np.float32)

    def posterior(self, width=1.0):
        return (self.mean[:, None] + width * self.std * self.rng.normal(size=self.size)).astype(np.float32)


def test_the_evaluation_knows_the_exact_posterior_from_one_that_is_too_sure():
    pixels = Pixels()
    found = Evaluation(pixels.problems).metrics(
        {"prior": pixels.prior(), "rtb": pixels.posterior(), "dps": pixels.posterior(0.5)}
    )
    exact, sure, prior = found["rtb"], found["dps"], found["prior"]
    assert exact["std_missing"] == pytest.approx(1.0, abs=0.03)
    assert exact["std_seen"] == pytest.approx(np.sqrt(0.2), abs=0.02)
    assert sure["std_missing"] == pytest.approx(0.5, abs=0.02)
    # The residual of a posterior sample has the noise's variance: E(y - x)^2 = sigma^2.
    assert exact["misfit"] == pytest.approx(np.sqrt((0.2 * 0.25 + 0.2) / 0.25), abs=0.05)
    assert prior["misfit"] == pytest.approx(3.0, abs=0.1)
    assert exact["error"] < prior["error"] and exact["log_reward"] > prior["log_reward"]
    assert "prior" not in found["calibration"]
    for test in ("tarp", "ranks"):
        assert found["calibration"]["rtb"][test]["p_value"] > 0.02
        assert found["calibration"]["dps"][test]["p_value"] < 1e-3


def test_of_truths_that_are_not_the_prior_s_there_is_no_calibration():
    """The exact posteriors under the prior do not cover others as often as they should."""
    pixels = Pixels(count=8)
    samples = {"prior": pixels.prior(), "rtb": pixels.posterior()}
    assert "calibration" in Evaluation(pixels.problems).metrics(samples)
    assert "calibration" not in Evaluation(dataclasses.replace(pixels.problems, of_prior=False)).metrics(samples)
    for truth in ("prior", "data"):
        made = problem.make(changed(get_config("smoke"), reward__truth=truth), SHAPE, TRUTHS)
        assert made.of_prior == (truth == "prior")


def test_of_one_problem_there_is_no_calibration_and_without_a_truth_no_error(tmp_path):
    pixels = Pixels(count=1)
    one = pixels.problems
    samples = {"prior": pixels.prior()[0], "rtb": pixels.posterior()[0]}
    found = Evaluation(Problems(one.operator, one.noise, one.y, None, "own")).metrics(samples)
    assert "calibration" not in found and found["rtb"]["error"] is None
    Evaluation(one).plot(tmp_path / "samples.png", {"prior": samples["prior"], "RTB posterior": samples["rtb"]})
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_run_of_one_and_one_of_many(tmp_path):
    """The posterior starts as the guide; a measurement moves its own paths and no others."""
    small = dict(devices=1, process__num_steps=4, train__steps=2, eval__num_samples=4, eval__batch_size=8)
    done = run.execute(changed(get_config("smoke"), **small), tmp_path / "one")
    assert done.summary["certificate"]["log_z_reference"] is None
    assert problems(tmp_path / "one") == []
    many = changed(
        get_config("smoke"),
        **small,
        reward__truth="prior",
        reward__problems=4,
        reward__evaluated=4,
        objective__group=2,
        train__batch_size=4,
    )
    done = run.execute(many, tmp_path / "many")
    assert [one["condition"] for one in done.summary["certificate"]["per_condition"]] == [
        f"image {number}" for number in (4, 5, 6, 7)
    ]
    assert set(done.summary["metrics"]["calibration"]["rtb"]) == {"tarp", "ranks"}
    made = done.domain
    first, second = made.conditions.values[:1], made.conditions.values[1:2]
    ends = [
        rollout(
            jax.random.key(0), made.process, made.prior, made.posterior, shape=(2, *SHAPE), cond=jnp.concatenate(pair)
        ).xs[-1]
        for pair in ((first, first), (first, second))
    ]
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    assert np.abs(np.asarray(ends[0][1] - ends[1][1])).max() > 0.1
