"""The mesh a batch is split over, which batches divide over it, and how a trajectory lies on it."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from rtbjax.types import Trajectory

DATA_AXIS = "data"


def data_mesh(num_devices: int | None = None) -> Mesh:
    """A one-dimensional mesh over the first ``num_devices`` devices (all if None), its axis named ``data``.

    Raises:
      ValueError: more devices asked for than there are.
    """
    devices = jax.devices()
    num_devices = len(devices) if num_devices is None else num_devices
    if not 1 <= num_devices <= len(devices):
        raise ValueError(f"num_devices must lie in 1..{len(devices)} (the devices of this machine), got {num_devices}.")
    return jax.make_mesh((num_devices,), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices[:num_devices])


def check_divides(batch_size: int, mesh: Mesh) -> None:
    """Raises a ValueError naming the nearest batch sizes if the data axis does not divide ``batch_size``."""
    devices = mesh.shape[DATA_AXIS]
    if batch_size % devices or batch_size < devices:
        below = batch_size // devices * devices
        nearest = [size for size in (below, below + devices) if size]
        raise ValueError(
            f"batch size {batch_size} does not divide over {devices} devices; the nearest sizes are "
            f"{' and '.join(map(str, nearest))}."
        )


def trajectory_specs(trajectory: Trajectory) -> Trajectory:
    """Partition specs of a trajectory whose batch axis is split over the data axis."""
    time_major: Any = P(None, DATA_AXIS)
    batch_major: Any = P(DATA_AXIS)
    return Trajectory(
        xs=time_major,
        cond=jax.tree.map(lambda _: batch_major, trajectory.cond),
        log_reward=None if trajectory.log_reward is None else batch_major,
        log_prior=time_major,
        log_ratio=None if trajectory.log_ratio is None else time_major,
        features=jax.tree.map(lambda _: time_major, trajectory.features),
    )
