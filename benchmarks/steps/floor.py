"""The floor of a step: the network calls it cannot do without, jitted with nothing else.

Of T steps and B paths these are T posterior passes at batch B, one after the other; T B prior passes; and T B forward
and backward passes of the posterior. The last two may be made of any number of steps at once, and are of the fastest.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks.steps.ours import Phases
from benchmarks.steps.shapes import condition
from experiments.domains.base import Domain
from rtbjax import Policy, Process, rollout

# The fastest is looked for among up to so many steps, and numbers in their states, at once.
MOST_ON_CPU, MOST_ELSEWHERE = (10, 65_536), (100, 2**24)


def outputs(process: Process, policy: Policy, xs, cond, features, steps) -> Any:
    """The network's, at some steps at once."""

    def one(i):
        return policy(xs[i], process.time(i), cond, jax.tree.map(lambda f: f[i], features))

    return jax.tree.leaves(one(steps[0]) if len(steps) == 1 else jax.vmap(one)(steps))


def forwards(process: Process, chunk: int) -> Callable[..., Any]:
    """Passes of a policy over all steps of paths; a sum, so that none can be left out."""

    @jax.jit
    def run(policy, xs, cond, features=None):
        def body(total, steps):
            return total + sum(jnp.sum(a) for a in outputs(process, policy, xs, cond, features, steps)), None

        return jax.lax.scan(body, jnp.float32(0.0), jnp.arange(process.num_steps).reshape(-1, chunk))[0]

    return run


def gradients(process: Process, chunk: int) -> Callable[..., Any]:
    """Forward and backward passes of a policy over all steps of paths."""

    @jax.jit
    def run(policy, xs, cond, features=None):
        def weight(policy, steps):
            return sum(jnp.sum(a**2) for a in outputs(process, policy, xs, cond, features, steps))

        def body(total, steps):
            return jax.tree.map(jnp.add, total, jax.grad(weight)(policy, steps)), None

        zeros = jax.tree.map(jnp.zeros_like, policy)
        return jax.lax.scan(body, zeros, jnp.arange(process.num_steps).reshape(-1, chunk))[0]

    return run


def phases(config: ConfigDict, domain: Domain) -> tuple[Phases, dict[str, int]]:
    """The three kinds of passes, each blocking until it is done, and how many steps the fastest has at once."""
    process, batch, cond = domain.process, config.train.batch_size, condition(config, domain)
    prior, posterior, key = domain.prior, domain.posterior, jax.random.key(0)
    shape = (batch, *domain.event_shape)
    paths = jax.jit(lambda *policies: rollout(key, process, *policies, shape=shape, cond=cond))(prior, posterior)
    of_prior, of_posterior = (prior, paths.xs, cond), (posterior, paths.xs, cond, paths.features)
    on_cpu = jax.default_backend() == "cpu"
    most_steps, most_numbers = MOST_ON_CPU if on_cpu else MOST_ELSEWHERE
    chunks = [
        chunk
        for chunk in range(1, most_steps + 1)
        if process.num_steps % chunk == 0 and (chunk == 1 or chunk * paths.xs[0].size <= most_numbers)
    ]

    def fastest(make, arguments):
        """Of the compiled ones, on CPU by the time the process had, since others may have the machine too."""
        clock = time.process_time if on_cpu else time.perf_counter
        times = {}
        for chunk in chunks:
            run = make(process, chunk)
            jax.block_until_ready(run(*arguments))
            started = clock()
            jax.block_until_ready(run(*arguments))
            times[clock() - started] = chunk, run
        return times[min(times)]

    prior_chunk, run_prior = fastest(forwards, of_prior)
    gradient_chunk, run_gradients = fastest(gradients, of_posterior)
    run_posterior = forwards(process, 1)

    def phase(run, arguments):
        return lambda: jax.block_until_ready(run(*arguments))

    made = {
        "posterior": phase(run_posterior, of_posterior),
        "prior": phase(run_prior, of_prior),
        "gradient": phase(run_gradients, of_posterior),
    }
    return made, {"prior": prior_chunk, "gradient": gradient_chunk}
