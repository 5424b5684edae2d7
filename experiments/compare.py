"""Several variations of one config, one after the other, then one table and one figure."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments import hosts, markdown, records
from experiments.domains.base import Domain
from experiments.exact import Exact
from experiments.files import replacing
from experiments.finite import Diverged

COLUMNS = {
    "mode_tv": "mode TV",
    "off_mode_mass": "off-mode mass",
    "sliced_w2": "sliced W2",
    "log_z_error": "log Z error",
    "path_kl": "path-KL",
    "ess": "ESS",
    "verdict": "verdict",
    "seconds": "seconds",
}
DIVERGED = "diverged"  # In place of a certificate's verdict.
CRITERION = "sliced_w2"  # Smallest to the exact set: the best of several values of a setting.


class Finished(NamedTuple):
    """What a finished run hands on: its domain, its summary, and a way to the exact set it was compared with."""

    domain: Domain
    summary: dict
    exact: Callable[[], Exact]


def variations(config: ConfigDict) -> dict[str, ConfigDict]:
    """The configs to run, by name."""
    return {name: changed(config, dict(changes)) for name, changes in config.compare.runs}


def changed(config: ConfigDict, changes: dict) -> ConfigDict:
    """A run of its own with other fields, by their dotted names."""
    one = config.copy_and_resolve_references()
    with one.unlocked():
        one.compare, one.table = ConfigDict(), ConfigDict()
        one.update_from_flattened_dict(changes)
    return one


def slug(name: str) -> str:
    """A folder name."""
    return "".join(c if c.isalnum() or c == "." else "-" for c in name.lower()).replace("--", "-").strip("-")


Execute = Callable[[ConfigDict, Path, str], Finished]


def run(
    config: ConfigDict,
    workdir: Path,
    execute: Execute,
    mode: str,
    check: Callable[[ConfigDict], Any],
    collect: Callable | None = None,
) -> str:
    """Runs what has not finished, then writes ``comparison.json``, ``comparison.md`` and what else belongs to it.

    Args:
      config: with ``compare.runs`` and ``compare.tuned``, the names of those that differ in one setting that is to be
        chosen; the best of them by `CRITERION` is marked in the figure.
      workdir: each variation gets a folder in it.
      execute: trains and evaluates one config in one folder, or reads what it left there.
      mode: ``train``, or ``evaluate`` to evaluate each anew.
      check: raises if a config cannot be run; asked for each variation.
      collect: as `compare`, of a domain with tables of its own.

    Raises:
      ConfigError: a field of any variation, before the first one runs.
    """
    for one in variations(config).values():
        check(one)
    with records.held(workdir, config.to_dict(), mode):
        return (collect or compare)(config, workdir, execute, mode)


def compare(config: ConfigDict, workdir: Path, execute: Execute, mode: str) -> str:
    """One table and ``figure.png``; see `run`.

    Raises:
      Diverged: the first variation did. A later one that does gets a row that says so.
    """
    rows, panels = {}, {}
    every = variations(config)
    for count, (name, one) in enumerate(every.items(), start=1):
        hosts.say(f"== {count} of {len(every)}: {name}")
        try:
            done = execute(one, workdir / slug(name), mode)
        except Diverged as error:
            if not rows:
                raise
            rows[name] = diverged(name, error)
            continue
        with np.load(workdir / slug(name) / "samples.npz") as file:
            if not rows:
                panels = {"prior": file["prior"]}
                if (exact := done.exact()).samples.shape[1]:
                    panels["exact posterior"] = done.domain.shown(exact.first())
                rows = baselines(done.summary)
            panels[name] = file["x"]
        rows[name] = row(done.summary)
    tuned = [name for name in config.compare.get("tuned", ()) if CRITERION in rows[name]]
    best = min(tuned, key=lambda name: rows[name][CRITERION], default=None)
    text = table(rows)
    records.write_table(workdir, "comparison", rows, text)
    titles = {name: f"{name}\n(the best of its kind)" if name == best else name for name in panels}
    with replacing(workdir / "figure.png") as partial:
        done.domain.plot(partial, {titles[name]: x for name, x in panels.items()})
    return text


def baselines(summary: dict) -> dict[str, dict]:
    """The rows that are the same for all variations: the prior, and exact samples against exact samples."""
    metrics = summary["metrics"]
    rows = {"prior": metrics["prior"] | {"ess": metrics["prior_ess"]}} if "prior" in metrics else {}
    return rows | ({"exact, a second set": metrics["exact"]} if "exact" in metrics else {})


def row(summary: dict) -> dict:
    """One run's numbers by column."""
    return judged(summary) | {"seconds": summary["seconds"]["train"]}


def diverged(name: str, error: Diverged) -> dict:
    """Of a run that ended so, in place of its `row`; and it is said."""
    hosts.say(f"{name} diverged: {error}")
    return {"verdict": DIVERGED, "reason": str(error)}


def judged(summary: dict) -> dict:
    """The metrics of a run's posterior, and what its certificate says, None where it says nothing."""
    c = summary["certificate"]
    estimated = None not in (c["log_z_is"], c["log_z_reference"])
    return summary["metrics"]["rtb"] | {
        "log_z_error": c["log_z_is"] - c["log_z_reference"] if estimated else None,
        "path_kl": c["path_kl"],
        "ess": c["ess"],
        "verdict": c["verdict"],
    }


def table(rows: dict[str, dict], columns: dict[str, str] = COLUMNS, corner: str = "method") -> str:
    """Markdown: a line for each row, a column for each of ``columns``, which are titles by key."""
    lines = markdown.head([corner, *columns.values()])
    lines += [markdown.line([name, *(cell(values.get(column)) for column in columns)]) for name, values in rows.items()]
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> float | None:
    """The standard deviation, which a single value does not have."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def cell(value: float | str | None) -> str:
    if value is None:
        return ""
    return f"`{value}`" if isinstance(value, str) else f"{value:.3g}"
