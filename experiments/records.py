"""What a run leaves behind for people and scripts: config.json, metrics.jsonl, summary.json."""

import fcntl
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import hosts
from experiments.errors import UserError
from experiments.files import WriteError, cannot_write, remove_partial, replacing

EVALUATION = ("eval", "log")  # Sections that may differ where a run is only evaluated anew.
NAMED = 4  # Fields of another configuration that are named.
LAUNCH = ("distributed",)  # How a run is started is no part of what it computes.
LOCK = "lock"  # Empty; its presence means nothing, who holds it does.


class WorkdirError(UserError):
    """A workdir that cannot be used."""


class OtherRun(WorkdirError):
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


def config_of(workdir: Path, domain: str, file: str) -> ConfigDict:
    """The config of a run of a domain, whose configs are in ``file``.

    Raises:
      UserError: there is none, or it is of another domain.
    """
    found = read_json(workdir / "config.json", "train it first")
    if found is None or found.get("domain") != domain:
        raise UserError(f"{workdir} holds no run of {file}.")
    return ConfigDict(found)


def write_json(path: Path, value: Any) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(plain(value), indent=2) + "\n")


def write_table(workdir: Path, name: str, result: Any, text: str) -> None:
    """``name.json`` and the same for people, ``name.md``."""
    write_json(workdir / f"{name}.json", result)
    with replacing(workdir / f"{name}.md") as partial:
        partial.write_text(text)


def read_json(path: Path, hint: str) -> dict | None:
    """An object, or None if there is no such file.

    Raises:
      WorkdirError: anything else; ``hint`` says what to do about it.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise WorkdirError(f"{path.parent} is no folder; choose another --workdir.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WorkdirError(f"{path} is not readable JSON ({error}); {hint}.") from error
    if not isinstance(value, dict):
        raise WorkdirError(f"{path} holds no JSON object; {hint}.")
    return value


def confirm(workdir: Path, config: dict, ignore: tuple[str, ...] = ()) -> bool:
    """Whether the workdir is this configuration's already; False if it is nobody's yet. Changes nothing.

    Args:
      workdir: need not exist.
      config: of this run.
      ignore: top-level sections that may differ.

    Raises:
      OtherRun: the workdir's ``config.json`` is of another run.
      WorkdirError: it is unreadable.
    """
    there = read_json(workdir / "config.json", "choose another --workdir")
    if there is None:
        if left := [name for name in ("checkpoints", "final_params.safetensors") if (workdir / name).exists()]:
            raise WorkdirError(
                f"{workdir} has {' and '.join(left)} of a run, and no config.json to say of which; choose another "
                "--workdir."
            )
        return False
    before, now = flatten(there), flatten(plain(config))
    changed = [
        name
        for name in sorted(before.keys() | now.keys(), key=lambda name: (name != "domain", name))
        if before.get(name) != now.get(name) and name.split(".")[0] not in ignore + LAUNCH
    ]
    if changed:
        # Of another domain nearly all fields differ, and say nothing more.
        named = changed[: 1 if changed[0] == "domain" else NAMED]
        told = [f"{name}: {_value(before, name)} there, {_value(now, name)} here" for name in named]
        told += [f"and {len(changed) - len(named)} more"] if len(named) < len(changed) else []
        raise OtherRun(
            f"{workdir} holds a run with another configuration ({'; '.join(told)}); choose another --workdir."
        )
    return True


def _value(flat: dict[str, Any], name: str) -> str:
    return repr(flat[name]) if name in flat else "not set"


def claim(workdir: Path, config: dict) -> None:
    """Makes the workdir this configuration's, or confirms that it already is.

    Raises:
      WorkdirError: it is of another run, unreadable, or cannot be written to.
    """
    if confirm(workdir, config):
        return
    try:
        write_json(workdir / "config.json", config)
    except WriteError as error:
        raise _unusable(workdir, error.__cause__ or error) from error


def _unusable(workdir: Path, error: BaseException) -> WorkdirError:
    return WorkdirError(f"{workdir} cannot be written to ({error}); choose another --workdir.")


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of a workdir. The lock ends with the process that holds it, however that ends.

    Of several processes the first holds it for all.

    Raises:
      WorkdirError: another run is at work there, or it cannot be written to.
    """
    with ExitStack() as held:
        with hosts.together(UserError):
            if hosts.is_first():
                held.enter_context(_lock(workdir))
                remove_partial(workdir)
        yield


