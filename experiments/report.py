"""``report.html``: what was asked, what came out, how far it can be trusted, and how to get it again, on one page.

It is made of what lies in the workdir and asks for nothing else. Every number of ``summary.json`` is on it, under its
name there (`pages.number`); where there is none, the page says why.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments import charts, findings, hosts, pages, records
from experiments.files import replacing
from experiments.pages import Html, tag

# What metrics.jsonl has of a step, in the order of the page.
CURVES = {
    "loss": "mean over the batch",
    "residual": "root mean square of log Z - gap, in nats; 0 at the posterior",
    "log_z": "what the gaps are balanced against",
    "elbo": "mean log-weight of the posterior's own paths; at most log Z",
    "ess": "effective share of the posterior's own paths",
    "log_reward": "mean log r of the posterior's own samples",
    "grad_norm": "of the gradient, before clipping",
    "parity": "largest difference of a path's log-ratio when it is scored again, in nats",
}
OWN_PATHS = ("elbo", "ess", "log_reward")
SECONDS = {
    "total": "the whole command, all sittings together",
    "train": "the training loop and what precedes its first step",
    "compile": "of the total, tracing and compiling, in the last sitting",
    "first_step": "from the start of the last command to its first step",
    "sample": "of one sample of the posterior, compilation left out",
    "prior_sample": "of one sample of the prior, likewise",
}
# Settings of patience with a reward, which are no part of what it is.
PATIENCE = ("retries", "retry_seconds", "timeout")


def write(workdir: Path, config: dict[str, Any], summary: dict[str, Any], about: str) -> None:
    """Writes ``report.html`` beside the ``metrics.jsonl`` and ``samples.png`` that it shows.

    Args:
      workdir: of the run.
      config: as in ``config.json``.
      summary: as in ``summary.json``.
      about: what prior and reward are, as the docstring of a domain says it.

    Raises:
      WriteError: see `experiments.files.replacing`.
    """
    if not hosts.is_first():
        return
    certificate = summary["certificate"]
    text = pages.page(
        f"{summary['domain']}: {certificate['verdict'] or 'no certificate'}",
        tag("h1", f"{summary['domain']}: is it the posterior?"),
        findings.verdict(certificate),
        pages.section("The question", *question(config, summary, about)),
        pages.section("Samples", pages.scrolling(pages.picture((workdir / "samples.png").read_bytes(), "Set by set"))),
        pages.section("The certificate", *findings.of_certificate(certificate)),
        pages.section("Metrics", *findings.of_metrics(summary["metrics"])),
        pages.section("Training", *trained(records.read_metrics(workdir / "metrics.jsonl"), config, summary)),
        pages.section("Time", pages.facts(timed(summary))),
        pages.section("How to get it again", *again(config, summary)),
    )
    with replacing(workdir / "report.html") as partial:
        partial.write_text(text, encoding="utf-8")


def question(config: dict[str, Any], summary: dict[str, Any], about: str) -> Iterator[Html]:
    """The posterior that was asked for."""
    beta = config["objective"]["beta"]
    conditions = summary["certificate"].get("per_condition")
    yield tag("p", "Samples are asked of p(x) r(x)", tag("sup", "β"), " / Z, with β = ", pages.shown(beta), ".")
    paragraphs = about.replace("``", "").split("\n\n")
    yield from (tag("p", " ".join(paragraph.split())) for paragraph in paragraphs if paragraph.strip())
    reward = {name: found for name, found in (config.get("reward") or {}).items() if name not in PATIENCE}
    settings = "; ".join(f"{name} = {pages.literal(found)}" for name, found in records.flatten(reward).items())
    yield pages.facts(
        [
            ("Prior p", f"a chain of {config['process']['num_steps']} steps; data: {summary['data_source']}"),
            *([("Settings of r", tag("code", settings))] if settings else []),
            ("Posteriors", f"{len(conditions)}, one for each condition" if conditions else "one"),
        ]
    )


def trained(lines: list[dict[str, Any]], config: dict[str, Any], summary: dict[str, Any]) -> Iterator[Html]:
    """Curves of what was logged."""
    skipped = tag("span", " Steps skipped: ", findings.value(summary.get("skipped"), "skipped"), ".")
    yield tag("p", "Steps: ", findings.value(summary["steps"], "steps"), ".", skipped)
    if not lines:
        yield tag("p", "No training step was logged.", class_="reason")
        return
    if warmup := config["objective"].get("beta_warmup"):
        told = (
            f"In the first {warmup:,} steps β rose to its value: loss, residual, log Z, ELBO and ESS of a step are of "
        )
        yield tag("p", told + "the posterior at the β that was reached.")
    drawn = {name: charts.curves(name, [lines]) for name in CURVES}
    yield tag("div", *(pages.chart(svg, name, CURVES[name]) for name, svg in drawn.items() if svg), class_="charts")
    missing = [name for name, svg in drawn.items() if not svg]
    if missing:
        why = "exploration lasted to the last step" if set(missing) <= set(OWN_PATHS) else "no step had a finite one"
        yield tag("p", f"Not logged: {', '.join(missing)}; {why}.", class_="reason")


def timed(summary: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Seconds, in words."""
    for name, words in SECONDS.items():
        seconds = summary["seconds"].get(name)
        yield (
            name.replace("_", " "),
            findings.value(seconds, f"seconds.{name}"),
            "" if seconds is None else f" s: {words}",
        )
    yield "finished", summary["finished"]


def again(config: dict[str, Any], summary: dict[str, Any]) -> Iterator[Html]:
    """Command, code and machine, and the whole configuration."""
    origin = summary.get("provenance") or {}
    if origin.get("command"):
        yield tag("p", "In the repository, with another --workdir, for this run is finished:")
        yield tag("pre", tag("code", origin["command"]))
    else:
        yield tag("p", "The command is not known; config.json, which is also below, has every setting.")
    if origin.get("evaluated_by"):
        yield tag("p", "Certificate, metrics and samples are of a later evaluation:")
        yield tag("pre", tag("code", origin["evaluated_by"]))
    packages = ", ".join(f"{name} {version}" for name, version in (origin.get("packages") or {}).items())
    yield pages.facts(
        [
            ("Commit", origin.get("commit") or "not known"),
            ("Python", origin.get("python") or "not known"),
            ("Packages", packages or "not known"),
            ("Devices", origin.get("devices") or "not known"),
        ]
    )
    flat = records.flatten(config).items()
    yield pages.folded(
        "Configuration", pages.table(["field", "value"], ([name, pages.literal(found)] for name, found in flat))
    )
