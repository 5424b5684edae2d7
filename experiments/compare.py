"""Several variations of one config, one after the other, then one table and one figure."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments import records
from experiments.domains.base import Domain
from experiments.exact import Exact

COLUMNS = {
    "mode_tv": "mode TV",
    "off_mode_mass": "off-mode mass",
    "sliced_w2": "sliced W2",
    "log_z_error": "log Z error",
    "path_kl": "path-KL",
    "ess": "ESS",
    "seconds": "seconds",
}


class Finished(NamedTuple):
    """What a finished run hands on: its domain, its summary, and the exact set it was compared with."""

    domain: Domain
    summary: dict
    exact: Exact


def variations(config: ConfigDict) -> dict[str, ConfigDict]:
    """The configs to run, by name."""
    configs = {}
    for name, changes in config.compare.runs:
        one = config.copy_and_resolve_references()
        with one.unlocked():
            one.compare = ConfigDict()
            one.update_from_flattened_dict(dict(changes))
        configs[name] = one
    return configs


def slug(name: str) -> str:
    """A folder name."""
    return "".join(c if c.isalnum() or c == "." else "-" for c in name.lower()).replace("--", "-").strip("-")


def run(config: ConfigDict, workdir: Path, execute: Callable[[ConfigDict, Path], Finished]) -> str:
    """Runs what has not finished, then writes ``comparison.json``, ``comparison.md`` and ``figure.png``.

    Args:
      config: with ``compare.runs``.
      workdir: each variation gets a folder in it.
      execute: trains and evaluates one config in one folder, or reads what it left there.
    """
    rows, panels = {}, {}
    for name, one in variations(config).items():
        print(f"== {name}")
        done = execute(one, workdir / slug(name))
        exact = done.exact.samples[: len(done.exact.samples) // 2]
        if not panels and len(exact):
            panels["exact posterior"] = exact
            rows["exact, a second set"] = done.summary["metrics"]["exact"]
        rows[name] = row(done.summary)
        with np.load(workdir / slug(name) / "samples.npz") as file:
            panels[name] = file["x"].astype(np.float32)
    records.write_json(workdir / "comparison.json", rows)
    text = table(rows)
    (workdir / "comparison.md").write_text(text)
    done.domain.plot(workdir / "figure.png", panels)
    return text


def row(summary: dict) -> dict:
    """One run's numbers by column."""
    c = summary["certificate"]
    return summary["metrics"]["rtb"] | {
        "log_z_error": None if c["log_z_reference"] is None else c["log_z_is"] - c["log_z_reference"],
        "path_kl": c["path_kl"],
        "ess": c["ess"],
        "seconds": summary["seconds"]["train"],
    }


def table(rows: dict[str, dict]) -> str:
    """Markdown."""
    lines = ["| method | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, values in rows.items():
        cells = [values.get(column) for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join("" if v is None else f"{v:.3g}" for v in cells) + " |")
    return "\n".join(lines) + "\n"
