"""Offline reinforcement learning: pi(a | s) proportional to mu(a | s) exp(Q(s, a) / alpha) (paper, sec. 3.4, app. G).

mu is a diffusion over ``u = arctanh(a)`` that imitates recorded behaviour, Q comes from implicit Q-learning on the same
records. Every state is a condition with a posterior of its own.
"""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from experiments import hosts, weights
from experiments.control import behaviour_prior, iql, learning, networks, reference, transitions
from experiments.control.baselines import BASELINES, weights_file
from experiments.control.tasks import TASKS
from experiments.control.transitions import Normaliser, Transitions
from experiments.domains.base import Conditions, Domain, Samples
from experiments.errors import ConfigError
from experiments.plots import plt, save
from experiments.pretrain import fit
from experiments.settings import get, no_strength, no_warm_start, one_of
from experiments.streams import stream
from rtbjax import Policy, Process, posterior
from rtbjax.nets.mlp import PISNet, TimeEmbedding

SHOWN_STATES = 6
POSITIVE = (
    *("reward.alpha", "posterior.langevin_clip", "process.min_std", "iql.learning_rate", "baseline.learning_rate"),
    *("baseline.temperature", "baseline.conservatism", "baseline.q_weight"),
)
AT_LEAST_1 = (
    "eval.states",
    *(f"iql.{name}" for name in ("steps", "batch_size", "checkpoint_every")),
    *(f"baseline.{name}" for name in ("steps", "batch_size", "checkpoint_every", "candidates", "states", "num_steps")),
)


class StepScale(nn.Module):
    """A factor for every dimension of the Langevin term, a function of time that starts at zero."""

    features: int
    width: int = 64

    @nn.compact
    def __call__(self, t: Float[Array, ""]) -> Float[Array, " {features}"]:
        h = nn.gelu(TimeEmbedding(self.width)(t))
        return nn.Dense(self.features, kernel_init=nn.initializers.zeros)(h)


def build(config: ConfigDict) -> Domain:
    """The domain of a config.

    Raises:
      ConfigError: an unknown environment or parametrisation, or a number that is not allowed.
      DataError: the transitions cannot be read.
      WeightsError: the weights of prior or values cannot be read, or are of another environment or other transitions.
    """
    check(config)
    task = networks.task_of(config)
    found = transitions.load(config.data.path, task)
    prior, norm = networks.load_prior(config)
    values, values_norm = networks.load_values(config)
    networks.check_networks(config, networks.notes_of(found))
    process = networks.make_process(config)
    log_reward = networks.make_log_reward(values, values_norm, config.reward.alpha)
    learner = make_posterior(config, process, prior, norm, log_reward)
    states = evaluated_states(config, found)
    conditions = Conditions(
        values=jnp.asarray(found.observations),
        evaluated=jnp.asarray(found.observations[states]),
        names=tuple(f"state {row}" for row in states),
        examples=jnp.asarray(behaviour_prior.to_latents(found.actions)),
    )
    return Domain(
        name="control",
        data_source=f"{config.environment}: {len(found.rewards)} transitions of {found.source}",
        process=process,
        event_shape=(task.action_dim,),
        prior=prior,
        posterior=learner,
        log_reward=jax.jit(log_reward),
        log_bound=None,
        fingerprint=weights.fingerprint(
            prior.params, norm, values, values_norm, config.process.to_dict(), config.reward.alpha, conditions.evaluated
        ),
        evaluate=make_evaluate(log_reward, conditions, config.reward.alpha),
        plot=plot,
        conditions=conditions,
    )


