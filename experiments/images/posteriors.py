"""The posterior of a config, at its start: parametrisations that are trained, and guides that are not."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from experiments.domains.base import Value
from experiments.images.networks import blank, make_schedule, make_small_unet
from experiments.images.rewards import labels
from experiments.streams import stream
from rtbjax import Policy, Process, RewardFn, guidance, posterior
from rtbjax.nets.unet import UNet

SCORE_SCALE = 0.05  # A score of this size per pixel, in units of 1 / std, is worth about a nat a step.
STEERED = ("steered", "value_guided")  # By a score that the value teaches first.
GUIDED = ("classifier_guidance", "posterior_sampling", "loss_guidance")  # Nothing to train.
CONDITIONAL = ("correction", *STEERED, *GUIDED)  # The prior's network has no place for a label.
KINDS = ("full", "lora", *CONDITIONAL)


def make(config: ConfigDict, process: Process, prior: Policy, log_reward: RewardFn, value: Value | None) -> Policy:
    """The posterior that ``posterior.kind`` names; ``value`` is what ``value_guided`` follows."""
    settings, key = config.posterior, stream(config.seed, "posterior")
    if settings.kind == "full":
        learner = posterior.full_copy(prior)
    elif settings.kind == "lora":
        learner = posterior.lora(key, prior, settings.rank, select=settings.select)
    elif settings.kind == "correction":
        learner = correction(key, config, process, log_reward)
    elif settings.kind == "steered":
        learner = steered(key, config, process)
    elif settings.kind == "value_guided":
        assert value is not None
        learner = value_guided(key, config, process, log_reward, value)
    else:
        learner = guided(config, process, prior, log_reward)
    return posterior.step_std(learner, process, (1, 1, 1)) if settings.learn_variance else learner


def guided(config: ConfigDict, process: Process, prior: Policy, log_reward: RewardFn) -> Policy:
    """Training-free, by the gradient of ``beta log r``: at the state itself, or through the denoiser."""
    settings, beta = config.posterior, config.objective.beta

    def tempered(x, cond):
        return beta * log_reward(x, cond)

    if settings.kind == "classifier_guidance":
        return guidance.classifier_guidance(tempered, strength=settings.strength)
    if settings.kind == "posterior_sampling":
        return guidance.posterior_sampling(process, prior, tempered, strength=settings.strength)
    # The spread of x_0 given x that data of unit variance would have (Song et al. 2023).
    noise = jnp.asarray(np.sqrt(1.0 - make_schedule(config).alpha_bar), jnp.float32)
    return guidance.loss_guidance(
        process,
        prior,
        tempered,
        lambda i: noise[i],
        num_samples=settings.num_samples,
        strength=settings.strength,
    )


def labelled_unet(config: ConfigDict) -> UNet:
    """A smaller U-Net, which knows the label where there are several."""
    asked = labels(config)
    return make_small_unet(config, len(asked) if len(asked) > 1 else None)


def initial(key: Array, net: UNet, config: ConfigDict, seen: int) -> PyTree:
    """Parameters of a network that sees so many images at once; its last layer is zero."""
    return jax.jit(net.init)(key, blank(config, seen), jnp.float32(0.0))["params"]


def correction(key: Array, config: ConfigDict, process: Process, log_reward: RewardFn) -> Policy:
    """Adds a smaller U-Net to the output; it sees the state, the prior's estimate of x0, and grad log r there."""
    net = labelled_unet(config)

    def look(output, x, t, cond):
        x0 = process.denoise(output, x, process.step_at(t))
        gradient = jax.grad(lambda x0: jnp.sum(log_reward(x0, cond)))(x0)
        return jnp.concatenate([x0, jnp.clip(gradient, -1.0, 1.0)], axis=-1)

    def apply_fn(params, x, t, cond, seen):
        return net.apply({"params": params}, jnp.concatenate([x, seen], axis=-1), t, cond)

    return posterior.correction(initial(key, net, config, 3), apply_fn, look=look)


def steered(key: Array, config: ConfigDict, process: Process) -> Policy:
    """A smaller U-Net gives the score; it sees the state and the prior's estimate of x0."""
    net = labelled_unet(config)

    def score(params, x, t, cond, output):
        i = process.step_at(t)
        law: Any = process.reverse(output, x, i)
        return network_score(net, params, (x, process.denoise(output, x, i)), t, cond, law.std)

    return posterior.steered(initial(key, net, config, 2), score)


def value_guided(key: Array, config: ConfigDict, process: Process, log_reward: RewardFn, value: Value) -> Policy:
    """Starts as the prior guided by the value, whose gradient every step then takes."""
    beta = config.objective.beta
    guide = guidance.value_guidance(
        process,
        lambda x, t, cond: beta * value.log_h(value.params, x, t, cond),
        lambda x, cond: beta * log_reward(x, cond),
        strength=config.value.strength,
    )
    return with_score(key, config, process, guide, labelled_unet(config))


def with_score(key: Array, config: ConfigDict, process: Process, guide: Policy, net: UNet) -> Policy:
    """The guide with a strength for each step, plus the score of a smaller U-Net, which sees what the guide says."""

    def change(params, x, t, cond, steered):
        i = process.step_at(t)
        law: Any = process.reverse(steered.output, x, i)
        seen = (x, process.denoise(steered.output, x, i), law.std * steered.score)
        own = network_score(net, params["network"], seen, t, cond, law.std)
        return jnp.exp(params["log_strength"][i]) * steered.score + own

    params = {"network": initial(key, net, config, 3), "log_strength": jnp.zeros(process.num_steps)}
    return posterior.guided(guide, params, change)


def network_score(
    net: UNet, params: PyTree, seen: Sequence[Array], t: Array, cond: Any, std: Array
) -> Float[Array, "B H W C"]:
    """A score that moves the mean of a step by `SCORE_SCALE` times ``std`` where the network's output is 1.

    A network without classes is not told the condition, which may be no class.
    """
    label = None if net.num_classes is None else cond
    output: Any = net.apply({"params": params}, jnp.concatenate(seen, axis=-1), t, label)
    return SCORE_SCALE / std * output
