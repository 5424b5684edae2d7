"""Episodes are counted to their ends and no further, and a mean score's interval is what theory says."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.control import play, rollouts, tables
from experiments.control.tasks import TASKS, Task
from experiments.errors import UserError


class Countdown(gymnasium.Env):
    """Ends after 3 to 9 steps, as its seed says; pays its first action. It sees how many steps are left."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(3, 10))
        self.cut = self.left % 2
        return self.observation(), {}

    def observation(self):
        return np.array([self.left, 1.0])

    def step(self, action):
        self.left -= 1
        over = self.left == 0
        return self.observation(), float(action[0]), over and not self.cut, over and bool(self.cut), {}


gymnasium.register("rtbjax/Countdown-v0", Countdown)
TASK = Task("rtbjax/Countdown-v0", 2, 1, 1.0, 3.0)


def starts(episodes, seed):
    """The lengths of episodes, asked of the environments one by one."""
    return np.array([Countdown().reset(seed=seed + i)[0][0] for i in range(episodes)])


def test_returns_are_those_of_one_whole_episode_each():
    found = rollouts.play(lambda key, s: jnp.full((len(s), 1), 0.5), TASK, episodes=12, seed=7)
    expected = 0.5 * starts(12, 7)
    assert len(set(expected)) > 3
    np.testing.assert_allclose(found, expected)


def test_actions_answer_the_present_observation():
    # It pays 1 in the last step of an episode alone.
    found = rollouts.play(lambda key, s: jnp.where(s[:, :1] == 1.0, 1.0, 0.0), TASK, episodes=12, seed=7)
    np.testing.assert_allclose(found, 1.0)


def test_every_step_has_its_own_randomness_and_a_seed_repeats_it():
    def play(seed):
        return rollouts.play(lambda key, s: jax.random.uniform(key, (len(s), 1)), TASK, episodes=4, seed=seed)

    np.testing.assert_array_equal(play(0), play(0))
    steps = starts(4, 0)
    # Were it one and the same draw at every step, returns over lengths would be equal to it.
    assert not np.allclose((play(0) / steps), jax.random.uniform(jax.random.fold_in(jax.random.key(0), 0), (4,)))


def test_a_limit_ends_what_the_environment_does_not():
    found = rollouts.play(lambda key, s: jnp.ones((len(s), 1)), TASK, episodes=5, seed=0, max_steps=2)
    np.testing.assert_array_equal(found, 2.0)


def test_scores_are_0_for_random_and_100_for_expert_returns():
    np.testing.assert_allclose(TASK.score(np.array([1.0, 2.0, 3.0])), [0.0, 50.0, 100.0])


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_tasks_are_the_environments_they_name(name):
    task = TASKS[name]
    environment = gymnasium.make(task.environment)
    assert environment.observation_space.shape == (task.observation_dim,)
    assert environment.action_space.shape == (task.action_dim,)
    np.testing.assert_array_equal(environment.action_space.high, 1.0)


def test_a_random_policy_scores_about_nothing_in_hopper():
    def actor(key, s):
        return jax.random.uniform(key, (len(s), 3), minval=-1.0)

    scores = TASKS["hopper"].score(rollouts.play(actor, TASKS["hopper"], episodes=10, seed=0))
    # D4RL's random return is of version 2; version 5's differs by a point or so.
    assert abs(scores.mean()) < 3.0


def test_an_environment_that_is_not_there_is_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gymnasium", None)
    with pytest.raises(UserError, match=r"needs gymnasium with MuJoCo: pip install 'rtbjax\[control\]'"):
        rollouts.play(lambda key, s: s, TASK, episodes=1, seed=0)


def test_the_interval_of_many_seeds_is_that_of_their_means():
    rng = np.random.default_rng(0)
    scores = rng.normal(50.0, 10.0, (40, 1)) + rng.normal(0.0, 3.0, (40, 10))
    means = scores.mean(axis=1)
    half = 1.96 * means.std() / np.sqrt(40)
    # Drawing episodes within adds a fortieth of 9 / 10 to the variance of the seeds' means, 1 %.
    np.testing.assert_allclose(rollouts.interval(scores), [means.mean() - half, means.mean() + half], atol=0.1 * half)


def test_the_interval_of_one_seed_is_that_of_its_episodes():
    scores = np.random.default_rng(1).normal(20.0, 5.0, (1, 100))
    half = 1.96 * scores.std() / 10
    found = rollouts.interval(scores)
    np.testing.assert_allclose(found, [scores.mean() - half, scores.mean() + half], atol=0.1 * half)


def test_a_single_episode_has_no_interval():
    assert rollouts.interval(np.array([[20.0]])) is None
    assert tables.score({"score": 20.0, "interval": None}) == "20.0"
    policy = {"score": 20.0, "interval": None, "latency_ms": 0.5}
    assert "| rtb | 20.0 |  | 0.5 |" in play.report(
        {"environment": "Hopper", "seeds": [0], "policies": {"rtb": policy}}
    )


def test_the_best_of_several_actions_is_the_one_that_log_r_prefers():
    proposals = jnp.asarray(np.random.default_rng(0).uniform(-0.9, 0.9, (3 * 5, 2)), jnp.float32)

    def log_reward(u, s):
        return -jnp.sum((jnp.tanh(u) - s) ** 2, axis=-1)

    s = jnp.asarray([[0.5, 0.5], [-0.5, 0.0], [0.0, -0.7]])
    found = rollouts.best_of(lambda key, observations: proposals, log_reward, 5)(jax.random.key(0), s)
    grouped = np.asarray(proposals).reshape(3, 5, 2)
    best = ((grouped - np.asarray(s)[:, None]) ** 2).sum(axis=-1).argmin(axis=1)
    np.testing.assert_array_equal(found, grouped[np.arange(3), best])


def test_one_of_several_actions_is_drawn_in_proportion_to_r():
    share = np.array([0.5, 0.3, 0.2], np.float32)
    proposals = jnp.tile(jnp.asarray([[-0.5], [0.0], [0.5]]), (20_000, 1))

    def log_reward(u, s):
        return jnp.log(share)[jnp.round(2.0 * jnp.tanh(u[:, 0]) + 1.0).astype(jnp.int32)]

    chosen = rollouts.one_of(lambda key, s: proposals, log_reward, 3)(jax.random.key(0), jnp.zeros((20_000, 1)))
    found = [float(jnp.mean(chosen == action)) for action in (-0.5, 0.0, 0.5)]
    np.testing.assert_allclose(found, share, atol=4 * 0.5 / np.sqrt(20_000))
