"""Checkpoints of everything a run needs to go on: parameters, optimizer, buffers, step, seconds spent."""

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import NamedSharding
from jaxtyping import PyTree

from experiments import hosts, stopping
from experiments.errors import UserError
from experiments.weights import fingerprint

ITEM = "state"  # Named, since a manager of nameless ones reads all as it finds the newest, damaged or not.
# What a system says that refuses to write.
REFUSALS = tuple(
    os.strerror(number)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
)


class CheckpointError(UserError):
    """No checkpoint, or none that can be read."""


class Checkpoints:
    """The checkpoints of one workdir. Keys are folded from the seed and the step, so none is stored.

    Each holds a hash of its contents: the arrays' own format notices most damage, but not every flipped bit.

    Raises:
      CheckpointError: the folder cannot be made or read.
    """

    def __init__(self, directory: Path, keep: int):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,  # What a kill left half written.
        )
        self._directory = directory
        try:
            self._manager = ocp.CheckpointManager(directory.resolve(), options=options)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{directory} cannot be used for checkpoints ({_reason(error)}): it must be a folder that can be "
                "written to."
            ) from error

    def save(self, step: int, tree: PyTree) -> None:
        """Writes the tree, every process its parts; complete on disk when this returns, for which signals wait.

        Raises:
          CheckpointError: it cannot be written; those before it are still there.
        """
        # What lies on no mesh is the same on every host, and orbax takes it from the first as NumPy only.
        tree = jax.tree.map(lambda leaf: leaf if _on_mesh(leaf) else np.asarray(leaf), tree)
        try:
            with stopping.deferred(), _silent():
                saved = ocp.args.StandardSave({"tree": tree, "hash": _hash(tree)})
                self._manager.save(step, args=ocp.args.Composite(**{ITEM: saved}))
                self._manager.wait_until_finished()
        except Exception as error:
            if not _refused(error):
                raise
            self._discard(step)
            raise CheckpointError(
                f"The checkpoint of step {step} cannot be written to {self._directory} ({_reason(error)}); once it "
                "can, the same command goes on from the one before."
            ) from error

    def _discard(self, step: int) -> None:
        """Removes what a refused write left, once the writes that were under way beside it have ended.

        One that ends later makes its folder anew, and this process's next run could not remove what still grows.
        """
        half = self._directory / f"{step}{ocp.utils.TMP_DIR_SUFFIX}"
        for _ in range(50):
            shutil.rmtree(half, ignore_errors=True)
            time.sleep(0.1)
            if not half.exists():
                return

    def restore(self, like: PyTree) -> tuple[int, Any] | None:
        """The newest readable checkpoint as ``(step, tree)``, or None if there is none at all.

        What lies on a mesh in ``like`` is put there, part by part. The rest is on the host: orbax would commit it to
        one device, and a mesh of several would refuse it. Newer checkpoints that could not be read are deleted, for
        their steps will be saved again.

        Raises:
          CheckpointError: there are checkpoints, and not one of them can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        blank = {"tree": like, "hash": _hash(())}
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, blank)
        for position, step in enumerate(steps):
            tree = None
            try:
                wanted = ocp.args.Composite(**{ITEM: ocp.args.StandardRestore(abstract)})
                found = self._manager.restore(step, args=wanted)[ITEM]
                saved, now = np.asarray(found["hash"]), _hash(found["tree"])
                if saved.any() and now.any() and not np.array_equal(saved, now):
                    raise CheckpointError("it is not what was saved")
                tree = found["tree"]
            except Exception as error:
                logging.warning("Checkpoint %d cannot be read, trying the one before: %s", step, _first_line(error))
            if not hosts.agreed(tree is not None):
                continue
            for unreadable in steps[:position]:
                self._manager.delete(unreadable)
            return step, jax.tree.map(lambda x, there: x if _on_mesh(there) else np.asarray(x), tree, like)
        if steps:
            raise CheckpointError(
                f"None of the checkpoints {steps} in {self._directory} can be read; move that folder away to start "
                "over."
            )
        return None

    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def close(self) -> None:
        self._manager.close()


def _on_mesh(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)


def _hash(tree: PyTree) -> np.ndarray:
    """Of the contents; zeros where several processes hold them, of which none sees all."""
    several = jax.process_count() > 1
    digest = np.frombuffer(fingerprint(() if several else jax.device_get(tree)).encode(), np.uint8)
    return np.zeros_like(digest) if several else digest


@contextmanager
def _silent() -> Iterator[None]:
    """Threads that write log the traceback of an error that is raised, and said, here."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _refused(error: Exception) -> bool:
    """Whether the system refused to write."""
    return isinstance(error, OSError) or _reason(error) in REFUSALS


def _reason(error: Exception) -> str:
    """The system's own words: the writers of arrays hide them among many."""
    return next((reason for reason in REFUSALS if reason in str(error)), _first_line(error))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
