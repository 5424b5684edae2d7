"""The RTB objective with its exact two-pass gradient (paper, eq. 9 and app. H.1).

    gap(path) = sum_i [log p_prior(xs[i+1] | xs[i]) - log p_post(xs[i+1] | xs[i])] + beta log r(xs[T])
    loss      = 1/2 mean_b residual_b^2,        residual_b = log Z - gap_b
    gradient  = mean_b residual_b (d log Z + sum_i d log p_post(xs[i+1] | xs[i]))

The residual is a number known before any backward pass: pass 1 is forward only, and on-policy it is free, for the
rollout has already computed it. Pass 2 scans over chunks of steps and accumulates the gradient. Memory does not grow
with T beyond the states themselves.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from rtbjax import losses, partition
from rtbjax.process import Process
from rtbjax.trajectory import check_chunk, check_length, log_prob, rescore
from rtbjax.types import AxisName, Policy, PRNGKey, Trajectory, check_shape, varying_like


class LossInfo(NamedTuple):
    """What a human wants to know about one loss evaluation, without gradient.

    Attributes:
      gap: ``f32[B]``, the log importance weight of each path if it is the posterior's own.
      log_z: ``f32[B]``, what each gap was balanced against.
    """

    gap: Float[Array, " B"]
    log_z: Float[Array, " B"]


def path_log_ratio(
    policy_params: PyTree,
    trajectory: Trajectory,
    *,
    process: Process,
    apply_fn: Callable,
    grad_steps: int | None = None,
    key: PRNGKey | None = None,
    chunk: int = 1,
) -> Float[Array, " B"]:
    """``sum_i [log p_prior - log p_post]`` of each path, with a gradient at memory constant in T.

    The value comes from ``trajectory.log_ratio`` where that is given, else from a forward pass over all steps. The
    gradient recomputes the posterior step by step.

    Args:
      policy_params: the posterior's parameters.
      trajectory: paths with ``log_prior``.
      process: the chain.
      apply_fn: the posterior's denoiser.
      grad_steps: S, the number of steps, drawn uniformly without replacement, that carry the gradient, rescaled by T/S:
        unbiased (paper, app. H.1). The value is not affected. None for all T.
      key: needed with ``grad_steps``.
      chunk: steps per network call in the gradient; must divide S.

    Raises:
      ValueError: paths of another length than the process's, ``grad_steps`` outside 1..T or without a key, ``chunk``
        that does not divide it, a ``log_prior`` or ``log_ratio`` that is not ``[T, B]``, or features where the policy
        takes none, or none where it does.
    """
    total = process.num_steps
    check_length(process, trajectory.xs)
    per_step = (total, trajectory.xs.shape[1])
    check_shape("log_prior", trajectory.log_prior, per_step)
    if trajectory.log_ratio is not None:
        check_shape("log_ratio", trajectory.log_ratio, per_step)
    if grad_steps is None:
        steps, scale = jnp.arange(total), 1.0
    else:
        if not 1 <= grad_steps <= total:
            raise ValueError(f"grad_steps must lie in 1..{total} (the steps of the process), got {grad_steps}.")
        if key is None:
            raise ValueError("grad_steps draws random steps and needs a key.")
        steps = jax.random.choice(key, total, (grad_steps,), replace=False)
        scale = total / grad_steps
    check_chunk(steps.shape[0], chunk)

    xs, cond, features = trajectory.xs, trajectory.cond, trajectory.features
    # The gradient with respect to marked parameters is this shard's own: autodiff of the mark sums it over shards.
    policy_params = varying_like(policy_params, xs)
    if trajectory.log_ratio is None:
        trajectory = rescore(process, Policy(jax.lax.stop_gradient(policy_params), apply_fn), trajectory)
    assert trajectory.log_ratio is not None
    value = jnp.sum(trajectory.log_ratio, axis=0)

    @jax.custom_vjp
    def attach(params, paths, steps, value):
        del params, paths, steps
        return value

    def forward(params, paths, steps, value):
        return value, (params, paths, steps)

    def backward(residuals, cotangent):
        params, paths, steps = residuals

        def weighted(params, chunk_steps):
            log_post = log_prob(process, Policy(params, apply_fn), *paths, steps=chunk_steps, chunk=chunk)
            return -scale * jnp.sum(cotangent * jnp.sum(log_post, axis=0))

        def body(total, chunk_steps):
            part = jax.grad(weighted)(params, chunk_steps)
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, part), None

        # Of parameters in bfloat16 a sum over many steps would lose its last ones.
        def zero(p):
            return jnp.zeros_like(p, jnp.float32 if p.dtype.itemsize < 4 else p.dtype)

        total, _ = jax.lax.scan(body, varying_like(jax.tree.map(zero, params), xs), steps.reshape(-1, chunk))
        return jax.tree.map(lambda a, p: a.astype(p.dtype), total, params), None, None, None

    attach.defvjp(forward, backward)
    return attach(policy_params, (xs, cond, features), steps, jax.lax.stop_gradient(value))


def check_params(params: Any) -> None:
    """Raises a ValueError unless the policy's parameters are there under their name, and all of them are numbers."""
    if not isinstance(params, Mapping) or "policy" not in params:
        found = f"a dictionary of {sorted(map(str, params))}" if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(
            f'The parameters must be {{"policy": posterior.params}}, with "log_z" if it is learned, got {found}.'
        )
    for path, leaf in jax.tree.leaves_with_path(params):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, (int, float)):
            name = "params" + jax.tree_util.keystr(path)
            raise ValueError(
                f"Parameters must be arrays, and {name} is a {type(leaf).__name__}; of an Equinox module, take "
                "params, static = eqx.partition(module, eqx.is_inexact_array)."
            )


