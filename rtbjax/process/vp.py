"""Variance-preserving diffusion: DDPM ancestral sampling and DDIM (Ho et al. 2020; Song et al. 2021).

With a_i the signal fraction (alpha-bar) of ``xs[i]``, x0 and eps the network's estimates at ``xs[i]``, and

    sigma_i = eta sqrt((1 - a_{i+1}) / (1 - a_i)) sqrt(1 - a_i / a_{i+1}),

the law of ``xs[i + 1]`` is normal with mean ``sqrt(a_{i+1}) x0 + sqrt(1 - a_{i+1} - sigma_i^2) eps`` (DDIM eq. 12). At
eta = 1 this mean is DDPM's posterior mean. Prior and posterior go through the same function: same variance, same
clipping, same last step, which is scored with the very kernel it was sampled from.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rtbjax.kernels import Gaussian
from rtbjax.process import Process, check_min_std, gaussian, normal, split_output
from rtbjax.schedules import Respaced

_PREDICTIONS = ("epsilon", "sample", "v_prediction")
_VARIANCES = ("fixed_large", "fixed_small")


def ddpm(
    schedule: Respaced,
    *,
    prediction: str = "epsilon",
    variance: str = "fixed_large",
    clip_x0: float | None = None,
    min_std: float = 1e-2,
) -> Process:
    """Ancestral sampling.

    Args:
      schedule: from `rtbjax.schedules.respace`.
      prediction: what the network outputs: ``epsilon``, ``sample`` (x0) or ``v_prediction``.
      variance: ``fixed_large`` (beta_i of the respaced chain, what the paper's image priors use) or ``fixed_small``
        (the variance of the forward posterior).
      clip_x0: clamp the estimate of x0 to ``[-clip_x0, clip_x0]``; no gradient passes where it clamps.
      min_std: no step's standard deviation is below this; log Z depends on it.

    Raises:
      TypeError: a schedule that is not respaced.
      ValueError: an unknown prediction or variance, ``epsilon`` where no signal is left, or ``clip_x0`` or ``min_std``
        not positive.
    """
    _check_schedule(schedule)
    if variance not in _VARIANCES:
        raise ValueError(f"variance must be one of {_VARIANCES}, got {variance!r}.")
    a, a_next = schedule.alpha_bar[:-1], schedule.alpha_bar[1:]
    large = np.sqrt(1.0 - a / a_next)
    return _vp(schedule, 1.0, large if variance == "fixed_large" else None, prediction, clip_x0, min_std)


def ddim(
    schedule: Respaced,
    *,
    eta: float = 1.0,
    prediction: str = "epsilon",
    clip_x0: float | None = None,
    min_std: float = 1e-2,
) -> Process:
    """DDIM with noise ``eta`` in [0, 1]; eta = 1 is `ddpm` with ``fixed_small``.

    Below eta = 1 the data remember ``xs[0]``, which posterior and prior draw from the same p_T: an error no training
    removes (see `rtbjax.certificate.start_excess`).

    Raises:
      TypeError: a schedule that is not respaced.
      ValueError: ``eta`` outside [0, 1], an unknown prediction, ``epsilon`` where no signal is left, or ``clip_x0`` or
        ``min_std`` not positive.
    """
    _check_schedule(schedule)
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie in [0, 1], got {eta}.")
    return _vp(schedule, eta, None, prediction, clip_x0, min_std)


def _check_schedule(schedule: Any) -> None:
    if not isinstance(schedule, Respaced):
        raise TypeError(
            "The schedule must be one of rtbjax.schedules.respace(alpha_bar, num_steps), got "
            f"{type(schedule).__name__}."
        )


def _vp(
    schedule: Respaced, eta: float, std: np.ndarray | None, prediction: str, clip_x0: float | None, min_std: float
) -> Process:
    if prediction not in _PREDICTIONS:
        raise ValueError(f"prediction must be one of {_PREDICTIONS}, got {prediction!r}.")
    check_min_std(min_std)
    if clip_x0 is not None and not clip_x0 > 0.0:
        raise ValueError(f"clip_x0 must be positive, or None for no clipping, got {clip_x0}.")
    a, a_next = schedule.alpha_bar[:-1], schedule.alpha_bar[1:]
    if prediction == "epsilon" and a[0] == 0.0:
        raise ValueError(
            "prediction='epsilon' says nothing of the data where alpha_bar is 0, as at this schedule's first step; "
            "'sample' and 'v_prediction' do."
        )
    sigma = eta * np.sqrt((1.0 - a_next) / (1.0 - a)) * np.sqrt(1.0 - a / a_next)

    def table(values: np.ndarray) -> Array:
        return jnp.asarray(values, jnp.float32)

    signal, noise = table(np.sqrt(schedule.alpha_bar)), table(np.sqrt(1.0 - schedule.alpha_bar))
    inverse_signal = table(1.0 / np.sqrt(np.maximum(a, 1e-12)))
    direction = table(np.sqrt(np.maximum(1.0 - a_next - sigma**2, 0.0)))
    step_std = table(np.maximum(sigma if std is None else std, min_std))
    # The true one-step noising: xs[i] = sqrt(a_i / a_{i+1}) xs[i + 1] + sqrt(1 - a_i / a_{i+1}) eps.
    keep, blur = table(np.sqrt(a / a_next)), table(np.sqrt(1.0 - a / a_next))
    times = table(schedule.timesteps)

    def denoise(output, x, i):
        value, _, _ = split_output(output, x)
        if prediction == "epsilon":
            x0 = (x - noise[i] * value) * inverse_signal[i]
        elif prediction == "sample":
            x0 = value
        else:
            x0 = signal[i] * x - noise[i] * value
        return x0 if clip_x0 is None else jnp.clip(x0, -clip_x0, clip_x0)

    def mean(x0, x, i):
        return signal[i + 1] * x0 + direction[i] * (x - signal[i] * x0) / noise[i]

    return Process(
        num_steps=len(schedule.timesteps),
        init=lambda keys, shape, cond: normal(keys, shape[1:]),
        time=lambda i: times[i],
        reverse=lambda output, x, i: gaussian(output, mean(denoise(output, x, i), x, i), step_std[i]),
        forward=lambda keys, x, i, cond: keep[i] * x + blur[i] * normal(keys, x.shape[1:]),
        marginal=lambda keys, x0, i, cond: signal[i] * x0 + noise[i] * normal(keys, x0.shape[1:]),
        denoise=denoise,
        target=lambda x0, x, i: Gaussian(mean(x0, x, i), step_std[i]),
    )
