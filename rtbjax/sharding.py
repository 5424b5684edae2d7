"""How a run lies on a mesh: the batch over all its devices, and large parameters in parts over one of its axes.

A mesh has the axes ``data`` and ``fsdp``. The batch is split over both. Parameters, and what is shaped like them (an
optimizer's moments), are split over ``fsdp`` and repeated along ``data``: of n devices along ``fsdp`` each holds about
an n-th of them.
"""

import os
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from rtbjax.types import Shard, Trajectory

DATA_AXIS = "data"
FSDP_AXIS = "fsdp"
FORCED_DEVICES = "xla_force_host_platform_device_count"  # The flag of XLA.
MIN_SPLIT = 1024  # Smaller arrays stay whole: gathering them would cost more than they do.


def data_mesh(num_devices: int | None = None, fsdp: int = 1) -> Mesh:
    """A mesh over the first ``num_devices`` devices (all if None), ``fsdp`` of which share a copy of the parameters.

    Raises:
      ValueError: more devices asked for than there are, or an ``fsdp`` that does not divide them.
    """
    devices = jax.devices()
    num_devices = len(devices) if num_devices is None else num_devices
    if not 1 <= num_devices <= len(devices):
        raise ValueError(f"num_devices must lie in 1..{len(devices)} (the devices there are), got {num_devices}.")
    if fsdp < 1 or num_devices % fsdp:
        raise ValueError(f"fsdp must divide the {num_devices} devices, got {fsdp}.")
    shape, names = (num_devices // fsdp, fsdp), (DATA_AXIS, FSDP_AXIS)
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * 2, devices=devices[:num_devices])


def split_cpu(num_devices: int) -> None:
    """Makes so many devices of a CPU, for programs that share its cores badly; call it before JAX computes anything.

    Where ``XLA_FLAGS`` or ``JAX_NUM_CPU_DEVICES`` say how many, it changes nothing; nor are accelerators split.

    Raises:
      RuntimeError: JAX has computed already.
    """
    told = "JAX_NUM_CPU_DEVICES" in os.environ or FORCED_DEVICES in os.environ.get("XLA_FLAGS", "")
    if num_devices > 1 and not told:
        jax.config.update("jax_num_cpu_devices", num_devices)


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes a batch is split over; a mesh of your own needs ``data`` only."""
    return tuple(name for name in (DATA_AXIS, FSDP_AXIS) if name in mesh.axis_names)


def batch_devices(mesh: Mesh) -> int:
    """Over how many devices a batch is split."""
    count = 1
    for name in batch_axes(mesh):
        count *= mesh.shape[name]
    return count


def check_divides(batch_size: int, mesh: Mesh) -> None:
    """Raises a ValueError naming the nearest batch sizes if the mesh does not divide ``batch_size``."""
    devices = batch_devices(mesh)
    if batch_size % devices or batch_size < devices:
        below = batch_size // devices * devices
        nearest = [size for size in (below, below + devices) if size]
        raise ValueError(
            f"batch size {batch_size} does not divide over {devices} devices; the nearest sizes are "
            f"{' and '.join(map(str, nearest))}."
        )


def trajectory_specs(trajectory: Trajectory, mesh: Mesh) -> Trajectory:
    """Partition specs of a trajectory whose batch axis is split over the mesh."""
    axes = batch_axes(mesh)
    time_major: Any = P(None, axes)
    batch_major: Any = P(axes)
    return Trajectory(
        xs=time_major,
        cond=jax.tree.map(lambda _: batch_major, trajectory.cond),
        log_reward=None if trajectory.log_reward is None else batch_major,
        log_prior=time_major,
        log_ratio=None if trajectory.log_ratio is None else time_major,
        features=jax.tree.map(lambda _: time_major, trajectory.features),
    )


def parameter_specs(tree: PyTree, mesh: Mesh) -> PyTree:
    """Partition specs by size alone: the largest axis that ``fsdp`` divides; small arrays and all others stay whole.

    So a parameter and its moments in an optimizer lie alike without being told.
    """
    parts = mesh.shape.get(FSDP_AXIS, 1)

    def spec(leaf):
        divisible = [dim for dim, length in enumerate(leaf.shape) if length % parts == 0]
        if parts == 1 or leaf.size < MIN_SPLIT or not divisible:
            return P()
        dim = max(divisible, key=lambda dim: leaf.shape[dim])
        return P(*[None] * dim, FSDP_AXIS)

    return jax.tree.map(spec, tree)


def parameter_shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """`parameter_specs` on the mesh: for ``jax.device_put``, ``out_shardings`` and a restored checkpoint."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), parameter_specs(tree, mesh))


def shards(params: PyTree, specs: PyTree) -> PyTree:
    """Under ``shard_map``: marks what arrived in parts as `Shard`, so that a `Policy` gathers it where it is used."""

    def mark(leaf, spec):
        return Shard(leaf, len(spec) - 1, FSDP_AXIS) if FSDP_AXIS in spec else leaf

    return jax.tree.map(mark, params, specs)
