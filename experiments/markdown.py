"""Tables in Markdown."""

from collections.abc import Iterable


def head(columns: Iterable[str]) -> list[str]:
    """The titles, and the line under them."""
    columns = list(columns)
    return [line(columns), "|---" * len(columns) + "|"]


def line(cells: Iterable[str]) -> str:
    """A row; a pipe in a cell ends none."""
    return "| " + " | ".join(" ".join(text.split()).replace("|", "\\|") for text in cells) + " |"
