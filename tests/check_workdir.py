"""Checks what a run left in its workdir against the contract: ``python tests/check_workdir.py runs/gmm-smoke``."""

import json
import math
import sys
from html.parser import HTMLParser
from pathlib import Path

import safetensors.numpy

from experiments.findings import MEANINGS
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
    "log_z_reference_pareto_k",
    "elbo",
    "eubo",
    "ess",
    "pareto_k",
    "path_kl",
    "path_kl_lower",
    "num_paths",
    "verdict",
    "reason",
)
# Values that need not exist: of the tail of few, even or bounded weights, and of accepted paths where none was accepted
# or r has no bound. Where there is no reference log Z, all that is measured against it is null, and else nothing is.
OPTIONAL = ("eubo", "pareto_k", "log_z_reference_pareto_k")
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
        mute = [name for name, of in values.items() if name not in MEANINGS and not isinstance(of, dict)]
        found += [f"report.html does not say what {name} is" for name in mute]
    found += _metrics_lines(workdir / "metrics.jsonl", config["train"]["steps"])
    if (workdir / "samples.png").read_bytes()[:8] != b"\x89PNG\r\n\x1a\n":
        found.append("samples.png is not a PNG")
    found += report_problems((workdir / "report.html").read_text(), summary)
    if not safetensors.numpy.load_file(workdir / "final_params.safetensors"):
        found.append("final_params.safetensors is empty")
    return found


def _files(workdir: Path) -> list[str]:
    names = ("config.json", "metrics.jsonl", "summary.json", "final_params.safetensors", "samples.png", "report.html")
    missing = [name for name in names if not (workdir / name).is_file()]
    checkpoints = workdir / "checkpoints"
    return missing if checkpoints.is_dir() and any(checkpoints.iterdir()) else [*missing, "checkpoints/"]


def _certificate(values: dict) -> list[str]:
    found = [f"certificate has no {name}" for name in CERTIFICATE if name not in values]
    if found:
        return found
    if values["verdict"] is None:  # Selected samples.
        return [] if values["reason"] else ["certificate has neither a verdict nor a reason"]
    if values["verdict"] not in VERDICTS:
        found.append(f"verdict {values['verdict']!r} is none of {', '.join(VERDICTS)}")
    unknown = [name for name in REFERENCE if values[name] is None]
    if unknown and unknown != list(REFERENCE):
        found.append(f"certificate.{' and '.join(unknown)} is null, but there is a reference")
    if unknown and values["verdict"] not in ("coverage_unchecked", "unreliable"):
        found.append(f"verdict {values['verdict']!r} needs a reference")
    for name in set(CERTIFICATE) - {"verdict", "reason", "log_z_reference_source"}:
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


class Page(HTMLParser):
    """What a page shows.

    Attributes:
      numbers: ``(value, text)`` of every number, by its name.
      named: names of what is shown or said not to exist.
      loads: addresses that the page would load from elsewhere.
      tags: every start and end of an element, in order.
      text: all that is read.
      wrong: elements that do not end where they should, or that HTML does not allow there.
    """

    VOID = ("img", "link", "meta")
    # Of these, a paragraph holds none: it would end before them.
    BLOCKS = ("div", "dl", "p", "table", "figure", "section", "details", "pre", "h1", "h2", "h3")

    def __init__(self, text: str):
        super().__init__()
        self.numbers: dict[str, tuple[float, str]] = {}
        self.named, self.loads, self.tags, self.text, self.wrong = set(), [], [], "", []
        self._open: list[tuple[str, dict]] = []
        if not text.startswith("<!DOCTYPE html>"):
            self.wrong.append("no document type")
        self.feed(text)
        self.close()
        self.wrong += [f"<{tag}> does not end" for tag, _ in self._open]

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        if tag in self.BLOCKS and any(outer == "p" for outer, _ in self._open):
            self.wrong.append(f"<{tag}> within <p>")
        if tag == "img" and not found.get("alt"):
            self.wrong.append("an image that is not described")
        self.loads += [a for a in (found.get("src"), found.get("href")) if a and not a.startswith("data:")]
        self.named |= {found["data-name"]} if "data-name" in found else set()
        if tag not in self.VOID:
            self._open.append((tag, found))

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")
        if not self._open or self._open.pop()[0] != tag:
            self.wrong.append(f"</{tag}> ends what did not start")

    def handle_data(self, data):
        self.text += data
        tag, found = self._open[-1] if self._open else ("", {})
        if tag == "data":
            self.numbers[found.get("data-name", "")] = float(found["value"]), data


def report_problems(text: str, summary: dict) -> list[str]:
    """What is wrong with a report: not HTML, in need of the network, or without a number of the summary."""
    page = Page(text)
    certified = summary["certificate"]["verdict"] is not None  # If not, one reason stands for all of its nulls.
    found = [f"report.html: {what}" for what in page.wrong]
    found += [f"report.html loads {address}" for address in page.loads]
    for name, value in _leaves(summary):
        told = name in page.named or not certified and name.startswith("certificate.")
        if value is None and not told and not name.endswith(("_ci", "_source")):
            found.append(f"report.html does not say why {name} is null")
        if _finite(value):
            measured, said = page.numbers.get(name, (math.nan, "nan"))
            if measured != value or not math.isclose(float(said.replace(",", "")), value, rel_tol=1e-3):
                found.append(f"report.html says {said} of {name}, which is {value}")
    return found


def _leaves(tree, prefix: str = ""):
    """Dotted names and values of a tree of dictionaries and lists, without the provenance, which is text."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, (dict, list)):
            yield from () if key == "provenance" else _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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
