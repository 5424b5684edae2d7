"""Methods by labels by seeds, each cell a run in its own folder, and their table beside published numbers."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import compare, evaluate, hosts, markdown, records, settings
from experiments.compare import Execute, Finished, slug
from experiments.errors import ConfigError
from experiments.files import replacing
from experiments.finite import Diverged

Row = dict[str, float | str | None]
# By what a row calls them; the last two are seconds of this machine, compilation of the first batch left out.
COLUMNS = {
    "log_reward": "E[log r]",
    "accuracy": "accuracy",
    "diversity": "diversity",
    "frechet_to_exact": "Fréchet to exact",
    "c2st": "C2ST",
    "log_z_error": "log Z error",
    "path_kl": "path-KL",
    "ess": "ESS",
    "train_seconds": "training, s",
    "sample_seconds": "s a sample",
}
SHOWN = {"prior": "prior", "exact": "exact (rejection)"}  # Rows that every run brings along.


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
      name: as in ``table.methods`` and of its folder.
      title: as it is printed.
      after: the method whose finished posterior it starts from, or "".
      changes: of the config, ``(field, value)``.
    """

    name: str
    title: str
    after: str
    changes: tuple[tuple[str, Any], ...]


def chosen(config: ConfigDict) -> list[Method]:
    """The methods of ``table.runs`` that ``table.methods`` names, all if it is empty.

    Raises:
      ConfigError: it names one that does not exist, or not the one that another starts from; or nothing is to be run,
        or a seed is no whole number.
    """
    methods = [Method(name, title, after, tuple(changes)) for name, title, after, changes in config.table.runs]
    names = [method.name for method in methods]
    wanted = tuple(config.table.methods) or tuple(names)
    for name in wanted:
        if name not in names:
            raise ConfigError(f"config.table.methods must be of {', '.join(names)}, got {name!r}.")
    kept = [method for method in methods if method.name in wanted]
    for method in kept:
        if method.after and method.after not in wanted:
            raise ConfigError(f"config.table.methods must hold {method.after!r} too: {method.name!r} starts from it.")
    for field in ("labels", "seeds"):
        if not settings.get(config, f"table.{field}"):
            raise ConfigError(f"config.table.{field} must not be empty.")
    for seed in config.table.seeds:
        if type(seed) is not int:
            raise ConfigError(f"config.table.seeds must be whole numbers, got {seed!r}.")
    return kept


def cell(config: ConfigDict, method: Method, label: str, seed: int, workdir: Path) -> tuple[ConfigDict, Path]:
    """The config of one run of the table, and its folder."""
    changes = {"seed": seed, "reward.label": label} | dict(method.changes)
    if method.after:
        # In full: paths in a config are relative to the repository, a workdir is to the current folder.
        start = folder(workdir, method.after, label, seed) / "final_params.safetensors"
        changes["posterior.start"] = str(start.resolve())
    return compare.changed(config, changes), folder(workdir, method.name, label, seed)


def folder(workdir: Path, name: str, label: str, seed: int) -> Path:
    return workdir / slug(name) / label / f"seed-{seed}"


def run(
    config: ConfigDict,
    workdir: Path,
    execute: Execute,
    mode: str,
    check: Callable[[ConfigDict], Any],
) -> str:
    """Runs what has not finished, class by class, then writes ``table.md``, ``table.json``, ``samples-LABEL.png``.

    The table is written anew after every cell, from what there is. ``table.labels``, ``table.seeds`` and
    ``table.methods`` may change between two runs of one workdir: they say what is done this time.

    Args:
      config: with ``table.runs``, ``table.methods``, ``table.labels``, ``table.seeds``, ``table.published``.
      workdir: see `folder`.
      execute: trains and evaluates one config in one folder, or reads what it left there.
      mode: ``train``, or ``evaluate`` to evaluate each anew.
      check: raises if the domain of a config cannot be built; asked once for each label.

    A cell that diverges stays empty, and so do those that start from it.

    Raises:
      ConfigError: a field of any cell, or a label, before the first one runs.
    """
    methods = chosen(config)
    labels, seeds = [str(label) for label in config.table.labels], list(config.table.seeds)
    for method in methods:
        settings.check(cell(config, method, labels[0], seeds[0], workdir)[0])
    for label in labels:
        check(cell(config, methods[0], label, seeds[0], workdir)[0])
    with records.held(workdir, config.to_dict() | {"table": {}}, mode):
        return fill(config, methods, labels, seeds, workdir, execute, mode)


def fill(
    config: ConfigDict,
    methods: list[Method],
    labels: list[str],
    seeds: list[int],
    workdir: Path,
    execute: Execute,
    mode: str,
) -> str:
    rows: dict[str, dict[str, dict[int, Row]]] = {}
    text, count, total = "", 0, len(labels) * len(seeds) * len(methods)
    for label in labels:
        done = readable = None
        for seed in seeds:
            for method in methods:
                count += 1
                hosts.say(f"== {count} of {total}: {method.title}, {label}, seed {seed}")
                one, place = cell(config, method, label, seed, workdir)
                summary = finished(one, place) if mode == "train" else None
                if summary is None and not (method.after and not rows[method.after][label][seed]):
                    try:
                        done = execute(one, place, mode)
                        summary = done.summary
                    except Diverged as error:  # A result, too.
                        hosts.say(f"{method.title} diverged: {error}")
                    jax.clear_caches()  # What one cell compiled no other uses.
                readable = readable if summary is None else (one, place)
                found = {method.name: {}} if summary is None else rows_of(summary, method.name)
                for name, row in found.items():
                    rows.setdefault(name, {}).setdefault(label, {})[seed] = row
                text = write(config, methods, rows, workdir)
        # Of a run that is only read if none of them was made now: its domain knows how to plot, and the exact set.
        if readable:
            sampled = [method for method in methods if rows[method.name][label][seeds[0]]]
            show(done or execute(*readable, mode), sampled, label, seeds[0], workdir)
    return text


