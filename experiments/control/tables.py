"""Tables over data sets and seeds: ``configs/d4rl.py:table4``, ``:online_vs_mixed`` and ``:alpha_sweep``.

A cell is a data set and a seed: behaviour prior, values and baselines are made, RTB is run in each of the table's
variations, and all of them are played. What is finished is not done again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import compare, hosts, records, weights
from experiments.compare import DIVERGED
from experiments.control import baselines, networks, play, published, reference
from experiments.domains import control
from experiments.errors import ConfigError
from experiments.finite import Diverged
from experiments.markdown import head, line
from experiments.settings import get

EMBEDDED = "hopper-medium-replay"
LABELS = {"bc": "BC", "idql": "IDQL"} | {name: b.label for name, b in baselines.BASELINES.items()} | published.QUOTED


def check(config: ConfigDict) -> None:
    """Raises a ConfigError on a field of ``compare`` that is not allowed."""
    settings: Any = config.compare
    for name in ("seeds", "episodes", "candidates"):
        if settings[name] < 1:
            raise ConfigError(f"config.compare.{name} must be at least 1, got {settings[name]}.")
    if settings.alpha < 0:
        raise ConfigError(f"config.compare.alpha must be at least 0, got {settings.alpha}.")
    if config.reward.alpha:
        raise ConfigError(
            "config.reward.alpha is not read by a table: config.compare.alpha sets that of all its data sets, and 0 "
            "leaves each the paper's."
        )


def find(folder: str, name: str) -> str | None:
    """The file of a data set in a folder, by its name, also as D4RL writes it (``hopper_medium-v2.hdf5``).

    The embedded set for "", and None where there is none.

    Raises:
      ConfigError: the folder is none, or has two files of that name.
    """
    if not folder:
        return "" if name == EMBEDDED else None
    place = weights.locate(folder)
    if not place.is_dir():
        raise ConfigError(f"config.data.path must be a folder of data sets here, or empty, got {folder}.")
    files = [p for p in sorted(place.iterdir()) if p.suffix in (".npz", ".hdf5", ".h5")]
    found = [p for p in files if p.stem.replace("_", "-").removesuffix("-v2") == name]
    if len(found) > 1:
        raise ConfigError(f"{folder} has {len(found)} files of {name}: {', '.join(p.name for p in found)}.")
    return str(found[0].resolve()) if found else None


def collect(config: ConfigDict, workdir: Path, execute: Callable, mode: str) -> str:
    """Fills the cells, and after each writes ``comparison.json`` and ``comparison.md``; see `compare.run`.

    A run that diverges has no scores, and the table says so.

    Raises:
      UserError: a field of ``compare`` is not allowed, or a cell cannot be made.
    """
    check(config)
    there = {name: find(config.data.path, name) for name, _ in config.compare.sets}
    if all(path is None for path in there.values()):
        raise ConfigError(f"config.data.path has none of {', '.join(there)}.")
    found, text = {}, ""
    left_out = [name for name, path in there.items() if path is None]
    for name, changes in config.compare.sets:
        if there[name] is not None:
            cells = []
            for seed in range(config.compare.seeds):
                hosts.say(f"== {name}, seed {seed}")
                # Between a set's own alpha and a run's.
                every = {"reward.alpha": config.compare.alpha} if config.compare.alpha else {}
                one = compare.changed(config, dict(changes) | every | {"seed": seed, "data.path": there[name]})
                cells.append(cell(config, one, workdir / name / f"seed-{seed}", execute, mode))
                found[name] = gathered(cells)
                result = {"sets": found, "left out": left_out, "paper": published.TABLES[config.compare.table]}
                text = table(result)
                records.write_table(workdir, "comparison", result, text)
    return text


def cell(config: ConfigDict, one: ConfigDict, folder: Path, execute: Callable, mode: str) -> dict:
    """``{"played": {policy: ...}, "runs": {run: summary}}`` of one data set and one seed.

    Args:
      config: with the table's settings, in ``compare``.
      one: of this cell.
      folder: of all its parts.
      execute: trains and evaluates one config in one folder, or reads what it left there.
      mode: ``train``, or ``evaluate`` to evaluate and play each anew.
    """
    settings: Any = config.compare
    for what, field in networks.FIELDS.items():
        if not get(one, field):
            one = compare.changed(one, {field: str(pretrained(one, folder, what))})
    for what in settings.policies:
        pretrained(one, folder, what)
    runs, summaries = {}, {}
    for name, changes in settings.runs:
        place, varied = folder / compare.slug(name), compare.changed(one, dict(changes))
        try:
            found = execute(varied, place, mode).summary
            runs[name] = place
        except Diverged as error:
            found = compare.diverged(name, error)
        summaries[name] = {"alpha": varied.reward.alpha, **found}
    path = folder / "scores.json"
    played = (None if mode == "evaluate" else records.read_json(path, "delete it to play again")) or {}
    for name, actor in play.actors(one, runs, folder / "pretrain", settings.candidates).items():
        if name not in played:
            played[name] = play.episodes_of(actor, networks.task_of(one), settings.episodes, one.seed)
            records.write_json(path, played)
    return {"played": played, "runs": summaries}


def pretrained(config: ConfigDict, folder: Path, what: str) -> Path:
    """The weights of a prior, of values or of a baseline, made if they are not there."""
    place = (folder / "pretrain" / what).resolve()
    path = baselines.weights_file(config, place, what)
    if not path.exists():
        one = compare.changed(config, {"pretrain.what": what})
        with records.claimed(place, one.to_dict()):
            control.pretrain(one, place)
    return path


def gathered(cells: list[dict]) -> dict:
    """One data set over its seeds; a run that diverged counts in no number."""
    names = dict.fromkeys(name for one in cells for name in one["played"])
    policies = {name: play.summary([one["played"][name] for one in cells if name in one["played"]]) for name in names}
    runs = {}
    for name, first in cells[0]["runs"].items():
        of_seeds = [one["runs"][name] for one in cells]
        each = [s for s in of_seeds if s.get("verdict") != DIVERGED]
        runs[name] = {
            "alpha": first["alpha"],
            "path_kl": mean_of([path_kl(s) for s in each]),
            "ess": mean_of([s["certificate"]["ess"] for s in each]),
            "q_minus_prior": mean_of([s["metrics"]["rtb"]["q"] - s["metrics"]["prior"]["q"] for s in each]),
            "q_minus_reference": mean_of([s["metrics"]["rtb"]["q_minus_reference"] for s in each]),
            "trusted": mean_of([s["metrics"]["reference"]["trusted"] for s in each]),
            "seconds": mean_of([s["seconds"]["train"] for s in each]),
            "verdicts": [s["certificate"]["verdict"] if s in each else DIVERGED for s in of_seeds],
        }
    return {"seeds": len(cells), "policies": policies, "runs": runs}


def path_kl(summary: dict) -> float | None:
    """Mean over the states whose reference counts: it is the difference from that reference's log Z."""
    states = summary["metrics"]["states"]
    counted = [
        one["path_kl"]
        for one in summary["certificate"]["per_condition"]
        if states[one["condition"]]["reference_ess"] >= reference.MIN_ESS
    ]
    return float(np.mean(counted)) if counted else None


