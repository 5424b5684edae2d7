"""Policies played in gymnasium's environments: many episodes at once, each to its end."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.control.tasks import Task
from experiments.errors import UserError
from experiments.streams import stream
from rtbjax import Policy, Process, rollout

Actor = Callable[[Array, Float[Array, "B S"]], Float[Array, "B A"]]
"""``(key, observations) -> actions``, as they were recorded and as the environment takes them."""


def diffusion_actor(process: Process, prior: Policy, posterior: Policy | None, action_dim: int) -> Actor:
    """Samples of the posterior, or of the prior if there is none; jitted, the observations being the conditions."""

    @jax.jit
    def act(key, policies, observations):
        shape = (observations.shape[0], action_dim)
        return jnp.tanh(rollout(key, process, *policies, shape=shape, cond=observations).xs[-1])

    return lambda key, observations: act(key, (prior, posterior), observations)


def deterministic(mean: Callable[[Array], Array]) -> Actor:
    """Plays a function of the observations."""
    act = jax.jit(mean)
    return lambda key, observations: act(observations)


def best_of(actor: Actor, log_reward: Callable[[Array, Array], Array], count: int) -> Actor:
    """The best by log r of ``count`` actions for every state: IDQL's greedy policy (Hansen-Estruch et al. 2023).

    Args:
      actor: proposes.
      log_reward: of latents, ``(u, observations) -> f[B]``.
      count: N.
    """
    return _selected(actor, log_reward, count, lambda key, scores: jnp.argmax(scores, axis=1))


def one_of(actor: Actor, log_reward: Callable[[Array, Array], Array], count: int) -> Actor:
    """As `best_of`, and drawn in proportion to r: what diffusion Q-learning plays (Wang et al. 2023)."""
    return _selected(actor, log_reward, count, lambda key, scores: jax.random.categorical(key, scores, axis=1))


def _selected(actor: Actor, log_reward, count: int, select: Callable[[Array, Array], Array]) -> Actor:
    @jax.jit
    def choose(key, actions, observations):
        latents = jnp.arctanh(jnp.clip(actions, -1.0 + 1e-6, 1.0 - 1e-6))
        chosen = select(key, log_reward(latents, observations).reshape(-1, count))
        return jnp.take_along_axis(actions.reshape(-1, count, actions.shape[-1]), chosen[:, None, None], axis=1)[:, 0]

    def act(key, observations):
        propose_key, select_key = jax.random.split(key)
        repeated = jnp.repeat(observations, count, axis=0)
        return choose(select_key, actor(propose_key, repeated), repeated)

    return act


def missing(task: Task) -> UserError:
    return UserError(f"{task.environment} needs gymnasium with MuJoCo: pip install 'rtbjax[control]'.")


def play(
    actor: Actor, task: Task, *, episodes: int, seed: int, max_steps: int = 1000
) -> Float[np.ndarray, " episodes"]:
    """Undiscounted return of each episode.

    Args:
      actor: acts in all environments at once.
      task: names the environment.
      episodes: as many environments.
      seed: of the first environment's start, the others' follow it, and of the actions.
      max_steps: of an episode, where the environment itself has no limit.

    Raises:
      UserError: gymnasium or MuJoCo is not installed.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise missing(task) from error
    try:
        environments = gymnasium.make_vec(task.environment, num_envs=episodes, vectorization_mode="sync")
    except gymnasium.error.DependencyNotInstalled as error:
        raise missing(task) from error
    key = stream(seed, "play")
    observations, _ = environments.reset(seed=seed)
    returns, going_on = np.zeros(episodes), np.ones(episodes, bool)
    for step in range(max_steps):
        actions = actor(jax.random.fold_in(key, step), jnp.asarray(observations, jnp.float32))
        observations, rewards, terminated, truncated, _ = environments.step(np.asarray(actions))
        # An environment whose episode is over begins another one, which is not counted.
        returns += np.where(going_on, rewards, 0.0)
        going_on &= ~(terminated | truncated)
        if not going_on.any():
            break
    environments.close()
    return returns


def interval(
    scores: Float[np.ndarray, "seeds episodes"], *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % bootstrap interval of the mean score: training seeds are drawn, then episodes within each.

    With one seed it says nothing of another training run; of a single episode there is none.
    """
    if scores.size == 1:
        return None
    rng = np.random.default_rng(seed)
    seeds, episodes = scores.shape
    chosen = rng.integers(seeds, size=(resamples, seeds))
    within = rng.integers(episodes, size=(resamples, seeds, episodes))
    means = scores[chosen[..., None], within].mean(axis=(1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
