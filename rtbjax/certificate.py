"""How close did it get: estimates of log Z, bounds, effective sample size, and a verdict that can fail.

From N fresh posterior paths with log-weights ``gap_b`` (`rtbjax.objective`):

    ELBO = mean gap <= log Z,   log Z_IS = log mean exp gap,   ESS = (sum w)^2 / sum w^2 / N.

These alone are blind to lost modes: a posterior that dropped one of two equal modes has ESS 1. So a *reference* log Z
that does not use the posterior is always sought (prior samples, a rejection rate, enumeration, a closed form):

    path_kl = log Z_reference - ELBO  >=  KL(samples || posterior).
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rtbjax.types import PRNGKey, check_bound, check_shape

_NORMAL_95 = 1.959964
MIN_PATHS = 25  # below them the tail is of fewer than 5 weights.
MAX_PARETO_K = 0.7  # PSIS asks for less below 2,200 paths, 0.67 for 1,000; there the interval's width decides.
MAX_INTERVAL = 0.5
MIN_ESS = 0.5
MAX_PATH_KL = 0.2  # By Pinsker's inequality, a total variation of at most 0.32.
EVEN_ESS = 0.95  # of weights this even the tail index describes differences that do not matter.
_TINY = 1e-300  # Of weights beside the largest, below which float64 loses its digits.
RESOLUTION = 1e-3  # float32 path sums err by less: intervals of exact estimates that are this near agree.


class Verdict(NamedTuple):
    """What one means, and what to do about it."""

    meaning: str
    advice: str


VERDICTS = {
    "consistent": Verdict(
        f"the estimates of log Z agree, ESS is at least {MIN_ESS}, path-KL at most {MAX_PATH_KL} nats",
        "use the samples as they are, or reweighted where the last few percent matter",
    ),
    "importance_weight": Verdict(
        "the estimates agree, but the samples do not follow the posterior yet",
        "reweight or resample them (rtbjax.certificate.importance_resample), or train longer",
    ),
    "modes_missing": Verdict(
        "the posterior's paths find less mass than there is: part of it is never sampled",
        "train with off-policy paths: accepted, noised or replayed ones",
    ),
    "unreliable": Verdict(
        f"fewer than {MIN_PATHS} paths, an interval wider than {MAX_INTERVAL} nats, heavy-tailed weights, of the paths "
        "or of the reference, or a reference that is too low",
        "train longer, or take more paths; where it is the reference, more prior samples or another one",
    ),
    "coverage_unchecked": Verdict(
        "no reference log Z is known, so modes that are never sampled would go unnoticed",
        "give one: of prior samples (rtbjax.from_prior), or a known one (rtbjax.certificate.exact)",
    ),
}


class Estimate(NamedTuple):
    """A log Z, and how far it can be trusted.

    Attributes:
      log_z: in nats.
      interval: 95 %.
      source: where it came from.
      pareto_k: tail index of the weights it is the mean of; None if they have no tail, or none that matters.
    """

    log_z: float
    interval: tuple[float, float]
    source: str
    pareto_k: float | None = None

    @property
    def heavy(self) -> bool:
        """Whether its weights say that no interval holds: the largest ones may not have been seen yet."""
        return self.pareto_k is not None and self.pareto_k > MAX_PARETO_K


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What `certify` found, in nats but for ``ess`` (a fraction) and ``pareto_k``; None where a value does not exist.

    Attributes:
      log_z_is: log mean weight of the posterior's paths.
      log_z_is_ci: its 95 % interval.
      log_z_reference: an estimate that does not use the posterior.
      log_z_reference_ci: its 95 % interval.
      log_z_reference_source: how it was obtained.
      log_z_reference_pareto_k: tail index of the weights that it is the mean of.
      elbo: mean log-weight, at most log Z.
      eubo: mean log-weight over exact posterior paths (accepted prior paths), at least log Z.
      ess: effective sample size of the weights, over N.
      pareto_k: tail index of the weights; above 0.7 no estimate from them can be trusted.
      path_kl: reference - ELBO; bounds the samples' KL divergence from the posterior from above.
      path_kl_lower: log_z_is - ELBO, what remains without a reference.
      num_paths: N.
      verdict: one of `VERDICTS`.
      reason: the numbers that decided it, in words.
    """

    log_z_is: float
    log_z_is_ci: tuple[float, float]
    log_z_reference: float | None
    log_z_reference_ci: tuple[float, float] | None
    log_z_reference_source: str | None
    log_z_reference_pareto_k: float | None
    elbo: float
    eubo: float | None
    ess: float
    pareto_k: float | None
    path_kl: float | None
    path_kl_lower: float
    num_paths: int
    verdict: str
    reason: str

    def to_dict(self) -> dict:
        """As written to ``summary.json``."""
        return dataclasses.asdict(self)


