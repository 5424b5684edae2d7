"""Several processes, one run: what each host sees of an array, on what all agree, and who speaks and writes.

Every process runs the same program on the same config. Arrays span all their devices, so whatever computes with them
must be reached by all: where one process may stop alone, `together` stops all of them. With one process everything here
is what it would be without.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jaxtyping import Array
from tqdm import tqdm


def is_first() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints, from the first process only; a progress bar is not torn."""
    if is_first():
        tqdm.write(text)


def progress(*arguments, **keywords) -> tqdm:
    """A progress bar, shown by the first process only, and not where nothing is to be done."""
    return tqdm(*arguments, disable=not is_first() or keywords.get("total") == 0, **keywords)


def whole(array: Array | np.ndarray) -> np.ndarray:
    """All of an array, on every host; each process must ask."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def local(array: Array) -> np.ndarray:
    """The rows that this host's devices hold of an array split along its first axis, in order."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def from_local(rows: np.ndarray, sharding: NamedSharding) -> Array:
    """The reverse of `local`: an array over all devices out of every host's rows."""
    return jax.make_array_from_process_local_data(sharding, rows)


def agreed(condition: bool) -> bool:
    """Whether it holds on every host."""
    if jax.process_count() == 1:
        return condition
    return bool(np.all(multihost_utils.process_allgather(np.bool_(condition))))


def any_of(condition: bool) -> bool:
    """Whether it holds on some host."""
    return not agreed(not condition)


def from_first(array: np.ndarray) -> np.ndarray:
    """The first process's array, on every process."""
    return np.asarray(multihost_utils.broadcast_one_to_all(array)) if jax.process_count() > 1 else array


@contextmanager
def together(kind: type[Exception]) -> Iterator[None]:
    """Around what each process does by itself: an error of this kind on one of them is an error on all.

    Without it, the others would wait for the one that stopped. It also ends at the same time for all.

    Raises:
      kind: what was raised here, or else that another process failed.
    """
    error = None
    try:
        yield
    except kind as raised:
        error = raised
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.bool_(error is not None))
        if error is None and failed.any():
            raise kind(f"Process {int(np.argmax(failed))} of {len(failed)} failed, and its own output says why.")
    if error is not None:
        raise error
