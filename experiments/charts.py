"""Small charts of one or several runs, as SVG that a page can hold."""

import io
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from experiments.pages import Html, printable, tag
from experiments.plots import plt

COLOURS = ("#1f5fa8", "#d1690e", "#2c8a3f", "#a62b5b", "#6b4fb3", "#7a5c3a", "#0f8f8f", "#777777")
SIZE = (4.2, 2.5)  # Inches: on a telephone about as large as drawn.
LOGARITHMIC = 100.0  # A positive curve that spans so many times its smallest value has a logarithmic axis.
POINTS = 1000  # Of a curve; of longer ones every k-th is drawn.


def curves(name: str, runs: Sequence[Sequence[dict[str, Any]]]) -> bytes | None:
    """A logged quantity by step, a curve for each run's lines of ``metrics.jsonl``; None if there is not one number."""
    points = [_points(name, lines) for lines in runs]
    every = np.concatenate([values for _, values in points])
    if not len(every):
        return None
    figure, axis = _axes()
    for number, (steps, values) in enumerate(points):
        colour = COLOURS[number % len(COLOURS)]
        axis.plot(steps, values, color=colour, linewidth=1.2, marker="." if len(steps) < 10 else "")
    if every.min() > 0 and every.max() > LOGARITHMIC * every.min():
        axis.set_yscale("log")
    axis.set_xlabel("step")
    return _svg(figure)


def bars(shares: dict[str, dict[str, float]]) -> bytes:
    """Shares of the same kinds in several sets, by set, side by side."""
    kinds = list(next(iter(shares.values())))
    figure, axis = _axes()
    width = 0.8 / len(shares)
    for number, of_set in enumerate(shares.values()):
        left = np.arange(len(kinds)) + width * (number - (len(shares) - 1) / 2)
        axis.bar(left, [of_set[kind] for kind in kinds], width, color=COLOURS[number % len(COLOURS)])
    labels = [printable(kind) for kind in kinds]
    axis.set_xticks(np.arange(len(kinds)), labels, rotation=90 if len(kinds) > 10 else 0, parse_math=False)
    return _svg(figure)


def legend(names: Collection[str]) -> Html:
    """Whose colour is whose, for the charts of a page."""
    marks = [tag("span", "■", style=f"color:{COLOURS[i % len(COLOURS)]}") for i, _ in enumerate(names)]
    return tag("p", *(tag("span", mark, f" {name} ") for mark, name in zip(marks, names, strict=True)))


def _points(name: str, lines: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """``(steps, values)`` of a run where the quantity is a number; of more than `POINTS` every k-th, and the last."""
    found = np.array([(line["step"], line[name]) for line in lines if line.get(name) is not None], float)
    found = found.reshape(-1, 2)[::-1][:: -(-len(found) // POINTS) or 1][::-1]
    return found[:, 0], found[:, 1]


def _axes() -> tuple[Any, Any]:
    figure, axis = plt.subplots(figsize=SIZE, layout="constrained")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    return figure, axis


def _svg(figure: Any) -> bytes:
    """Letters as paths: no reader needs a font."""
    file = io.BytesIO()
    with plt.rc_context({"svg.fonttype": "path", "svg.hashsalt": "rtbjax"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
    return file.getvalue()
