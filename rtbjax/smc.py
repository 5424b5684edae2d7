"""Selection among paths: steering without gradients, and whatever a steered or trained policy still lacks.

Particles follow a proposal: the prior, a guided policy (Wu et al. 2023), a trained posterior. Before every step each is
worth a guess of its log h, by default what log r says of the prior's present estimate of its x_0; those worth little
give way to copies of others. The guesses cancel along a path, so that whatever they are, the weights at its end are
those of r itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from rtbjax.process import Process
from rtbjax.types import Policy, PRNGKey, check_shape


class Particles(NamedTuple):
    """Attributes:
    x: ``[N, E*]``, of equal weight: posterior samples as N grows, not independent of each other.
    log_z: ``f32[]``; its exponential is an unbiased estimate of Z.
    """

    x: Array
    log_z: Float[Array, ""]


def steer(
    key: PRNGKey,
    process: Process,
    prior: Policy,
    log_reward: Callable[[Array, Any], Array],
    *,
    shape: tuple[int, ...],
    proposal: Policy | None = None,
    twist: Callable[[Any, Array, Int[Array, ""], Any], Array] | None = None,
    cond: Any = None,
    beta: float = 1.0,
    threshold: float = 0.5,
) -> Particles:
    """Samples of one posterior.

    Args:
      key: one key.
      process: the chain; its ``denoise`` gives the estimates.
      prior: of the posterior that is wanted.
      log_reward: ``(x[N, E*], cond) -> f32[N]``, finite, also of estimates.
      shape: ``(N, *E)``.
      proposal: whose kernel proposes, with its support that of the prior's; the prior itself if None.
      twist: the guess of ``log E[r^beta | xs[i]]``, ``(prior output, xs[i], i, cond) -> f32[N]``; log r of the
        estimate of x_0 if None. With the exact one the exact posterior as proposal gives equal weights.
      cond: the same condition for every particle, with leading axis N, or None.
      beta: the exponent of r.
      threshold: particles are drawn anew when their effective share falls below it, and at the end.

    Raises:
      ValueError: ``threshold`` outside 0 to 1, or a log r or a guess that is not one number per particle.
    """
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}.")
    count = shape[0]

    def one_each(name, numbers):
        check_shape(name, numbers, (count,))
        return numbers

    def log_r(x0):
        return (beta * one_each("log_reward", log_reward(x0, cond))).astype(jnp.float32)

    def guess(output, x, i):
        if twist is not None:
            return one_each("twist", twist(output, x, i, cond)).astype(jnp.float32)
        return log_r(process.denoise(output, x, i))

    def propose(key, output, x, i):
        """The next states, and the log-ratio of the prior's density there and the proposal's."""
        law_prior = process.reverse(output, x, i)
        keys, t = jax.random.split(key, count), process.time(i)
        if proposal is None:
            return law_prior.sample(keys), jnp.zeros(count, jnp.float32)
        features = None if proposal.look is None else proposal.look(output, x, t, cond)
        law = process.reverse(proposal(x, t, cond, features), x, i)
        x = law.sample(keys)
        return x, law_prior.log_ratio(law, x)

    def select(key, log_w, least):
        """Which particles go on, their log-weights, and what is settled of log Z."""
        share = jax.nn.softmax(log_w)
        anew = 1.0 / jnp.sum(share**2) < least * count
        index = jnp.where(anew, systematic(key, share), jnp.arange(count))
        return index, jnp.where(anew, 0.0, log_w), jnp.where(anew, _log_mean(log_w), 0.0)

    def step(carry, i):
        x, worth, log_w, log_z = carry
        select_key, step_key = jax.random.split(jax.random.fold_in(key, i))
        output = prior(x, process.time(i), cond)
        now = guess(output, x, i)
        index, log_w, settled = select(select_key, log_w + now - worth, threshold)
        x, now, output = jax.tree.map(lambda a: a[index], (x, now, output))
        x, log_ratio = propose(step_key, output, x, i)
        return (x, now, log_w + log_ratio, log_z + settled), None

    start_key, end_key = jax.random.split(jax.random.fold_in(key, process.num_steps))
    zeros = jnp.zeros(count, jnp.float32)
    carry = (process.init(jax.random.split(start_key, count), shape, cond), zeros, zeros, jnp.float32(0.0))
    (x, worth, log_w, log_z), _ = jax.lax.scan(step, carry, jnp.arange(process.num_steps))
    log_w = log_w + log_r(x) - worth
    return Particles(x[systematic(end_key, jax.nn.softmax(log_w))], log_z + _log_mean(log_w))


def best_of(n: int, x: Shaped[Array, "m ..."], log_reward: Float[Array, " m"]) -> Shaped[Array, "m/n ..."]:
    """Of every n samples in turn that of the highest log r; n must divide their number.

    Not the posterior: the law of the best has the rank of r among n draws where r itself is meant, whatever r's scale.

    Raises:
      ValueError: ``log_reward`` is not one number per sample.
    """
    check_shape("log_reward", log_reward, x.shape[:1])
    groups = log_reward.reshape(-1, n)
    return x[jnp.arange(len(groups)) * n + jnp.argmax(groups, axis=1)]


def systematic(key: PRNGKey, share: Float[Array, " N"]) -> Int[Array, " N"]:
    """N indices, each as often as its share of N to within one (Carpenter et al. 1999)."""
    count = share.shape[0]
    places = (jnp.arange(count, dtype=jnp.float32) + jax.random.uniform(key)) / count
    return jnp.minimum(jnp.searchsorted(jnp.cumsum(share), places), count - 1)


def _log_mean(log_w: Float[Array, " N"]) -> Float[Array, ""]:
    return jax.nn.logsumexp(log_w) - jnp.log(jnp.float32(log_w.shape[0]))
