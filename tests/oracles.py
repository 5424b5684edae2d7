"""Chains whose posterior is known exactly, written without the code under test."""

import jax.numpy as jnp
import numpy as np

from rtbjax.process import sde
from rtbjax.types import LearnedStd, Policy


class LinearGaussian:
    """Bridge-process prior with linear drift ``a x + b`` from the origin, and ``log r(x) = c . x``.

    h_i(x) = E[exp(c . x_T) | x_i = x] is the exponential of a linear function, so the posterior step is the prior's
    with its mean moved by ``std^2 * slope_{i+1}``: same variance, representable exactly.
    """

    def __init__(self, num_steps=10, dim=2, diffusion=1.5):
        rng = np.random.default_rng(0)
        self.process = sde.brownian_bridge(num_steps, diffusion)
        self.a, self.b, self.c = -0.7, rng.normal(size=dim), rng.normal(size=dim)
        dt, var = 1.0 / num_steps, diffusion / num_steps
        slope, offset = self.c.copy(), 0.0
        shifts = []
        for _ in range(num_steps):
            shifts.append(var * slope)
            # E exp(slope . (x + dt (a x + b) + noise) + offset)
            offset = offset + slope @ (dt * self.b) + 0.5 * var * slope @ slope
            slope = slope * (1.0 + dt * self.a)
        self.log_z = float(offset)
        self.shape = (dim,)
        self.num_steps = num_steps
        self._drift_shift = jnp.asarray(np.stack(shifts[::-1]) / dt, jnp.float32)
        self._params = {"b": jnp.asarray(self.b, jnp.float32)}

    def prior_apply(self, params, x, t, cond):
        return self.a * x + params["b"][None, :]

    def exact_apply(self, params, x, t, cond):
        i = jnp.round(t * self.num_steps).astype(jnp.int32)
        return self.prior_apply(params, x, t, cond) + self._drift_shift[i][None, :]

    def shifted_apply(self, params, x, t, cond):
        """Trainable: ``params["shift"][T, E]`` is added to the drift; zeros give the prior."""
        i = jnp.round(t * self.num_steps).astype(jnp.int32)
        return self.prior_apply(self._params, x, t, cond) + params["shift"][i][None, :]

    @property
    def exact_shift(self):
        return {"shift": self._drift_shift}

    @property
    def zero_shift(self):
        return {"shift": jnp.zeros_like(self._drift_shift)}

    @property
    def prior(self):
        return Policy(self._params, self.prior_apply)

    @property
    def exact(self):
        return Policy(self._params, self.exact_apply)

    def log_reward(self, x):
        return x @ jnp.asarray(self.c, jnp.float32)


class QuadraticGaussian:
    """One dimension, ``log r(x) = c x - q x^2 / 2``: the posterior's step variances differ from the prior's too."""

    def __init__(self, num_steps=8, diffusion=1.5, a=-0.5, b=0.3, c=0.8, q=1.2):
        self.process = sde.brownian_bridge(num_steps, diffusion)
        self.a, self.b, self.c, self.q, self.num_steps = a, b, c, q, num_steps
        dt, var = 1.0 / num_steps, diffusion / num_steps
        # log h_i(x) = offset + slope x - curve x^2 / 2, backwards from the data.
        offset, slope, curve = 0.0, c, q
        gains, shifts, log_stds = [], [], []
        for _ in range(num_steps):
            tilted = var / (1.0 + var * curve)
            # The tilted step: mean tilted * (m / var + slope) with m = x + dt (a x + b).
            gains.append((tilted / var * (1.0 + dt * a) - 1.0) / dt)
            shifts.append((tilted * (dt * b / var + slope)) / dt)
            log_stds.append(0.5 * np.log(tilted / var))
            log_norm = 0.5 * np.log(tilted / var)
            # integral of N(y; m, var) exp(slope y - curve y^2/2) as a function of m = k x + m0
            k, m0 = 1.0 + dt * a, dt * b
            shrink = 1.0 / (1.0 + var * curve)
            new_offset = offset + log_norm + shrink * (0.5 * var * slope**2 + slope * m0 - 0.5 * curve * m0**2)
            new_slope = shrink * k * (slope - curve * m0)
            new_curve = shrink * curve * k**2
            offset, slope, curve = new_offset, new_slope, new_curve
        self.log_z = float(offset)
        self._gains = jnp.asarray(gains[::-1], jnp.float32)
        self._shifts = jnp.asarray(shifts[::-1], jnp.float32)
        self._log_stds = jnp.asarray(log_stds[::-1], jnp.float32)

    @property
    def prior(self):
        return Policy({}, lambda params, x, t, cond: self.a * x + self.b)

    @property
    def exact(self):
        def apply(params, x, t, cond):
            i = jnp.round(t * self.num_steps).astype(jnp.int32)
            return LearnedStd(self._gains[i] * x + self._shifts[i], self._log_stds[i])

        return Policy({}, apply)

    def log_reward(self, x):
        return jnp.sum(self.c * x - 0.5 * self.q * x**2, axis=-1)
