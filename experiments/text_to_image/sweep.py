"""Reward against diversity: ``configs/text_to_image.py:sweep``, the shape of the paper's table H.1.

RTB at several beta, DPOK at several weights of its KL, DDPO, which has none, and the prior; where rejection gives exact
samples, those of each beta show where RTB's points belong.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import compare, hosts, records
from experiments.files import replacing
from experiments.finite import Diverged
from experiments.markdown import head, line
from experiments.plots import plt, save

METHODS = {"rtb": "RTB", "dpok": "DPOK", "ddpo": "DDPO"}  # By objective.loss.
EXACT, PRIOR = "exact", "prior"
COLUMNS = {
    "log_reward": "mean log r",
    "diversity": "diversity",
    "accuracy": "accuracy",
    "path_kl": "path-KL",
    "ess": "ESS",
    "verdict": "verdict",
    "seconds": "seconds",
}
# Table H.1, verbatim: ImageReward and diversity for "A green colored rabbit", one seed, of Stable Diffusion 1.5. Its
# log-probabilities are means over 16,384 numbers, so that its beta are other ones than ours.
PAPER = {
    "prior": ("-0.113", "0.597"),
    "DPOK, beta 0.01": ("-0.27", "0.1488"),
    "DPOK, beta 0.1": ("-0.06", "0.1486"),
    "DPOK, beta 1": ("0.638", "0.1362"),
    "DPOK, beta 10": ("1.492", "0.076"),
    "DDPO": ("1.795", "0.0493"),
    "RTB, beta 0.01": ("0.485", "0.1431"),
    "RTB, beta 0.1": ("1.525", "0.0721"),
    "RTB, beta 1": ("1.756", "0.0436"),
    "RTB, beta 10": ("1.568", "0.0689"),
}
Row = dict[str, Any]


def collect(config: ConfigDict, workdir: Path, execute: compare.Execute, mode: str) -> str:
    """Fills the rows; after each writes ``comparison.json``, ``comparison.md`` and ``figure.png``. See `compare.run`.

    Exact samples of a beta are a row of their own, once. What diverges has a row, and no point in the figure.
    """
    rows: dict[str, Row] = {}
    text = ""
    for name, one in compare.variations(config).items():
        hosts.say(f"== {name}")
        beta = one.objective.beta
        try:
            summary = execute(one, workdir / compare.slug(name), mode).summary
        except Diverged as error:
            found = compare.diverged(name, error)
        else:
            found, metrics = compare.row(summary), summary["metrics"]
            rows.setdefault(PRIOR, {"method": PRIOR, "beta": 0.0} | metrics["prior"])
            if "exact" in metrics:
                rows.setdefault(f"exact, beta {beta:g}", {"method": EXACT, "beta": beta} | metrics["exact"])
        rows[name] = {"method": METHODS[one.objective.loss], "beta": strength(one)} | found
        text = table(rows)
        records.write_table(workdir, "comparison", rows, text)
        with replacing(workdir / "figure.png") as partial:
            plot(partial, rows)
    return text


def strength(config: ConfigDict) -> float | None:
    """What the reward weighs beside the KL to the prior; None where there is no KL."""
    if config.objective.loss == "rtb":
        return config.objective.beta
    return 1.0 / config.objective.alpha if config.objective.alpha else None


def curves(rows: dict[str, Row]) -> dict[str, list[Row]]:
    """The rows of each method that have numbers, from the weakest reward to the strongest."""
    found: dict[str, list[Row]] = {}
    for row in rows.values():
        if "log_reward" not in row:
            continue
        found.setdefault(row["method"], []).append(row)
    return {method: sorted(of, key=lambda row: row["beta"] or 0.0) for method, of in found.items()}


def table(rows: dict[str, Row]) -> str:
    """Markdown, the paper's numbers at the end of each line that it has."""
    lines = head(["method", *COLUMNS.values(), "paper's ImageReward", "paper's diversity"])
    for name, row in rows.items():
        ours = [compare.cell(row.get(column)) for column in COLUMNS]
        lines.append(line([name, *ours, *PAPER.get(name, ("", ""))]))
    note = "The paper's numbers are of another model and reward, and its beta are other ones: compare shapes."
    return "\n".join([*lines, "", note]) + "\n"


def plot(path: Path, rows: dict[str, Row]) -> None:
    """Mean log r over diversity, a line for each method with its beta at the points."""
    figure, axis = plt.subplots(figsize=(6.4, 4.8))
    for method, of in curves(rows).items():
        x, y = ([row[name] for row in of] for name in ("diversity", "log_reward"))
        axis.plot(x, y, "*-" if method == PRIOR else "o--" if method == EXACT else "o-", label=method)
        for row, *point in zip(of, x, y, strict=True):
            if row["beta"]:
                axis.annotate(f"{row['beta']:g}", point, xytext=(4, 4), textcoords="offset points", fontsize=7)
    axis.set_xlabel("diversity: mean cosine distance of pairs")
    axis.set_ylabel("mean log r")
    axis.set_title("numbers: beta, of DPOK one over the KL's weight", fontsize=9)
    axis.legend()
    save(path, figure)
