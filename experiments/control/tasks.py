"""The locomotion tasks of D4RL: sizes, the environments they are played in, and what their scores are relative to."""

from typing import NamedTuple

import numpy as np


class Task(NamedTuple):
    """Attributes:
    environment: gymnasium's id. D4RL's own sets were recorded in v2, whose scores differ from v5's.
    observation_dim: S.
    action_dim: A, each in [-1, 1].
    random_return: D4RL's return of a random policy, score 0.
    expert_return: D4RL's return of an expert, score 100.
    """

    environment: str
    observation_dim: int
    action_dim: int
    random_return: float
    expert_return: float

    def score(self, returns: np.ndarray) -> np.ndarray:
        """D4RL-normalised scores (Fu et al. 2020)."""
        return 100.0 * (returns - self.random_return) / (self.expert_return - self.random_return)


TASKS = {
    "halfcheetah": Task("HalfCheetah-v5", 17, 6, -280.18, 12_135.0),
    "hopper": Task("Hopper-v5", 11, 3, -20.27, 3_234.3),
    "walker2d": Task("Walker2d-v5", 17, 6, 1.63, 4_592.3),
}