def mean_of(values: list) -> float | None:
    return None if None in values or not values else float(np.mean(values))


def table(result: dict) -> str:
    """Markdown: scores, ours above the paper's; then what the certificates say of RTB."""
    names = list(dict.fromkeys(name for found in result["sets"].values() for name in found["policies"]))
    names += [name for name in published.QUOTED if any(name in row for row in result["paper"].values())]
    lines = ["D4RL-normalised scores: mean (95 % bootstrap interval).", ""]
    lines += head(["set", "seeds", *(LABELS.get(name, name) for name in names)])
    for name, found in result["sets"].items():
        lines.append(line([name, str(found["seeds"]), *(score(found["policies"].get(policy)) for policy in names)]))
        if name in result["paper"]:
            paper = result["paper"][name]
            lines.append(line(["the paper, D4RL v2", "", *(paper.get(policy, "") for policy in names)]))
    lines.append(line(["ms an action", "", *(latency(result["sets"], policy) for policy in names)]))
    columns = ("alpha", "path-KL", "ESS", "Q over the prior's", "Q - reference", "trusted", "seconds", "verdicts")
    told = "RTB in recorded states, means over seeds; path-KL and Q - reference where the reference is trusted."
    lines += ["", told, "", *head(["set", "run", *columns])]
    for name, found in result["sets"].items():
        for run, values in found["runs"].items():
            verdicts = ", ".join(sorted(set(values["verdicts"])))
            numbers = (compare.cell(value) for field, value in values.items() if field != "verdicts")
            lines.append(line([name, run, *numbers, verdicts]))
    for name, found in result["sets"].items():
        for run, values in found["runs"].items():
            lost = [f"seed {seed}" for seed, verdict in enumerate(values["verdicts"]) if verdict == DIVERGED]
            if lost:
                lines += ["", f"{run} diverged on {name}, {', '.join(lost)}, and has no numbers of it."]
    if result["left out"]:
        lines += ["", f"No data for {', '.join(result['left out'])}."]
    return "\n".join(lines) + "\n"


def score(found: dict | None) -> str:
    if found is None:
        return ""
    spread = play.spread(found["interval"])
    return f"{found['score']:.1f} ({spread})" if spread else f"{found['score']:.1f}"


def latency(sets: dict, policy: str) -> str:
    found = [s["policies"][policy]["latency_ms"] for s in sets.values() if policy in s["policies"]]
    return compare.cell(float(np.median(found))) if found else ""
