"""Finished runs side by side, of whatever configs: ``python -m experiments.side_by_side RUN RUN ... --out=DIR``.

Writes ``side_by_side.md``, a table of certificates and metrics, and ``side_by_side.html``, which adds the curves of
training, laid over each other, the settings that differ and the samples. To run variations of one config and compare
them, see ``config.compare``.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from experiments import charts, evaluate, findings, pages, records
from experiments.compare import table
from experiments.errors import UserError
from experiments.files import replacing
from experiments.pages import Html, tag
from experiments.report import CURVES

CERTIFICATE = ("verdict", "path_kl", "path_kl_lower", "ess", "elbo", "eubo", "log_z_is", "log_z_reference", "pareto_k")


class Run(NamedTuple):
    """What a finished run left in its workdir."""

    name: str
    workdir: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    lines: list[dict[str, Any]]


def read(workdir: Path) -> Run:
    """A finished run.

    Raises:
      UserError: it has not finished, is damaged, or is none.
    """
    config = records.read_json(workdir / "config.json", "leave it out")
    summary = evaluate.finished(workdir)
    if config is None:
        raise UserError(f"{workdir} holds no run.")
    if summary is None:
        raise UserError(f"{workdir} holds a run that has not finished: let its command finish it, or leave it out.")
    return Run(str(workdir), workdir, config, summary, records.read_metrics(workdir / "metrics.jsonl"))


def numbers(run: Run) -> dict[str, Any]:
    """What a run is compared by: its certificate, times, and the metrics of its sets of samples, by name."""
    certificate, metrics = run.summary["certificate"], run.summary.get("metrics") or {}
    found = {name: certificate.get(name) for name in CERTIFICATE}
    found["seconds.train"] = (run.summary.get("seconds") or {}).get("train")
    flat = records.flatten({name: of for name, of in metrics.items() if not isinstance(of, list)})
    # What lies deeper is the share of a kind or of one condition.
    return found | {name: value for name, value in flat.items() if name.count(".") < 2}


def rows(runs: list[Run]) -> dict[str, dict[str, Any]]:
    """Each quantity that some run has, by run."""
    found = {run.name: numbers(run) for run in runs}
    names = dict.fromkeys(name for one in found.values() for name in one)
    return {name: {run: one[name] for run, one in found.items() if name in one} for name in names}


def differences(runs: list[Run]) -> dict[str, dict[str, Any]]:
    """Settings that are not the same in all runs, by run."""
    flat = {run.name: records.flatten(run.config) for run in runs}
    names = sorted({name for one in flat.values() for name in one})
    by_name = {name: {run: one.get(name) for run, one in flat.items()} for name in names}
    return {name: of for name, of in by_name.items() if any(value != of[runs[0].name] for value in of.values())}


def page(runs: list[Run]) -> str:
    """All of it as HTML."""
    names = [run.name for run in runs]
    drawn = {name: charts.curves(name, [run.lines for run in runs]) for name in CURVES}
    return pages.page(
        f"{len(runs)} runs side by side",
        tag("h1", f"{len(runs)} runs side by side"),
        charts.legend(names),
        pages.section("Certificates and metrics", _by_run(rows(runs), names, findings.value)),
        pages.section("Settings that differ", _by_run(differences(runs), names, lambda found, _: pages.literal(found))),
        pages.section(
            "Training",
            charts.legend(names),
            tag("div", *(pages.chart(svg, name, CURVES[name]) for name, svg in drawn.items() if svg), class_="charts"),
        ),
        pages.section("Samples", *(_samples(run) for run in runs)),
    )


def _by_run(found: dict[str, dict[str, Any]], names: list[str], cell: Callable[[Any, str], str]) -> Html:
    return pages.table(
        ["", *names],
        ([name, *(cell(of[run], name) if run in of else "" for run in names)] for name, of in found.items()),
    )


def _samples(run: Run) -> Html:
    try:
        picture = (run.workdir / "samples.png").read_bytes()
    except OSError as error:
        raise UserError(
            f"{run.workdir}/samples.png cannot be read ({error}); --mode=evaluate makes it anew."
        ) from error
    return tag("div", tag("h3", run.name), pages.scrolling(pages.picture(picture, f"Samples of {run.name}")))


def write(workdirs: list[Path], out: Path) -> str:
    """Writes both files and returns the table.

    Raises:
      UserError: fewer than two runs, one that is named twice or has not finished; or the system refuses to write.
    """
    if len(workdirs) < 2 or len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
        raise UserError("Side by side are at least two runs, each named once.")
    runs = [read(workdir) for workdir in workdirs]
    text = table(rows(runs), {run.name: run.name for run in runs}, corner="")
    html = page(runs)
    for name, content in (("side_by_side.md", text), ("side_by_side.html", html)):
        with replacing(out / name) as partial:
            partial.write_text(content, encoding="utf-8")
    return text


def main() -> None:
    logging.set_verbosity(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", type=Path, nargs="+", metavar="RUN", help="workdir of a finished run")
    parser.add_argument("--out", type=Path, required=True, help="folder for side_by_side.md and side_by_side.html")
    arguments = parser.parse_args()
    try:
        print(write(arguments.workdirs, arguments.out))
    except UserError as error:
        sys.exit(f"rtbjax: {error}")


if __name__ == "__main__":
    main()
