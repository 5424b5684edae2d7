"""Transitions (s, a, r, s') of recorded behaviour: D4RL-keyed npz and hdf5 files, TFDS, Minari, or the embedded set.

D4RL's keys are ``observations``, ``actions``, ``rewards``, ``terminals`` (the episode ended in a state without a
future), ``timeouts`` (it was cut off) and, in most files, ``next_observations``.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from experiments.control.tasks import TASKS, Task
from experiments.data import DataError, prepared_split
from experiments.weights import REPOSITORY, locate

EMBEDDED = REPOSITORY / "weights" / "control" / "hopper-medium-replay-100k.npz"
REQUIRED = ("observations", "actions", "rewards", "terminals", "timeouts")
KEYS = (*REQUIRED, "next_observations")
SMALLEST_STD = 1e-3  # For a number that never moves in the data.


class Transitions(NamedTuple):
    """Attributes:
    observations: s, ``f32[N, S]``.
    actions: a in [-1, 1], ``f32[N, A]``.
    rewards: r, ``f32[N]``.
    next_observations: s', ``f32[N, S]``; of no meaning where the transition is terminal.
    terminals: whether s' has no future, ``bool[N]``.
    returns: undiscounted return of every episode that was recorded to its end, ``f32[M]``.
    source: for ``summary.json`` and the log.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminals: np.ndarray
    returns: np.ndarray
    source: str


def load(path: str, task: Task) -> Transitions:
    """The transitions at ``config.data.path``; the embedded Hopper set for "".

    A file by its ending: ``.npz``, ``.hdf5`` or ``.h5`` with D4RL's keys, or Minari's ``main_data.hdf5``. A folder
    holds a prepared TFDS ``d4rl_mujoco_*`` set or a Minari set.

    Raises:
      DataError: it cannot be read, is empty, or is not of this task, by its name or its sizes.
    """
    if not path:
        return of_task(from_arrays(read_npz(EMBEDDED), EMBEDDED.name), task)
    place = locate(path)
    if not place.exists():
        raise DataError(f"There is no data file or folder {place}.")
    others = [name for name, other in TASKS.items() if place.name.lower().startswith(name) and other != task]
    if others:  # HalfCheetah and Walker2d have the same sizes.
        raise DataError(f"{place.name} is of {others[0]} by its name, and config.environment asks for another task.")
    return of_task(_read_folder(place) if place.is_dir() else _read_file(place), task)


def _read_file(path: Path) -> Transitions:
    if path.suffix == ".npz":
        return from_arrays(read_npz(path), path.name)
    if path.suffix in (".hdf5", ".h5"):
        return from_arrays(read_hdf5(path), path.name)
    raise DataError(f"{path} must be an .npz, .hdf5 or .h5 file, or a folder with a TFDS or Minari set.")


def _read_folder(path: Path) -> Transitions:
    minari = sorted(path.rglob("main_data.hdf5"))
    prepared = sorted(path.rglob("dataset_info.json"))
    if len(minari) + len(prepared) != 1:
        raise DataError(
            f"{path} must hold one data set, a TFDS version (dataset_info.json) or a Minari set (main_data.hdf5); it "
            f"holds {len(minari) + len(prepared)}."
        )
    if minari:
        return from_arrays(read_hdf5(minari[0]), f"minari:{'/'.join(minari[0].parts[-4:-2])}")
    folder = prepared[0].parent
    try:
        episodes = prepared_split(folder, "train")
        return from_episodes(episodes, f"tfds:{'/'.join(folder.parts[-3:])}")
    except DataError:
        raise
    except Exception as error:  # Record files fail in many ways.
        raise DataError(f"{folder} is not a readable TFDS set of episodes ({error}).") from error


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The D4RL-keyed arrays of an npz file.

    Raises:
      DataError: it is no readable npz file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in KEYS if name in file}
    except Exception as error:  # Archives fail in many ways.
        raise DataError(f"{path} is not a readable npz file ({error}).") from error


def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """The D4RL-keyed arrays of an hdf5 file, D4RL's own or Minari's.

    Raises:
      DataError: it is no readable hdf5 file, or h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"Reading {path} needs h5py: pip install 'rtbjax[control]'.") from error
    try:
        with h5py.File(path) as file:
            groups = sorted(name for name in file if name.startswith("episode_"))
            if groups:
                return _join(_minari_episode(file[name]) for name in groups)
            return {name: np.asarray(file[name]) for name in KEYS if name in file}
    except Exception as error:  # Archives fail in many ways.
        raise DataError(f"{path} is not a readable hdf5 file of D4RL or Minari ({error}).") from error


def _minari_episode(group: Any) -> dict[str, np.ndarray]:
    """Minari's observations have one row more than its actions."""
    observations = np.asarray(group["observations"])
    return {
        "observations": observations[:-1],
        "next_observations": observations[1:],
        "actions": np.asarray(group["actions"]),
        "rewards": np.asarray(group["rewards"]),
        "terminals": np.asarray(group["terminations"]),
        "timeouts": np.asarray(group["truncations"]),
    }


