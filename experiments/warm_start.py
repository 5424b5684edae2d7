"""Before RTB: a steered posterior is brought near by the gradient of a value, ``log h(x) = log E[r | x]``.

Along the posterior's own paths, the score of every step is regressed on the gradient of log h at the state it led to
(`rtbjax.losses.steering`), times ``settings.strength``. Nothing is weighted by a path's residual, which is what makes
RTB's gradient noisy far from balance.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from experiments.domains.base import Domain, rows
from experiments.pretrain import fit
from rtbjax import LearnedStd, Policy, Trajectory, guidance, losses, rollout


def run(
    domain: Domain, settings: ConfigDict, key: Array, workdir: Path, on_step: Callable[[PyTree], None] = lambda _: None
) -> PyTree:
    """The parameters of the steered posterior; resumes from what ``workdir`` holds. ``on_step`` gets every state."""
    assert domain.value is not None
    prior, posterior = domain.prior, domain.posterior
    shape = (settings.batch_size, *domain.event_shape)

    def loss(params, key, frozen):
        prior_params, value_params = frozen
        current = posterior.replace(params=jax.lax.stop_gradient(params))
        cond = conditions(domain, key, settings.batch_size)
        paths = rollout(key, domain.process, prior.replace(params=prior_params), current, shape=shape, cond=cond)
        targets = jax.lax.stop_gradient(value_gradients(domain, value_params, paths.xs, cond) * settings.strength)
        return jnp.mean(steering(domain, posterior.replace(params=params), paths, targets))

    frozen = (prior.params, domain.value.params)
    arguments = dict(key=key, workdir=workdir, label="warm start", steps_per_call=1, on_call=on_step)
    return fit(loss, posterior.params, frozen, settings, **arguments)


def conditions(domain: Domain, key: Array, count: int) -> PyTree | None:
    """Those of ``count`` paths, drawn uniformly; None if there are none."""
    if domain.conditions is None:
        return None
    # Beyond the indices by which a rollout folds its key.
    drawn = jax.random.randint(jax.random.fold_in(key, count), (count,), 0, domain.conditions.count)
    return rows(domain.conditions.values, drawn)


def value_gradients(domain: Domain, params: PyTree, xs: Array, cond: PyTree | None = None) -> Float[Array, "T B *E"]:
    """Gradient of log h at ``xs[1:]``; at the data log h is log r."""
    assert domain.value is not None
    log_h_after = guidance.value_after(domain.process, partial(domain.value.log_h, params), domain.log_reward)

    def one(_, i):
        return None, jax.grad(lambda x: jnp.sum(log_h_after(x, i, cond)))(xs[i + 1])

    return jax.lax.scan(one, None, jnp.arange(domain.process.num_steps))[1]


def steering(domain: Domain, policy: Policy, paths: Trajectory, targets: Array) -> Float[Array, " B"]:
    """`rtbjax.losses.steering` summed over the steps of each path, at memory flat in T."""
    process = domain.process

    @jax.checkpoint
    def one(total, i):
        x = paths.xs[i]
        steered = policy(x, process.time(i), paths.cond, jax.tree.map(lambda f: f[i], paths.features))
        # The prior's own std: of a posterior that learns its variances only the mean is steered here.
        output = steered.output.value if isinstance(steered.output, LearnedStd) else steered.output
        return total + losses.steering(steered.score, targets[i], process.reverse(output, x, i).std), None

    return jax.lax.scan(one, jnp.zeros(paths.xs.shape[1]), jnp.arange(process.num_steps))[0]
