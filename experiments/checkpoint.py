"""Checkpoints of everything a run needs to go on: parameters, optimizer, buffers, step, seconds spent."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import NamedSharding
from jaxtyping import PyTree

from experiments import hosts
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
        """Writes the tree, every process its parts; complete on disk when this returns."""
        # What lies on no mesh is the same on every host, and orbax takes it from the first as NumPy only.
        tree = jax.tree.map(lambda leaf: leaf if _on_mesh(leaf) else np.asarray(leaf), tree)
        self._manager.save(step, args=ocp.args.StandardSave(tree))
        self._manager.wait_until_finished()

    def restore(self, like: PyTree) -> tuple[int, Any] | None:
        """The newest readable checkpoint as ``(step, tree)``, or None if there is none at all.

        What lies on a mesh in ``like`` is put there, part by part. The rest is on the host: orbax would commit it to
        one device, and a mesh of several would refuse it. Newer checkpoints that could not be read are deleted, for
        their steps will be saved again.

        Raises:
          CheckpointError: there are checkpoints, and not one of them can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        for position, step in enumerate(steps):
            tree = None
            try:
                tree = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