def certify(
    gap: Float[ArrayLike, " N"], reference: Estimate | None = None, exact_gap: Float[ArrayLike, " M"] | None = None
) -> Certificate:
    """Certifies a posterior from the log-weights of its own fresh paths.

    Args:
      gap: ``sum_i log_ratio + beta log r`` of N on-policy paths (not widened, not used for training).
      reference: log Z from elsewhere; see `from_prior` and `exact`.
      exact_gap: the same quantity on exact posterior paths (accepted prior paths, scored under the posterior), for the
        upper bound.

    Returns:
      The `Certificate`.

    Raises:
      ValueError: fewer than 2 paths, no exact path, an array that is not one number per path, or a log-weight or a
        reference that is not finite.
      TypeError: a reference that is no `Estimate`.
    """
    gap = _log_weights("gap", gap, "N", at_least=2, zero=False)
    exact_gap = None if exact_gap is None else _log_weights("exact_gap", exact_gap, "M", at_least=1, zero=False)
    if reference is not None and not isinstance(reference, Estimate):
        kind = type(reference).__name__
        raise TypeError(f"The reference must be one of rtbjax.from_prior or rtbjax.certificate.exact, got {kind}.")
    if reference is not None and not np.isfinite([reference.log_z, *reference.interval]).all():
        raise ValueError(f"log Z of the reference and its interval must be finite, got {reference}.")
    fraction = effective_sample_size(gap)
    return _conclude(
        _log_mean_exp(gap, fraction, "importance sampling"),
        reference,
        elbo=float(gap.mean()),
        eubo=None if exact_gap is None else float(exact_gap.mean()),
        ess=fraction,
        num_paths=gap.size,
        enough=gap.size >= MIN_PATHS,
    )


def _conclude(
    estimate: Estimate,
    reference: Estimate | None,
    *,
    elbo: float,
    eubo: float | None,
    ess: float,
    num_paths: int,
    enough: bool,
) -> Certificate:
    """The certificate of these numbers: what follows from them, verdict included."""
    path_kl = None if reference is None else reference.log_z - elbo
    if enough:
        verdict, reason = _verdict(estimate, reference, ess, path_kl)
    else:
        verdict, reason = "unreliable", f"fewer than {MIN_PATHS} paths do not show the tail of their weights"
    return Certificate(
        log_z_is=estimate.log_z,
        log_z_is_ci=estimate.interval,
        log_z_reference=reference and reference.log_z,
        log_z_reference_ci=reference and reference.interval,
        log_z_reference_source=reference and reference.source,
        log_z_reference_pareto_k=reference and reference.pareto_k,
        elbo=elbo,
        eubo=eubo,
        ess=ess,
        pareto_k=estimate.pareto_k,
        path_kl=path_kl,
        path_kl_lower=estimate.log_z - elbo,
        num_paths=num_paths,
        verdict=verdict,
        reason=reason,
    )


