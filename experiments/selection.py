"""Samples that are selected and not weighted: best-of-N and sequential Monte Carlo, as ``eval.sampler`` asks for them.

Their law is not known by its density, so there is neither ELBO nor effective sample size nor path-KL of them.
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import hosts
from experiments.domains.base import Domain, log_reward, rewarded
from experiments.errors import ConfigError
from rtbjax import Policy, smc
from rtbjax.train import make_rollout

WHY_UNCERTIFIED = {
    "best_of": "the best of several prior samples have no importance weights",
    "smc": "particles that were drawn anew have no importance weights of their own",
    "smc_posterior": "particles that were drawn anew have no importance weights of their own",
}


class Selected(NamedTuple):
    """Attributes:
    x: ``[n, E*]``.
    log_reward: ``[n]``.
    log_z: of each particle system, whose exponentials are unbiased estimates of Z; None where there are no such.
    seconds: per sample, of the fastest batch: the first one also compiles.
    """

    x: np.ndarray
    log_reward: np.ndarray
    log_z: np.ndarray | None
    seconds: float


def check(config: ConfigDict, domain: Domain) -> None:
    """Checks the sampler against the domain.

    Raises:
      ConfigError: one that selects where there are many posteriors, or particles for a reward outside JAX.
    """
    if config.eval.sampler == "paths":
        return
    if domain.conditions is not None:
        raise ConfigError("config.eval.sampler must be paths: this domain has conditions.")
    if config.eval.sampler != "best_of":
        _check_traceable(config, domain)


def _check_traceable(config: ConfigDict, domain: Domain) -> None:
    """Raises a ConfigError unless JAX can ask the reward at every step of its own program."""
    shape = (config.eval.particles, *domain.event_shape)

    def asked(key):
        return domain.log_reward(domain.process.init(jax.random.split(key, shape[0]), shape, None), None)

    try:
        jax.eval_shape(asked, jax.random.key(0))
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise ConfigError(
            f"config.eval.sampler={config.eval.sampler} asks the reward at every step, inside JAX, and this one "
            "computes on the host: best_of asks it once for each sample."
        ) from error


def draw(key: jax.Array, config: ConfigDict, domain: Domain, posterior: Policy, mesh: Mesh) -> Selected:
    """``eval.num_samples`` samples of the one posterior there is.

    ``best_of``: of every ``eval.best_of`` prior samples that of the highest reward. ``smc``: systems of
    ``eval.particles``, proposed by the prior and judged by log r of the estimate of x_0. ``smc_posterior``: proposed by
    the posterior, judged by the domain's value if there is one.
    """
    settings = config.eval
    best = settings.sampler == "best_of"
    batch = _best_of(config, domain, mesh) if best else _particles(config, domain, posterior)
    parts, log_zs, seconds, have = [], [], [], 0
    with hosts.progress(total=settings.num_samples, desc=settings.sampler, unit="sample") as bar:
        while have < settings.num_samples:
            started = time.monotonic()
            x, log_r, log_z = batch(jax.random.fold_in(key, have))
            parts.append((x, log_r))
            seconds.append((time.monotonic() - started) / len(x))
            log_zs += [] if log_z is None else [log_z]
            have += len(x)
            bar.update(len(x))
    x, log_r = (np.concatenate(column)[: settings.num_samples] for column in zip(*parts, strict=True))
    return Selected(x, log_r, np.asarray(log_zs) if log_zs else None, min(seconds))


def _best_of(config: ConfigDict, domain: Domain, mesh: Mesh):
    settings = config.eval
    run = make_rollout(domain.process, (settings.batch_size, *domain.event_shape), mesh)

    def batch(key):
        drawn = rewarded(domain, run(key, domain.prior))
        x, log_r = hosts.whole(drawn.xs[-1]), hosts.whole(drawn.log_reward)
        best = np.asarray(smc.best_of(settings.best_of, jnp.arange(len(log_r)), jnp.asarray(log_r)))
        return x[best], log_r[best], None

    return batch


def _particles(config: ConfigDict, domain: Domain, posterior: Policy):
    beta, shape = config.objective.beta, (config.eval.particles, *domain.event_shape)
    proposal = posterior if config.eval.sampler == "smc_posterior" else None
    value = domain.value if proposal is not None and beta == 1.0 else None

    @jax.jit
    def run(key, prior, proposal, value_params):
        def judged(output, x, i, cond):
            return value.log_h(value_params, x, domain.process.time(i), cond)

        twist = None if value is None else judged
        arguments = dict(shape=shape, proposal=proposal, twist=twist, beta=beta)
        return smc.steer(key, domain.process, prior, domain.log_reward, **arguments)

    def batch(key):
        found = run(key, domain.prior, proposal, None if value is None else value.params)
        return np.asarray(found.x), log_reward(domain, found.x, None), float(found.log_z)

    return batch
