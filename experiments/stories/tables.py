"""The table of ``configs/stories.py:table3``: infills of every method over seeds, beside table 3 of the paper.

RTB is run on the masked diffusion and on the language model for every seed; all other rows are sets of infills that
these runs draw. Models that learn from endings are made once. What is finished is not done again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments import compare, hosts, records
from experiments.compare import DIVERGED
from experiments.domains import stories
from experiments.errors import ConfigError
from experiments.finite import Diverged
from experiments.markdown import head, line
from experiments.settings import get
from experiments.stories import networks

DIFFUSION, LANGUAGE_MODEL = "diffusion", "language model"  # The runs in ``compare.runs``.
SUPERVISED = ("supervised", "supervised_autoregressive")


class Row(NamedTuple):
    """Attributes:
    title: as it is printed.
    run: whose set it is.
    set: of that run's metrics.
    paper: BLEU-4, GLEU-4 and BERTScore of the paper's table 3, verbatim; () where it has no such row.
    """

    title: str
    run: str
    set: str
    paper: tuple[str, ...] = ()


ROWS = (
    Row("language model, prompted", DIFFUSION, "autoregressive", (".010±.002", ".022±.001", ".005±.001")),
    Row("language model, supervised", DIFFUSION, "supervised_autoregressive", (".012±.001", ".023±.001", ".013±.002")),
    Row("language model, GFlowNet (RTB)", LANGUAGE_MODEL, "rtb", (".019±.001", ".031±.002", ".102±.005")),
    Row("diffusion, given x", DIFFUSION, "prior", (".011±.002", ".023±.002", ".014±.003")),
    Row("diffusion, given x and y", DIFFUSION, "clamped", (".014±.003", ".027±.003", ".092±.004")),
    Row("diffusion, best of several by log r", DIFFUSION, "best_of"),
    Row("diffusion, SMC", DIFFUSION, "smc"),
    Row("diffusion, RTB", DIFFUSION, "rtb", (".025±.002", ".045±.002", ".156±.003")),
    Row("diffusion, supervised", DIFFUSION, "supervised", (".031±.002", ".057±.004", ".182±.005")),
    Row("true p(z given x, y)", DIFFUSION, "grammar"),
)
PAPER = ("BLEU-4", "GLEU-4", "BERTScore")
COLUMNS = {
    "log_reward": "log r",
    "event_tv": "event TV",
    "no_event": "no event",
    "bleu": "BLEU-4",
    "gleu": "GLEU-4",
    "embedding_f1": "embedding F1",
    "bert_score": "BERTScore",
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
}
# Of each run and seed; the last two are of its posterior and of exact samples of what that was trained towards.
JUDGED = ("log_z_is", "log_z_reference", "path_kl", "ess", "verdict", "log_reward", "exact_log_reward")


def collect(config: ConfigDict, workdir: Path, execute: Callable, mode: str) -> str:
    """Fills the cells, run by run; see `compare.run`.

    ``comparison.json`` and ``comparison.md`` are written anew after every cell, from what there is. A seed that
    diverges has no infills, and its line says so.

    Raises:
      UserError: ``compare.seeds`` is below 1, or a cell cannot be made.
    """
    seeds = config.compare.seeds
    if seeds < 1:
        raise ConfigError(f"config.compare.seeds must be at least 1, got {seeds}.")
    learned = {networks.FIELDS[what]: str(pretrained(config, workdir, what)) for what in SUPERVISED}
    cells: dict[str, list[dict]] = {DIFFUSION: [], LANGUAGE_MODEL: []}
    text = ""
    for name, one in compare.variations(config).items():
        for seed in range(seeds):
            hosts.say(f"== {name}, seed {seed}")
            changes = {"seed": seed} | (learned if name == DIFFUSION else {})
            place = workdir / compare.slug(name) / f"seed-{seed}"
            try:
                cells[name].append(execute(compare.changed(one, changes), place, mode).summary)
            except Diverged as error:
                cells[name].append(compare.diverged(f"{name}, seed {seed},", error))
            result = gathered(cells)
            text = table(result)
            records.write_table(workdir, "comparison", result, text)
    return text


def pretrained(config: ConfigDict, workdir: Path, what: str) -> Path:
    """The weights that the config names, or those in the workdir, made if they are not there."""
    if named := get(config, networks.FIELDS[what]):
        return Path(named)
    folder = (workdir / "pretrain" / what).resolve()
    path = folder / f"stories_{what}.safetensors"
    if not path.exists():
        one = compare.changed(config, {"pretrain.what": what})
        with records.claimed(folder, one.to_dict()):
            stories.pretrain(one, folder)
    return path


def gathered(cells: dict[str, list[dict]]) -> dict[str, Any]:
    """Of the summaries of each run, one for each seed: all rows, and how near each came to its target."""
    rows = {}
    for row in ROWS:
        of_seeds = [summary["metrics"].get(row.set, {}) for summary in cells[row.run] if "metrics" in summary]
        columns = [name for name in COLUMNS if of_seeds and all(values.get(name) is not None for values in of_seeds)]
        rows[row.title] = {name: over_seeds([values[name] for values in of_seeds]) for name in columns}
    return {"rows": rows, "runs": {name: list(map(judged, summaries)) for name, summaries in cells.items()}}


def judged(summary: dict) -> dict[str, Any]:
    """What `JUDGED` names; of a seed that diverged, that."""
    if "metrics" not in summary:
        return dict.fromkeys(JUDGED) | summary
    metrics = summary["metrics"]
    rewards = {
        "log_reward": metrics["rtb"]["log_reward"],
        "exact_log_reward": metrics.get("exact", {}).get("log_reward"),
    }
    found = summary["certificate"] | rewards
    return {name: found[name] for name in JUDGED}


def over_seeds(values: list[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "std": compare.spread(values), "seeds": values}


def table(result: dict[str, Any]) -> str:
    """Markdown: all rows beside the paper's, then how near each run came to its target."""
    kept = {name: title for name, title in COLUMNS.items() if any(name in row for row in result["rows"].values())}
    finished = {name: sum(run["verdict"] != DIVERGED for run in of_seeds) for name, of_seeds in result["runs"].items()}
    counts = " and ".join(f"{count} of the {name}" for name, count in finished.items())
    lines = [f"Mean ± standard deviation over seeds: {counts}. The paper's numbers are of another corpus.", ""]
    lines += head(["infills", *kept.values(), *(f"paper's {name}" for name in PAPER)])
    for row in ROWS:
        values = result["rows"][row.title]
        lines.append(line([row.title, *(shown(values.get(name)) for name in kept), *(row.paper or ("",) * len(PAPER))]))
    lines += ["", *head(["run", "seed", *JUDGED])]
    for name, of_seeds in result["runs"].items():
        for seed, values in enumerate(of_seeds):
            lines.append(line([name, str(seed), *(compare.cell(values[field]) for field in JUDGED)]))
    return "\n".join(lines) + "\n"


def shown(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    return f"{value['mean']:.3f}" + ("" if value["std"] is None else f" ± {value['std']:.3f}")
