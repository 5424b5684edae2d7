"""Policies to compare with: how a config trains each, and how each is played.

BC and IDQL need no training of their own: they are the behaviour prior, and the best of its actions by Q.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from experiments import weights
from experiments.control import behaviour_prior, cql, diffusion_ql, gaussian, iql, networks, qgpo, rollouts
from experiments.control.learning import Batch, batch_of
from experiments.control.tasks import Task
from experiments.control.transitions import Normaliser, Transitions
from rtbjax import rollout

CHUNK = 10_000  # Transitions, or prior actions, that are evaluated at once.


class Baseline(NamedTuple):
    """Attributes:
    label: as tables call it.
    train: ``(config, found, norm, key, workdir) -> params``.
    init: ``(key, width, observation_dim, action_dim) -> params`` of the sizes that ``train`` returns.
    actor: ``(config, params, norm) -> Actor``.
    needs: what of `networks.FIELDS` it is trained with.
    """

    label: str
    train: Callable[[ConfigDict, Transitions, Normaliser, Array, Path], PyTree]
    init: Callable[[Array, int, int, int], PyTree]
    actor: Callable[[ConfigDict, Any, Normaliser], rollouts.Actor]
    needs: tuple[str, ...] = ()


def train_gaussian(config, found, norm, key, workdir) -> PyTree:
    """Behaviour cloning."""
    weight = jnp.ones(len(found.rewards))
    return gaussian.train(batch_of(found, norm), weight, config.baseline, key=key, workdir=workdir, label="BC")


def train_awr(config, found, norm, key, workdir) -> PyTree:
    """IQL's own policy, at the config's values."""
    weight = gaussian.advantage_weights(advantages(config, found), config.baseline.temperature)
    return gaussian.train(batch_of(found, norm), weight, config.baseline, key=key, workdir=workdir, label="IQL")


def advantages(config: ConfigDict, found: Transitions) -> Array:
    """``Q(s, a) - V(s)`` of every transition, in units of scaled rewards."""
    values, norm = networks.load_values(config)

    @jax.jit
    def advantage(s, a):
        return iql.q_value(values["q"], norm(s), a) - iql.value(values["v"], norm(s))

    spans = range(0, len(found.rewards), CHUNK)
    parts = [advantage(found.observations[i : i + CHUNK], found.actions[i : i + CHUNK]) for i in spans]
    return jnp.concatenate(parts)


def gaussian_actor(config, params, norm) -> rollouts.Actor:
    return rollouts.deterministic(lambda s: gaussian.law(params, norm(s)).mean)


def train_cql(config, found, norm, key, workdir) -> PyTree:
    arguments = dict(discount=config.iql.discount, key=key, workdir=workdir)
    return cql.train(batch_of(found, norm), config.baseline, **arguments)


def cql_actor(config, params, norm) -> rollouts.Actor:
    return rollouts.deterministic(lambda s: jnp.tanh(cql.law(params["policy"], norm(s)).mean))


def dql_process(config: ConfigDict):
    return behaviour_prior.make_process(config.baseline.num_steps, config.process.min_std)


def train_dql(config, found, norm, key, workdir) -> PyTree:
    data: Batch = batch_of(found, norm)
    arguments = dict(discount=config.iql.discount, key=key, workdir=workdir)
    return diffusion_ql.train(data, dql_process(config), config.baseline, **arguments)


def dql_actor(config, params, norm) -> rollouts.Actor:
    """One of several actions, by a softmax of their Q, as published."""
    process, dim = dql_process(config), networks.task_of(config).action_dim

    @jax.jit
    def sample(key, s):
        return jnp.tanh(diffusion_ql.sample(key, process, params["policy"], norm(s), dim))

    def log_reward(u, s):
        return iql.q_value(params["q"], norm(s), jnp.tanh(u))

    return rollouts.one_of(sample, log_reward, config.baseline.candidates)


def train_qgpo(config, found, norm, key, workdir) -> PyTree:
    """On actions of the prior in ``baseline.states`` recorded states, at the config's values and alpha."""
    states_key, actions_key, train_key = jax.random.split(key, 3)
    task, k = networks.task_of(config), config.baseline.support
    count = min(config.baseline.states, len(found.rewards))
    rows = np.asarray(jax.random.choice(states_key, len(found.rewards), (count,), replace=False))
    latents, log_reward = support(config, found.observations[rows], k, task, actions_key)
    observations = jnp.asarray(norm(found.observations[rows]))
    return qgpo.train(latents, log_reward, observations, config.baseline, key=train_key, workdir=workdir)


def support(config: ConfigDict, observations: np.ndarray, k: int, task: Task, key: Array) -> tuple[Array, Array]:
    """``k`` latents of the prior in each state, ``[N, k, A]``, and their ``Q / alpha``."""
    prior, _ = networks.load_prior(config)
    log_reward = networks.make_log_reward(*networks.load_values(config), config.reward.alpha)
    process = networks.make_process(config)

    @jax.jit
    def draw(key, s):
        u = rollout(key, process, prior, shape=(len(s), task.action_dim), cond=s).xs[-1]
        return u, log_reward(u, s)

    asked = np.repeat(observations, k, axis=0)
    parts = [draw(jax.random.fold_in(key, i), asked[i : i + CHUNK]) for i in range(0, len(asked), CHUNK)]
    latents, values = (jnp.concatenate(column) for column in zip(*parts, strict=True))
    return latents.reshape(-1, k, task.action_dim), values.reshape(-1, k)


def qgpo_actor(config, params, norm) -> rollouts.Actor:
    prior, _ = networks.load_prior(config)
    dim = networks.task_of(config).action_dim
    return rollouts.diffusion_actor(networks.make_process(config), prior, qgpo.guided(params, norm), dim)


BASELINES = {
    "gaussian": Baseline("BC, Gaussian", train_gaussian, gaussian.init, gaussian_actor),
    "awr": Baseline("IQL", train_awr, gaussian.init, gaussian_actor, ("reward",)),
    "cql": Baseline("CQL", train_cql, cql.init, cql_actor),
    "dql": Baseline("D-QL", train_dql, diffusion_ql.init, dql_actor),
    "qgpo": Baseline("QGPO", train_qgpo, qgpo.init, qgpo_actor, ("prior", "reward")),
}


def weights_file(config: ConfigDict, folder: Path, what: str) -> Path:
    """What pretraining writes for ``what`` of `BASELINES`, ``prior`` or ``reward`` (the values)."""
    return folder / f"{config.environment}_{'iql' if what == 'reward' else what}.safetensors"


def actors(config: ConfigDict, folder: Path) -> dict[str, rollouts.Actor]:
    """The baselines that were pretrained in subfolders of a folder, by name.

    Raises:
      WeightsError: weights that cannot be read, or are of other sizes, another environment or other transitions than
        the prior's.
    """
    task, found = networks.task_of(config), {}
    wanted = weights.metadata(weights.locate(config.prior.weights))
    for name, baseline in BASELINES.items():
        path = weights_file(config, folder / name, name)
        if path.exists():
            sizes = (config.baseline.width, task.observation_dim, task.action_dim)
            shapes = jax.eval_shape(lambda key, init=baseline.init, sizes=sizes: init(key, *sizes), jax.random.key(0))
            params, norm = networks.load(config, str(path), shapes, name)
            networks.check_data(path, name, wanted)
            found[name] = baseline.actor(config, params, norm)
    return found
