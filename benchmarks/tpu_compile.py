"""One update of a domain compiled ahead of time for TPU slices that are not there: compiled, not run.

    python benchmarks/tpu_compile.py --config=configs/gmm.py --topology=v5e:2x4        needs pip install -e ".[tpu]"

For whole parameters and for parameters in parts: bytes per device as the compiler assigns them, and the collectives of
the program. A collective in a loop is counted once, however often the loop turns. The numbers go to --out as JSON.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # There is no TPU to ask.

import argparse
import importlib
import math
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments import objectives, optimizers
from experiments.records import write_json
from rtbjax import rollout, train
from rtbjax.sharding import DATA_AXIS, FSDP_AXIS, parameter_shardings, trajectory_specs

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


def load(name: str):
    """A config by its file and variant, and its domain."""
    file, _, variant = name.partition(":")
    config = importlib.import_module(f"configs.{Path(file).stem}").get_config(variant)
    return config, importlib.import_module(f"experiments.domains.{config.domain}").build(config)


def compiled(config, domain, mesh: Mesh):
    """The update for a batch of on-policy paths, from shapes alone."""
    optimizer = optimizers.make(config)
    update = jax.jit(train.make_update(objectives.make(config, domain), optimizer, mesh), donate_argnums=0)
    key, batch = jax.random.key(0), config.train.batch_size
    state = jax.eval_shape(lambda: train.init_state(objectives.initial_params(config, domain), optimizer))
    shape = (batch, *domain.event_shape)
    paths = jax.eval_shape(lambda: rollout(key, domain.process, domain.prior, domain.posterior, shape=shape))
    paths = paths._replace(log_reward=jax.ShapeDtypeStruct((batch,), np.float32))
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), trajectory_specs(paths, mesh))
    key = jax.eval_shape(lambda: key)

    def placed(tree, shardings):
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)

    everywhere = NamedSharding(mesh, PartitionSpec())
    arguments = placed(state, parameter_shardings(state, mesh)), placed(paths, places), placed(key, everywhere)
    return update.lower(*arguments).compile(), sum(leaf.size for leaf in jax.tree.leaves(state.params))


def measure(config, domain, devices, fsdp: int) -> dict:
    """Bytes per device and collectives of the program."""
    shape = (len(devices) // fsdp, fsdp)
    mesh = Mesh(np.asarray(devices).reshape(shape), (DATA_AXIS, FSDP_AXIS), axis_types=(AxisType.Auto,) * 2)
    program, num_params = compiled(config, domain, mesh)
    memory = program.memory_analysis()
    found = re.findall(rf"= \S+ (?:\(.*?\) )?({'|'.join(COLLECTIVES)})(?:-start)?\(", program.as_text())
    return {
        "devices": len(devices),
        "fsdp": fsdp,
        "parameters": num_params,
        "bytes": {
            "arguments": memory.argument_size_in_bytes,
            "output": memory.output_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
        },
        "collectives": dict(Counter(found)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/gmm.py", help="default %(default)s")
    parser.add_argument("--topology", default="v5e:2x4", help="default %(default)s")
    parser.add_argument(
        "--batch", type=int, help="paths over all devices; the config's, rounded up to divide, if not given"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/tpu_compile.json"), help="default %(default)s")
    arguments = parser.parse_args()
    devices = topologies.get_topology_desc(arguments.topology, platform="tpu").devices
    config, domain = load(arguments.config)
    config.train.batch_size = arguments.batch or math.ceil(config.train.batch_size / len(devices)) * len(devices)
    rows = [measure(config, domain, devices, fsdp) for fsdp in (1, 8)]
    print(f"{arguments.config} on {arguments.topology}, {config.train.batch_size} paths: compiled, not run")
    for row in rows:
        sizes = ", ".join(f"{name} {size / 1e6:.3f} MB" for name, size in row["bytes"].items())
        print(f"fsdp {row['fsdp']}: {sizes} per device; {row['collectives']}")
    result = {"config": arguments.config, "topology": arguments.topology, "batch": config.train.batch_size}
    write_json(arguments.out, result | {"jax": jax.__version__, "ran": False, "rows": rows})


if __name__ == "__main__":
    main()
