"""Chains whose posterior is known exactly, written without the code under test."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from rtbjax.kernels import Gaussian
from rtbjax.process import Process, sde
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
        self.log_z, self.log_bound = float(offset), None
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
    """One dimension, ``log r(x) = c x - q x^2 / 2``: the posterior's step variances differ from the prior's too.

    log r is bounded, so that prior paths can be accepted or rejected.
    """

    def __init__(self, num_steps=8, diffusion=1.5, a=-0.5, b=0.3, c=0.8, q=1.2):
        self.process = sde.brownian_bridge(num_steps, diffusion)
        self.a, self.b, self.c, self.q, self.num_steps, self.diffusion = a, b, c, q, num_steps, diffusion
        dt, var = 1.0 / num_steps, diffusion / num_steps
        # log h_i(x) = offset + slope x - curve x^2 / 2, backwards from the data.
        offset, slope, curve = 0.0, c, q
        gains, shifts, log_stds, following = [], [], [], []
        for _ in range(num_steps):
            following.append((slope, curve))
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
        # (slope, curve) of log h at the state after each step.
        self.following = following[::-1]
        self._gains = jnp.asarray(gains[::-1], jnp.float32)
        self._shifts = jnp.asarray(shifts[::-1], jnp.float32)
        self.log_stds = jnp.asarray(log_stds[::-1], jnp.float32)
        mean = variance = 0.0
        for _ in range(num_steps):
            mean, variance = (1.0 + dt * a) * mean + dt * b, (1.0 + dt * a) ** 2 * variance + var
        # Of the posterior's samples: the prior's, tilted by r.
        precision = 1.0 / variance + q
        self.mean, self.std = (mean / variance + c) / precision, precision**-0.5

    def tempered(self, beta):
        """The chain whose r is this one's to the power of beta; its `exact` is the posterior at beta."""
        return QuadraticGaussian(self.num_steps, self.diffusion, self.a, self.b, beta * self.c, beta * self.q)

    @property
    def log_bound(self):
        return 0.5 * self.c**2 / self.q

    @property
    def prior(self):
        return Policy({}, lambda params, x, t, cond: self.a * x + self.b)

    @property
    def exact(self):
        def apply(params, x, t, cond):
            i = jnp.round(t * self.num_steps).astype(jnp.int32)
            return LearnedStd(self._gains[i] * x + self._shifts[i], self.log_stds[i])

        return Policy({}, apply)

    def log_reward(self, x):
        return jnp.sum(self.c * x - 0.5 * self.q * x**2, axis=-1)


def one_step(rho, std):
    """``xs[0] ~ N(0, 1)``, then ``xs[1] ~ N(rho xs[0] + output, std^2)``: everything has a closed form."""
    return Process(
        num_steps=1,
        init=lambda keys, shape, cond: jax.vmap(lambda k: jax.random.normal(k, shape[1:]))(keys),
        time=lambda i: jnp.float32(0.0),
        reverse=lambda output, x, i: Gaussian(rho * x + output, jnp.float32(std)),
        forward=lambda keys, x, i, cond: x,
        marginal=lambda keys, x0, i, cond: x0,
        denoise=lambda output, x, i: x,
        target=lambda x0, x, i: Gaussian(x0, jnp.float32(std)),
    )


def assert_moments(x, mean, std, standard_errors=5.0, slack=0.0):
    """Mean and std of normal samples ``x[N, ...]`` within some standard errors (of N draws) of what they should be.

    ``slack`` is added to both tolerances: a known bias, in units of ``std``. With N = 20,000 five standard errors are
    4 % of a standard deviation for the mean and 2.5 % for the std.
    """
    x = np.asarray(x, np.float64)
    mean, std = np.broadcast_to(mean, x.shape[1:]), np.broadcast_to(std, x.shape[1:])
    error = standard_errors / np.sqrt(len(x)) + slack
    worst_mean = np.max(np.abs(x.mean(0) - mean) - error * std)
    worst_std = np.max(np.abs(x.std(0) - std) - error / np.sqrt(2) * std - slack * std)
    assert worst_mean <= 1e-6, (x.mean(0), mean)
    assert worst_std <= 1e-6, (x.std(0), std)