def _lock(workdir: Path) -> IO:
    """The locked file."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / LOCK).open("a")
    except OSError as error:
        raise _unusable(workdir, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise WorkdirError(
            f"{workdir} is in use by a run that has not ended; wait for it, or choose another --workdir."
        ) from error
    except OSError as error:  # Some network file systems have no locks.
        logging.warning("%s cannot be locked (%s): start no second run on it.", workdir, error)
    return file


@contextmanager
def claimed(workdir: Path, config: dict) -> Iterator[None]:
    """`claim` around a computation, under a lock; one that fails before it left anything gives the place back.

    The corrected command then finds the workdir as the failed one did.

    Raises:
      WorkdirError: see `claim` and `locked`.
    """
    missing = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    with hosts.together(UserError):
        confirm(workdir, config)  # Another run's workdir is not touched, not even by a lock.
    with locked(workdir), _giving_back(workdir, missing):
        with hosts.together(UserError):
            if hosts.is_first():
                claim(workdir, config)
        with hosts.together(UserError):
            if not confirm(workdir, config):
                raise WorkdirError(
                    f"Process {jax.process_index()} does not see {workdir}/config.json, which the first process wrote: "
                    "choose a --workdir on a file system that all hosts share."
                )
        yield


@contextmanager
def held(workdir: Path, config: dict, mode: str) -> Iterator[None]:
    """The workdir of several runs: `claimed`, or if ``mode`` is ``evaluate`` only confirmed: each run locks its own.

    Raises:
      WorkdirError: see `claimed` and `confirm`.
    """
    if mode == "evaluate":
        confirm(workdir, config, ignore=EVALUATION)
        yield
    else:
        with claimed(workdir, config):
            yield


@contextmanager
def _giving_back(workdir: Path, missing: list[Path]) -> Iterator[None]:
    """After an error, removes a claim that nothing followed, and the folders that were ``missing`` before it."""
    ours = not (workdir / "config.json").exists()
    try:
        yield
    except Exception:
        results = [path for path in workdir.rglob("*") if path.is_file() and path.stat().st_size]
        if hosts.is_first() and ours and results in ([], [workdir / "config.json"]):
            (workdir / "config.json").unlink(missing_ok=True)
            for folder in missing:
                _remove_empty(folder)
        raise


def _remove_empty(folder: Path) -> None:
    """Removes a tree of folders and empty files; one that holds anything stays."""
    if any(path.is_file() and path.stat().st_size for path in folder.rglob("*")):
        return
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def read_summary(workdir: Path) -> dict | None:
    """The summary of a finished run, or None."""
    return read_json(workdir / "summary.json", "delete it to evaluate again")


def flatten(tree: dict) -> dict[str, Any]:
    """``{"a": {"b": 1}}`` to ``{"a.b": 1}``, however deep: json reads deeper than Python's own calls go."""
    flat, left = {}, [(f"{key}", value) for key, value in reversed(tree.items())]
    while left:
        name, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{name}.{key}", inner) for key, inner in reversed(value.items())]
        else:
            flat[name] = value
    return flat


class Metrics:
    """``metrics.jsonl``, one line per logged step. On resuming, lines after the checkpoint are dropped.

    Its methods raise a WriteError where the system refuses.
    """

    def __init__(self, path: Path, resume_step: int):
        self._path = path
        kept = [line for line in _lines(path) if _step(line) <= resume_step]
        with replacing(path) as partial:
            partial.write_text("".join(f"{line}\n" for line in kept))
        # Unbuffered: what could not be written is not tried again when the file is closed.
        self._file = (path if hosts.is_first() else Path(os.devnull)).open("ab", buffering=0)

    def write(self, step: int, values: dict[str, Any]) -> None:
        line = memoryview((json.dumps(plain({"step": step, **values})) + "\n").encode())
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        try:
            if hosts.is_first():
                os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self._path, error) from error
        finally:
            self._file.close()


def last_logged_step(path: Path) -> int:
    """The last step in ``metrics.jsonl``; 0 if there is none."""
    return int(max((step for step in map(_step, _lines(path)) if math.isfinite(step)), default=0))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of ``metrics.jsonl``; what is no line of a log is left out, as is a value that is no finite number."""
    lines = [json.loads(line) for line in _lines(path) if finite_number(_step(line))]
    return [{name: value for name, value in line.items() if finite_number(value)} for line in lines]


def finite_number(value: Any) -> bool:
    """Whether it is one, as opposed to null, a truth value or anything else that JSON can hold."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise WorkdirError(f"{path} cannot be read ({error}); move it away to start over.") from error


def _step(line: str) -> float:
    """Infinite for anything that is no line of a log, such as one cut short by a kill."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, int) and step >= 0 else math.inf
