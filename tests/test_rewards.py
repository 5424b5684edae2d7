"""Rewards at the border: no failure becomes a number."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtbjax import rewards
from rtbjax.rewards import RewardError, evaluate

X = jnp.arange(8.0).reshape(4, 2)


def returning(values):
    return lambda x, cond: np.asarray(values)


def test_a_good_answer_comes_back_as_float32_with_the_condition_seen():
    asked = []

    def reward(x, cond):
        asked.append(cond)
        return jnp.sum(x, axis=-1) * cond

    answer = evaluate(jax.jit(lambda x, cond: jnp.sum(x, axis=-1) * cond), X, jnp.float32(2.0))
    np.testing.assert_array_equal(answer, [2.0, 10.0, 18.0, 26.0])
    assert isinstance(answer, np.ndarray) and answer.dtype == np.float32
    evaluate(reward, X, jnp.float32(3.0))
    assert len(asked) == 1 and asked[0] == 3.0


@pytest.mark.parametrize(
    "values, message",
    [
        ([0.0, 1.0, 2.0], r"shape \(4,\), got \(3,\)"),
        ([[0.0], [1.0], [2.0], [3.0]], r"shape \(4,\), got \(4, 1\)"),
        (0.5, r"shape \(4,\), got \(\)"),
        ([0.0, np.nan, 0.0, np.nan], "log r = nan for sample 1 of 4"),
        ([0.0, 0.0, np.inf, 0.0], "log r = inf for sample 2 of 4"),
        ([0.0, 0.0, 0.0, -np.inf], r"log r = -inf for sample 3 of 4.*log_floor"),
    ],
)
def test_bad_answers_name_the_first_bad_sample(values, message):
    with pytest.raises(RewardError, match=message):
        evaluate(returning(values), X)


def test_the_floor_is_a_hint_for_minus_infinity_only():
    with pytest.raises(RewardError) as error:
        evaluate(returning([0.0, np.nan, 0.0, 0.0]), X)
    assert "log_floor" not in str(error.value)


def test_nothing_that_is_allowed_is_worse_than_what_a_declared_floor_stands_in_for():
    answer = evaluate(returning([0.0, -np.inf, -60.0, -40.0]), X, log_floor=-50.0)
    np.testing.assert_array_equal(answer, [0.0, -50.0, -50.0, -40.0])
    for bad in (np.nan, np.inf):
        with pytest.raises(RewardError, match="sample 2"):
            evaluate(returning([0.0, -np.inf, bad, 0.0]), X, log_floor=-50.0)


def test_samples_that_are_not_finite_are_not_the_rewards_fault_and_it_is_not_asked():
    asked = []
    for x in (X.at[2, 1].set(jnp.nan), np.asarray(X.at[2, 0].set(jnp.inf))):
        with pytest.raises(RewardError, match="Sample 2 of 4 is not finite: that is the rollout's fault"):
            evaluate(lambda x, cond: asked.append(x), x, retries=3)
    assert not asked
    tokens = jnp.arange(8, dtype=jnp.int32).reshape(4, 2)
    np.testing.assert_array_equal(evaluate(lambda x, cond: x[:, 0], tokens), [0.0, 2.0, 4.0, 6.0])


def test_truth_values_are_no_log_r():
    for answer in (X[:, 0] > 3.0, [True, False, True, True]):
        with pytest.raises(RewardError, match=r"truth values, not log r: np.where\(allowed, 0.0, -np.inf\)"):
            evaluate(lambda x, cond, answer=answer: answer, X, retries=3)


def test_a_reward_of_one_sample_may_write_to_it():
    def clipped(x, cond):
        x[x < 3.0] = 0.0
        return x.sum()

    np.testing.assert_array_equal(evaluate(rewards.per_sample(clipped), X), [0.0, 3.0, 9.0, 13.0])
    np.testing.assert_array_equal(X, np.arange(8.0).reshape(4, 2))


def test_a_reward_above_its_bound_stops_the_run():
    with pytest.raises(RewardError, match=r"1\.2000 for sample 2, above its declared bound 1\.0000"):
        evaluate(returning([0.0, 1.1, 1.2, 0.0]), X, log_bound=1.0)
    rounded = evaluate(returning([0.0, 1.0 + 1e-6, 0.0, 0.0]), X, log_bound=1.0)
    assert rounded.max() < 1.0001


class Flaky:
    """Fails a number of times, then answers."""

    def __init__(self, failures):
        self.failures, self.calls = failures, 0

    def __call__(self, x, cond):
        self.calls += 1
        if self.calls <= self.failures:
            raise ConnectionError("the scorer is away")
        return np.zeros(len(x))


def test_a_failing_reward_is_asked_again_as_often_as_allowed():
    reward = Flaky(2)
    np.testing.assert_array_equal(evaluate(reward, X, retries=2, retry_seconds=0.0), np.zeros(4))
    assert reward.calls == 3
    reward = Flaky(3)
    with pytest.raises(RewardError, match=r"ConnectionError: the scorer is away \(3 tries\)") as error:
        evaluate(reward, X, retries=2, retry_seconds=0.0)
    assert reward.calls == 3 and isinstance(error.value.__cause__, ConnectionError)


def test_without_retries_the_first_failure_is_the_end():
    reward = Flaky(1)
    with pytest.raises(RewardError, match="1 try"):
        evaluate(reward, X)
    assert reward.calls == 1


def test_a_failure_without_words_is_named_without_a_colon():
    def silent(x, cond):
        raise AssertionError

    with pytest.raises(RewardError, match=r"The reward raised AssertionError \(1 try\)"):
        evaluate(silent, X)


def test_inside_jit_it_says_where_it_belongs():
    with pytest.raises(TypeError, match="between the rollout and the update"):
        jax.jit(lambda x: evaluate(lambda x, cond: np.zeros(4), x))(X)


def test_it_waits_before_asking_again(monkeypatch):
    pauses = []
    monkeypatch.setattr(rewards.time, "sleep", pauses.append)
    evaluate(Flaky(2), X, retries=5, retry_seconds=0.25)
    assert pauses == [0.25, 0.25]


@pytest.mark.parametrize(
    "bad", [[0.0, 1.0], [0.0, 1.0, np.nan, 3.0], [np.inf, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, -np.inf], "text", None]
)
def test_every_kind_of_failure_is_asked_again_and_forgotten(bad):
    answers = iter([bad, bad, [0.0, 1.0, 2.0, 3.0]])
    reward = lambda x, cond: next(answers)  # noqa: E731
    np.testing.assert_array_equal(evaluate(reward, X, retries=2, retry_seconds=0.0), [0.0, 1.0, 2.0, 3.0])
    answers = iter([bad, bad, [0.0, 1.0, 2.0, 3.0]])
    with pytest.raises(RewardError, match=r"\(2 tries\)"):
        evaluate(reward, X, retries=1, retry_seconds=0.0)


def test_a_batch_whose_samples_fail_by_turns_comes_together():
    """A scorer that loses one sample of each batch would else never answer for a large one."""
    answers = iter([[0.0, np.nan, np.nan, 3.0], [np.nan, 1.0, np.inf, 7.0], [9.0, np.nan, 2.0, np.nan]])
    answer = evaluate(lambda x, cond: next(answers), X, retries=2, retry_seconds=0.0)
    np.testing.assert_array_equal(answer, [0.0, 1.0, 2.0, 3.0])


def test_above_its_bound_it_is_not_asked_again_whatever_the_other_samples_are():
    calls = []

    def reward(x, cond):
        calls.append(1)
        return np.asarray([np.nan, 5.0, 0.0, 0.0])

    with pytest.raises(RewardError, match=r"5\.0000 for sample 1, above its declared bound"):
        evaluate(reward, X, retries=5, retry_seconds=0.0, log_bound=1.0)
    assert len(calls) == 1


def test_an_empty_batch_and_a_negative_number_of_retries():
    assert evaluate(returning([]), X[:0], log_bound=1.0).shape == (0,)
    with pytest.raises(ValueError, match="retries must be at least 0, got -1"):
        evaluate(returning([0.0] * 4), X, retries=-1)


def test_above_its_bound_it_is_not_asked_again():
    asked = []

    def reward(x, cond):
        asked.append(None)
        return np.full(4, 2.0)

    with pytest.raises(RewardError, match="above its declared bound"):
        evaluate(reward, X, retries=5, retry_seconds=0.0, log_bound=1.0)
    assert len(asked) == 1


def test_a_reward_that_hangs_is_left_behind_and_asked_again():
    stuck, calls = threading.Event(), []

    def reward(x, cond):
        calls.append(None)
        if len(calls) < 3:
            stuck.wait()
        return np.zeros(4)

    started = time.monotonic()
    np.testing.assert_array_equal(evaluate(reward, X, retries=2, retry_seconds=0.0, timeout=0.1), np.zeros(4))
    assert 0.2 <= time.monotonic() - started < 5.0
    left = [thread for thread in threading.enumerate() if thread.name == "reward"]
    # The program can end while they hang.
    assert len(left) >= 2 and all(thread.daemon for thread in left)
    calls.clear()
    with pytest.raises(RewardError, match=r"TimeoutError: no answer within 0\.1 s \(2 tries\)"):
        evaluate(reward, X, retries=1, retry_seconds=0.0, timeout=0.1)
    stuck.set()


def test_in_time_a_reward_raises_and_answers_as_it_does_without_a_limit():
    np.testing.assert_array_equal(evaluate(jax.jit(lambda x, cond: x[:, 0]), X, timeout=60.0), X[:, 0])
    with pytest.raises(RewardError, match="ZeroDivisionError") as error:
        evaluate(lambda x, cond: 1 / 0, X, timeout=60.0)
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_a_reward_of_one_sample_names_the_one_it_failed_for():
    def reward(x, cond):
        if x[0] == 4.0:
            raise OSError("the simulator is gone")
        return x[0] * cond["scale"]

    cond = {"scale": jnp.arange(4.0)}
    np.testing.assert_array_equal(evaluate(rewards.per_sample(reward), X[:2], cond), [0.0, 2.0])
    with pytest.raises(RewardError, match=r"OSError: the simulator is gone \(sample 2 of 4\)"):
        evaluate(rewards.per_sample(reward), X, cond)


def test_an_answer_that_is_no_number_is_a_reward_error():
    with pytest.raises(RewardError, match="ValueError"):
        evaluate(lambda x, cond: ["good", "bad", "good", "good"], X)


def first(x, cond):
    return x[:, 0]


def test_rewards_compose():
    combined = rewards.product(first, rewards.tempered(lambda x, cond: x[:, 1] * cond, 0.5))
    np.testing.assert_allclose(evaluate(combined, X, jnp.float32(4.0)), [2.0, 8.0, 14.0, 20.0])
    np.testing.assert_allclose(np.exp(combined(X, 0.0)), np.exp(X[:, 0]))


@pytest.mark.parametrize(
    "compose",
    [
        lambda factor: rewards.product(first, factor),
        lambda factor: rewards.product(factor, first),
        lambda factor: rewards.tempered(factor, 2.0),
    ],
)
def test_arithmetic_makes_no_number_of_what_is_no_log_r(compose):
    for answer in (X[:, 0] > 3.0, np.asarray([True, False, True, True])):
        with pytest.raises(RewardError, match="truth values, not log r"):
            evaluate(compose(lambda x, cond, answer=answer: answer), X)
        with pytest.raises(RewardError, match="truth values, not log r"):
            jax.jit(compose(lambda x, cond, answer=answer: answer))(X, None)
    for answer in (0.5, [1.0], np.zeros((4, 1)), np.zeros(3)):
        with pytest.raises(RewardError, match=r"one log r per sample, \(4,\), got"):
            evaluate(compose(lambda x, cond, answer=answer: np.asarray(answer)), X)


def test_a_reward_of_one_sample_says_no_truth_values_either():
    with pytest.raises(RewardError, match="truth values, not log r"):
        evaluate(rewards.per_sample(lambda x, cond: x[0] > 3.0 or -1.0), X)


def test_factors_of_all_kinds_are_numbers_in_single_precision():
    """In one program and on the host: double precision and whole numbers would not mix with JAX's arrays."""
    kinds = [lambda x, cond: np.full(4, 0.25), lambda x, cond: np.arange(4), lambda x, cond: x[:, 0]]
    combined = rewards.product(*kinds)
    for found in (combined(X, None), jax.jit(combined)(X, None)):
        np.testing.assert_array_equal(found, [0.25, 3.25, 6.25, 9.25])


def test_a_probability_becomes_a_log_reward_with_a_floor():
    reward = rewards.from_probability(lambda x, cond: np.asarray([1.0, 0.5, 0.0, 1e-30]), floor=1e-6)
    np.testing.assert_allclose(evaluate(reward, X), np.log([1.0, 0.5, 1e-6, 1e-6]), rtol=1e-6)
    for floor in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="must be positive and finite, got"):
            rewards.from_probability(lambda x, cond: x, floor=floor)
    negative = rewards.from_probability(lambda x, cond: np.asarray([1.0, 0.5, -1e-3, -2.0]), floor=1e-6)
    with pytest.raises(RewardError, match=r"-0\.001 for sample 2, and a probability is at least 0"):
        negative(X, None)
    broken = rewards.from_probability(lambda x, cond: np.asarray([1.0, np.nan, 0.0, 0.0]), floor=1e-6)
    with pytest.raises(RewardError, match="nan for sample 1"):
        evaluate(broken, X)
