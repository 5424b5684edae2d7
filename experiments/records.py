"""What a run leaves behind for people and scripts: config.json, metrics.jsonl, summary.json."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np


class WorkdirError(ValueError):
    """A workdir that belongs to another configuration."""


def plain(value: Any) -> Any:
    """JSON has no NaN: numbers that are not finite become null, arrays and NumPy scalars plain Python."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    number = value.item() if hasattr(value, "item") else value
    return number if not isinstance(number, float) or math.isfinite(number) else None


def write_json(path: Path, value: Any) -> None:
    """Writes through a temporary file, so that what was there survives a failure."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(plain(value), indent=2) + "\n")
    partial.replace(path)


def claim(workdir: Path, config: dict, ignore: tuple[str, ...] = ()) -> None:
    """Makes the workdir this configuration's, or confirms that it already is.

    Args:
      workdir: created if needed.
      config: of this run.
      ignore: top-level sections that may differ.

    Raises:
      WorkdirError: the workdir's ``config.json`` is of another run, or unreadable.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    if not path.exists():
        write_json(path, config)
        return
    try:
        before = flatten(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise WorkdirError(f"{path} is not readable JSON ({error}); choose another --workdir.") from error
    now = flatten(plain(config))
    changed = [
        f"{name}: {before.get(name)!r} there, {now.get(name)!r} here"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name.split(".")[0] not in ignore
    ]
    if changed:
        raise WorkdirError(
            f"{workdir} holds a run with another configuration ({'; '.join(changed)}); choose another --workdir."
        )


def read_summary(workdir: Path) -> dict | None:
    """The summary of a finished run, or None."""
    path = workdir / "summary.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise WorkdirError(f"{path} is not readable JSON ({error}); delete it to evaluate again.") from error


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` to ``{"a.b": 1}``."""
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


class Metrics:
    """``metrics.jsonl``, one line per logged step. On resuming, lines after the checkpoint are dropped."""

    def __init__(self, path: Path, resume_step: int):
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _step(line) <= resume_step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        partial.replace(path)
        self._file = path.open("a")

    def write(self, step: int, values: dict[str, Any]) -> None:
        self._file.write(json.dumps(plain({"step": step, **values})) + "\n")
        self._file.flush()

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # A line cut short by a kill.