def check(config: ConfigDict) -> None:
    """Raises a ConfigError on a field of this domain that is not allowed."""
    one_of(config, "posterior.kind", ("correction", "full", "lora"))
    one_of(config, "precision", ("float32",))
    no_warm_start(config)
    no_strength(config)
    for name in POSITIVE:
        if not get(config, name) > 0:
            raise ConfigError(f"config.{name} must be positive, got {get(config, name)}.")
    if config.objective.beta != 1.0:
        raise ConfigError(
            f"config.objective.beta must be 1 for this domain, got {config.objective.beta}: config.reward.alpha sets "
            "how much Q counts."
        )
    for name in AT_LEAST_1:
        if get(config, name) < 1:
            raise ConfigError(f"config.{name} must be at least 1, got {get(config, name)}.")
    if config.baseline.support < 2:
        raise ConfigError(f"config.baseline.support must be at least 2 actions, got {config.baseline.support}.")
    for name in ("iql.expectile", "iql.discount", "iql.target_rate", "baseline.target_rate", "baseline.ema"):
        if not 0.0 < get(config, name) < 1.0:
            raise ConfigError(f"config.{name} must lie between 0 and 1, got {get(config, name)}.")


def evaluated_states(config: ConfigDict, found: Transitions) -> list[int]:
    """Rows of distinct transitions whose states are evaluated."""
    count = len(found.rewards)
    if config.eval.states > count:
        raise ConfigError(f"config.eval.states must be at most {count}, the transitions there are.")
    drawn = jax.random.choice(stream(config.seed, "states"), count, (config.eval.states,), replace=False)
    return sorted(np.asarray(drawn).tolist())


def make_posterior(config: ConfigDict, process: Process, prior: Policy, norm: Normaliser, log_reward) -> Policy:
    """The parametrisation to train, at its start, where it is the prior."""
    p, key, action_dim = config.posterior, stream(config.seed, "posterior"), TASKS[config.environment].action_dim
    if p.kind == "full":
        learner = posterior.full_copy(prior)
    elif p.kind == "lora":
        learner = posterior.lora(key, prior, p.rank, select=p.select)
    else:
        learner = correction(key, p.width, action_dim, norm)
    if p.langevin:
        learner = langevin(key, learner, action_dim, log_reward, p.langevin_clip)
    return posterior.step_std(learner, process, (action_dim,)) if p.learn_variance else learner


def correction(key: Array, width: int, action_dim: int, norm: Normaliser) -> Policy:
    """A network added to the prior's noise; it sees u, the prior's noise and the state, and starts at zero."""
    net = PISNet(features=action_dim, width=width)

    def apply_fn(params, u, t, cond, output):
        inputs = jnp.concatenate([u, output], axis=-1)
        return net.apply({"params": params}, inputs, t / behaviour_prior.TRAIN_STEPS, norm(cond))

    inputs = (jnp.zeros((1, 2 * action_dim)), jnp.float32(0.0), jnp.zeros((1, len(norm.mean))))
    return posterior.correction(jax.jit(net.init)(key, *inputs)["params"], apply_fn)


def langevin(key: Array, base: Policy, action_dim: int, log_reward, clip: float) -> Policy:
    """Adds ``scale(t) * clip(grad_u log r)``, a scale for every dimension (paper, eq. 11).

    In units of the clip, so that a step of the scale moves the noise by no more than a step of the network does.
    """
    net = StepScale(action_dim)

    def scale(params, t):
        factors: Any = net.apply({"params": params}, t / behaviour_prior.TRAIN_STEPS)
        return factors[None] / clip

    params = jax.jit(net.init)(jax.random.fold_in(key, 1), jnp.float32(0.0))["params"]
    return posterior.langevin(base, params, scale, log_reward, clip=clip)


def pretrain(config: ConfigDict, workdir: Path) -> None:
    """Trains the behaviour prior, or by ``pretrain.what`` the values or a baseline; writes weights to the workdir.

    Raises:
      ConfigError: a field that is not allowed.
      DataError: the transitions cannot be read.
      WeightsError: a baseline needs prior or values, and their weights cannot be read.
    """
    one_of(config, "pretrain.what", ("prior", "reward", *BASELINES))
    check(config)
    found = transitions.load(config.data.path, networks.task_of(config))
    norm, what = transitions.normaliser(found), config.pretrain.what
    key = stream(config.seed, f"pretrain {what}")
    notes: dict[str, Any] = {"environment": config.environment} | networks.notes_of(found)
    path = weights_file(config, workdir, what)
    use = f"use it by --config.{what}.weights={path}"
    if what == "prior":
        params, steps = fit_prior(config, found, norm, key, workdir), config.pretrain.steps
    elif what == "reward":
        params = iql.train(learning.batch_of(found, norm), config.iql, key=key, workdir=workdir)
        steps, notes["reward_scale"] = config.iql.steps, transitions.reward_scale(found)
    else:
        networks.check_networks(config, notes, BASELINES[what].needs)
        params, steps = BASELINES[what].train(config, found, norm, key, workdir), config.baseline.steps
        use = "experiments.control.play plays it beside the run of this workdir"
    weights.save(path, {"params": params, "observations": norm._asdict()}, notes | {"steps": steps})
    hosts.say(f"{path}: {use}")


