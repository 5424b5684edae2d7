"""Files appear whole or not at all."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments import hosts
from experiments.errors import UserError


class WriteError(UserError):
    """A file that cannot be written: a full disk, a place that is read-only, missing or no folder."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside ``path`` to write to, which takes its place at the end; after an error nothing has changed.

    The suffix stays last: writers choose a format by it. No two writers share a partial file, for runs share the exact
    sets. The bytes reach the disk before the name does, so that a machine that stops in between leaves the old file. Of
    several processes the first one's file is kept.

    Raises:
      WriteError: the system refuses.
    """
    if not hosts.is_first():
        with tempfile.TemporaryDirectory() as dropped:
            yield Path(dropped) / path.name
        return
    partial = path.with_name(f"{path.stem}.partial-{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def cannot_write(path: Path, error: Exception) -> WriteError:
    """Says which file, why, and that nothing is lost."""
    reason = getattr(error, "strerror", None) or error
    return WriteError(f"{path} cannot be written ({reason}); once it can, the same command goes on.")


def remove_partial(folder: Path) -> None:
    """Removes what writers that were killed left in a folder nobody else writes to."""
    for path in folder.glob("*.partial-*"):
        path.unlink()
