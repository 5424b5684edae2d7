"""One loop for everything that is trained by a plain mean loss: priors, classifiers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree
from tqdm.auto import tqdm


def fit(
    loss: Callable[[PyTree, Array], Array],
    params: PyTree,
    *,
    key: Array,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    ema: float = 0.999,
    label: str = "pretraining",
    steps_per_call: int = 20,
    on_call: Callable[[int, PyTree], Any] | None = None,
) -> PyTree:
    """AdamW with warm-up and cosine decay; returns the exponential moving average of the parameters.

    Args:
      loss: ``(params, key) -> f32[]``; draws its own batch by the key, so that the data's position is the step.
      params: initial parameters.
      key: folded with each step.
      steps: updates.
      learning_rate: the peak; a twentieth of the steps warm up.
      weight_decay: AdamW's.
      ema: decay of the average; bounded by ``(1 + step) / (10 + step)`` early on.
      label: of the progress bar.
      steps_per_call: updates per jitted call.
      on_call: called with ``(steps done, averaged parameters)`` after every call.
    """
    warmup = max(1, steps // 20)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=weight_decay))

    @jax.jit
    def run(carry, first):
        def step(carry, i):
            params, opt_state, average = carry
            value, gradient = jax.value_and_grad(loss)(params, jax.random.fold_in(key, i))
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
            decay = jnp.minimum(ema, (1.0 + i) / (10.0 + i))
            average = optax.incremental_update(params, average, 1.0 - decay)
            return (params, opt_state, average), value

        return jax.lax.scan(step, carry, first + jnp.arange(steps_per_call))

    carry = (params, optimizer.init(params), params)
    with tqdm(total=steps, desc=label, unit="step") as bar:
        for first in range(0, steps, steps_per_call):
            carry, values = run(carry, first)
            bar.set_postfix(loss=f"{values.mean():.4g}", refresh=False)
            bar.update(min(steps_per_call, steps - first))
            if on_call is not None:
                on_call(first + steps_per_call, carry[2])
    return carry[2]
