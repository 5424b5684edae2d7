"""What all that learns values from transitions shares: batches of them, and Adam with targets that lag behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PyTree
from ml_collections import ConfigDict

from experiments.control import transitions
from experiments.control.transitions import Normaliser, Transitions
from experiments.pretrain import iterate


class Batch(NamedTuple):
    """Attributes:
    observations: s, normalised, ``f32[B, S]``.
    actions: a, ``f32[B, A]``.
    rewards: r, scaled, ``f32[B]``.
    next_observations: s', normalised, ``f32[B, S]``.
    terminals: ``bool[B]``.
    """

    observations: Float[Array, "B S"]
    actions: Float[Array, "B A"]
    rewards: Float[Array, " B"]
    next_observations: Float[Array, "B S"]
    terminals: Bool[Array, " B"]


def batch_of(found: Transitions, norm: Normaliser) -> Batch:
    """All transitions, their rewards scaled.

    Raises:
      DataError: there is nothing to scale rewards by.
    """
    return Batch(
        jnp.asarray(norm(found.observations)),
        jnp.asarray(found.actions),
        jnp.asarray(found.rewards * np.float32(transitions.reward_scale(found))),
        jnp.asarray(norm(found.next_observations)),
        jnp.asarray(found.terminals),
    )


def hidden(x: Float[Array, "B d"], width: int) -> Float[Array, "B {width}"]:
    """Two layers of rectified units, part of the compact module that calls it and named as its next ones."""
    for _ in range(2):
        x = nn.relu(nn.Dense(width)(x))
    return x


def draw(key: Array, data: PyTree, size: int) -> PyTree:
    """Rows of every array, with replacement."""
    rows = jax.random.randint(key, (size,), 0, len(jax.tree.leaves(data)[0]), jnp.int32)
    return jax.tree.map(lambda a: a[rows], data)


def train(
    loss: Callable[[Any, Any, Array, Batch], Float[Array, ""]],
    init: Callable[[Array, int, int, int], Any],
    lagging: tuple[str, ...],
    data: Batch,
    settings: ConfigDict,
    *,
    key: Array,
    workdir: Path,
    label: str,
    clip_norm: float | None = None,
) -> tuple[Any, Any]:
    """Adam at a constant rate, with exponential averages of some parameters as targets; resumes from ``workdir``.

    Args:
      loss: ``(params, targets, key, batch) -> f32[]``.
      init: ``(key, width, observation_dim, action_dim) -> params`` at the start, by name.
      lagging: names of the parameters that have targets.
      data: all transitions, of which batches are drawn with replacement.
      settings: ``width``, ``batch_size``, ``learning_rate``, ``target_rate`` (of the exponential average), and those of
        `experiments.pretrain.iterate`.
      key: of weights, of batches and of what is random in the loss.
      workdir: for checkpoints.
      label: of the progress bar.
      clip_norm: bound on the gradient's norm, or None.

    Returns:
      The last parameters, and the targets by name.

    Raises:
      experiments.finite.Diverged: loss or parameters are no longer finite.
    """
    init_key, train_key = jax.random.split(key)
    batch_key, loss_key = jax.random.split(train_key)
    params = init(init_key, settings.width, data.observations.shape[1], data.actions.shape[1])
    adam = optax.adam(settings.learning_rate)
    optimizer = adam if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), adam)

    def tracked(params):
        return {name: params[name] for name in lagging}

    def step(data, carry, i):
        params, targets, opt_state = carry
        batch = draw(jax.random.fold_in(batch_key, i), data, settings.batch_size)
        total, gradient = jax.value_and_grad(loss)(params, targets, jax.random.fold_in(loss_key, i), batch)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer counters.
            updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        targets = optax.incremental_update(tracked(params), targets, settings.target_rate)
        return (params, targets, opt_state), total

    carry = (params, tracked(params), optimizer.init(params))
    last: Any = iterate(step, carry, data, settings, workdir=workdir, label=label, steps_per_call=200)
    return last[0], last[1]
