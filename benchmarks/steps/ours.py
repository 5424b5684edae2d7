"""Our step as a run takes it, the same with plain automatic differentiation, and what the compiler says of both."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from benchmarks.steps.shapes import condition, mesh_of
from experiments import objectives, optimizers
from experiments.domains.base import Domain
from experiments.proposal import Proposal
from experiments.streams import stream
from rtbjax import Policy, log_prob, losses, partition, rollout, train
from rtbjax.objective import LossInfo
from rtbjax.train import Objective

Phases = dict[str, Callable[[], Any]]


def autodiff(config: ConfigDict, domain: Domain, *, checkpointed: bool) -> Objective:
    """The objective of `rtbjax.loss`, differentiated through the scan over all steps.

    The scan keeps every activation of every step for the backward pass, or, checkpointed, the network's inputs.
    """
    apply_fn = jax.checkpoint(domain.posterior.apply_fn) if checkpointed else domain.posterior.apply_fn
    settings = config.objective

    def objective(params, trajectory, *, key, axis_name):
        del key  # All steps carry the gradient.
        policy = Policy(params["policy"], apply_fn)
        log_post = log_prob(domain.process, policy, trajectory.xs, trajectory.cond, trajectory.features)
        log_ratio = jnp.sum(trajectory.log_prior - log_post, axis=0)
        gap = jax.lax.stop_gradient(log_ratio + settings.beta * trajectory.log_reward)
        group = settings.group or None
        log_z = partition.log_z_per_path(settings.log_z, params, gap, trajectory.cond, group, axis_name)
        per_path = losses.rtb(log_ratio, trajectory.log_reward, log_z, beta=settings.beta)
        return jnp.mean(per_path), LossInfo(gap, log_z)

    return objective


def phases(config: ConfigDict, domain: Domain, objective: Objective) -> Phases:
    """The two halves of a step of `experiments.loop`, each blocking until it is done."""
    mesh, key, optimizer = mesh_of(config), jax.random.key(config.seed), optimizers.make(config)
    update = train.make_update(objective, optimizer, mesh)
    source = Proposal(config, domain, mesh)
    state, buffers = train.init_state(objectives.initial_params(config, domain), optimizer, mesh), source.blank()
    trajectory = None

    def propose():
        nonlocal trajectory, buffers
        step = int(state.step)
        trajectory, buffers = source.propose(jax.random.fold_in(key, 2 * step), step, state.params["policy"], buffers)
        jax.block_until_ready(trajectory)

    def learn():
        nonlocal state
        state, _ = update(state, trajectory, jax.random.fold_in(key, 2 * int(state.step) + 1))
        jax.block_until_ready(state)

    return {"rollout": propose, "gradient": learn}


def training(config: ConfigDict, domain: Domain, mesh: Mesh) -> Iterator[PyTree]:
    """The posterior's parameters after each step of a run of `experiments.loop`, which also logs and saves.

    Each is for use before the next is asked for.
    """
    key, optimizer = stream(config.seed, "train"), optimizers.make(config)
    update = train.make_update(objectives.make(config, domain), optimizer, mesh)
    source = Proposal(config, domain, mesh)
    state = train.init_state(objectives.initial_params(config, domain), optimizer, mesh)
    buffers = source.init(stream(config.seed, "gather"))
    for step in range(config.train.steps):
        propose_key, update_key = jax.random.split(jax.random.fold_in(key, step))
        trajectory, buffers = source.propose(propose_key, step, state.params["policy"], buffers)
        state, _ = update(state, objectives.warmed_up(config, trajectory, step), update_key)
        yield jax.block_until_ready(state.params["policy"])


def first_step(made: Phases) -> float:
    """Seconds of the first step, nearly all of them tracing and compiling."""
    started = time.perf_counter()
    for phase in made.values():
        phase()
    return time.perf_counter() - started


def memory(config: ConfigDict, domain: Domain, objective: Objective) -> dict[str, int]:
    """Bytes that the compiled update needs beside its arguments, and those of the arguments, mostly paths."""
    optimizer, key = optimizers.make(config), jax.random.key(0)
    shape, cond = (config.train.batch_size, *domain.event_shape), condition(config, domain)
    state = jax.eval_shape(lambda: train.init_state(objectives.initial_params(config, domain), optimizer))
    paths = jax.eval_shape(lambda: rollout(key, domain.process, domain.prior, domain.posterior, shape=shape, cond=cond))
    paths = paths._replace(log_reward=jax.ShapeDtypeStruct(shape[:1], jnp.float32))
    update = jax.jit(train.make_update(objective, optimizer, mesh_of(config)), donate_argnums=0)
    found = update.lower(state, paths, key).compile().memory_analysis()
    return {"temporary": found.temp_size_in_bytes, "arguments": found.argument_size_in_bytes}
