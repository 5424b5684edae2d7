"""Exact posterior samples by rejection from the prior, cached: they do not depend on training."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import hosts, weights
from experiments.domains.base import Domain, rewarded
from experiments.errors import UserError
from experiments.files import replacing
from experiments.streams import stream
from rtbjax import behaviour
from rtbjax.certificate import Estimate, from_prior
from rtbjax.train import make_rollout

MAX_BATCHES = 10_000  # What drawing may cost.
SHIPPED = weights.REPOSITORY / "weights" / "exact"


class Exact(NamedTuple):
    """Attributes:
    samples: exact posterior samples of each evaluated condition (one if there are none), ``[N, n, E*]``; n is 0 where
      the reward has no declared bound.
    log_z: log E_prior[r^beta] of each with its interval, from all the prior samples drawn.
    """

    samples: np.ndarray
    log_z: tuple[Estimate, ...]

    def first(self) -> np.ndarray:
        """One of the two independent sets, ``[N, n / 2, E*]``."""
        return self.samples[:, : self.samples.shape[1] // 2]

    def second(self) -> np.ndarray:
        """The other."""
        return self.samples[:, self.samples.shape[1] // 2 :]


def posterior(config: ConfigDict, domain: Domain, mesh: Mesh, anew: bool = False) -> Exact:
    """``2 * eval.exact_samples`` exact samples (two independent sets) of each posterior, from the cache or drawn now.

    Without a declared bound on r there are no exact samples, and ``eval.exact_samples`` prior samples give log Z.

    Raises:
      UserError: see `draw`.
    """
    return cached(config, domain, anew) or draw(config, domain, mesh)


def cached(config: ConfigDict, domain: Domain, anew: bool = False) -> Exact | None:
    """The set of an earlier run, or the shipped one; None if there is none, it is damaged, or is to be drawn ``anew``.

    One that some host cannot read is drawn anew by all. Where r is too rare nothing is to be had.
    """
    if domain.rare:
        return Exact(np.zeros((domain.asked, 0, *domain.event_shape), domain.dtype), (None,) * domain.asked)
    found = None if anew else _found(config, domain)
    return found if hosts.agreed(found is not None) else None


def _found(config: ConfigDict, domain: Domain) -> Exact | None:
    for path in (cache_file(config, domain), SHIPPED / file_name(config, domain)):
        if path.exists():
            try:
                return _read(path, wanted(config, domain), domain)
            except Exception as error:  # Archives fail in many ways.
                logging.warning("%s cannot be used, exact samples are drawn anew: %s", path, error)
    return None


def cache_file(config: ConfigDict, domain: Domain) -> Path:
    return weights.locate(config.eval.exact_cache) / file_name(config, domain)


def wanted(config: ConfigDict, domain: Domain) -> int:
    """Samples to draw: two sets of exact ones, or prior samples where r has no declared bound."""
    return config.eval.exact_samples * (1 if domain.log_bound is None else 2)


def file_name(config: ConfigDict, domain: Domain) -> str:
    """Changes with the law and the number of the samples: seeds share a set, of whichever drew it first."""
    key = weights.fingerprint(domain.fingerprint, config.objective.beta, config.eval.exact_samples)
    return f"{domain.name}-{key}.npz"


def draw(config: ConfigDict, domain: Domain, mesh: Mesh) -> Exact:
    """Draws an exact set and caches it.

    Raises:
      UserError: the acceptance rate is too low to get the samples from `MAX_BATCHES` prior batches, as is known after
        a fraction of them, or no prior sample is above the floor of log r.
    """
    settings, beta = config.eval, config.objective.beta
    run = make_rollout(domain.process, (settings.batch_size, *domain.event_shape), mesh)
    count, key = wanted(config, domain), stream(config.seed, "exact")
    kept: list[list[np.ndarray]] = [[] for _ in range(domain.asked)]
    log_rewards: list[list[np.ndarray]] = [[] for _ in range(domain.asked)]
    have = np.zeros(domain.asked, int)
    what = "prior samples for log Z" if domain.log_bound is None else "exact posterior by rejection"
    with hosts.progress(total=count * domain.asked, desc=what, unit="sample") as bar:
        for batch in range(MAX_BATCHES):
            roll, accept = jax.random.split(jax.random.fold_in(key, batch))
            # The conditions that still want samples, in turn.
            index = np.resize(np.flatnonzero(have < count), settings.batch_size)
            trajectory = rewarded(domain, run(roll, domain.prior, cond=domain.evaluated(index)))
            log_r = hosts.whole(trajectory.log_reward)
            keep = np.ones(len(index), bool)
            if domain.log_bound is not None:
                keep = np.asarray(behaviour.accept(accept, log_r, domain.log_bound, beta=beta))
            ends = None if domain.log_bound is None else hosts.whole(trajectory.xs[-1])
            for i in np.unique(index):
                log_rewards[i].append(log_r[index == i])
                if ends is not None:
                    kept[i].append(ends[keep & (index == i)])
            have += np.bincount(index[keep], minlength=domain.asked)
            bar.update(int(np.minimum(have, count).sum()) - bar.n)
            if (have >= count).all():
                break
            # Where none came, more than ten were not to be expected: else one had, but for a chance of 5e-5.
            likely = 2 * have.min() + 10
            if likely * MAX_BATCHES * domain.asked < count * (batch + 1) or batch + 1 == MAX_BATCHES:
                drawn = (batch + 1) * settings.batch_size
                raise UserError(
                    f"{have.min()} of {count} exact samples after {drawn:,} prior samples: r is too rare under the "
                    "prior. What was trained is kept: --mode=evaluate with a lower "
                    "config.eval.exact_samples evaluates it."
                )
    none = np.zeros((0, *domain.event_shape), domain.dtype)
    samples = np.stack([np.concatenate(parts)[:count] if parts else none for parts in kept])
    samples = samples.astype(storage(domain)).astype(domain.dtype)  # As they will be read.
    bounds: Any = dict(log_floor=domain.log_floor, log_bound=domain.log_bound)
    try:
        estimates = [from_prior(np.concatenate(parts), beta, **bounds) for parts in log_rewards]
    except ValueError as error:  # None is above the floor.
        raise UserError(f"There is no reference log Z: {error}") from error
    if domain.log_bound is not None and domain.conditions is not None:
        # Each took another number; their mean has one source.
        estimates = [estimate._replace(source="the prior samples that rejection took") for estimate in estimates]
    exact = Exact(samples, tuple(estimates))
    _write(cache_file(config, domain), exact, domain)
    return exact


def storage(domain: Domain) -> np.dtype:
    """Half precision for images, where it is a thousandth of the range of a pixel and lets a set be shipped.

    Other samples are kept as they are: half precision would move a coordinate of 10 by up to 0.004.
    """
    return np.dtype(np.float16) if len(domain.event_shape) == 3 else domain.dtype


def _write(path: Path, exact: Exact, domain: Domain) -> None:
    log_z = np.array([[e.log_z, *e.interval] for e in exact.log_z])
    with replacing(path) as partial:
        np.savez_compressed(
            partial,
            samples=domain.shown(exact.samples.astype(storage(domain))),
            log_z=domain.shown(log_z),
            source=domain.shown(np.array([e.source for e in exact.log_z])),
            pareto_k=domain.shown(np.array([e.pareto_k for e in exact.log_z], np.float64)),  # NaN for None.
        )


def _read(path: Path, count: int, domain: Domain) -> Exact:
    """Raises an error of any kind unless the file holds what `_write` would write now."""
    with np.load(path, allow_pickle=False) as file:
        parts = [file[name] for name in ("samples", "log_z", "source", "pareto_k")]
    samples, log_z, source, tail = (part[None] for part in parts) if domain.conditions is None else parts
    shape = (domain.asked, 0 if domain.log_bound is None else count, *domain.event_shape)
    if samples.shape != shape or samples.dtype != storage(domain) or not np.isfinite(samples).all():
        raise ValueError(f"it holds {samples.dtype} samples of shape {samples.shape}")
    estimates = tuple(
        Estimate(float(z), (float(low), float(high)), str(s), None if np.isnan(k) else float(k))
        for (z, low, high), s, k in zip(log_z, source, tail, strict=True)
    )
    return Exact(samples.astype(domain.dtype), estimates)
