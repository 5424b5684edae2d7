"""One training step of the 25-Gaussian mixture, against the same step in eager PyTorch.

    python benchmarks/gmm_step.py            a minute; on the cores the process may use (taskset -c 0,1 ... chooses)

Both steps do the same work: roll out 500 on-policy paths of 100 steps, score them under prior and posterior, ask the
reward, and take one Adam step on the VarGrad loss. They take turns, so that whatever else the machine does meets both.
Second, the temporary memory of the compiled update at 100 and at 1,000 steps. The numbers go to --out as JSON.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from configs.gmm import get_config
from experiments import objectives, optimizers
from experiments.domains import gmm
from experiments.proposal import Proposal
from experiments.records import write_json
from rtbjax import Trajectory, train
from rtbjax.sharding import data_mesh

try:
    import torch
    from torch import nn
except ImportError:
    torch = None

LONG = 1000  # Steps of the longer chain whose memory is compared.


def on_policy_config():
    """The default run's, but with Adam, and with every path on-policy and nothing widened."""
    config = get_config()
    config.behaviour.accepted = config.behaviour.widen = 0.0
    config.train.optimizer, config.train.learning_rate = "adam", 2e-3
    return config


def rtbjax_step(config) -> Callable[[], None]:
    """The step of `experiments.loop`, blocking until it is done."""
    domain, mesh, key = gmm.build(config), data_mesh(), jax.random.key(config.seed)
    optimizer = optimizers.make(config)
    update = train.make_update(objectives.make(config, domain), optimizer, mesh)
    source = Proposal(config, domain, mesh)
    state, buffers = train.init_state(objectives.initial_params(config, domain), optimizer), source.blank()

    def step():
        nonlocal state, buffers
        propose_key, update_key = jax.random.split(jax.random.fold_in(key, state.step))
        trajectory, buffers = source.propose(propose_key, 0, state.params["policy"], buffers)
        state, _ = update(state, trajectory, update_key)
        jax.block_until_ready(state)

    return step


def temporary_bytes(config, num_steps: int) -> tuple[int, int]:
    """What the compiled update needs beside its arguments, and the size of these (nearly all of it the paths)."""
    config = config.copy_and_resolve_references()
    config.process.num_steps = num_steps
    domain, batch = gmm.build(config), config.train.batch_size
    optimizer = optimizers.make(config)
    update = jax.jit(train.make_update(objectives.make(config, domain), optimizer), donate_argnums=0)
    f32 = jnp.float32
    per_step = jax.ShapeDtypeStruct((num_steps, batch), f32)
    trajectory = Trajectory(
        xs=jax.ShapeDtypeStruct((num_steps + 1, batch, 2), f32),
        cond=None,
        log_reward=jax.ShapeDtypeStruct((batch,), f32),
        log_prior=per_step,
        log_ratio=per_step,
    )
    state = jax.eval_shape(lambda: train.init_state(objectives.initial_params(config, domain), optimizer))
    memory = update.lower(state, trajectory, jax.random.key(0)).compile().memory_analysis()
    return memory.temp_size_in_bytes, memory.argument_size_in_bytes


