"""Noise schedules as NumPy float64 tables, computed once; processes turn them into float32 constants."""

import warnings
from typing import NamedTuple

import numpy as np


def linear_alpha_bar(num_train_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """Cumulative signal fractions of linearly spaced betas (Ho et al. 2020), ``f64[num_train_steps]``.

    The defaults are meant for 1000 steps; with fewer, scale both ends by ``1000 / num_train_steps``.
    """
    return np.cumprod(1.0 - np.linspace(beta_start, beta_end, num_train_steps, dtype=np.float64))


def scaled_linear_alpha_bar(
    num_train_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> np.ndarray:
    """As `linear_alpha_bar`, linear in the square root of beta (the latent diffusion schedule)."""
    root = np.linspace(beta_start**0.5, beta_end**0.5, num_train_steps, dtype=np.float64)
    return np.cumprod(1.0 - root**2)


def cosine_alpha_bar(num_train_steps: int = 1000, max_beta: float = 0.999) -> np.ndarray:
    """Squared-cosine schedule (Nichol & Dhariwal 2021, eq. 17), betas clipped at ``max_beta``."""
    grid = np.arange(num_train_steps + 1, dtype=np.float64) / num_train_steps
    signal = np.cos((grid + 0.008) / 1.008 * np.pi / 2.0) ** 2
    return np.cumprod(1.0 - np.minimum(1.0 - signal[1:] / signal[:-1], max_beta))


MOST_SIGNAL = 0.1  # Of a chain's first state, where it is drawn from pure noise.


class Respaced(NamedTuple):
    """A long training schedule seen through ``num_steps`` sampling steps, noisiest first.

    Attributes:
      timesteps: the training timestep the network is told at each step, ``int[T]``.
      alpha_bar: signal fraction of ``xs[i]``, ``f64[T + 1]``; the last entry is that of the data.
    """

    timesteps: np.ndarray
    alpha_bar: np.ndarray


def respace(
    alpha_bar: np.ndarray,
    num_steps: int,
    spacing: str = "leading",
    *,
    steps_offset: int = 0,
    log_snr: tuple[float, float] = (-1.4, 1.1),
    final_alpha_bar: float = 1.0,
) -> Respaced:
    """Chooses ``num_steps`` of the training timesteps.

    It warns where the first of them keeps more than a share `MOST_SIGNAL` of the data's variance: the chain starts from
    pure noise all the same.

    Args:
      alpha_bar: the training schedule, ``f64[num_train_steps]``, falling; of betas ``np.cumprod(1 - betas)``.
      num_steps: T.
      spacing: ``leading`` (multiples of ``num_train_steps // T``, the default of pretrained DDPMs), ``trailing``
        (always begins at the last training timestep), ``linspace`` (from the last to the first), or ``log_snr`` (begins
        at the last; the other timesteps are at quantiles of a logistic law of ``log(alpha_bar / (1 - alpha_bar))``:
        most steps where an image takes shape).
      steps_offset: added to every ``leading`` timestep.
      log_snr: centre and scale of that law; the default is where small images take shape.
      final_alpha_bar: the signal fraction that counts as data.

    Raises:
      ValueError: ``alpha_bar`` that does not fall within 0..1, ``num_steps`` outside 1..num_train_steps,
        ``steps_offset`` beyond the schedule, more ``log_snr`` steps than the schedule has timesteps to tell apart, no
        noise left at the last of them, or an unknown spacing.
    """
    if not (np.all(np.diff(alpha_bar) < 0) and alpha_bar[0] <= 1.0 and alpha_bar[-1] >= 0.0):  # NaN is neither.
        raise ValueError(
            "alpha_bar must fall within 0..1, the signal that is left; of betas it is np.cumprod(1 - betas). Got "
            f"{alpha_bar[0]:.4g} to {alpha_bar[-1]:.4g}."
        )
    num_train_steps = len(alpha_bar)
    if not 1 <= num_steps <= num_train_steps:
        raise ValueError(f"num_steps must lie in 1..{num_train_steps} (the training steps), got {num_steps}.")
    if spacing == "leading":
        timesteps = (np.arange(num_steps) * (num_train_steps // num_steps) + steps_offset)[::-1]
        if timesteps[-1] < 0 or timesteps[0] >= num_train_steps:
            highest = num_train_steps - 1 - (timesteps[0] - steps_offset)
            raise ValueError(
                f"steps_offset must lie in 0..{highest} for {num_steps} leading steps, got {steps_offset}."
            )
    elif spacing == "trailing":
        timesteps = np.round(np.arange(num_steps, 0, -1) * num_train_steps / num_steps).astype(int) - 1
    elif spacing == "linspace":
        # A single step is the last timestep, where a path begins; in diffusers it is the first.
        timesteps = np.round(np.linspace(num_train_steps - 1, 0, num_steps)).astype(int)
    elif spacing == "log_snr":
        centre, scale = log_snr
        quantile = (np.arange(num_steps - 1) + 0.5) / max(num_steps - 1, 1)
        wanted = centre + scale * (np.log(quantile) - np.log1p(-quantile))
        levels = np.log(alpha_bar) - np.log1p(-alpha_bar)
        if np.any(wanted < levels[-1]) or np.any(wanted > levels[0]):
            raise ValueError(
                f"log_snr {log_snr} with {num_steps} steps reaches from {wanted[0]:.2f} to {wanted[-1]:.2f}; "
                f"the schedule from {levels[-1]:.2f} to {levels[0]:.2f}."
            )
        nearest = np.abs(levels[None] - wanted[:, None]).argmin(axis=1)
        timesteps = np.concatenate([[num_train_steps - 1], nearest])
        if np.any(np.diff(timesteps) >= 0):
            raise ValueError(
                f"{num_steps} steps by log_snr {log_snr} are more than the schedule can tell apart: take fewer, or a "
                "larger scale."
            )
    else:
        raise ValueError(f"spacing must be 'leading', 'trailing', 'linspace' or 'log_snr', got {spacing!r}.")
    if (kept := alpha_bar[timesteps[0]]) > MOST_SIGNAL:
        warnings.warn(
            f"The chain starts from pure noise at timestep {timesteps[0]}, where noised data keep a share {kept:.2f} "
            "of their variance: take a schedule that ends in noise, and spacing='trailing' if there are few steps.",
            stacklevel=2,
        )
    if alpha_bar[timesteps[-1]] >= final_alpha_bar:
        raise ValueError(
            f"alpha_bar must stay below final_alpha_bar, {final_alpha_bar:g}: at timestep {timesteps[-1]} it is "
            f"{alpha_bar[timesteps[-1]]:g}, and no noise is left to take away."
        )
    return Respaced(timesteps, np.append(alpha_bar[timesteps], final_alpha_bar))


def linear_mask_rate(num_steps: int) -> np.ndarray:
    """Probability that a token of ``xs[i]`` is masked, falling linearly from 1 to 0, ``f64[T + 1]``."""
    return np.linspace(1.0, 0.0, num_steps + 1)


def loglinear_mask_rate(num_steps: int, eps: float = 1e-3, time_eps: float = 1e-5) -> np.ndarray:
    """Mask rates of SEDD's log-linear noise, ``sigma(t) = -log(1 - (1 - eps) t)`` for t from 1 to ``time_eps``, then 0.

    ``num_steps`` counts the final denoising step, which reveals whatever is left (Lou et al. 2024, app. C). Unlike
    `linear_mask_rate` the table, ``f64[T + 1]``, starts at ``1 - eps``; the chain still starts all masked.
    """
    return np.append((1.0 - eps) * np.linspace(1.0, time_eps, num_steps), 0.0)


def geometric_sigma(num_steps: int, sigma_max: float, sigma_min: float) -> np.ndarray:
    """Noise levels ``f64[T + 1]`` of a variance-exploding process: geometric to ``sigma_min``, then 0."""
    return np.append(np.geomspace(sigma_max, sigma_min, num_steps), 0.0)
