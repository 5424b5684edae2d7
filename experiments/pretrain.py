"""One loop for everything that is trained by a plain mean loss: priors, classifiers, values, the warm start."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from experiments import hosts, stopping
from experiments.checkpoint import Checkpoints
from experiments.finite import Diverged, finite
from experiments.optimizers import RULES, learning_rate


def fit(
    loss: Callable[[PyTree, Array, PyTree], Array],
    params: PyTree,
    data: PyTree,
    settings: ConfigDict,
    *,
    key: Array,
    workdir: Path,
    label: str,
    steps_per_call: int = 20,
    on_call: Callable[[PyTree], None] = lambda _: None,
) -> PyTree:
    """Warm-up and cosine decay; returns the exponential moving average of the parameters.

    Running it again on the same workdir resumes at the last checkpoint.

    Args:
      loss: ``(params, key, data) -> f32[]``; draws its own batch by the key, so that the data's position is the step.
      params: initial parameters.
      data: arrays the loss draws from; compiled in as constants they would fill the compiler's time and cache.
      settings: ``steps``, ``optimizer`` (of `experiments.optimizers.RULES`), ``learning_rate`` (the peak; a twentieth
        of the steps warm up), ``weight_decay``, ``ema`` (bounded by ``(1 + step) / (10 + step)`` early on),
        ``checkpoint_every``.
      key: folded with each step.
      workdir: for checkpoints.
      label: of the progress bar.
      steps_per_call: updates per jitted call; of the last one what is left.
      on_call: gets the state after every call.

    Raises:
      Diverged: loss or parameters are no longer finite; such a state is not saved.
      Terminated: it was asked to stop (see `experiments.stopping`); what is done is saved.
    """
    schedule = learning_rate(settings.learning_rate, max(1, settings.steps // 20), settings.steps)
    rule = RULES[settings.optimizer](schedule, weight_decay=settings.weight_decay)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), rule)

    def step(data, carry, i):
        params, opt_state, average = carry
        value, gradient = jax.value_and_grad(loss)(params, jax.random.fold_in(key, i), data)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer counters.
            updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        done = i.astype(jnp.float32)
        decay = jnp.minimum(settings.ema, (1.0 + done) / (10.0 + done))
        average = optax.incremental_update(params, average, 1.0 - decay)
        return (params, opt_state, average), value

    carry = (params, optimizer.init(params), params)
    progress = dict(workdir=workdir, label=label, steps_per_call=steps_per_call, on_call=on_call)
    return iterate(step, carry, data, settings, **progress)[2]


def iterate(
    step: Callable[[PyTree, PyTree, Array], tuple[PyTree, Array]],
    carry: PyTree,
    data: PyTree,
    settings: ConfigDict,
    *,
    workdir: Path,
    label: str,
    steps_per_call: int = 20,
    on_call: Callable[[PyTree], None] = lambda _: None,
) -> PyTree:
    """Runs exactly ``settings.steps`` updates, many per jitted call; returns the last state.

    Running it again on the same workdir resumes at the last checkpoint.

    Args:
      step: ``(data, state, i) -> (state, loss)``, an update; what is random in it follows from i.
      carry: the state at the start, whose first entry are the parameters.
      data: arrays the updates draw from; see `fit`.
      settings: ``steps``, ``checkpoint_every``.
      workdir: for checkpoints.
      label: of the progress bar.
      steps_per_call: updates per jitted call; of the last one what is left.
      on_call: gets the state after every call.

    Raises:
      Diverged: loss or parameters are no longer finite; such a state is not saved.
    """

    @partial(jax.jit, static_argnames="count")
    def run(carry, first, data, count):
        return jax.lax.scan(partial(step, data), carry, first + jnp.arange(count))

    checkpoints = Checkpoints(workdir / "checkpoints", keep=1)
    found = checkpoints.restore({"carry": carry})
    start = 0
    if found is not None:
        start, carry = found[0], found[1]["carry"]
        hosts.say(f"Resuming {label} at step {start} of {settings.steps}.")
    saved = start
    with (
        hosts.progress(total=settings.steps, initial=start, desc=label, unit="step", mininterval=1.0) as bar,
        stopping.deferred() as asked_to_stop,
    ):
        for first in range(start, settings.steps, steps_per_call):
            count = min(steps_per_call, settings.steps - first)
            carry, values = run(carry, first, data, count)
            on_call(carry)
            done = first + count
            bar.set_postfix(loss=f"{values.mean():.4g}", refresh=False)
            bar.update(count)
            stop = hosts.any_of(asked_to_stop())
            if done - saved >= settings.checkpoint_every or done == settings.steps or stop:
                if not finite((carry[0], values)):
                    raise Diverged(
                        f"Training the {label} went beyond finite numbers before step {done}: choose a smaller "
                        "learning_rate in its section of the config, in another --workdir."
                    )
                checkpoints.save(done, {"carry": carry})
                saved = done
            if stop and done < settings.steps:
                raise stopping.Terminated(f"stopped as asked; the same command goes on at step {done} of the {label}.")
    checkpoints.close()
    return carry
