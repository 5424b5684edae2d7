"""Discretised SDEs: variance exploding, and the pinned Brownian bridge of the 25-Gaussian mixture."""

import jax.numpy as jnp
import numpy as np

from rtbjax.kernels import Gaussian
from rtbjax.process import Process, check_min_std, gaussian, normal, split_output


def variance_exploding(sigmas: np.ndarray, *, prediction: str = "epsilon", min_std: float = 1e-2) -> Process:
    """Ancestral sampling of ``x_i = x_0 + sigma_i eps`` (Song et al. 2021, app. F).

    Args:
      sigmas: noise levels of ``xs[0..T]``, falling, the last one 0 (`rtbjax.schedules.geometric_sigma`).
      prediction: ``epsilon``, ``sample`` or ``score``, which is ``-eps / sigma_i``. The network is told
        ``log sigma_i / 4``.
      min_std: no step's standard deviation is below this.

    Raises:
      ValueError: fewer than 2 levels, or such as do not fall, an unknown prediction, or ``min_std`` not positive.
    """
    if len(sigmas) < 2 or not np.all(np.diff(sigmas) < 0) or sigmas[-1] != 0.0:
        raise ValueError(f"sigmas must be at least 2 that fall strictly and end in 0, got {np.round(sigmas, 4)}.")
    if prediction not in ("epsilon", "sample", "score"):
        raise ValueError(f"prediction must be 'epsilon', 'sample' or 'score', got {prediction!r}.")
    check_min_std(min_std)
    now, after = sigmas[:-1], sigmas[1:]
    sigma = jnp.asarray(sigmas, jnp.float32)
    shrink = jnp.asarray(after**2 / now**2, jnp.float32)
    std = jnp.asarray(np.maximum(after * np.sqrt(1.0 - after**2 / now**2), min_std), jnp.float32)
    blur = jnp.asarray(np.sqrt(now**2 - after**2), jnp.float32)
    times = jnp.asarray(np.log(now) / 4.0, jnp.float32)

    def denoise(output, x, i):
        value, _, _ = split_output(output, x)
        if prediction == "sample":
            return value
        return x + sigma[i] ** 2 * value if prediction == "score" else x - sigma[i] * value

    def mean(x0, x, i):
        return x0 + shrink[i] * (x - x0)

    return Process(
        num_steps=len(now),
        init=lambda keys, shape, cond: sigma[0] * normal(keys, shape[1:]),
        time=lambda i: times[i],
        reverse=lambda output, x, i: gaussian(output, mean(denoise(output, x, i), x, i), std[i]),
        forward=lambda keys, x, i, cond: x + blur[i] * normal(keys, x.shape[1:]),
        marginal=lambda keys, x0, i, cond: x0 + sigma[i] * normal(keys, x0.shape[1:]),
        denoise=denoise,
        target=lambda x0, x, i: Gaussian(mean(x0, x, i), std[i]),
    )


def brownian_bridge(num_steps: int = 100, diffusion: float = 5.0) -> Process:
    """Euler-Maruyama from the origin: ``xs[i + 1] = xs[i] + dt f + sqrt(diffusion dt) eps``, ``xs[0] = 0``.

    The network outputs the drift f and is told ``t = i / T``. The noising is the Brownian bridge that ends in the data
    and is pinned at the origin, so a prior is trained by maximum likelihood on bridge paths (paper, appendix C:
    T = 100, diffusion 5).

    Raises:
      ValueError: ``num_steps`` below 1 or ``diffusion`` not positive.
    """
    if num_steps < 1 or not diffusion > 0.0:
        raise ValueError(f"num_steps must be >= 1 and diffusion > 0, got {num_steps} and {diffusion}.")
    dt = 1.0 / num_steps
    std = jnp.float32((diffusion * dt) ** 0.5)
    grid = jnp.asarray(np.arange(num_steps + 1) * dt, jnp.float32)

    def reverse(output, x, i):
        return gaussian(output, x + dt * split_output(output, x)[0], std)

    def forward(keys, x, i, cond):
        shrink = grid[i] / grid[i + 1]
        return shrink * x + jnp.sqrt(diffusion * dt * shrink) * normal(keys, x.shape[1:])

    def marginal(keys, x0, i, cond):
        return grid[i] * x0 + jnp.sqrt(diffusion * grid[i] * (1.0 - grid[i])) * normal(keys, x0.shape[1:])

    return Process(
        num_steps=num_steps,
        init=lambda keys, shape, cond: jnp.zeros(shape, jnp.float32),
        time=lambda i: grid[i],
        reverse=reverse,
        forward=forward,
        marginal=marginal,
        denoise=lambda output, x, i: x + (1.0 - grid[i]) * split_output(output, x)[0],
        target=lambda x0, x, i: Gaussian(x + dt * (x0 - x) / (1.0 - grid[i]), std),
    )