def torch_step(config) -> Callable[[], None]:
    """The same step as one writes it in PyTorch: autograd through the log-probabilities of the whole path."""
    steps, batch, diffusion = config.process.num_steps, config.train.batch_size, config.process.diffusion
    dt, std = 1.0 / steps, (diffusion / steps) ** 0.5
    domain = gmm.build(config)

    class PISNet(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.register_buffer("rates", torch.linspace(0.1, 100.0, 64))
            self.phase = nn.Parameter(torch.randn(64))
            self.time = nn.Sequential(nn.Linear(128, width), nn.GELU("tanh"), nn.Linear(width, width))
            self.inputs = nn.Linear(2, width)
            hidden = [layer for _ in range(2) for layer in (nn.GELU("tanh"), nn.Linear(width, width))]
            self.hidden = nn.Sequential(*hidden, nn.GELU("tanh"), nn.Linear(width, 4))

        def forward(self, x, t):
            angle = t * self.rates + self.phase
            time = self.time(torch.cat([angle.sin(), angle.cos()]))
            return self.hidden(self.inputs(x) + time)[:, :2]

    def load(net, params):
        """The Flax weights, so that both start as the same prior."""
        embedding = params["TimeEmbedding_0"]
        net.phase.data = torch.tensor(np.asarray(embedding["phase"]))
        # Flax numbers layers as they are constructed: in the embedding the outer one first.
        ours = [embedding["Dense_1"], embedding["Dense_0"], *(params[f"Dense_{i}"] for i in range(4))]
        theirs = [module for module in net.modules() if isinstance(module, nn.Linear)]
        for dense, linear in zip(ours, theirs, strict=True):
            linear.weight.data = torch.tensor(np.asarray(dense["kernel"]).T.copy())
            linear.bias.data = torch.tensor(np.asarray(dense["bias"]))
        return net

    prior, posterior = (load(PISNet(config.prior.width), domain.prior.params) for _ in range(2))
    prior.requires_grad_(False)
    optimizer = torch.optim.Adam(posterior.parameters(), lr=config.train.learning_rate)
    means, above = torch.tensor(gmm.GRID), torch.tensor(gmm.POSTERIOR_MEANS, dtype=torch.float32)
    log_weights = torch.tensor(np.log(25 * gmm.POSTERIOR_WEIGHTS), dtype=torch.float32)

    def log_reward(x):
        def log_densities(means):
            return ((x[:, None] - means) ** 2).sum(-1) / (-2.0 * gmm.STD**2)

        return torch.logsumexp(log_densities(above) + log_weights, -1) - torch.logsumexp(log_densities(means), -1)

    x = np.random.default_rng(0).normal(scale=5.0, size=(batch, 2)).astype(np.float32)
    np.testing.assert_allclose(prior(torch.tensor(x), 0.3), domain.prior(x, jnp.float32(0.3), None), atol=1e-3)
    np.testing.assert_allclose(log_reward(torch.tensor(x)), domain.log_reward(x, None), rtol=1e-4, atol=1e-3)

    def log_prob(x, mean):
        return ((x - mean) ** 2).sum(-1) / (-2.0 * std**2)  # Up to what cancels: both laws have the same std.

    def step():
        x, log_ratio = torch.zeros(batch, 2), torch.zeros(batch)
        for i in range(steps):
            with torch.no_grad():
                mean_prior = x + dt * prior(x, i * dt)
            mean = x + dt * posterior(x, i * dt)
            x = mean.detach() + std * torch.randn_like(mean)
            log_ratio = log_ratio + log_prob(x, mean_prior) - log_prob(x, mean)
        gap = log_ratio + log_reward(x)
        loss = 0.5 * ((gap.detach().mean() - gap) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(posterior.parameters(), config.train.clip_norm)
        optimizer.step()

    return step


def measure(rows: dict[str, Callable[[], None]], rounds: int, steps: int) -> dict[str, np.ndarray]:
    """Seconds of each step, ``steps`` in a row per turn after one that is not counted, over ``rounds`` turns."""
    seconds = {name: [] for name in rows}
    for _ in range(rounds):
        for name, step in rows.items():
            step()
            for _ in range(steps):
                started = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - started)
    return {name: np.asarray(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns that each step takes (default %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps per turn (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/gmm_step.json"), help="default %(default)s")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.steps < 1:
        parser.error("--rounds and --steps must be at least 1.")

    config, cores = on_policy_config(), len(os.sched_getaffinity(0))
    rows = {"rtbjax": rtbjax_step(config)}
    if torch is None:
        print('PyTorch is not installed (pip install -e ".[torch]"): its row is left out.')
    else:
        torch.set_num_threads(cores)
        rows["eager PyTorch"] = torch_step(config)
    seconds = measure(rows, arguments.rounds, arguments.steps)
    times = {name: np.percentile(values, [50, 25, 75]).tolist() for name, values in seconds.items()}

    shape = f"T = {config.process.num_steps}, batch {config.train.batch_size}, hidden {config.prior.width}"
    print(f"A step of the 25-Gaussian mixture: {shape}; {cores} cores")
    print(f"{'':16}{'median':>10}{'quartiles':>20}{'relative':>10}")
    for name, (median, low, high) in times.items():
        quartiles = f"{1e3 * low:.1f}..{1e3 * high:.1f} ms"
        print(f"{name:16}{1e3 * median:>7.1f} ms{quartiles:>20}{median / times['rtbjax'][0]:>10.2f}")

    print(f"\n{'compiled update':16}{'temporary':>13}{'arguments':>13}")
    memory = {}
    for num_steps in (config.process.num_steps, LONG):
        temporary, given = memory[num_steps] = temporary_bytes(config, num_steps)
        print(f"{f'T = {num_steps}':16}{temporary / 1e6:>10.3f} MB{given / 1e6:>10.3f} MB")

    versions = {"jax": jax.__version__, "torch": None if torch is None else torch.__version__}
    result = {
        "shape": shape,
        "cores": cores,
        "versions": versions,
        "steps": arguments.rounds * arguments.steps,
        "seconds": {name: dict(zip(("median", "q25", "q75"), t, strict=True)) for name, t in times.items()},
        "bytes": {str(n): {"temporary": t, "arguments": a} for n, (t, a) in memory.items()},
    }
    write_json(arguments.out, result)
    print(f"\n{arguments.out}")


if __name__ == "__main__":
    main()
