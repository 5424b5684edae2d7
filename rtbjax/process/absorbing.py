"""Masked (absorbing) discrete diffusion with MDLM or SEDD heads (Sahoo et al. 2024; Lou et al. 2024).

States are int32 token ids ``[B, L]``; the mask is the id ``vocab_size``. With m_i the probability that a token of
``xs[i]`` is masked, step i reveals each masked token independently; revealed tokens never change. A chain of T steps
that reveals several tokens at once treats them as independent given ``xs[i]``: a floor of order 1/T in path-KL for any
reward that couples positions. `one_by_one` is its limit of many steps, in which no two tokens meet.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rtbjax.kernels import Categorical, Reveal
from rtbjax.process import Process
from rtbjax.types import LearnedStd, Steered, check_shape


def absorbing(
    mask_rate: np.ndarray,
    vocab_size: int,
    *,
    head: str = "mdlm",
    given: Callable[[Any], Array] | None = None,
) -> Process:
    """The reverse chain of a masked diffusion.

    Args:
      mask_rate: ``f[T + 1]``, falling to 0 (`rtbjax.schedules.linear_mask_rate`, `loglinear_mask_rate`). The chain
        starts fully masked whatever ``mask_rate[0]`` is. The network is told ``mask_rate[i]``.
      vocab_size: V, the number of real tokens; the network outputs ``[B, L, V]``.
      head: ``mdlm``: the output is logits of the clean token; ``sedd``: log score ratios p(v) / p(mask) at noise sigma
        with ``1 - exp(-sigma) = mask_rate[i]``, stepped by SEDD's analytic (Tweedie) sampler. All scores are 0 where
        all is masked: their ``mask_rate[0]`` is below 1, as of `rtbjax.schedules.loglinear_mask_rate`.
      given: maps the condition to int32[B, L] tokens that are held fixed (any id below V), with V wherever free. Given
        tokens are never masked, resampled or scored.

    Raises:
      ValueError: rates that do not fall from at most 1 to 0, or from 1 with scores, or an unknown head.
    """
    falls = len(mask_rate) > 1 and np.all(np.diff(mask_rate) < 0)
    if not falls or mask_rate[0] > 1.0 or mask_rate[-1] != 0.0:
        raise ValueError(f"mask_rate must fall strictly from at most 1 to 0, got {np.round(mask_rate, 4)}.")
    if head not in ("mdlm", "sedd"):
        raise ValueError(f"head must be 'mdlm' or 'sedd', got {head!r}.")
    if head == "sedd" and mask_rate[0] == 1.0:
        raise ValueError(
            "mask_rate must start below 1 for head='sedd', whose scores are all 0 there, as "
            "rtbjax.schedules.loglinear_mask_rate does."
        )
    mask_id = vocab_size
    before, after = mask_rate[:-1], mask_rate[1:]
    rate = jnp.asarray(mask_rate, jnp.float32)
    reveal = jnp.asarray(1.0 - after / before, jnp.float32)
    log_keep = jnp.asarray(np.log(np.maximum(after / before, 1e-38)), jnp.float32)
    # A step reveals v with probability ``reveal p(v)``: exp(dsigma) - 1 times its score, where exp(-sigma) = 1 - m.
    factor = 1.0 - after / before if head == "mdlm" else (before - after) / (1.0 - before)
    log_factor = jnp.asarray(np.log(factor), jnp.float32)
    last = len(mask_rate) - 2

    def masked_log_probs(output, i):
        """Law of a masked token after step i over V tokens and the mask, ``[B, L, V + 1]``."""
        output = output.astype(jnp.float32)
        tokens = (jax.nn.log_softmax(output, axis=-1) if head == "mdlm" else output) + log_factor[i]
        if head == "mdlm":
            stay = jnp.broadcast_to(log_keep[i], output.shape[:-1])
        else:
            # An uncalibrated score may claim more than all the mass; the law below renormalises. Cut where a token
            # alone does: the gradient of an exponential that overflows is NaN.
            claimed = jnp.sum(jnp.exp(jnp.minimum(tokens, 0.0)), axis=-1)
            stay = jnp.log(jnp.maximum(1.0 - claimed, 1e-20))
        # The last step must reveal: the mask class is excluded, in sampling and in scoring alike.
        stay = jnp.where(i == last, -jnp.inf, stay)
        return jax.nn.log_softmax(jnp.concatenate([tokens, stay[..., None]], axis=-1), axis=-1)

    def certain(x):
        """Log-probabilities of being x."""
        return jnp.where(jax.nn.one_hot(x, vocab_size + 1, dtype=jnp.bool_), 0.0, -jnp.inf)

    def reverse(output, x, i):
        check_output(output, (*x.shape, vocab_size))
        return Categorical(jnp.where((x == mask_id)[..., None], masked_log_probs(output, i), certain(x)))

    def target(x0, x, i):
        # A masked token is revealed, as what it is, with the step's probability.
        stay = jnp.where(i == last, -jnp.inf, log_keep[i]) + certain(jnp.full_like(x0, mask_id))
        revealed = jnp.logaddexp(certain(x0) + jnp.log(reveal[i]), stay)
        return Categorical(jnp.where((x == mask_id)[..., None], revealed, certain(x)))

    def pin(x, cond):
        if given is None:
            return x
        fixed = given(cond)
        return jnp.where(fixed == mask_id, x, fixed)

    def mask(keys, x, probability, cond):
        hit = jax.vmap(lambda k: jax.random.bernoulli(k, probability, x.shape[1:]))(keys)
        return pin(jnp.where(hit, jnp.int32(mask_id), x), cond)

    def marginal(keys, x0, i, cond):
        return mask(keys, x0, jnp.where(i == 0, 1.0, rate[i]), cond)

    def forward(keys, x, i, cond):
        # P(masked at i | clean at i + 1); everything is masked at 0.
        probability = jnp.where(i == 0, 1.0, (rate[i] - rate[i + 1]) / (1.0 - rate[i + 1]))
        return mask(keys, x, probability, cond)

    return Process(
        num_steps=last + 1,
        init=lambda keys, shape, cond: pin(jnp.full(shape, mask_id, jnp.int32), cond),
        time=lambda i: rate[i],
        reverse=reverse,
        forward=forward,
        marginal=marginal,
        denoise=lambda output, x, i: jnp.where(x == mask_id, jnp.argmax(output, axis=-1).astype(jnp.int32), x),
        target=target,
    )


def check_output(output: Any, shape: tuple[int, ...]) -> None:
    """Raises a TypeError on what only a Gaussian step can make use of, a ValueError on logits of another shape."""
    if isinstance(output, (Steered, LearnedStd)):
        kind = type(output).__name__
        raise TypeError(
            f"A masked process takes logits [B, L, V]; {kind} changes a Gaussian step, of which it has none."
        )
    check_shape("The network's output", output, shape)


def check_tokens(x: Array, length: int) -> Array:
    """Raises a ValueError unless tokens are as long as the chain, whose steps would leave some masked; returns them."""
    check_shape(f"Tokens of a chain of {length} steps", x, ("B", length))
    return x


def one_by_one(length: int, vocab_size: int) -> Process:
    """Masked diffusion seen only where something happens: each of L steps reveals one token, at a random place.

    When a token of a masked diffusion is revealed does not depend on what it is, so that its states at the moments of
    reveals are this chain, whatever the schedule and without any error of discretisation (the first-hitting sampler of
    Zheng et al. 2024). Prior and posterior choose places alike. Of a prior whose conditionals are those of one law of
    the tokens, the posterior's path law is again such a chain: there is no floor.

    Args:
      length: L, all of which are masked at first.
      vocab_size: V, the number of real tokens; the network outputs ``[B, L, V]``, logits or log scores of either head
        of `absorbing`, and is told the share of masked tokens.

    Raises:
      ValueError: ``length`` below 1; of the process's functions, tokens of another length.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}.")

    def count(i):
        """Masked tokens of ``xs[i]``."""
        return length - jnp.asarray(i)

    def highest(keys, allowed, number):
        """``number`` of the allowed places at random."""
        draw = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys)
        rank = jnp.argsort(jnp.argsort(jnp.where(allowed, -draw, 1.0), axis=1), axis=1)
        return rank < number

    def hide(keys, x, number):
        check_tokens(x, length)
        return jnp.where(highest(keys, x != vocab_size, number), jnp.int32(vocab_size), x)

    def reverse(output, x, i):
        check_tokens(x, length)
        check_output(output, (*x.shape, vocab_size))
        return Reveal(jax.nn.log_softmax(output.astype(jnp.float32)), x)

    def certain(x0):
        return jnp.where(jax.nn.one_hot(x0, vocab_size, dtype=jnp.bool_), 0.0, -jnp.inf)

    return Process(
        num_steps=length,
        init=lambda keys, shape, cond: check_tokens(jnp.full(shape, vocab_size, jnp.int32), length),
        time=lambda i: count(i).astype(jnp.float32) / length,
        reverse=reverse,
        forward=lambda keys, x, i, cond: hide(keys, x, 1),
        marginal=lambda keys, x0, i, cond: hide(keys, x0, count(i)),
        denoise=lambda output, x, i: jnp.where(x == vocab_size, jnp.argmax(output, axis=-1).astype(jnp.int32), x),
        target=lambda x0, x, i: Reveal(certain(x0), x),
    )