class GaussianData:
    """Data from N(mean, std^2) per dimension, and the optimal denoiser of each Gaussian noising ``s x0 + n eps``."""

    def __init__(self, mean=0.8, std=0.5):
        self.mean, self.std = mean, std

    def x0(self, x, signal, noise):
        """E[x0 | x]."""
        gain = signal * self.std**2 / (signal**2 * self.std**2 + noise**2)
        return self.mean + gain * (x - signal * self.mean)

    def vp(self, alpha_bar, prediction="epsilon"):
        """A prior that predicts for a VP process; it is told a training timestep."""
        table = jnp.asarray(alpha_bar, jnp.float32)

        def apply(params, x, t, cond):
            a = table[jnp.round(t).astype(jnp.int32)]
            signal, noise = jnp.sqrt(a), jnp.sqrt(1.0 - a)
            x0 = self.x0(x, signal, noise)
            eps = (x - signal * x0) / noise
            return {"epsilon": eps, "sample": x0, "v_prediction": signal * eps - noise * x0}[prediction]

        return Policy({}, apply)

    def ve(self):
        """A prior that predicts x0 for a VE process; it is told ``log sigma / 4``."""
        return Policy({}, lambda params, x, t, cond: self.x0(x, 1.0, jnp.exp(4.0 * t)))


def masked_paths(num_steps, length, vocab_size, given=None):
    """Every path of an absorbing chain, ``i32[T + 1, N, L]``: who is revealed when, and as what.

    ``given`` is a list of tokens held fixed, None where free.
    """
    given = [None] * length if given is None else given
    choices = [[(t, v) for t in range(num_steps) for v in range(vocab_size)] if g is None else [(-1, g)] for g in given]
    reveals = np.asarray(list(itertools.product(*choices)))  # [N, L, 2]
    step, token = reveals[..., 0], reveals[..., 1]
    states = np.arange(num_steps + 1)[:, None, None]
    return np.where(step[None] < states, token[None], vocab_size).astype(np.int32)


class TabularMasked:
    """Denoisers of an absorbing chain with linear mask rates as tables: one row of logits per (step, state)."""

    def __init__(self, num_steps, length, vocab_size):
        self.num_steps, self.length, self.vocab_size = num_steps, length, vocab_size
        self.num_states = (vocab_size + 1) ** length

    def code(self, x):
        powers = (self.vocab_size + 1) ** np.arange(self.length)
        return (x * powers).sum(-1) if isinstance(x, np.ndarray) else x @ jnp.asarray(powers, jnp.int32)

    def apply(self, params, x, t, cond):
        """``params[T, states, L, V]``."""
        i = jnp.round((1.0 - t) * self.num_steps).astype(jnp.int32)
        return params[i, self.code(x)]

    def joint_prior(self, seed=0, scale=0.7):
        """What a perfect network outputs for a random joint law of the tokens: conditionals given the revealed ones.

        Conditionals of one joint law matter: with others the posterior tilts the *order* of reveals, which no token
        law can follow, and the floor of a coupled reward would not vanish as T grows.
        """
        shape = (self.vocab_size,) * self.length
        joint = np.exp(scale * np.random.default_rng(seed).normal(size=shape))
        table = np.zeros((self.num_states, self.length, self.vocab_size))
        for tokens in itertools.product(range(self.vocab_size + 1), repeat=self.length):
            seen = joint[tuple(slice(None) if v == self.vocab_size else slice(v, v + 1) for v in tokens)]
            for position in range(self.length):
                others = tuple(axis for axis in range(self.length) if axis != position)
                table[self.code(np.asarray(tokens)), position] = np.log(seen.sum(others))
        return Policy(jnp.asarray(np.tile(table, (self.num_steps, 1, 1, 1)), jnp.float32), self.apply)
