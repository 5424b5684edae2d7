"""An update of a domain compiled ahead of time for TPU slices that are not there: compiled, not run.

    pip install -e ".[tpu,text]"
    python benchmarks/tpu_compile.py                   every domain's default, for slices of 8 and 64 chips
    python benchmarks/tpu_compile.py --config=configs/gmm.py --topology=v5e:2x4

For whole parameters and for parameters in parts: bytes per device as the compiler assigns them, and the collectives of
the program. A collective in a loop is counted once, however often the loop turns. The numbers go to --out as JSON.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # There is no TPU to ask.

import argparse
import importlib
import itertools
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

from benchmarks.steps.shapes import condition
from experiments import objectives, optimizers
from experiments.records import write_json
from rtbjax import rollout, train
from rtbjax.sharding import DATA_AXIS, FSDP_AXIS, parameter_shardings, trajectory_specs

CONFIGS = tuple(f"configs/{n}.py" for n in ("gmm", "mnist", "cifar10", "inverse", "d4rl", "stories", "text_to_image"))
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
    shape, cond = (batch, *domain.event_shape), condition(config, domain)
    paths = jax.eval_shape(lambda: rollout(key, domain.process, domain.prior, domain.posterior, shape=shape, cond=cond))
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
    parser.add_argument("--config", default=",".join(CONFIGS), help="one or several, with commas (default %(default)s)")
    parser.add_argument("--topology", default="v5e:2x4,v5e:8x8", help="one or several (default %(default)s)")
    parser.add_argument(
        "--batch", type=int, help="paths over all devices; the config's, rounded up to devices and groups, if not given"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/tpu_compile.json"), help="default %(default)s")
    arguments = parser.parse_args()
    results = []
    for topology, name in itertools.product(arguments.topology.split(","), arguments.config.split(",")):
        devices = topologies.get_topology_desc(topology, platform="tpu").devices
        config, domain = load(name)
        whole = math.lcm(len(devices), config.objective.group or 1)
        batch = config.train.batch_size = arguments.batch or math.ceil(config.train.batch_size / whole) * whole
        rows = [measure(config, domain, devices, fsdp) for fsdp in (1, 8)]
        print(f"\n{name} on {topology}, {batch} paths: compiled, not run")
        for row in rows:
            sizes = ", ".join(f"{kind} {size / 1e6:.3f} MB" for kind, size in row["bytes"].items())
            print(f"fsdp {row['fsdp']}: {sizes} per device; {row['collectives']}", flush=True)
        found = {"config": name, "topology": topology, "batch": batch, "jax": jax.__version__, "ran": False}
        results.append(found | {"rows": rows})
        write_json(arguments.out, {"programs": results})


if __name__ == "__main__":
    main()