def average(certificates: Sequence[Certificate]) -> Certificate:
    """One certificate of several posteriors, those of several conditions: its scalars are their means.

    Intervals are of the mean of independent estimates, widened by the bias of a log mean weight, half its variance,
    which does not average out. ``num_paths`` is the sum, ``eubo`` None unless every condition has one. A tail index is
    that which at most one condition in ten exceeds. The verdict is that of these numbers: a condition whose modes are
    missing may hide among many whose are not, so look at each.

    Raises:
      ValueError: there is none.
    """
    if not certificates:
        raise ValueError("average needs at least one certificate, got none.")

    def tail(values: Iterable[float | None]) -> float | None:
        k = float(np.quantile([-np.inf if value is None else value for value in values], 0.9, method="inverted_cdf"))
        return k if math.isfinite(k) else None

    def estimate(name: str, source: str, k: float | None) -> Estimate:
        center = np.asarray([getattr(c, name) for c in certificates])
        half = np.asarray([np.diff(getattr(c, f"{name}_ci"))[0] / 2 for c in certificates])
        width = math.sqrt(np.sum(half**2)) / len(half) + float(np.mean((half / _NORMAL_95) ** 2)) / 2
        return Estimate(float(center.mean()), (float(center.mean() - width), float(center.mean() + width)), source, k)

    sampled, reference = estimate("log_z_is", "importance sampling", tail(c.pareto_k for c in certificates)), None
    eubos = [c.eubo for c in certificates if c.eubo is not None]
    sources = {c.log_z_reference_source for c in certificates}
    if None not in sources:
        k = tail(c.log_z_reference_pareto_k for c in certificates)
        reference = estimate("log_z_reference", " and ".join(sorted(map(str, sources))), k)
    return _conclude(
        sampled,
        reference,
        elbo=float(np.mean([c.elbo for c in certificates])),
        eubo=float(np.mean(eubos)) if len(eubos) == len(certificates) else None,
        ess=float(np.mean([c.ess for c in certificates])),
        num_paths=sum(c.num_paths for c in certificates),
        enough=all(c.num_paths >= MIN_PATHS for c in certificates),
    )


def _log_weights(name: str, values: ArrayLike, axis: str, *, at_least: int, zero: bool = True) -> np.ndarray:
    """The values in float64, once they are as many numbers; ``zero`` allows -inf, unless nothing else is left."""
    values = np.asarray(values, np.float64)
    check_shape(name, values, (axis,))
    if values.size < at_least:
        numbers = "number" if at_least == 1 else "numbers"
        raise ValueError(f"{name} must hold at least {at_least} {numbers}, got shape {values.shape}.")
    bad = int(np.sum(~(np.isfinite(values) | (zero & np.isneginf(values)))))
    if bad:
        constraint = ""
        if np.isneginf(values).any() and not zero:
            constraint = " Of a hard constraint, certify the floored reward (log_floor of rtbjax.rewards.evaluate)."
        raise ValueError(f"{bad} of {values.size} numbers in {name} are not finite.{constraint}")
    if values.size and np.isneginf(values).all():
        raise ValueError(f"All {values.size} numbers in {name} are -inf: no weight is left.")
    return values


def _verdict(estimate: Estimate, reference: Estimate | None, ess: float, path_kl: float | None) -> tuple[str, str]:
    """The verdict, and the numbers that decided it."""
    low, high = estimate.interval
    if estimate.heavy and ess < EVEN_ESS:
        return "unreliable", f"the paths' weights have Pareto k {estimate.pareto_k:.2f}, above {MAX_PARETO_K}"
    if high - low > MAX_INTERVAL:
        return "unreliable", f"the paths' log Z has an interval {high - low:.2f} nats wide, above {MAX_INTERVAL}"
    if reference is None or path_kl is None:
        return "coverage_unchecked", "there is no reference log Z"
    lowest, highest = reference.interval
    if high < lowest - RESOLUTION:
        return "modes_missing", f"the paths' log Z is at most {high:.3f}, the reference's at least {lowest:.3f}"
    if low > highest + RESOLUTION:
        # Posterior paths found more mass than the reference knows of: it is the reference that missed something.
        known = f"at most {highest:.3f}" if highest > lowest else f"{highest:.3f} without error"
        return "unreliable", f"the reference's log Z is {known}, where the paths find at least {low:.3f}"
    if reference.heavy:
        return "unreliable", f"the reference's weights have Pareto k {reference.pareto_k:.2f}, above {MAX_PARETO_K}"
    if highest - lowest > MAX_INTERVAL:
        return "unreliable", f"the reference has an interval {highest - lowest:.2f} nats wide, above {MAX_INTERVAL}"
    far = [f"ESS is {ess:.1%}, below {MIN_ESS:.0%}"] if ess < MIN_ESS else []
    far += [f"path-KL is {path_kl:.2f} nats, above {MAX_PATH_KL}"] if path_kl > MAX_PATH_KL else []
    if far:
        return "importance_weight", ", and ".join(far)
    return "consistent", f"ESS is {ess:.1%}, path-KL {path_kl:.3f} nats"