def loss(
    params: dict[str, Any],
    trajectory: Trajectory,
    *,
    process: Process,
    apply_fn: Callable,
    log_z: partition.LogZ = "vargrad",
    group: partition.Group = None,
    beta: float | Float[Array, ""] = 1.0,
    grad_steps: int | None = None,
    key: PRNGKey | None = None,
    chunk: int = 1,
    cutoff: float = 0.0,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, ""], LossInfo]:
    """Relative trajectory balance of a batch of paths; differentiate it with ``jax.grad(loss, has_aux=True)``.

    Paths may come from anywhere: the gradient never flows through sampling.

    Args:
      params: ``{"policy": ..., "log_z": ...}``; ``log_z`` only where it is not VarGrad's.
      trajectory: paths with ``log_reward`` and ``log_prior``; with ``log_ratio`` nothing is scored again, and it must
        then belong to ``params["policy"]``.
      process: the chain.
      apply_fn: the posterior's denoiser, ``(params["policy"], x, t, cond) -> output``.
      log_z: ``"vargrad"``, ``"learned"`` or a function ``(params["log_z"], cond) -> f32[B]``.
      group: VarGrad's groups of paths that share a condition: a size, for neighbours, an id in 0..B-1 per path, or a
        function ``cond -> ids``; None, for all, only without conditions. Over several devices ids must be such a
        function: conditions travel with their paths.
      beta: the exponent of r.
      grad_steps: see `path_log_ratio`; the gradient of log Z is not rescaled.
      key: needed with ``grad_steps``.
      chunk: steps per network call in the gradient.
      cutoff: no gradient where the squared residual is below it.
      axis_name: the mesh axis or axes the batch is split over, under ``shard_map``. The loss is then this shard's mean.

    Returns:
      The loss, ``f32[]``, and its `LossInfo`.

    Raises:
      ValueError: no ``"policy"`` among the parameters, no ``log_reward`` or truth values in its place, an array of
        another shape than `Trajectory` says, a VarGrad group of one path, one of different conditions or none at all
        where there are conditions, a ``grad_steps`` or ``chunk`` out of range.
    """
    check_params(params)
    if trajectory.log_reward is None:
        raise ValueError("The trajectory has no log_reward: set it with trajectory._replace(log_reward=...).")
    log_reward = jnp.asarray(trajectory.log_reward)
    check_shape("log_reward", log_reward, (trajectory.xs.shape[1],))
    if log_reward.dtype == jnp.bool_:
        raise ValueError("log_reward holds truth values, not log r: jnp.where(allowed, 0.0, floor) makes a constraint.")
    log_ratio = path_log_ratio(
        params["policy"],
        trajectory,
        process=process,
        apply_fn=apply_fn,
        grad_steps=grad_steps,
        key=key,
        chunk=chunk,
    )
    gap = jax.lax.stop_gradient(log_ratio + beta * log_reward)
    estimate = partition.log_z_per_path(log_z, params, gap, trajectory.cond, group, axis_name)
    per_path = losses.rtb(log_ratio, log_reward, estimate, beta=beta, cutoff=cutoff)
    return jnp.mean(per_path), LossInfo(gap, jax.lax.stop_gradient(estimate))


def denoising_loss(
    key: PRNGKey,
    process: Process,
    policy: Policy,
    x0: Array,
    cond: Any = None,
    *,
    prior: Policy | None = None,
) -> Float[Array, " B"]:
    """Trains a policy on data: the variational bound at one random step per sample (Ho et al. 2020, eq. 5).

    ``T * KL(target kernel | policy's kernel)`` at a uniform step, on data noised up to it. On data this makes a prior;
    on exact posterior samples a posterior, as exact as the prior chain is the reversal of the noising. No log r enters
    and no path is rolled out.

    For tokens, and for Gaussian steps whose std is that of noised data (``variance="fixed_small"``, DDIM with eta 1),
    it is an unbiased estimate of how far the policy's path law is from that of noised data. With any other std it is so
    up to a number that means cannot change: `Process.target` has the process's std, which is also what a policy that
    moves the std is taught.

    Args:
      key: one for the batch.
      process: the chain.
      policy: differentiate with respect to its ``params``.
      x0: data, ``[B, E*]``.
      cond: conditions.
      prior: needed if the policy builds on one (`Policy.look`).

    Returns:
      ``f32[B]``, in nats.

    Raises:
      ValueError: the policy builds on a prior and none is given.
    """
    if policy.look is not None and prior is None:
        raise ValueError("This policy builds on a frozen prior: pass prior=.")
    order_key, offset_key, noise_key = jax.random.split(key, 3)
    batch = x0.shape[0]
    # Stratified: one step from each of B equal parts of the chain, in random order.
    order = jax.random.permutation(order_key, batch).astype(jnp.float32)
    places = (order + jax.random.uniform(offset_key)) / batch * process.num_steps
    steps = jnp.minimum(places.astype(jnp.int32), process.num_steps - 1)

    def one(key, x0, cond, i):
        x0, cond = jax.tree.map(lambda a: a[None], (x0, cond))
        x = process.marginal(key[None], x0, i, cond)
        t = process.time(i)
        features = None
        if policy.look is not None and prior is not None:
            features = jax.lax.stop_gradient(policy.look(prior(x, t, cond), x, t, cond))
        law = process.reverse(policy(x, t, cond, features), x, i)
        return process.num_steps * process.target(x0, x, i).kl(law)[0]

    return jax.vmap(one)(jax.random.split(noise_key, batch), x0, cond, steps)
