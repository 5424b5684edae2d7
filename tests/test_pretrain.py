"""The loop of plain mean losses: it learns, its data are no part of the program, and it stops where numbers end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrunk import latest_step

from configs.base import regression
from experiments.pretrain import fit, iterate


def loss(params, key, data):
    return jnp.mean((params["mean"][None] - data[jax.random.randint(key, (64,), 0, len(data))]) ** 2)


def run(data, folder, **changes):
    settings = regression(steps=200, batch_size=64, learning_rate=0.1, weight_decay=0.0)
    settings.update(changes)
    start = {"mean": jnp.zeros(2)}
    return fit(loss, start, jnp.asarray(data), settings, key=jax.random.key(0), workdir=folder, label="mean")


@pytest.fixture
def compilations():
    """Whether each program that was wanted had to be compiled, in order; the others were in the cache."""
    found, names = [], {"/jax/compilation_cache/cache_misses": True, "/jax/compilation_cache/cache_hits": False}

    def listen(event, **_):
        if event in names:
            found.append(names[event])

    jax.monitoring.register_event_listener(listen)
    yield found
    jax.monitoring.unregister_event_listener(listen)


def test_it_learns_and_other_data_run_in_the_same_program(tmp_path, compilations):
    data = np.random.default_rng(0).normal([1.0, -2.0], 0.3, (500, 2)).astype(np.float32)
    np.testing.assert_allclose(run(data, tmp_path / "a")["mean"], [1.0, -2.0], atol=0.1)
    compilations.clear()
    np.testing.assert_allclose(run(data + 1.0, tmp_path / "b")["mean"], [2.0, -1.0], atol=0.1)
    assert compilations and not any(compilations)


def test_a_finished_fit_is_read_and_not_repeated(tmp_path):
    data = np.ones((8, 2), np.float32)
    first = run(data, tmp_path)
    np.testing.assert_array_equal(run(-data, tmp_path)["mean"], first["mean"])


@pytest.mark.parametrize("steps", [1, 20, 30])
def test_it_takes_as_many_steps_as_it_is_told(tmp_path, steps):
    settings = regression(steps=steps, batch_size=1, learning_rate=0.1, weight_decay=0.0)
    counted = iterate(
        lambda data, state, i: ((state[0] + 1, i), jnp.float32(0.0)),
        (jnp.int32(0), jnp.int32(-1)),
        None,
        settings,
        workdir=tmp_path,
        label="count",
    )
    assert tuple(map(int, counted)) == (steps, steps - 1)
    assert latest_step(tmp_path) == steps


def test_a_fit_beyond_finite_numbers_is_not_saved(tmp_path):
    with pytest.raises(FloatingPointError, match="Training the mean went beyond finite numbers before step"):
        run(np.full((8, 2), np.inf, np.float32), tmp_path, checkpoint_every=20)
    assert latest_step(tmp_path) is None
