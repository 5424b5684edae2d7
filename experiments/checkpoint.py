"""Checkpoints of everything a run needs to go on: parameters, optimizer, buffers, step, seconds spent."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from jaxtyping import PyTree

from experiments.errors import UserError


class CheckpointError(UserError):
    """No checkpoint, or none that can be read."""


class Checkpoints:
    """The checkpoints of one workdir. Keys are folded from the seed and the step, so none is stored."""

    def __init__(self, directory: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=False)
        self._directory = directory
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options)

    def save(self, step: int, tree: PyTree) -> None:
        """Writes the tree; complete on disk when this returns."""
        self._manager.save(step, args=ocp.args.StandardSave(tree))
        self._manager.wait_until_finished()

    def restore(self, like: PyTree) -> tuple[int, Any] | None:
        """The newest readable checkpoint as ``(step, tree)``, or None if there is none at all.

        The tree is on the host: arrays that orbax restores are committed to one device, and a mesh of several would
        refuse them. Newer checkpoints that could not be read are deleted, for their steps will be saved again.

        Raises:
          CheckpointError: there are checkpoints, and not one of them can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        for position, step in enumerate(steps):
            try:
                tree = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
            except Exception as error:
                logging.warning("Checkpoint %d cannot be read, trying the one before: %s", step, _first_line(error))
                continue
            for unreadable in steps[:position]:
                self._manager.delete(unreadable)
            return step, jax.device_get(tree)
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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
