"""Named streams never meet, whatever is folded below them."""

import ast
from pathlib import Path

import jax
import numpy as np

from experiments.control.baselines import BASELINES
from experiments.stories.networks import FIELDS
from experiments.streams import stream
from experiments.text_to_image.training import TRAINERS

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


WHAT = {"prior", "value", *FIELDS, *TRAINERS, *BASELINES}  # What pretraining may make, in any domain.


def calls(name):
    """Files and calls of a function in experiments/, whatever module it is called through."""
    for path in EXPERIMENTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and f".{ast.unparse(node.func)}".endswith(f".{name}"):
                yield path.name, node


def names():
    """Every name that experiments/ gives a stream."""
    written = [ast.unparse(call.args[1]) for _, call in calls("stream")]
    return sorted({eval(name, {"what": what}) for name in written for what in WHAT})


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
    """But for those of shapes, of which nothing is drawn, and one by which a policy is timed."""
    of_shapes = {(file, ast.unparse(argument)) for file, call in calls("eval_shape") for argument in call.args}
    made = [(file, ast.unparse(call)) for file, call in calls("random.key")]
    drawn = sorted(set(made) - of_shapes)
    assert drawn == [("play.py", "jax.random.key(0)"), ("streams.py", "jax.random.key(seed)")]
