"""How long the posterior of the 25-Gaussian mixture takes to be how good: by us, by PyTorch, and by other defaults.

    python benchmarks/time_to_quality.py                           all rows; hours on one core
    python benchmarks/time_to_quality.py --groups=pytorch,default  taskset -c 1 ... chooses the core

The groups of rows are

    pytorch       an eager loop of the same network from the same prior, in the paper's settings: 5,000 on-policy steps
                  with Adam and a learned log Z (pip install -e ".[torch]")
    default       configs/gmm.py
    variance      the same with learned step variances
    subsampling   the default in 600 steps, and gradients of some of the steps of a path only
    behaviours    the default in 600 steps with paths from elsewhere

Quality is the effective sample size of fresh paths of the posterior, from the same code for all rows, and counts only
while its certificate neither finds modes missing nor is unreliable. Time is that of training and what comes before its
first step, compiling included, but not of the evaluation. Where the machine does other things compare process times on
one core (`taskset`), which are what a run would take if the core were free. --out has all curves as JSON, is written at
every evaluation, and a run that is complete in it is not repeated.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from benchmarks.steps import ours
from benchmarks.steps.rows import GROUPS, PYTORCH, config_of
from experiments import provenance
from experiments.domains.base import Domain, rewarded
from experiments.records import write_json
from experiments.run import prepare
from experiments.streams import stream
from rtbjax import certificate
from rtbjax.sharding import split_cpu
from rtbjax.train import make_rollout

try:
    import torch

    from benchmarks.steps import pytorch
except ImportError:
    torch = None

QUALITIES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9)  # Effective sample sizes.
PATHS = 5_000  # Of an evaluation.
REFERENCE_BATCHES = 20  # Of so many prior paths, for the reference log Z.
USABLE = ("consistent", "importance_weight")
COLUMNS = ("step", "seconds", "process_seconds", "ess", "path_kl", "verdict")

Quality = Callable[[PyTree], dict[str, Any]]
Curve = list[dict[str, Any]]


def make_quality(domain: Domain, seed: int) -> Quality:
    """Of the posterior with given parameters: what its certificate says of `PATHS` fresh paths."""
    run = make_rollout(domain.process, (PATHS, *domain.event_shape))
    prior_key, key = jax.random.split(stream(seed, "evaluate"))
    log_r = [
        np.asarray(rewarded(domain, run(jax.random.fold_in(prior_key, batch), domain.prior)).log_reward)
        for batch in range(REFERENCE_BATCHES)
    ]
    reference = certificate.from_prior(np.concatenate(log_r))

    def quality(params):
        paths = rewarded(domain, run(key, domain.prior, domain.posterior.replace(params=params)))
        gap = np.asarray(paths.log_ratio).sum(axis=0) + np.asarray(paths.log_reward)
        found = certificate.certify(gap, reference)
        return {"ess": round(found.ess, 4), "path_kl": round(found.path_kl, 4), "verdict": found.verdict}

    return quality


def followed(training: Iterator[PyTree], quality: Quality, every: int) -> Iterator[dict[str, Any]]:
    """The quality after the first step and then every so many, and the time that the training had taken by then."""
    spent = np.zeros(2)
    for step in count(1):
        before = np.array([time.perf_counter(), time.process_time()])
        params = next(training, None)
        spent += np.array([time.perf_counter(), time.process_time()]) - before
        if params is None:
            return
        if step == 1 or step % every == 0:
            yield {
                "step": step,
                "seconds": round(spent[0], 2),
                "process_seconds": round(spent[1], 2),
                **quality(params),
            }


def reached(curve: Curve, ess: float) -> dict[str, Any] | None:
    """The first point of a curve that is as good."""
    return next((point for point in curve if point["ess"] >= ess and point["verdict"] in USABLE), None)


def summary(curve: Curve) -> dict[str, Any]:
    """The best and the last point, and process seconds: to the first step, and to each quality."""
    first = {ess: reached(curve, ess) for ess in QUALITIES}
    return {
        "first_step": curve[0]["process_seconds"],
        "to_ess": {ess: point and point["process_seconds"] for ess, point in first.items()},
        "best": max((point for point in curve if point["verdict"] in USABLE), key=lambda p: p["ess"], default=None),
        "last": curve[-1],
    }


def training_of(name: str, config: ConfigDict, domain: Domain, mesh: Mesh) -> Iterator[PyTree]:
    return pytorch.training(config, domain) if name == PYTORCH else ours.training(config, domain, mesh)


def measure(name: str, changes: dict[str, Any], seed: int, every: int) -> Iterator[dict[str, Any]]:
    """A run of a row, at every evaluation what is known of it."""
    config = config_of(changes, seed)
    domain, mesh = prepare(config)
    quality = make_quality(domain, seed)
    curve: Curve = []
    made = {"changes": changes, "cores": len(os.sched_getaffinity(0)), "commit": provenance.commit()}
    for point in followed(training_of(name, config, domain, mesh), quality, every):
        curve.append(point)
        yield {
            **made,
            "done": point["step"] + every > config.train.steps,
            "load": os.getloadavg()[0],
            **summary(curve),
            "curve": {column: [point[column] for point in curve] for column in COLUMNS},
        }


def show(found: dict[str, dict[str, Any]]) -> None:
    """Prints what is known of every run, in process seconds, and how fast PyTorch's best was reached."""

    def line(name, *cells):
        print(f"{name:34}" + "".join(f"{'-' if cell is None else cell:>9}" for cell in cells))

    theirs = [run["best"]["ess"] for run in found.get(PYTORCH, {}).values() if run["best"]][:1]
    line("process seconds to", "step 1", *(f"ESS {ess:g}" for ess in (*QUALITIES, *theirs)), "the end", "best ESS")
    for name, runs in found.items():
        for seed, run in runs.items():
            curve = [dict(zip(run["curve"], point, strict=True)) for point in zip(*run["curve"].values(), strict=True)]
            as_good = [point and point["process_seconds"] for point in (reached(curve, ess) for ess in theirs)]
            best = run["best"] and run["best"]["ess"]
            times = run["first_step"], *run["to_ess"].values(), *as_good, run["last"]["process_seconds"]
            line(f"{name}, seed {seed}", *times, best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", default=",".join(GROUPS), help="default %(default)s")
    parser.add_argument("--seeds", default="0", help="default %(default)s")
    parser.add_argument("--every", type=int, default=50, help="steps between evaluations (default %(default)s)")
    parser.add_argument("--steps", type=int, help="of every run, for a trial; else each row's own")
    parser.add_argument("--out", type=Path, default=Path("runs/time_to_quality.json"), help="default %(default)s")
    arguments = parser.parse_args()
    groups = arguments.groups.split(",")
    if unknown := set(groups) - set(GROUPS):
        parser.error(f"--groups must be some of {', '.join(GROUPS)}, got {', '.join(sorted(unknown))}.")
    if torch is not None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    elif "pytorch" in groups:
        parser.error('the group pytorch needs PyTorch, which is not installed (pip install -e ".[torch]").')
    split_cpu(config_of({}, seed=0).cpu_devices)
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    rows = {name: changes for group in groups for name, changes in GROUPS[group].items()}
    for seed in arguments.seeds.split(","):
        for name, changes in rows.items():
            if arguments.steps is not None:
                changes = changes | {"train.steps": arguments.steps}
            runs = found.setdefault(name, {})
            if seed in runs and runs[seed]["done"] and runs[seed]["changes"] == changes:
                continue
            for run in measure(name, changes, int(seed), arguments.every):
                runs[seed] = run
                write_json(arguments.out, found)
            show({name: {seed: runs[seed]}})
    print()
    show(found)
    print(f"\n{arguments.out}")


if __name__ == "__main__":
    main()
