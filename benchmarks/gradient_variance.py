"""What learning from some of a path's steps only (objective.grad_steps) adds to the variance of a gradient.

    python benchmarks/gradient_variance.py mnist                                            at the posterior of step 0
    python benchmarks/gradient_variance.py gmm --start=runs/gmm/final_params.safetensors    at that of a finished run

Of batches as in a run's last step, by one pass over their steps (`benchmarks.steps.variance`). The numbers go to --out
as JSON, in which those of other places stay.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.steps.variance import subsampling, variance
from experiments import objectives, provenance, run
from experiments.records import write_json

CONFIGS = ("gmm", "mnist")
SHARES = (1.0, 0.5, 0.25, 0.1)  # Of the steps.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", choices=CONFIGS)
    parser.add_argument("--start", default="", help="final_params.safetensors of a finished run")
    parser.add_argument("--batches", type=int, default=16, help="default %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs/gradient_variance.json"), help="default %(default)s")
    arguments = parser.parse_args()
    if arguments.batches < 2:
        parser.error("--batches must be at least 2: there is no variance of one.")
    config = importlib.import_module(f"configs.{arguments.config}").get_config()
    config.posterior.start = arguments.start
    domain, _ = run.prepare(config)
    found = variance(config, domain, objectives.initial_params(config, domain), arguments.batches)
    total = config.process.num_steps
    print(f"{arguments.config}: squared norms of the gradient: {found.mean:.4g} its mean, {found.paths:.4g} by paths")
    added = {steps: float(subsampling(found.spread, steps, total)) for steps in (round(s * total) for s in SHARES)}
    for steps, more in added.items():
        print(f"    {steps:>4} of {total} steps add {more:.4g}: {1 + more / found.paths:.2f} times as much")
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    place = "finished" if arguments.start else "start"
    results[f"{arguments.config}, {place}"] = {
        "batches": arguments.batches,
        "batch_size": config.train.batch_size,
        "commit": provenance.commit(),
        "mean": found.mean,
        "paths": found.paths,
        "added_by_steps": added,
    }
    write_json(arguments.out, results)


if __name__ == "__main__":
    main()