def _join(episodes: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    parts = list(episodes)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def from_episodes(episodes: Iterable[Mapping[str, Any]], source: str) -> Transitions:
    """Transitions of RLDS episodes, as TFDS's ``d4rl_mujoco_*`` builders write them.

    The last step of an episode is never used. These builders append it to hold the state that followed, but fill in
    the last next observation of the *whole file* (or zeros), so that a timed-out episode would end in a jump to
    another one's state. A terminal transition needs no next state and is kept; the last of a timed-out episode is not.

    Raises:
      DataError: no episode has two steps, or see `from_arrays`.
    """
    rows = []
    for episode in episodes:
        steps = list(episode["steps"])
        if len(steps) < 2:
            continue
        ended = np.zeros(len(steps) - 1, bool)
        ended[-1] = True
        terminal = bool(steps[-1]["is_terminal"])
        rows.append(
            {
                "observations": np.stack([step["observation"] for step in steps[:-1]]),
                "actions": np.stack([step["action"] for step in steps[:-1]]),
                "rewards": np.array([step["reward"] for step in steps[:-1]]),
                "terminals": ended & terminal,
                "timeouts": ended & (not terminal),
            }
        )
    if not rows:
        raise DataError(f"{source} holds no episode of two steps or more.")
    return from_arrays(_join(rows), source)


def from_arrays(arrays: Mapping[str, np.ndarray], source: str) -> Transitions:
    """Checked transitions of D4RL-keyed arrays.

    Where there are no next observations, the next row's is taken; a transition whose next row is of another episode is
    dropped unless it is terminal.

    Raises:
      DataError: a key is missing, an array is empty or of another shape than the others ask for, or a number is not
        finite or an action beyond [-1, 1].
    """
    check(arrays, source)
    observations, actions = (np.asarray(arrays[name], np.float32) for name in ("observations", "actions"))
    rewards = np.asarray(arrays["rewards"], np.float32)
    terminals = np.asarray(arrays["terminals"]).astype(bool)
    ended = terminals | np.asarray(arrays["timeouts"]).astype(bool)
    returns = np.array([rewards[first:last].sum() for first, last in episodes_of(ended)], np.float32)
    if "next_observations" in arrays:
        following, known = np.asarray(arrays["next_observations"], np.float32), slice(None)
    else:
        following = np.where(ended[:, None], observations, np.roll(observations, -1, axis=0))
        last = np.arange(len(ended)) == len(ended) - 1
        known = terminals | ~(ended | last)
    # A rounding of a bound is not a violation; `check` has refused what is.
    actions = np.clip(actions, -1.0, 1.0)
    found = Transitions(
        observations[known], actions[known], rewards[known], following[known], terminals[known], returns, source
    )
    logging.info("%s: %d transitions, %d whole episodes", source, len(found.rewards), len(returns))
    return found


def episodes_of(ended: np.ndarray) -> list[tuple[int, int]]:
    """Row ranges of the episodes that were recorded to their end."""
    stops = np.flatnonzero(ended) + 1
    starts = np.concatenate([[0], stops[:-1]]) if len(stops) else stops
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def check(arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Raises a DataError of one sentence unless the arrays are D4RL's; see `from_arrays`."""
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise DataError(f"{source} has no {', '.join(missing)}; D4RL's keys are {', '.join(KEYS)}.")
    for name, array in arrays.items():
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
            raise DataError(f"{source}: {name} must be numbers, got {array.dtype}.")
    observations, actions = arrays["observations"], arrays["actions"]
    if observations.ndim != 2 or actions.ndim != 2:
        raise DataError(
            f"{source}: observations and actions must be [N, S] and [N, A], got {observations.shape} and "
            f"{actions.shape}."
        )
    count = len(observations)
    if count == 0:
        raise DataError(f"{source} holds no transitions.")
    shapes = {"observations": observations.shape, "next_observations": observations.shape}
    shapes["actions"] = (count, actions.shape[1])
    for name, array in arrays.items():
        shape = shapes.get(name, (count,))
        if array.shape != shape:
            raise DataError(f"{source}: {name} must have shape {shape} beside these observations, got {array.shape}.")
        if not np.isfinite(array).all():
            row = int(np.argmax(~np.isfinite(array.reshape(count, -1)).all(axis=1)))
            raise DataError(f"{source}: {name} of row {row} is not finite.")
    if np.abs(actions).max() > 1.0 + 1e-3:
        row = int(np.argmax(np.abs(actions).max(axis=1)))
        raise DataError(f"{source}: actions must lie in [-1, 1], row {row} has {np.abs(actions[row]).max():g}.")


def of_task(found: Transitions, task: Task) -> Transitions:
    """The transitions, if they have the sizes of the task.

    Raises:
      DataError: they are of another.
    """
    sizes = found.observations.shape[1], found.actions.shape[1]
    if sizes != (task.observation_dim, task.action_dim):
        raise DataError(
            f"{found.source} has observations of {sizes[0]} and actions of {sizes[1]} numbers, {task.environment} has "
            f"{task.observation_dim} and {task.action_dim}: set config.environment or config.data.path."
        )
    return found


def reward_scale(found: Transitions) -> float:
    """``1000 / (highest - lowest return)`` (Kostrikov et al. 2022, for locomotion).

    Raises:
      DataError: fewer than two whole episodes with returns that differ.
    """
    span = float(np.ptp(found.returns)) if len(found.returns) else 0.0
    if span <= 0.0:
        raise DataError(f"{found.source} needs two whole episodes with different returns to scale its rewards.")
    return 1000.0 / span


class Normaliser(NamedTuple):
    """Shifts and scales observations; travels with the weights that were trained on them.

    Attributes:
      mean: ``f32[S]``.
      std: ``f32[S]``, at least `SMALLEST_STD`.
    """

    mean: np.ndarray
    std: np.ndarray

    def __call__(self, observations):
        """``[B, S]`` to ``[B, S]`` with mean 0 and variance 1 over the data."""
        return (observations - self.mean[None]) / self.std[None]


def normaliser(found: Transitions) -> Normaliser:
    """Of the observations of a data set."""
    x = found.observations.astype(np.float64)
    std = np.maximum(x.std(axis=0), SMALLEST_STD)
    return Normaliser(x.mean(axis=0).astype(np.float32), std.astype(np.float32))
