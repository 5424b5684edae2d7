"""Training steps: jit + shard_map around the pure functions, and the state they carry."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PyTree

from rtbjax.objective import LossInfo, check_params
from rtbjax.process import Process
from rtbjax.sharding import (
    batch_axes,
    batch_devices,
    check_divides,
    data_mesh,
    parameter_shardings,
    parameter_specs,
    shards,
    trajectory_specs,
)
from rtbjax.trajectory import check_widen, rollout
from rtbjax.types import AxisName, Policy, PRNGKey, Shard, Trajectory, check_shape, varying_like


class TrainState(NamedTuple):
    """Everything an update changes.

    Attributes:
      step: batches seen, ``i32[]``.
      params: ``{"policy": ..., "log_z": ...}``.
      opt_state: the optimizer's.
      skipped: batches that changed neither of the two (see `make_update`), ``i32[]``.
      skipped_in_row: of these, the ones since the last that did, ``i32[]``.
    """

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree
    skipped: Int[Array, ""]
    skipped_in_row: Int[Array, ""]


class StepInfo(NamedTuple):
    """What a human wants to know about an update, over the whole batch.

    It does not say whether the update was made: ``TrainState.skipped`` counts those that were not.

    Attributes:
      loss: the objective, ``f32[]``.
      log_z: mean of what the gaps were balanced against, ``f32[]``.
      residual: root mean square of ``log_z - gap`` in nats, ``f32[]``.
      grad_norm: of the policy's gradient before clipping, ``f32[]``.
      gap: of each path, ``f32[B]``. Of the posterior's own paths they are log importance weights: their mean bounds log
        Z from below, their effective sample size says how even they are.
    """

    loss: Float[Array, ""]
    log_z: Float[Array, ""]
    residual: Float[Array, ""]
    grad_norm: Float[Array, ""]
    gap: Float[Array, " B"]


class Objective(Protocol):
    """A mean loss over a batch of paths: `rtbjax.loss` with everything but these arguments bound."""

    def __call__(
        self, params: PyTree, trajectory: Trajectory, *, key: PRNGKey, axis_name: AxisName
    ) -> tuple[Float[Array, ""], LossInfo]:
        """The mean over this shard's paths, and their `LossInfo`."""
        ...


def optimizer(
    learning_rate: optax.ScalarOrSchedule,
    log_z_learning_rate: float = 0.1,
    *,
    clip_norm: float | None = 1.0,
    rule: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation] = optax.adam,
) -> optax.GradientTransformation:
    """``rule`` for the policy, gradient clipped by global norm, and Adam at its own (large) rate for log Z."""
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.partition(
        {"policy": optax.chain(clip, rule(learning_rate)), "log_z": optax.adam(log_z_learning_rate)},
        lambda params: {name: name for name in params},
    )


def init_state(params: PyTree, optimizer: optax.GradientTransformation, mesh: Mesh | None = None) -> TrainState:
    """Step 0, on a copy of ``params``: updates donate their state.

    Given a mesh the state is made where updates want it, and never lies on one device as a whole.

    Raises:
      ValueError: ``params`` is not ``{"policy": ..., "log_z": ...}``.
    """
    check_params(params)

    def init(params):
        # A number of Python's has a weak type: updates would make it a strong one, and be compiled for both.
        params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.result_type(leaf)), params)
        # A buffer of its own for each number: one that is donated twice is an error.
        counts = [jnp.int32(0) for _ in range(3)]
        return TrainState(counts[0], jax.tree.map(jnp.copy, params), optimizer.init(params), *counts[1:])

    if mesh is None:
        return init(params)
    return jax.jit(init, out_shardings=parameter_shardings(jax.eval_shape(init, params), mesh))(params)