def _log_mean_exp(log_w: np.ndarray, ess: float, source: str) -> Estimate:
    """log mean exp; delta-method interval, the relative variance of the mean weight being (1 / ESS - 1) / N."""
    log_z = float(np.logaddexp.reduce(log_w) - math.log(log_w.size))
    relative = math.sqrt(max(1.0 / ess - 1.0, 0.0) / log_w.size)
    return Estimate(log_z, (log_z - _NORMAL_95 * relative, log_z + _NORMAL_95 * relative), source, pareto_k(log_w))


def from_prior(
    log_reward: Float[ArrayLike, " N"],
    beta: float = 1.0,
    *,
    log_floor: float | None = None,
    log_bound: float | None = None,
) -> Estimate:
    """log Z = log E_prior[r^beta] from prior samples; where r <= 1, the log acceptance rate without the coin flips.

    Args:
      log_reward: log r of N prior samples, -inf where a hard constraint is violated.
      beta: the exponent of r.
      log_floor: the least log r there is, as in `rtbjax.rewards.evaluate`: what is below counts as this much. Where no
        sample is above it, log Z would be that of the floor, with which a posterior that satisfies the constraint as
        little agrees.
      log_bound: a declared upper bound on log r, if there is one. By it the samples are worth ``sum (r / R)^beta``
        acceptances, and where these are 25 no tail matters: a fifth of Z would be missed once in 150 times.

    Returns:
      log Z with its 95 % interval, in nats, and the tail index of ``r^beta``. A reward so rare that no sample has it
      leaves no trace in either.

    Raises:
      ValueError: fewer than 2 samples, an array that is not one number per sample, NaN or +inf, -inf throughout,
        nothing above ``log_floor``, or a log r above ``log_bound``.
    """
    log_r = _log_weights("log_reward", log_reward, "N", at_least=2)
    # A floored log r is a float32, and rounding may have raised it.
    if log_floor is not None and not (log_r > max(log_floor, float(np.float32(log_floor)))).any():
        raise ValueError(
            f"None of {log_r.size} prior samples is above the floor of log r, {log_floor}: take more, or a reference "
            "from elsewhere."
        )
    if log_bound is not None:
        check_bound(log_r, log_bound)
    log_w = beta * (log_r if log_floor is None else np.maximum(log_r, log_floor))
    fraction = effective_sample_size(log_w)
    estimate = _log_mean_exp(log_w, fraction, f"{log_w.size} prior samples")
    many = log_bound is not None and np.logaddexp.reduce(log_w) - beta * log_bound >= math.log(MIN_PATHS)
    return estimate._replace(pareto_k=None) if many or fraction >= EVEN_ESS else estimate


def exact(log_z: float, source: str) -> Estimate:
    """A log Z known without error (closed form, enumeration), in nats.

    Raises:
      ValueError: it is not finite.
    """
    if not math.isfinite(log_z):
        raise ValueError(f"A posterior has a finite log Z, got {log_z}.")
    return Estimate(float(log_z), (float(log_z), float(log_z)), source)


def effective_sample_size(log_w: Float[ArrayLike, " N"]) -> float:
    """``(sum w)^2 / sum w^2 / N``, in (0, 1].

    Raises:
      ValueError: no weight, an array that is not one number per weight, NaN or +inf, or -inf throughout.
    """
    log_w = _log_weights("log_w", log_w, "N", at_least=1)
    return float(np.exp(2 * np.logaddexp.reduce(log_w) - np.logaddexp.reduce(2 * log_w)) / log_w.size)


