"""Checks what a run left in its workdir against the contract: ``python tests/check_workdir.py runs/gmm-smoke``."""

import json
import math
import sys
from pathlib import Path

import safetensors.numpy

from rtbjax.certificate import VERDICTS

CONFIG = (
    "seed",
    "train.steps",
    "train.batch_size",
    "train.learning_rate",
    "process.num_steps",
    "objective.log_z",
    "objective.beta",
    "objective.grad_steps",
    "posterior.learn_variance",
    "checkpoint.every",
    "eval.num_samples",
    "data.path",
)
SUMMARY = ("domain", "data_source", "steps", "seconds", "certificate", "metrics")
SECONDS = ("compile", "train", "total")
CERTIFICATE = (
    "log_z_is",
    "log_z_is_ci",
    "log_z_reference",
    "log_z_reference_ci",
    "log_z_reference_source",
    "elbo",
    "eubo",
    "ess",
    "pareto_k",
    "path_kl",
    "path_kl_lower",
    "num_paths",
    "verdict",
)
# Values that need not exist: of the tail of few or even weights, and of accepted paths where none was accepted or r has
# no bound. Where there is no reference log Z, all that is measured against it is null, and else nothing is.
OPTIONAL = ("eubo", "pareto_k")
REFERENCE = ("log_z_reference", "log_z_reference_ci", "log_z_reference_source", "path_kl")
METRICS = {
    "gmm": {"sets": ("rtb", "exact"), "names": ("mode_tv", "off_mode_mass", "sliced_w2")},
    "images": {
        "sets": ("prior", "rtb", "exact"),
        "names": ("log_reward", "diversity", "frechet_to_exact", "accuracy"),
    },
    "inverse": {"sets": ("prior", "rtb", "dps"), "names": ("log_reward", "misfit", "std_seen")},
    "control": {"sets": ("prior", "rtb"), "names": ("q",)},
    "stories": {"sets": ("prior", "rtb"), "names": ("log_reward", "distinct_1", "distinct_2")},
    "text_to_image": {"sets": ("prior", "rtb"), "names": ("log_reward", "accuracy", "diversity")},
}


def problems(workdir: Path) -> list[str]:
    """What is missing or wrong, one sentence each; nothing if the workdir keeps the contract."""
    found = [f"{name} is missing" for name in _files(workdir)]
    if found:
        return found
    config = _json(workdir / "config.json")
    summary = _json(workdir / "summary.json")
    found += [f"config.json has no {name}" for name in CONFIG if not _has(config, name)]
    found += [f"summary.json has no {name}" for name in SUMMARY if name not in summary]
    if found:
        return found
    found += [f"seconds.{name} is no number" for name in SECONDS if not _finite(summary["seconds"].get(name))]
    found += _certificate(summary["certificate"])
    if summary["steps"] != config["train"]["steps"]:
        found.append(f"summary.json says {summary['steps']} steps, config.json {config['train']['steps']}")
    expected = METRICS.get(summary["domain"], {"sets": (), "names": ()})
    for group in expected["sets"]:
        values = summary["metrics"].get(group, {})
        found += [f"metrics.{group}.{name} is no number" for name in expected["names"] if not _finite(values.get(name))]
    found += _metrics_lines(workdir / "metrics.jsonl", config["train"]["steps"])
    if (workdir / "samples.png").read_bytes()[:8] != b"\x89PNG\r\n\x1a\n":
        found.append("samples.png is not a PNG")
    if not safetensors.numpy.load_file(workdir / "final_params.safetensors"):
        found.append("final_params.safetensors is empty")
    return found


def _files(workdir: Path) -> list[str]:
    names = ("config.json", "metrics.jsonl", "summary.json", "final_params.safetensors", "samples.png")
    missing = [name for name in names if not (workdir / name).is_file()]
    checkpoints = workdir / "checkpoints"
    return missing if checkpoints.is_dir() and any(checkpoints.iterdir()) else [*missing, "checkpoints/"]


def _certificate(values: dict) -> list[str]:
    found = [f"certificate has no {name}" for name in CERTIFICATE if name not in values]
    if found:
        return found
    if values["verdict"] not in VERDICTS:
        found.append(f"verdict {values['verdict']!r} is none of {', '.join(VERDICTS)}")
    unknown = [name for name in REFERENCE if values[name] is None]
    if unknown and unknown != list(REFERENCE):
        found.append(f"certificate.{' and '.join(unknown)} is null, but there is a reference")
    if unknown and values["verdict"] not in ("coverage_unchecked", "unreliable"):
        found.append(f"verdict {values['verdict']!r} needs a reference")
    for name in set(CERTIFICATE) - {"verdict", "log_z_reference_source"}:
        value = values[name]
        may_miss = name in (*OPTIONAL, *REFERENCE)
        if value is None and may_miss:
            continue
        good = _interval(value) if name.endswith("_ci") else _finite(value)
        if not good:
            found.append(f"certificate.{name} is no {'interval' if name.endswith('_ci') else 'number'}: {value}")
    return sorted(found)


def _interval(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_finite, value)) and value[0] <= value[1]


def _metrics_lines(path: Path, last: int) -> list[str]:
    lines = [_loads(line) for line in path.read_text().splitlines()]
    steps = [line["step"] for line in lines]
    if not lines or steps != sorted(set(steps)) or steps[-1] != last:
        return [f"metrics.jsonl must rise to step {last}, it has {steps}"]
    # A step that was skipped may have none, and is counted.
    before = [0, *(line["skipped"] for line in lines)]
    found = [line for line, skipped in zip(lines, before, strict=False) if line["skipped"] == skipped]
    return [f"metrics.jsonl has no finite loss at step {line['step']}" for line in found if not _finite(line["loss"])]


def _json(path: Path) -> dict:
    return _loads(path.read_text())


def _loads(text: str) -> dict:
    """Strict JSON: Python's reader would let NaN and Infinity through."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def _has(tree: dict, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def _finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def main(workdirs: list[str]) -> int:
    wrong = {workdir: problems(Path(workdir)) for workdir in workdirs}
    for workdir, sentences in wrong.items():
        print(f"{workdir}: {'; '.join(sentences) or 'complete'}")
    return int(any(wrong.values()) or not wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
