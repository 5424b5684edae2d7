"""Matplotlib without a display unless one is asked for, and the figures that several domains make."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib

if "MPLBACKEND" not in os.environ:  # A notebook's kernel sets it, and shows figures itself.
    matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["one_panel_each", "plt", "save"]

IN_ROW = 5  # Panels.


def save(path: Path, figure: Figure) -> None:
    """Writes a figure as a PNG and closes it."""
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def one_panel_each(
    path: Path,
    sets: Mapping[str, np.ndarray],
    draw: Callable[[Axes, np.ndarray], None],
    *,
    size: tuple[float, float],
    shared: bool = False,
) -> None:
    """A PNG with a panel for each set of samples, at most five in a row.

    Args:
      path: of the PNG.
      sets: samples by title.
      draw: ``(axes of a panel, samples)``.
      size: width and height of a panel, in inches.
      shared: whether all panels have the same axes.
    """
    columns = min(len(sets), IN_ROW)
    rows = -(-len(sets) // columns)
    whole = (size[0] * columns, size[1] * rows)
    figure, panels = plt.subplots(rows, columns, figsize=whole, sharex=shared, sharey=shared, squeeze=False)
    for panel in panels.flat[len(sets) :]:
        panel.axis("off")
    for panel, (title, x) in zip(panels.flat, sets.items(), strict=False):
        draw(panel, x)
        panel.set_title(title)
    save(path, figure)
