"""The buffer against a Python list that does the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rtbjax import replay

add, sample = jax.jit(replay.add), jax.jit(replay.sample, static_argnames=("batch", "temperature"))


def items(values):
    values = jnp.asarray(values, jnp.float32)
    return {"x0": jnp.stack([values, -values], axis=1), "log_reward": 10.0 * values}


def empty(capacity):
    return replay.init({"x0": jax.ShapeDtypeStruct((2,), jnp.float32), "log_reward": jnp.float32(0.0)}, capacity)


def contents(buffer):
    """What the buffer holds, oldest first."""
    capacity = len(buffer.priority)
    held = min(int(buffer.added), capacity)
    order = [(int(buffer.added) - held + k) % capacity for k in range(held)]
    x0 = np.asarray(buffer.items["x0"])[order]
    np.testing.assert_array_equal(x0[:, 1], -x0[:, 0])
    np.testing.assert_array_equal(np.asarray(buffer.items["log_reward"])[order], 10 * x0[:, 0])
    assert np.sum(np.isfinite(buffer.priority)) == held
    return x0[:, 0].tolist()


@pytest.mark.parametrize("capacity", [1, 5, 8])
def test_oldest_go_first_whatever_is_added_and_kept(capacity):
    """Batches of four with random masks, and once eleven, more than fit: as a list cut to its last items."""
    rng = np.random.default_rng(0)
    buffer, expected, value = empty(capacity), [], 1.0
    for size in (4, 4, 4, 11, 4, 4):
        keep = rng.random(size) < 0.7
        values = value + np.arange(size)
        buffer = add(buffer, items(values), jnp.asarray(keep))
        expected = (expected + values[keep].tolist())[-capacity:]
        value += size
        assert contents(buffer) == expected
    assert not np.array_equal(expected, [])


def test_nothing_kept_changes_nothing():
    buffer = add(empty(3), items([1.0, 2.0]), jnp.ones(2, bool))
    after = add(buffer, items([7.0, 8.0]), jnp.zeros(2, bool))
    jax.tree.map(np.testing.assert_array_equal, after, buffer)


def test_samples_are_uniform_over_what_is_held_and_never_from_empty_slots():
    """Chi-square of 6,000 draws; 2 % moved between two items would give p < 1e-3."""
    buffer = add(empty(10), items([1.0, 2.0, 3.0]), jnp.ones(3, bool))
    drawn = sample(jax.random.key(0), buffer, batch=6_000)
    values, counts = np.unique(np.asarray(drawn["x0"][:, 0]), return_counts=True)
    np.testing.assert_array_equal(values, [1.0, 2.0, 3.0])
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(drawn["log_reward"], 10 * drawn["x0"][:, 0])


@pytest.mark.parametrize("temperature, weights", [(1.0, [1.0, 2.0, 5.0]), (0.5, [1.0, 4.0, 25.0])])
def test_samples_follow_priority_over_temperature(temperature, weights):
    priority = jnp.log(jnp.asarray([1.0, 2.0, 5.0]))
    buffer = add(empty(4), items([1.0, 2.0, 3.0]), jnp.ones(3, bool), priority)
    drawn = sample(jax.random.key(0), buffer, batch=6_000, temperature=temperature)
    counts = np.bincount(np.asarray(drawn["x0"][:, 0], np.int64), minlength=4)[1:]
    assert scipy.stats.chisquare(counts, 6_000 * np.asarray(weights) / np.sum(weights)).pvalue > 1e-3


def test_sampling_needs_no_memory_for_every_pair_of_a_draw_and_an_item():
    buffer = jax.eval_shape(lambda: empty(16_384))
    compiled = sample.lower(jax.eval_shape(lambda: jax.random.key(0)), buffer, batch=1_000).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * 16_384


def test_priorities_of_any_size_are_normalised():
    """Log-weights: of thousands of nats only the differences count."""
    for offset in (-3_000.0, 3_000.0):
        priority = offset + jnp.log(jnp.asarray([1.0, 3.0]))
        buffer = add(empty(4), items([1.0, 2.0]), jnp.ones(2, bool), priority)
        drawn = np.asarray(sample(jax.random.key(0), buffer, batch=2_000)["x0"][:, 0])
        assert abs(np.mean(drawn == 2.0) - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 2_000)


def test_an_overwritten_item_takes_its_priority_with_it():
    buffer = add(empty(2), items([1.0, 2.0]), jnp.ones(2, bool), jnp.asarray([30.0, 0.0]))
    buffer = add(buffer, items([3.0]), jnp.ones(1, bool), jnp.asarray([0.0]))
    drawn = np.asarray(sample(jax.random.key(0), buffer, batch=200)["x0"][:, 0])
    assert set(drawn) == {2.0, 3.0}


def test_a_buffer_travels_through_a_scan():
    """Fixed shapes: filling it is one compiled loop."""

    def step(buffer, value):
        return replay.add(buffer, items(jnp.stack([value, value + 0.5])), jnp.asarray([True, True])), None

    buffer, _ = jax.jit(lambda: jax.lax.scan(step, empty(4), jnp.arange(1.0, 6.0)))()
    assert contents(buffer) == [4.0, 4.5, 5.0, 5.5] and buffer.added == 10


def test_items_of_another_shape_are_refused_and_not_broadcast():
    buffer, keep = replay.init(jnp.zeros(2), 4), jnp.ones(3, bool)
    for shape in ((3, 1), (3,), (1, 2), (4, 2)):
        with pytest.raises(ValueError, match=rf"Each item must have shape \(3, 2\), got \({shape[0]},"):
            replay.add(buffer, jnp.zeros(shape), keep)
    with pytest.raises(ValueError, match=r"priority must have shape \(3,\), got \(3, 1\)"):
        replay.add(buffer, jnp.zeros((3, 2)), keep, jnp.zeros((3, 1)))


def test_capacity_below_one_is_an_error():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        empty(0)
