"""Training steps at the domains' real shapes, side by side in one run.

    python benchmarks/train_step.py                        all shapes, about ten minutes on two free cores
    python benchmarks/train_step.py --shapes=gmm,stories   taskset -c 1 ... chooses the cores

The rows of a shape are

    rtbjax                    a run's own step: rollout, then the gradient in two passes
    rtbjax, N at once         with --chunks=N,...: the same with N steps per network call of the gradient
    autodiff                  the same with plain automatic differentiation through the scan over steps
    autodiff, checkpointed    the same, with the network's activations computed again
    PyTorch autograd, two-pass    an eager loop of the same networks, checked to agree (pip install -e ".[torch]")
    torchgfn                  that library's step on the 25-Gaussian mixture, where it is installed
    floor                     the network calls that no step can do without, jitted with nothing else

They take turns, so that whatever else the machine does meets all of them. Where it does much, compare process times,
which are of all threads: on one core they are what the step would take if the core were free. For the 25-Gaussian
mixture it is also shown how time goes with steps and batch, and how memory does. The numbers go to --out as JSON, in
which the shapes of earlier runs stay.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from benchmarks.steps import floor, ours, shapes
from experiments import objectives
from experiments.compare import changed
from experiments.records import write_json
from rtbjax.sharding import split_cpu
from rtbjax.train import Objective

try:
    import torch

    from benchmarks.steps import pytorch
except ImportError:
    torch = None
try:
    from benchmarks.steps import torchgfn

    no_torchgfn = ""
except ImportError as error:
    no_torchgfn = str(error)

LENGTHS, BATCHES = (50, 100, 200), (250, 500, 1000)  # Whose times are compared.
LONG = 1000  # Steps of the longer chain whose memory is compared.

compilations = 0


def count_compilations(event: str, duration: float, **_) -> None:
    global compilations
    compilations += event == "/jax/core/compile/backend_compile_duration"


def torch_rows(name: str, config, domain) -> dict[str, ours.Phases]:
    """The rows that are not ours.

    Raises:
      SystemExit: PyTorch computes something else.
    """
    if torch is None:
        print('PyTorch is not installed (pip install -e ".[torch]"): its rows are left out.')
        return {}
    try:
        device = pytorch.device()
    except RuntimeError as error:
        print(f"{error}: its rows are left out.")
        return {}
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    apart = pytorch.disagreement(config, domain, jax.random.key(1))
    allowed = pytorch.AGREEMENT[name]
    if not apart <= allowed:
        sys.exit(f"{name}: PyTorch's networks differ from ours by {apart:.2g}, which must be at most {allowed}.")
    torch.backends.cuda.matmul.allow_tf32 = device.type == "cuda"  # Convolutions are by default.
    rows = {
        "PyTorch autograd": pytorch.autograd(config, pytorch.problem(config, domain)),
        "PyTorch two-pass": pytorch.two_pass(config, pytorch.problem(config, domain)),
    }
    rows = {row: {"step": pytorch.blocking(step)} for row, step in rows.items()}
    if name == "gmm" and no_torchgfn:
        print(f"torchgfn cannot be imported ({no_torchgfn}): its row is left out.")
    elif name == "gmm":
        rows["torchgfn"] = {"step": torchgfn.step(config)}
    return rows


def measure(rows: dict[str, ours.Phases], rounds: int, steps: int) -> dict[str, dict]:
    """Seconds of each row's phases and of their sum, the step; ``steps`` in a row per turn, over ``rounds`` turns.

    The first of a turn is not counted, unless it is the only one that there would be.
    """
    taken = {name: [] for name in rows}
    for _ in range(rounds):
        for name, phases in rows.items():
            for warm in [True] * (steps > 1) + [False] * steps:
                marks = [(time.perf_counter(), time.process_time())]
                for phase in phases.values():
                    phase()
                    marks.append((time.perf_counter(), time.process_time()))
                if not warm:
                    taken[name].append(np.diff(marks, axis=0))
    return {name: summary(list(rows[name]), np.asarray(times)) for name, times in taken.items()}


def summary(phases: list[str], times: np.ndarray) -> dict[str, dict]:
    """Medians and quartiles; ``times[steps, phases, 2]``, by the clock and of the process."""

    def quantiles(of):
        return {
            clock: dict(zip(("median", "q25", "q75"), np.percentile(of[:, k], [50, 25, 75]).tolist(), strict=True))
            for k, clock in enumerate(("seconds", "process_seconds"))
        }

    parts = {phase: quantiles(times[:, k]) for k, phase in enumerate(phases)}
    return {"step": quantiles(times.sum(axis=1))} | (parts if len(phases) > 1 else {})


def at_once(config, domain, chunks: list[int]) -> dict[str, Objective]:
    """Our step with the gradient of more steps per network call, of those numbers that divide them."""
    found = {}
    for chunk in chunks:
        if config.process.num_steps % chunk:
            print(f"{chunk} at once are left out: they do not divide {config.process.num_steps} steps.")
            continue
        found[f"rtbjax, {chunk} at once"] = objectives.make(changed(config, {"objective.chunk": chunk}), domain)
    return found


def compare(name: str, rounds: int, steps: int, chunks: list[int]) -> dict:
    """All rows of one shape."""
    config = shapes.config_of(name)
    domain = shapes.build(config)
    print(f"\n{name}: {shapes.describe(config, domain)}", flush=True)
    our_objectives = {
        "rtbjax": objectives.make(config, domain),
        "autodiff": ours.autodiff(config, domain, checkpointed=False),
        "autodiff, checkpointed": ours.autodiff(config, domain, checkpointed=True),
        **at_once(config, domain, chunks),
    }
    rows = {row: ours.phases(config, domain, objective) for row, objective in our_objectives.items()}
    first = {"cold": ours.first_step(rows["rtbjax"])}
    jax.clear_caches()
    rows["rtbjax"] = ours.phases(config, domain, our_objectives["rtbjax"])
    first["cached"] = ours.first_step(rows["rtbjax"])
    rows |= torch_rows(name, config, domain)
    rows["floor"], chunks = floor.phases(config, domain)
    for row in rows:
        ours.first_step(rows[row])  # So that nothing is compiled while timed; PyTorch's rows compile the reward.
    load, before = os.getloadavg()[0], compilations
    times = measure(rows, rounds, steps)
    result = {
        "shape": shapes.describe(config, domain),
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "load": {"before": load, "after": os.getloadavg()[0]},  # Over a minute; what is above the cores has waited.
        "versions": {"jax": jax.__version__, "torch": None if torch is None else torch.__version__},
        "timed_steps": rounds * steps,
        "rows": times,
        "floor_chunks": chunks,
        "first_step": first,
        "compiled_while_timed": compilations - before,
        "bytes": {row: ours.memory(config, domain, objective) for row, objective in our_objectives.items()},
    }
    show(result)
    return result


def show(result: dict) -> None:
    """Prints the table of one shape."""
    rows = result["rows"]
    least = {clock: rows["floor"]["step"][clock]["median"] for clock in ("seconds", "process_seconds")}
    print(f"{'':24}{'ms':>9}{'quartiles':>18}{'process':>9}{'steps/s':>9}{'x floor':>9}{'process':>9}{'temporary':>12}")
    for name, parts in rows.items():
        clock, process = parts["step"]["seconds"], parts["step"]["process_seconds"]
        quartiles = f"{1e3 * clock['q25']:.1f}..{1e3 * clock['q75']:.1f}"
        line = f"{name:24}{1e3 * clock['median']:>9.1f}{quartiles:>18}{1e3 * process['median']:>9.1f}"
        line += f"{1 / clock['median']:>9.2f}{clock['median'] / least['seconds']:>9.2f}"
        line += f"{process['median'] / least['process_seconds']:>9.2f}"
        print(line + (f"{result['bytes'][name]['temporary'] / 1e6:>9.1f} MB" if name in result["bytes"] else ""))
        shares = [f"{p} {1e3 * t['process_seconds']['median']:.1f}" for p, t in parts.items() if p != "step"]
        if shares:
            print(f"    process ms: {', '.join(shares)}")
    cold, cached = result["first_step"]["cold"], result["first_step"]["cached"]
    print(f"    first step {cold:.1f} s, {cached:.1f} s with the persistent cache")
    cores, load = result["cores"], result["load"]
    print(f"    {result['device']}, {cores} cores, load {load['before']:.1f} to {load['after']:.1f}", flush=True)


def scaling(rounds: int, steps: int) -> dict:
    """How a step of the 25-Gaussian mixture goes with its number of steps and its batch, and its memory with steps."""

    def sized(num_steps, batch):
        config = shapes.config_of("gmm")
        config.process.num_steps, config.train.batch_size = num_steps, batch
        domain = shapes.build(config)
        return config, domain, objectives.make(config, domain)

    usual = shapes.config_of("gmm")
    length, batch = usual.process.num_steps, usual.train.batch_size
    sizes = sorted({(t, batch) for t in LENGTHS} | {(length, b) for b in BATCHES})
    rows = {str(size): ours.phases(*sized(*size)) for size in sizes}
    for made in rows.values():
        ours.first_step(made)
    times = measure(rows, rounds, steps)
    took = {size: times[str(size)]["step"]["process_seconds"]["median"] for size in sizes}

    def exponent(sizes, seconds):
        return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])

    memory = {t: ours.memory(*sized(t, batch)) for t in (length, LONG)}
    result = {
        "process_seconds": {f"T={t}, B={b}": seconds for (t, b), seconds in took.items()},
        "exponent_in_steps": exponent(LENGTHS, [took[t, batch] for t in LENGTHS]),
        "exponent_in_batch": exponent(BATCHES, [took[length, b] for b in BATCHES]),
        "bytes": {f"T={t}": found for t, found in memory.items()},
    }
    print("\ngmm: " + "; ".join(f"{size} {1e3 * s:.1f} ms" for size, s in result["process_seconds"].items()))
    print(f"    process time goes as T^{result['exponent_in_steps']:.2f} and B^{result['exponent_in_batch']:.2f}")
    for size, found in result["bytes"].items():
        print(
            f"    {size}: {found['temporary'] / 1e6:.3f} MB temporary beside {found['arguments'] / 1e6:.3f} MB of paths"
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(shapes.CONFIGS), help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each row takes (default %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps per turn (default %(default)s)")
    parser.add_argument("--chunks", default="", help="also ours with so many steps per gradient call")
    parser.add_argument("--out", type=Path, default=Path("runs/train_step.json"), help="default %(default)s")
    arguments = parser.parse_args()
    names = arguments.shapes.split(",")
    chunks = [int(chunk) for chunk in arguments.chunks.split(",") if chunk]
    if unknown := set(names) - set(shapes.CONFIGS):
        parser.error(f"--shapes must be some of {', '.join(shapes.CONFIGS)}, got {', '.join(sorted(unknown))}.")
    if arguments.rounds < 1 or arguments.steps < 1:
        parser.error("--rounds and --steps must be at least 1.")

    split_cpu(max(shapes.config_of(name).cpu_devices for name in names))
    jax.monitoring.register_event_duration_secs_listener(count_compilations)
    with tempfile.TemporaryDirectory() as cache:  # Empty, so that first steps are cold.
        jax.config.update("jax_compilation_cache_dir", cache)
        found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        for name in names:
            found[name] = compare(name, arguments.rounds, arguments.steps, chunks)
            if name == "gmm":
                found[name]["scaling"] = scaling(arguments.rounds, arguments.steps)
            write_json(arguments.out, found)
    print(f"\n{arguments.out}")


if __name__ == "__main__":
    main()
