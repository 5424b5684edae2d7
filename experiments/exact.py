"""Exact posterior samples by rejection from the prior, cached: they do not depend on training."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from experiments import weights
from experiments.domains.base import Domain
from rtbjax import behaviour, rewards
from rtbjax.certificate import Estimate, from_prior
from rtbjax.train import make_rollout

SHIPPED = weights.REPOSITORY / "weights" / "exact"


class Exact(NamedTuple):
    """Attributes:
    samples: exact posterior samples, ``[N, E*]``; empty where the reward has no declared bound.
    log_z: log E_prior[r^beta] with its interval, from all the prior samples drawn.
    """

    samples: np.ndarray
    log_z: Estimate


def posterior(config: ConfigDict, domain: Domain, mesh: Mesh) -> Exact:
    """``2 * eval.exact_samples`` exact samples (two independent sets), from the cache or drawn now.

    Without a declared bound on r there are no exact samples, and ``eval.exact_samples`` prior samples give log Z.

    Raises:
      ValueError: the acceptance rate is too low to get the samples from 10,000 prior batches.
    """
    name = file_name(config, domain)
    cache = weights.locate(config.eval.exact_cache) / name
    for path in (cache, SHIPPED / name):
        if path.exists() and not config.eval.recompute_exact:
            return _read(path)
    exact = _draw(config, domain, mesh)
    _write(cache, exact)
    return exact


def file_name(config: ConfigDict, domain: Domain) -> str:
    """Changes with everything the sets depend on."""
    key = weights.fingerprint(domain.fingerprint, config.objective.beta, config.eval.exact_samples)
    return f"{domain.name}-{key}.npz"


def _draw(config: ConfigDict, domain: Domain, mesh: Mesh) -> Exact:
    settings, beta = config.eval, config.objective.beta
    run = make_rollout(domain.process, (settings.batch_size, *domain.event_shape), mesh)
    wanted = settings.exact_samples * (1 if domain.log_bound is None else 2)
    key = jax.random.fold_in(jax.random.key(config.seed), 0x5EED)
    kept, log_rewards, have = [], [], 0
    with tqdm(total=wanted, desc="exact posterior by rejection", unit="sample") as bar:
        for batch in range(10_000):
            roll, accept = jax.random.split(jax.random.fold_in(key, batch))
            x = run(roll, domain.prior).xs[-1]
            log_r = rewards.evaluate(domain.log_reward, x, log_bound=domain.log_bound)
            log_rewards.append(log_r)
            if domain.log_bound is None:
                new = settings.batch_size
            else:
                keep = np.asarray(behaviour.accept(accept, log_r, domain.log_bound, beta=beta))
                kept.append(np.asarray(x)[keep])
                new = len(kept[-1])
            bar.update(min(new, wanted - have))
            have += new
            if have >= wanted:
                break
        else:
            raise ValueError(
                f"Only {have} of {wanted} exact samples after {10_000 * settings.batch_size} prior samples: r is too "
                "rare under the prior; lower eval.exact_samples."
            )
    samples = np.concatenate(kept)[:wanted] if kept else np.zeros((0, *domain.event_shape), np.float32)
    return Exact(samples, from_prior(np.concatenate(log_rewards), beta))


def _write(path: Path, exact: Exact) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    # Half precision resolves 1e-3 of a pixel and of a mode's width.
    np.savez_compressed(
        partial,
        samples=exact.samples.astype(np.float16),
        log_z=np.array([exact.log_z.log_z, *exact.log_z.interval]),
        source=exact.log_z.source,
    )
    partial.replace(path)


def _read(path: Path) -> Exact:
    with np.load(path, allow_pickle=False) as file:
        log_z, low, high = map(float, file["log_z"])
        return Exact(file["samples"].astype(np.float32), Estimate(log_z, (low, high), str(file["source"])))