def fit_prior(config: ConfigDict, found: Transitions, norm: Normaliser, key: Array, workdir: Path) -> PyTree:
    """Imitates the recorded actions."""
    settings, (count, action_dim) = config.pretrain, found.actions.shape
    init_key, fit_key = jax.random.split(key)
    params = behaviour_prior.init(init_key, config.prior.width, found.observations.shape[1], action_dim)
    data = (jnp.asarray(behaviour_prior.to_latents(found.actions)), jnp.asarray(norm(found.observations)))

    def loss(params, key, data):
        pick, noise = jax.random.split(key)
        rows = jax.random.randint(pick, (settings.batch_size,), 0, count)
        latents, observations = (a[rows] for a in data)
        return behaviour_prior.loss(params, noise, latents, observations)

    return fit(loss, params, data, settings, key=fit_key, workdir=workdir, label="behaviour prior", steps_per_call=50)


def make_evaluate(log_reward, conditions: Conditions, alpha: float):
    """Metrics of each state against what importance sampling from the prior says of it.

    A state's reference counts only if it has `reference.MIN_ESS` effective samples; ``trusted`` is their share.
    """
    asked = jax.jit(log_reward)

    def q_values(x):
        """``[N, n, A]`` to ``[N, n]``."""
        states, n, _ = x.shape
        cond = np.repeat(np.asarray(conditions.evaluated), n, axis=0)
        return alpha * np.asarray(asked(x.reshape(states * n, -1), cond), np.float64).reshape(states, n)

    def evaluate(samples):
        q = {name: q_values(samples[name]) for name in ("prior", "rtb")}
        known = reference.self_normalised(q["prior"] / alpha, q["prior"])
        mean = {name: values.mean(axis=1) for name, values in q.items()}
        error = q["rtb"].std(axis=1, ddof=1) / np.sqrt(q["rtb"].shape[1])
        difference = mean["rtb"] - known.mean
        states = {
            name: {
                "q_prior": mean["prior"][i],
                "q_rtb": mean["rtb"][i],
                "q_rtb_error": error[i],
                "q_reference": known.mean[i],
                "q_reference_error": known.error[i],
                "log_z_reference": known.log_z[i],
                "reference_ess": known.ess[i],
            }
            for i, name in enumerate(conditions.names)
        }
        kept = known.trusted
        # About 1 where samples are the posterior's: differences in units of their own standard errors.
        standardised = np.sqrt(np.mean((difference**2 / (error**2 + known.error**2))[kept])) if kept.any() else None
        return {
            "prior": {"q": mean["prior"].mean()},
            "rtb": {
                "q": mean["rtb"].mean(),
                "q_minus_reference": difference[kept].mean() if kept.any() else None,
                "q_standardised": standardised,
            },
            "reference": {"trusted": kept.mean(), "median_ess": np.median(known.ess)},
            "states": states,
        }

    return evaluate


def plot(path: Path, panels: Samples) -> None:
    """First two actions in the first states, one row of panels for each set, by title."""
    columns = min(SHOWN_STATES, min(len(x) for x in panels.values()))
    size = (2.4 * columns, 2.6 * len(panels))
    figure, axes = plt.subplots(len(panels), columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for row, (title, x) in zip(axes, panels.items(), strict=True):
        row[0].set_ylabel(title)
        for axis, u in zip(row, x, strict=False):
            axis.hist2d(*np.tanh(u[:, :2]).T, bins=40, range=[[-1, 1]] * 2, cmap="magma")
            axis.set_aspect("equal")
    save(path, figure)
