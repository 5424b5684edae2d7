"""Is a posterior calibrated: are truths that were drawn from the prior found among its samples as often as they should?

Every test takes N truths, each with n samples of *its* posterior, and gives N numbers that are uniform on [0, 1] if the
posteriors are exact. Samples must be independent of the truth given the measurement.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float

from rtbjax.types import check_shape


def ranks(
    truth: Float[np.ndarray, " N"], samples: Float[np.ndarray, "N n"], *, seed: int = 0
) -> Float[np.ndarray, " N"]:
    """Simulation-based calibration (Talts et al. 2018): where a truth stands among samples of a scalar, ties by lot.

    Too narrow a posterior puts truths at both ends, a biased one at one of them.

    Raises:
      ValueError: an array of another shape, or with numbers that are not finite.
    """
    _check("truth", truth, ("N",))
    _check("samples", samples, (len(truth), "n"))
    return _place((samples < truth[:, None]).sum(axis=1), (samples == truth[:, None]).sum(axis=1), samples, seed)


def tarp(
    truth: Float[np.ndarray, "N d"],
    samples: Float[np.ndarray, "N n d"],
    references: Float[np.ndarray, "N d"],
    *,
    seed: int = 0,
) -> Float[np.ndarray, " N"]:
    """Tests of accuracy with random points (Lemos et al. 2023): the share of samples nearer to one than the truth is.

    Args:
      truth: N draws from the prior.
      samples: n of the posterior of each.
      references: points drawn without a look at truth or samples, of the prior for example.
      seed: of the lot that breaks ties.

    Raises:
      ValueError: an array of another shape, or with numbers that are not finite.
    """
    _check("truth", truth, ("N", "d"))
    _check("samples", samples, (len(truth), "n", truth.shape[1]))
    _check("references", references, truth.shape)
    far = np.linalg.norm(np.asarray(truth, np.float64) - references, axis=-1)[:, None]
    distance = np.linalg.norm(np.asarray(samples, np.float64) - references[:, None], axis=-1)
    return _place((distance < far).sum(axis=1), (distance == far).sum(axis=1), samples, seed)


def _check(name: str, array: np.ndarray, shape: tuple[int | str, ...]) -> None:
    check_shape(name, array, shape)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite numbers, and {np.sum(~np.isfinite(array))} are not.")


def _place(below: np.ndarray, ties: np.ndarray, samples: np.ndarray, seed: int) -> Float[np.ndarray, " N"]:
    """The truth's place among n + 1 as a number in [0, 1], uniform within its cell."""
    rng = np.random.default_rng(seed)
    rank = below + np.floor(rng.uniform(size=len(below)) * (ties + 1))
    return (rank + rng.uniform(size=len(below))) / (samples.shape[1] + 1)


class Coverage(NamedTuple):
    """Attributes:
    levels: what should be covered.
    covered: what is: the share of truths below each level.
    errors: its standard error if the posterior is exact.
    p_value: of Kolmogorov's and Smirnov's test that all is as it should be.
    """

    levels: tuple[float, ...]
    covered: tuple[float, ...]
    errors: tuple[float, ...]
    p_value: float

    def to_dict(self) -> dict:
        """As written to ``summary.json``."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self._asdict().items()}


def coverage(places: Float[np.ndarray, " N"], levels: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)) -> Coverage:
    """What the numbers of `ranks` or `tarp` say.

    Raises:
      ValueError: there are none.
    """
    places = np.asarray(places, np.float64)
    if not len(places):
        raise ValueError("coverage needs the place of at least one truth.")
    p_value: Any = scipy.stats.kstest(places, "uniform").pvalue
    return Coverage(
        levels=tuple(levels),
        covered=tuple(float(np.mean(places < level)) for level in levels),
        errors=tuple(float(np.sqrt(level * (1.0 - level) / len(places))) for level in levels),
        p_value=float(p_value),
    )