def make_update(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    *,
    log_z_limit: float = math.inf,
) -> Callable[[TrainState, Trajectory, PRNGKey], tuple[TrainState, StepInfo]]:
    """One gradient step, data-parallel over the mesh, with parameters in parts where it has an ``fsdp`` axis.

    A batch whose loss or gradient is not finite, or whose log Z is beyond the limit, is skipped and counted: it leaves
    parameters and optimizer as they were.

    Args:
      objective: e.g. ``partial(rtbjax.loss, process=process, apply_fn=apply_fn)``.
      optimizer: see `optimizer`.
      mesh: with an axis ``data``; `rtbjax.sharding.data_mesh` over all devices if None.
      log_z_limit: the largest ``|log Z|`` of a path to learn from, in nats.

    Returns:
      ``update(state, trajectory, key) -> (state, StepInfo)``. The state's buffers are donated; a batch that does not
      divide over the mesh is a ValueError, as are a log r and conditions of another number of paths.
    """
    mesh = data_mesh() if mesh is None else mesh
    axes = batch_axes(mesh)

    def mean_over_shards(gradient):
        if isinstance(gradient, Shard):  # Scattered back from the gathering, it is a sum along that axis already.
            others = tuple(name for name in axes if name != gradient.axis_name)
            return jax.lax.pmean(gradient.part, others) / jax.lax.axis_size(gradient.axis_name)
        return jax.lax.pmean(gradient, axes)

    per_path: Any = P(axes)

    @jax.jit(donate_argnums=0)
    def step(state, trajectory, key):
        policy_specs = parameter_specs(state.params["policy"], mesh)
        # Whatever log Z is, it is small and no `Policy`.
        specs = {name: policy_specs if name == "policy" else P() for name in state.params}

        def local_gradient(params, trajectory, key):
            # Marked as varying, the gradient is this shard's own, and the mean over shards is taken here, in plain
            # sight. Taking pmean of the gradient of unmarked parameters would multiply it by the number of devices.
            params = varying_like(params | {"policy": shards(params["policy"], policy_specs)}, trajectory.xs)
            (loss, info), gradient = jax.value_and_grad(objective, has_aux=True)(
                params, trajectory, key=key, axis_name=axes
            )
            gradient = jax.tree.map(mean_over_shards, gradient, is_leaf=lambda leaf: isinstance(leaf, Shard))
            return jax.lax.pmean(loss, axes), gradient, info

        loss, gradient, info = jax.shard_map(
            local_gradient,
            mesh=mesh,
            in_specs=(specs, trajectory_specs(trajectory, mesh), P()),
            out_specs=(P(), specs, LossInfo(per_path, per_path)),
        )(state.params, trajectory, key)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer counters.
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        residual = jnp.sqrt(jnp.mean((info.log_z - info.gap) ** 2))
        norm = optax.tree.norm(gradient["policy"])
        step_info = StepInfo(loss, jnp.mean(info.log_z), residual, norm, info.gap)
        # By the gradient, before the optimizer has used it: to look at the new parameters would need room for both.
        sound = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradient))
        sound &= jnp.all(jnp.abs(info.log_z) <= log_z_limit)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        skipped = state.skipped + jnp.where(sound, 0, 1)
        in_row = jnp.where(sound, 0, state.skipped_in_row + 1)
        state = TrainState(state.step + 1, params, opt_state, skipped, in_row)
        return jax.lax.with_sharding_constraint(state, parameter_shardings(state, mesh)), step_info

    def update(state: TrainState, trajectory: Trajectory, key: PRNGKey) -> tuple[TrainState, StepInfo]:
        batch = trajectory.xs.shape[1]
        check_divides(batch, mesh)
        if trajectory.log_reward is not None:
            log_reward = jnp.asarray(trajectory.log_reward)
            check_shape("log_reward", log_reward, (batch,))
            trajectory = trajectory._replace(log_reward=log_reward)
        for leaf in jax.tree.leaves(trajectory.cond):
            if jnp.shape(leaf)[:1] != (batch,):
                raise ValueError(f"Conditions need a leading axis of {batch}, the paths, got shape {jnp.shape(leaf)}.")
        # Already where they belong after the first step; a reward that comes from the host is not.
        state = jax.device_put(state, parameter_shardings(state, mesh))
        placement = jax.tree.map(lambda spec: NamedSharding(mesh, spec), trajectory_specs(trajectory, mesh))
        return step(state, jax.device_put(trajectory, placement), key)

    return update


def make_rollout(process: Process, shape: tuple[int, ...], mesh: Mesh | None = None) -> Callable[..., Trajectory]:
    """`rtbjax.rollout` over a mesh; the paths do not depend on the number of devices.

    Args:
      process: the chain.
      shape: ``(B, *E)``, B over all devices.
      mesh: as of `make_update`.

    Returns:
      ``f(key, prior, posterior=None, cond=None, widen=0.0, look=None, start=None) -> Trajectory``, jitted, which raises
      what `rtbjax.rollout` raises.

    Raises:
      ValueError: B does not divide over the mesh.
    """
    mesh = data_mesh() if mesh is None else mesh
    check_divides(shape[0], mesh)
    local, axes = shape[0] // batch_devices(mesh), batch_axes(mesh)

    @jax.jit(static_argnames="look")
    def run(key, prior: Policy, posterior: Policy | None = None, cond: Any = None, widen=0.0, look=None, start=None):
        policies: Any = parameter_specs((prior, posterior), mesh)

        def shard(key, prior, posterior, cond, widen, start):
            prior, posterior = shards((prior, posterior), policies)
            index = jax.lax.axis_index(axes) * local + jnp.arange(local)
            block = (local, *shape[1:])
            arguments: Any = dict(shape=block, cond=cond, widen=widen, look=look, start=start, index=index)
            return rollout(key, process, prior, posterior, **arguments)

        time_major: Any = P(None, axes)
        batch_major: Any = P(axes)
        # None stands for an absent leaf, so what is absent is left out of the specs too.
        specs: Any = Trajectory(
            xs=time_major,
            cond=None if cond is None else batch_major,
            log_reward=None,
            log_prior=time_major,
            log_ratio=None if posterior is None else time_major,
            features=None if (look if posterior is None else posterior.look) is None else time_major,
        )
        split = P(axes)
        return jax.shard_map(shard, mesh=mesh, in_specs=(P(), *policies, split, P(), split), out_specs=specs)(
            key, prior, posterior, cond, jnp.asarray(widen, jnp.float32), start
        )

    def checked(key, prior, posterior=None, cond=None, widen=0.0, look=None, start=None) -> Trajectory:
        check_widen(widen)
        if not mesh.is_multi_process:  # There each leaf would be compared over the network.
            # Elsewhere than where updates leave them they would be another program's arguments.
            policies = jax.tree.map(jnp.asarray, (prior, posterior))
            prior, posterior = jax.device_put(policies, parameter_shardings(policies, mesh))
        return run(key, prior, posterior, cond, widen, look, start)

    return checked
