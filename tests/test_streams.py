"""Named streams never meet, whatever is folded below them."""

import re
from pathlib import Path

import jax
import numpy as np

from experiments.streams import stream

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


def names():
    """Every name that experiments/ gives a stream."""
    sources = [path.read_text() for path in EXPERIMENTS.rglob("*.py")]
    return sorted({name for source in sources for name in re.findall(r'stream\(config\.seed, "([^"]+)"\)', source)})


def test_no_two_streams_share_a_key_with_each_other_or_with_any_step():
    assert {"train", "gather", "warm start", "evaluate", "exact", "posterior", "pretrain"} <= set(names())
    steps = np.arange(100_000)
    below = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))
    keys = [np.asarray(jax.random.key_data(jax.random.key(0)))[None]]
    for name in names():
        key = stream(0, name)
        keys += [np.asarray(jax.random.key_data(key))[None], np.asarray(jax.random.key_data(below(key, steps)))]
    # The seed's own steps, which no stream may be one of.
    keys.append(np.asarray(jax.random.key_data(below(jax.random.key(0), steps))))
    every = np.concatenate(keys).astype(np.uint64)
    assert len(np.unique(every[:, 0] << np.uint64(32) | every[:, 1])) == len(every)


def test_a_stream_belongs_to_its_seed_and_its_name():
    same, other_seed, other_name = stream(1, "a"), stream(2, "a"), stream(1, "b")
    assert (stream(1, "a") == same) and (other_seed != same) and (other_name != same)


def test_keys_come_from_streams_alone():
    made = [
        (path.name, line.strip())
        for path in EXPERIMENTS.rglob("*.py")
        for line in path.read_text().splitlines()
        if "random.key(" in line and "random.key(0)" not in line  # Of shapes alone.
    ]
    assert [name for name, _ in made] == ["streams.py"], made