def finished(config: ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """The summary of a cell that is done, read without building anything."""
    return evaluate.finished(workdir) if records.confirm(workdir, config.to_dict()) else None


def rows_of(summary: dict, name: str) -> dict[str, Row]:
    """The row of a method's run, and those of the prior and of exact samples, by name."""
    c, metrics, seconds = summary["certificate"], summary["metrics"], summary["seconds"]
    known = {name: metrics[name] for name in SHOWN if name in metrics}
    rows: dict[str, Row] = {key: {column: of.get(column) for column in COLUMNS} for key, of in known.items()}
    if "prior" in rows:
        rows["prior"] |= {"ess": metrics["prior_ess"], "sample_seconds": seconds["prior_sample"]}
    if "exact" in rows:  # r is at most 1: rejection takes 1 / Z prior samples for each of its own.
        rows["exact"]["sample_seconds"] = seconds["prior_sample"] * float(np.exp(-c["log_z_reference"]))
    rows[name] = compare.judged(summary) | {
        "reason": c["reason"] if c["verdict"] is None else None,
        "train_seconds": seconds["train"] if summary["steps"] else None,
        "sample_seconds": seconds["sample"],
    }
    return rows


def statistics(cells: dict[str, dict[int, Row]]) -> dict[str, dict[str, float | int | None]]:
    """Mean and spread of every column over the cells of one method, by label and seed.

    Returns:
      For each column ``mean``, of the labels' means over seeds; ``std_labels``, the standard deviation of these; and
      ``std_seeds``, that of the means over labels of each seed, over the seeds that every label has. None for what
      needs more than there is.
    """

    def of(column: str) -> dict[str, float | int | None]:
        known: dict[str, dict[int, float]] = {
            label: {seed: float(row[column]) for seed, row in runs.items() if row.get(column) is not None}
            for label, runs in cells.items()
        }
        of_labels = [float(np.mean(list(runs.values()))) for runs in known.values() if runs]
        common = sorted(set.intersection(*(set(runs) for runs in known.values())))
        of_seeds = [float(np.mean([runs[seed] for runs in known.values()])) for seed in common]
        return {
            "mean": float(np.mean(of_labels)) if of_labels else None,
            "std_labels": compare.spread(of_labels),
            "std_seeds": compare.spread(of_seeds),
            "labels": len(of_labels),
            "seeds": len(of_seeds),
        }

    return {column: of(column) for column in COLUMNS}


def write(config: ConfigDict, methods: list[Method], rows: dict, workdir: Path) -> str:
    """``table.json`` and ``table.md``; returns the latter's text."""
    titles = SHOWN | {method.name: method.title for method in methods}
    ordered = [name for name in titles if name in rows]
    means = {name: statistics(rows[name]) for name in ordered}
    published = config.table.published.to_dict()
    every = {
        name: {"title": titles[name], **means[name], "published": published["rows"].get(name), "cells": rows[name]}
        for name in ordered
    }
    text = written(titles, means, rows, published)
    records.write_table(workdir, "table", {"published_source": published["source"], "methods": every}, text)
    return text


def written(titles: dict[str, str], means: dict, rows: dict, published: dict) -> str:
    """The means with their spread across labels and, in brackets, across seeds; then what they are of."""
    lines = markdown.head(["method", *COLUMNS.values(), *(f"published {column}" for column in published["columns"])])
    for name, found in means.items():
        theirs = published["rows"].get(name, [""] * len(published["columns"]))
        lines.append(markdown.line([titles[name], *map(shown, found.values()), *theirs]))
    cells = {name: {f"{c}, seed {s}": row for c, of in rows[name].items() for s, row in of.items()} for name in means}
    of = "runs: " + ", ".join(f"{titles[name]} {sum(map(bool, runs.values()))}" for name, runs in cells.items())
    reasons = {titles[name]: r["reason"] for name, runs in cells.items() for r in runs.values() if r.get("reason")}
    lost = {titles[name]: [where for where, row in runs.items() if not row] for name, runs in cells.items()}
    notes = ["mean ± standard deviation across labels (± across seeds)", of]
    notes += ["exact samples, and the log Z by rejection, are of one set for all seeds"]
    notes += [f"published: {published['source']}"] if published["rows"] else []
    notes += [f"no certificate of {title}: {reason}" for title, reason in reasons.items()]
    notes += [f"{title} diverged and has no numbers: {'; '.join(where)}" for title, where in lost.items() if where]
    return "\n".join([*lines, "", *(f"- {note}." for note in notes)]) + "\n"


def shown(value: dict) -> str:
    """A dash where a number does not exist."""
    if value["mean"] is None:
        return "–"
    across = "" if value["std_labels"] is None else f" ± {value['std_labels']:.2g}"
    return f"{value['mean']:.3g}{across}" + ("" if value["std_seeds"] is None else f" (± {value['std_seeds']:.2g})")


def show(done: Finished, methods: list[Method], label: str, seed: int, workdir: Path) -> None:
    """``samples-LABEL.png``: the first samples of the prior, of the exact posterior and of every method."""
    panels = {}
    for method in methods:
        with np.load(folder(workdir, method.name, label, seed) / "samples.npz") as file:
            panels = panels or {"prior": file["prior"], "exact": done.domain.shown(done.exact().first())}
            panels[method.title] = file["x"]
    with replacing(workdir / f"samples-{label}.png") as partial:
        done.domain.plot(partial, panels)
