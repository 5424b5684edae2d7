"""Checkpoints of everything a run needs to go on: parameters, optimizer, buffers, step, seconds spent."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jaxtyping import PyTree

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
        """Writes the tree; complete on disk when this returns.

        Raises:
          CheckpointError: it cannot be written; those before it are still there.
        """
        tree = jax.device_get(tree)
        try:
            with _silent():
                saved = ocp.args.StandardSave({"tree": tree, "hash": _hash(tree)})
                self._manager.save(step, args=ocp.args.Composite(**{ITEM: saved}))
                self._manager.wait_until_finished()
        except Exception as error:
            if not _refused(error):
                raise
            raise CheckpointError(
                f"The checkpoint of step {step} cannot be written to {self._directory} ({_reason(error)}); once it "
                "can, the same command goes on from the one before."
            ) from error

    def restore(self, like: PyTree) -> tuple[int, Any] | None:
        """The newest readable checkpoint as ``(step, tree)``, or None if there is none at all.

        The tree is on the host: arrays that orbax restores are committed to one device, and a mesh of several would
        refuse them. Newer checkpoints that could not be read are deleted, for their steps will be saved again.

        Raises:
          CheckpointError: there are checkpoints, and not one of them can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        blank = {"tree": like, "hash": np.zeros_like(_hash(()))}
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, blank)
        for position, step in enumerate(steps):
            try:
                wanted = ocp.args.Composite(**{ITEM: ocp.args.StandardRestore(abstract)})
                found = jax.device_get(self._manager.restore(step, args=wanted)[ITEM])
                if not np.array_equal(found["hash"], _hash(found["tree"])):
                    raise CheckpointError("it is not what was saved")
            except Exception as error:
                logging.warning("Checkpoint %d cannot be read, trying the one before: %s", step, _first_line(error))
                continue
            for unreadable in steps[:position]:
                self._manager.delete(unreadable)
            return step, found["tree"]
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


def _hash(tree: PyTree) -> np.ndarray:
    return np.frombuffer(fingerprint(tree).encode(), np.uint8)


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
