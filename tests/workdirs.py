"""Finished runs that nobody ran."""

import json
from pathlib import Path

from PIL import Image

from experiments import records

CERTIFICATE = {
    "log_z_is": -1.23456,
    "log_z_is_ci": [-1.3, -1.2],
    "log_z_reference": -1.1,
    "log_z_reference_ci": [-1.15, -1.05],
    "log_z_reference_source": "4000 prior samples",
    "log_z_reference_pareto_k": 0.25,
    "elbo": -2.0,
    "eubo": -0.5,
    "ess": 0.61,
    "pareto_k": 0.3,
    "path_kl": 0.9,
    "path_kl_lower": 0.76544,
    "num_paths": 12_000,
    "verdict": "importance_weight",
    "reason": "path-KL is 0.90 nats, above 0.2",
}
SUMMARY = {
    "domain": "images",
    "data_source": "digits",
    "steps": 30,
    "seconds": {"compile": 1.5, "first_step": 3.25, "train": 20.0, "total": 61.0},
    "skipped": 2,
    "provenance": {
        "command": "python experiments/run.py --config=configs/mnist.py",
        "commit": "abc",
        "python": "3.11",
        "packages": {"jax": "0.10"},
        "devices": "1 x cpu",
    },
    "certificate": CERTIFICATE,
    "metrics": {
        "prior": {"log_reward": -3.0, "classes": {"0": 0.25, "1": 0.75}},
        "rtb": {"log_reward": -1e-7, "accuracy": 0.5, "classes": {"0": 0.125, "1": 0.875}},
        "start_excess": 123456.789,
        "states": {"state 7": {"q_prior": 1.0, "q_rtb": 2.0}, "state 9": {"q_prior": 3.0, "q_rtb": 4.0}},
        "per_condition": [
            {"condition": "even", "rtb": {"log_reward": -1.0, "classes": {"0": 0.5}}},
            {"condition": "odd", "rtb": {"log_reward": -2.0, "classes": {"0": 0.5}}},
        ],
    },
    "finished": "2026-01-01T00:00:00Z",
}
CONFIG = {
    "objective": {"beta": 2.0},
    "process": {"num_steps": 50},
    "reward": {"label": "even", "retries": 2},
    "behaviour": {"widen": 0.0},
}
LINES = [{"step": step, "loss": 1.0 / step, "log_z": -1.0, "skipped": 0, "seconds": 1.0} for step in (10, 20, 30)]


def changed(**certificate) -> dict:
    """The summary with another certificate."""
    return SUMMARY | {"certificate": CERTIFICATE | certificate}


def leave(workdir: Path, summary: dict = SUMMARY, config: dict = CONFIG, lines: list[dict] = LINES) -> Path:
    """Writes what a report is made of."""
    workdir.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (1200, 400)).save(workdir / "samples.png")
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records.write_json(workdir / "config.json", config)
    records.write_json(workdir / "summary.json", summary)
    return workdir
