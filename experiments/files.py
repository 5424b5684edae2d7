"""Files appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments import hosts


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside ``path`` to write to, which takes its place at the end; after an error nothing has changed.

    The suffix stays last: writers choose a format by it. The bytes reach the disk before the name does, so that a
    machine that stops in between leaves the old file. Of several processes the first one's file is kept.
    """
    if not hosts.is_first():
        with tempfile.TemporaryDirectory() as dropped:
            yield Path(dropped) / path.name
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".partial{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
