"""Losses over paths: arrays in, one number per path out. None of them sees a network.

All but `steering`, which is about one step, and the two that train priors over tokens, `masked_elbo` and
`score_entropy`, take ``log_ratio``: ``sum_i [log p_prior - log p_post]`` of each path,
``f32[B]``, whose gradient is minus that of the posterior's log-probability (`rtbjax.objective.path_log_ratio` makes it
cheap). In them ``beta`` is the exponent of r, and means over the batch are means over all shards where ``axis_name``,
the mesh axis it is split over under ``shard_map``, is given. Arrays of different shapes are a ValueError.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rtbjax.types import AxisName, check_shape


def _mean(x: Float[Array, " B"], axis_name: AxisName | None) -> Float[Array, ""]:
    mean = jnp.mean(x)
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def _deviation(x: Float[Array, " B"], axis_name: AxisName | None) -> Float[Array, " B"]:
    return x - _mean(x, axis_name)


def rtb(
    log_ratio: Float[Array, " B"],
    log_reward: Float[Array, " B"],
    log_z: Float[Array, " B"],
    *,
    beta: float | Float[Array, ""] = 1.0,
    cutoff: float = 0.0,
) -> Float[Array, " B"]:
    """Relative trajectory balance, half the squared residual (paper, eq. 9).

    ``residual = log_z - log_ratio - beta log_reward``. A residual whose square is below ``cutoff`` gives no gradient
    (paper, app. E: 0.1).
    """
    check_shape("log_reward", log_reward, log_ratio.shape)
    check_shape("log_z", log_z, log_ratio.shape)
    residual = log_z - log_ratio - beta * log_reward
    return 0.5 * jax.nn.relu(residual**2 - cutoff)


def reinforce(
    log_ratio: Float[Array, " B"],
    log_reward: Float[Array, " B"],
    *,
    beta: float | Float[Array, ""] = 1.0,
    axis_name: AxisName | None = None,
) -> Float[Array, " B"]:
    """KL-regularised policy gradient with the KL inside the advantage; its optimum is the posterior.

    On-policy only, where its expected gradient is that of `rtb` (Deleu et al. 2025, prop. 3.1). The baseline is the
    batch mean.
    """
    check_shape("log_reward", log_reward, log_ratio.shape)
    gap = jax.lax.stop_gradient(log_ratio + beta * log_reward)
    return _deviation(gap, axis_name) * log_ratio


def reinforce_reward(
    log_ratio: Float[Array, " B"],
    log_reward: Float[Array, " B"],
    *,
    beta: float | Float[Array, ""] = 1.0,
    alpha: float = 0.0,
    axis_name: AxisName | None = None,
) -> Float[Array, " B"]:
    """The paper's toy baseline: REINFORCE on r^beta itself, plus ``alpha`` times the squared log-ratio.

    Neither term's optimum is the posterior, whatever alpha (Deleu et al. 2025); kept for the comparison.
    """
    check_shape("log_reward", log_reward, log_ratio.shape)
    return _deviation(jnp.exp(beta * log_reward), axis_name) * log_ratio + alpha * log_ratio**2


def whitened(reward: Float[Array, " B"], axis_name: AxisName | None = None) -> Float[Array, " B"]:
    """Advantages of mean 0 and standard deviation 1 over the batch."""
    deviation = _deviation(reward, axis_name)
    return deviation / (jnp.sqrt(_mean(deviation**2, axis_name)) + 1e-6)


def ddpo(
    log_ratio: Float[Array, " B"],
    log_reward: Float[Array, " B"],
    *,
    beta: float | Float[Array, ""] = 1.0,
    axis_name: AxisName | None = None,
) -> Float[Array, " B"]:
    """Policy gradient on the whitened r^beta, no KL (Black et al. 2024, the score-function variant). Collapses."""
    check_shape("log_reward", log_reward, log_ratio.shape)
    return whitened(jnp.exp(beta * log_reward), axis_name) * log_ratio


def dpok(
    log_ratio: Float[Array, " B"],
    log_reward: Float[Array, " B"],
    *,
    beta: float | Float[Array, ""] = 1.0,
    kl_weight: float = 0.01,
    axis_name: AxisName | None = None,
) -> Float[Array, " B"]:
    """`ddpo` plus ``kl_weight`` times a KL to the prior, as a score-function term (Fan et al. 2023)."""
    check_shape("log_reward", log_reward, log_ratio.shape)
    kl = jax.lax.stop_gradient(-log_ratio)
    advantage = whitened(jnp.exp(beta * log_reward), axis_name) - kl_weight * _deviation(kl, axis_name)
    return advantage * log_ratio


def steering(score: Array, gradient: Array, std: Float[Array, ""]) -> Float[Array, " B"]:
    """How far one steered Gaussian step lies from another: ``std^2 |score - gradient|^2 / 2`` per sample, in nats.

    A step with the prior's std and its mean moved by ``std^2 score`` has, from the exact posterior's step, a KL
    divergence whose gradient in the score is ``std^2 (score - E[grad log h(x')])``, with x' drawn from the step itself
    (reparametrise ``E[log h(x')]``). So the gradient of a value at the next state of the policy's own paths is an
    unbiased target for the score at x, and regression averages its noise away.

    Args:
      score: of the policy at x, ``[B, E*]``.
      gradient: of log h at the next state, ``[B, E*]``.
      std: of the step.
    """
    check_shape("gradient", gradient, score.shape)
    check_shape("std", std, ())
    distance = jnp.sum((score - gradient) ** 2, axis=tuple(range(1, score.ndim)))
    return 0.5 * std**2 * distance


def _check_tokens(output: Array, x0: Array, masked: Array, mask_rate: Array) -> None:
    check_shape("x0", x0, output.shape[:-1])
    check_shape("masked", masked, x0.shape)
    check_shape("mask_rate", mask_rate, x0.shape[:1])


def masked_elbo(
    logits: Float[Array, "B L V"], x0: Int[Array, "B L"], masked: Bool[Array, "B L"], mask_rate: Float[Array, " B"]
) -> Float[Array, " B"]:
    """MDLM's bound on ``-log p(x0)`` in continuous time (Sahoo et al. 2024, eq. 10), in nats, at one mask rate.

    For a mask rate uniform in (0, 1) its expectation is the bound, whatever the schedule: mask rates are how far a
    chain has come. Of conditionals of one joint law the bound is that law's own ``-log p(x0)``.

    Args:
      logits: of the clean tokens.
      x0: data.
      masked: where the network saw the mask; it counts there alone.
      mask_rate: the probability with which tokens were masked.
    """
    _check_tokens(logits, x0, masked, mask_rate)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), x0[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(masked, log_p, 0.0), axis=-1) / mask_rate


def score_entropy(
    log_score: Float[Array, "B L V"], x0: Int[Array, "B L"], masked: Bool[Array, "B L"], mask_rate: Float[Array, " B"]
) -> Float[Array, " B"]:
    """SEDD's denoising score entropy for masked tokens (Lou et al. 2024, eq. 9 and sec. 3.3), in nats.

    A bound on ``-log p(x0)`` as `masked_elbo` is, and equal to it where the scores of a position sum to what they
    should: ``p(v) / p(mask) = p(v | the rest) (1 - m) / m``.

    Args:
      log_score: log of ``p(v) / p(mask)``.
      x0: data.
      masked: where the network saw the mask; it counts there alone.
      mask_rate: m, below 1.
    """
    _check_tokens(log_score, x0, masked, mask_rate)
    log_score, rate = log_score.astype(jnp.float32), mask_rate[:, None]
    ratio = (1.0 - rate) / rate
    own = jnp.take_along_axis(log_score, x0[..., None], axis=-1)[..., 0]
    entropy = jnp.sum(jnp.exp(log_score), axis=-1) - ratio * own + ratio * (jnp.log(ratio) - 1.0)
    return jnp.sum(jnp.where(masked, entropy, 0.0), axis=-1) / (1.0 - mask_rate)