def pareto_k(log_w: Float[ArrayLike, " N"]) -> float | None:
    """Shape of a generalised Pareto fitted to the largest weights (Vehtari et al. 2024); None if there is no tail.

    The tail holds ``min(N / 5, 3 sqrt(N))`` weights; what they exceed the next one by is fitted by the estimator of
    Zhang & Stephens (2009), drawn to 0.5 as by ten more weights. There is none of fewer than 25 paths, nor of fewer
    than 5 different excesses: a discrete law is bounded, whatever a fit makes of its few values.

    Raises:
      ValueError: an array that is not one number per weight, NaN or +inf, or -inf throughout.
    """
    log_w = np.sort(_log_weights("log_w", log_w, "N", at_least=0))
    if log_w.size < MIN_PATHS:
        return None
    count = int(min(log_w.size / 5, 3 * math.sqrt(log_w.size)))
    # Equal but for rounding is equal: a value that is taken often would look like a mass of tiny excesses.
    w = np.exp(np.round((log_w - log_w[-1]) / RESOLUTION) * RESOLUTION)
    excess = w[-count:] - w[-count - 1]
    excess = excess[excess > _TINY]
    return _pareto_shape(excess) if np.unique(excess).size >= 5 else None


def _pareto_shape(excess: np.ndarray) -> float:
    """Mean of a profile posterior over ``theta = -shape / scale`` (Zhang & Stephens 2009; Vehtari et al. 2024).

    The grid of theta reaches from the largest excess down to multiples of the lower quartile.
    """
    n = excess.size
    size = 30 + int(math.sqrt(n))
    quartile = excess[int(n / 4 + 0.5) - 1]
    theta = 1.0 / excess[-1] + (1.0 - np.sqrt(size / (np.arange(size) + 0.5))) / (3.0 * quartile)
    theta = theta[theta != 0.0]  # The exponential law, which the others approach.
    shape = np.log1p(-theta[:, None] * excess[None]).mean(axis=1)
    log_likelihood = n * (np.log(-theta / shape) - shape - 1.0)
    theta_mean = float(theta @ scipy.special.softmax(log_likelihood))
    return float((n * np.log1p(-theta_mean * excess).mean() + 5.0) / (n + 10.0))


def importance_resample(key: PRNGKey, x: Array, gap: Float[ArrayLike, " N"], num_samples: int) -> tuple[Array, float]:
    """Corrects posterior samples by self-normalised importance resampling.

    Args:
      key: for the resampling.
      x: samples, ``[N, E*]``.
      gap: log-weights of their paths, ``f32[N]``.
      num_samples: how many to draw, with replacement.

    Returns:
      ``[num_samples, E*]``, and the effective sample size of the weights over N: the result holds about ``ess * N``
      distinct samples' worth of information, however many are drawn.

    Raises:
      ValueError: ``gap`` is not one number per sample, holds NaN or +inf, or -inf throughout.
    """
    check_shape("gap", gap, x.shape[:1])
    log_w = _log_weights("gap", gap, "N", at_least=1)
    cumulative = np.cumsum(np.exp(log_w - np.logaddexp.reduce(log_w)))
    # By inversion: Gumbel noise for every pair of a sample and a draw would not fit in memory.
    uniform = np.asarray(jax.random.uniform(key, (num_samples,)), np.float64) * cumulative[-1]
    index = np.searchsorted(cumulative, uniform, side="right")
    return x[jnp.asarray(index, jnp.int32)], effective_sample_size(log_w)


def start_excess(
    log_reward: Float[ArrayLike, " N"], log_reward_again: Float[ArrayLike, " N"], beta: float = 1.0
) -> tuple[float, float]:
    """What sharing p_T with the prior costs: ``Cov(r^beta, r'^beta) / Z^2`` over pairs of prior paths from one start.

    Zero means that the data forget ``xs[0]``, so that RTB can be exact. Half the excess is, to first order, the path-KL
    that no training removes.

    Args:
      log_reward: log r at the end of prior paths.
      log_reward_again: the same for other prior paths from the same ``xs[0]``.
      beta: the exponent of r.

    Returns:
      The excess and its standard error.

    Raises:
      ValueError: fewer than 2 pairs, arrays that do not pair up, NaN or +inf, or -inf throughout.
    """
    first = _log_weights("log_reward", log_reward, "N", at_least=2)
    check_shape("log_reward_again", log_reward_again, first.shape)
    pair = beta * np.stack([first, _log_weights("log_reward_again", log_reward_again, "N", at_least=2)])
    r = np.exp(pair - np.logaddexp.reduce(pair, axis=None) + math.log(pair.size))
    products = (r[0] - r.mean()) * (r[1] - r.mean())
    return float(products.mean()), float(products.std(ddof=1) / math.sqrt(products.size))
