"""Experiments small enough for a test."""

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from configs.gmm import get_config
from experiments.checkpoint import ITEM
from experiments.domains.base import Domain
from rtbjax import Policy


def changed(config: ConfigDict, **changes) -> ConfigDict:
    """A copy with other fields, ``__`` standing for the dot in a name."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def gmm(folder: Path) -> ConfigDict:
    """Four steps of every behaviour."""
    return changed(
        get_config("smoke"),
        devices=1,
        process__num_steps=10,
        train__steps=4,
        train__batch_size=32,
        log__every=1,
        checkpoint__every=2,
        behaviour__accepted=0.25,
        behaviour__noised=0.25,
        behaviour__replay=0.25,
        behaviour__capacity=16,
        behaviour__warm_accepted=8,
        behaviour__widen=0.0,
        eval__num_samples=64,
        eval__batch_size=64,
        eval__exact_samples=16,
        eval__exact_cache=str(folder / "exact"),
    )


def bare_domain(chain, posterior: Policy, event_shape: tuple[int, ...], **fields) -> Domain:
    """A chain of `oracles` as a domain that measures and plots nothing."""
    return Domain(
        name="oracle",
        data_source="none",
        process=chain.process,
        event_shape=event_shape,
        prior=chain.prior,
        posterior=posterior,
        log_reward=lambda x, cond: chain.log_reward(x),
        log_bound=chain.log_bound,
        fingerprint="",
        evaluate=lambda samples: {},
        plot=lambda path, panels: path.touch(),
        **fields,
    )


def log_of(workdir: Path) -> list[dict]:
    """``metrics.jsonl`` without the seconds, which no two runs share."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_run(first: Path, second: Path) -> None:
    """Bit for bit the same log, parameters and last checkpoint: optimizer, buffers and counts included."""
    assert log_of(first) == log_of(second)
    final = "final_params.safetensors"
    assert (first / final).read_bytes() == (second / final).read_bytes()
    states = [last_checkpoint(workdir) for workdir in (first, second)]
    assert states[0].keys() == states[1].keys()
    for name, array in states[0].items():
        np.testing.assert_array_equal(array, states[1][name], err_msg=name)


def latest_step(workdir: Path) -> int | None:
    """Of its checkpoints. Read from the folder: a manager would also begin to clean it, beside the next run's."""
    return max((int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), default=None)


def last_checkpoint(workdir: Path) -> dict[str, np.ndarray]:
    """Everything in the newest checkpoint but the seconds, and so the hash, by name."""
    folder, handlers = (workdir / "checkpoints").resolve(), {ITEM: ocp.PyTreeCheckpointHandler()}
    manager = ocp.CheckpointManager(folder, item_handlers=handlers, item_names=(ITEM,))
    step = manager.latest_step()
    # As NumPy: the run may have had other devices than the tests.
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), manager.item_metadata(step)[ITEM].tree)
    wanted = ocp.args.Composite(**{ITEM: ocp.args.PyTreeRestore(restore_args=on_host)})
    tree = manager.restore(step, args=wanted)[ITEM]["tree"]
    manager.close()
    leaves = jax.tree.leaves_with_path(tree)
    return {name: np.asarray(leaf) for path, leaf in leaves if (name := jax.tree_util.keystr(path)) != "['seconds']"}
