"""Recorded transitions: every format gives the same ones, what is not known is dropped, what is broken is refused."""

import re

import h5py
import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.d4rl import dataset_utils

from experiments.control import embed, transitions
from experiments.control.tasks import TASKS
from experiments.data import DataError

TASK = TASKS["hopper"]
# Three episodes: one falls, one is cut off, one is still going on where the file ends.
LENGTHS, TERMINAL, TIMEOUT = (4, 3, 2), 3, 6


@pytest.fixture
def recorded():
    """Every state tells its episode and its place in it."""
    rng = np.random.default_rng(0)
    states = [rng.normal(size=(length + 1, 11)).astype(np.float32) for length in LENGTHS]
    count = sum(LENGTHS)
    return {
        "observations": np.concatenate([s[:-1] for s in states]),
        "next_observations": np.concatenate([s[1:] for s in states]),
        "actions": rng.uniform(-1, 1, (count, 3)).astype(np.float32),
        "rewards": np.arange(count, dtype=np.float32),
        "terminals": np.arange(count) == TERMINAL,
        "timeouts": np.arange(count) == TIMEOUT,
    }


def episodes(recorded):
    """Row ranges, the unfinished episode too."""
    stops = np.cumsum(LENGTHS)
    return [slice(stop - length, stop) for stop, length in zip(stops, LENGTHS, strict=True)]


def write_npz(recorded, folder):
    np.savez(folder / "set.npz", **recorded)
    return folder / "set.npz"


def write_hdf5(recorded, folder):
    with h5py.File(folder / "set.hdf5", "w") as file:
        for name, array in recorded.items():
            file[name] = array
    return folder / "set.hdf5"


def write_minari(recorded, folder):
    (folder / "data").mkdir()
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for number, rows in enumerate(episodes(recorded)):
            group = file.create_group(f"episode_{number}")
            last = recorded["next_observations"][rows][-1:]
            group["observations"] = np.concatenate([recorded["observations"][rows], last])
            names = {"actions": "actions", "rewards": "rewards", "terminals": "terminations", "timeouts": "truncations"}
            for name, theirs in names.items():
                group[theirs] = recorded[name][rows]
    return folder


def write_tfds(recorded, folder):
    """What TFDS's own builder makes of the arrays, prepared without TensorFlow."""
    ended = recorded["terminals"] | recorded["timeouts"]
    steps = {
        "observation": recorded["observations"],
        "action": recorded["actions"],
        "reward": recorded["rewards"],
        "discount": np.ones_like(recorded["rewards"]),
        "is_terminal": recorded["terminals"],
        "is_first": np.concatenate([[True], ended[:-1]]),
        "is_last": ended,
    }
    if "next_observations" in recorded:
        steps["next_observation"] = recorded["next_observations"]
    features = tfds.features.FeaturesDict(
        {
            "observation": tfds.features.Tensor(shape=(11,), dtype=np.float32),
            "action": tfds.features.Tensor(shape=(3,), dtype=np.float32),
            **{name: np.float32 for name in ("reward", "discount")},
            **{name: np.bool_ for name in ("is_terminal", "is_first", "is_last")},
        }
    )

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "d4rl_mujoco_hopper"
        pkg_dir_path = epath.Path(folder)

        def _info(self):
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict({"steps": tfds.features.Dataset(features)})
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, rows in enumerate(episodes(recorded)):
                yield number, dataset_utils._get_episode(steps, {}, rows.start, rows.stop)

    Made(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def keyed(found):
    """Transitions by their reward, which names the row they were recorded in."""
    columns = (found.observations, found.actions, found.next_observations, found.terminals)
    return {float(r): [column[i] for column in columns] for i, r in enumerate(found.rewards)}


@pytest.mark.parametrize("write", [write_npz, write_hdf5, write_minari])
def test_files_give_the_recorded_transitions(write, recorded, tmp_path):
    found = transitions.load(str(write(recorded, tmp_path)), TASK)
    for name in ("observations", "actions", "rewards", "next_observations", "terminals"):
        np.testing.assert_array_equal(getattr(found, name), recorded[name])
    np.testing.assert_array_equal(found.returns, [0 + 1 + 2 + 3, 4 + 5 + 6])


@pytest.mark.parametrize("has_next", [True, False])
def test_tfds_episodes_keep_every_transition_whose_next_state_is_known(has_next, recorded, tmp_path):
    if not has_next:
        recorded.pop("next_observations")
    prepared = write_tfds(recorded, tmp_path)
    found = keyed(transitions.load(str(prepared), TASK))
    known = keyed(transitions.from_arrays(recorded, "recorded"))
    # Without next observations the builder appends no step to a cut episode, whose last transition but one is lost.
    lost = {6.0, 8.0} if has_next else {5.0, 6.0, 7.0, 8.0}
    assert found.keys() == set(map(float, range(9))) - lost
    for row, (observation, action, following, terminal) in found.items():
        np.testing.assert_array_equal(observation, known[row][0])
        np.testing.assert_array_equal(action, known[row][1])
        assert terminal == known[row][3] == (row == TERMINAL)
        if not terminal:
            np.testing.assert_array_equal(following, recorded["observations"][int(row) + 1])


def test_the_builders_last_observation_is_of_another_episode(recorded, tmp_path):
    """Why the last step is never used: if this fails, TFDS has mended its builder."""
    folder = write_tfds(recorded, tmp_path)
    (info,) = folder.rglob("dataset_info.json")
    episodes = tfds.builder_from_directory(str(info.parent)).as_data_source("train")
    for episode in episodes:
        np.testing.assert_array_equal(list(episode["steps"])[-1]["observation"], recorded["next_observations"][-1])


def test_without_next_observations_the_next_rows_are_taken_within_episodes(recorded):
    whole = keyed(transitions.from_arrays(recorded, "whole"))
    short = {name: array for name, array in recorded.items() if name != "next_observations"}
    found = keyed(transitions.from_arrays(short, "short"))
    assert found.keys() == whole.keys() - {6.0, 8.0}
    for row in found.keys() - {float(TERMINAL)}:
        np.testing.assert_array_equal(found[row][2], whole[row][2])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rewards": None}, "set.npz has no rewards; D4RL's keys are"),
        ({"timeouts": None}, "set.npz has no timeouts; D4RL's keys are"),  # Or episodes would run into each other.
        ({"observations": np.zeros((9, 11, 1), np.float32)}, "observations and actions must be [N, S] and [N, A]"),
        ({"rewards": np.zeros(8, np.float32)}, "rewards must have shape (9,) beside these observations, got (8,)"),
        ({"rewards": np.zeros((9, 1), np.float32)}, "rewards must have shape (9,)"),
        ({"next_observations": np.zeros((9, 12), np.float32)}, "next_observations must have shape (9, 11)"),
        ({"actions": np.zeros((8, 3), np.float32)}, "actions must have shape (9, 3)"),
        ({"actions": np.full((9, 3), 1.5, np.float32)}, "actions must lie in [-1, 1], row 0 has 1.5"),
        ({"terminals": np.array(["no"] * 9)}, "terminals must be numbers"),
        ({"observations": np.full((9, 11), np.nan, np.float32)}, "observations of row 0 is not finite"),
        ({"actions": np.zeros((9, 6), np.float32)}, "Hopper-v5 has 11 and 3: set config.environment"),
    ],
)
def test_a_file_of_another_shape_is_refused_in_one_sentence(change, message, recorded, tmp_path):
    recorded |= change
    path = write_npz({name: array for name, array in recorded.items() if array is not None}, tmp_path)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        transitions.load(str(path), TASK)
    assert "\n" not in str(caught.value) and str(caught.value).count(". ") == 0


def test_an_empty_file_is_refused(recorded, tmp_path):
    path = write_npz({name: array[:0] for name, array in recorded.items()}, tmp_path)
    with pytest.raises(DataError, match="set.npz holds no transitions"):
        transitions.load(str(path), TASK)


@pytest.mark.parametrize("name", ["set.npz", "set.hdf5", "set.h5"])
def test_a_damaged_file_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x93NUMPY nonsense")
    with pytest.raises(DataError, match=f"{name} is not a readable"):
        transitions.load(str(tmp_path / name), TASK)


def test_a_truncated_file_is_refused(recorded, tmp_path):
    path = write_npz(recorded, tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="set.npz is not a readable npz file"):
        transitions.load(str(path), TASK)


def test_a_damaged_tfds_folder_is_refused(recorded, tmp_path):
    folder = write_tfds(recorded, tmp_path)
    (records,) = folder.rglob("*.array_record*")
    records.write_bytes(records.read_bytes()[:40])
    with pytest.raises(DataError, match="is not a readable TFDS set of episodes"):
        transitions.load(str(folder), TASK)


def test_a_path_without_a_data_set_is_refused(tmp_path):
    with pytest.raises(DataError, match="There is no data file or folder"):
        transitions.load(str(tmp_path / "missing.npz"), TASK)
    with pytest.raises(DataError, match="must hold one data set.* it holds 0"):
        transitions.load(str(tmp_path), TASK)
    (tmp_path / "set.csv").touch()
    with pytest.raises(DataError, match="must be an .npz, .hdf5 or .h5 file"):
        transitions.load(str(tmp_path / "set.csv"), TASK)


def test_rewards_are_scaled_by_the_range_of_whole_episodes_returns(recorded):
    found = transitions.from_arrays(recorded, "recorded")
    assert transitions.reward_scale(found) == 1000.0 / (15.0 - 6.0)
    with pytest.raises(DataError, match="two whole episodes with different returns"):
        transitions.reward_scale(transitions.from_arrays(recorded | {"timeouts": np.zeros(9, bool)}, "recorded"))


def test_a_normaliser_standardises_what_moves_and_leaves_what_does_not(recorded):
    recorded["observations"][:, 4] = 3.0
    found = transitions.from_arrays(recorded, "recorded")
    x = transitions.normaliser(found)(found.observations)
    np.testing.assert_allclose(x.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(np.delete(x.std(axis=0), 4), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(x[:, 4], 0.0)


def test_embedding_takes_whole_episodes_evenly_and_keeps_their_transitions():
    rng = np.random.default_rng(1)
    count, length = 1000, 10
    states = rng.normal(size=(count + 1, 11)).astype(np.float32)
    arrays = {
        "observations": states[:-1],
        "next_observations": states[1:],
        "actions": rng.uniform(-1, 1, (count, 3)).astype(np.float32),
        "rewards": rng.normal(size=count).astype(np.float32),
        "terminals": np.arange(count) % length == length - 1,
        "timeouts": np.zeros(count, bool),
    }
    small = transitions.from_arrays(embed.shrink(arrays, 400), "small")
    assert len(small.rewards) == 400 and small.terminals.sum() == 40
    place = np.array([np.abs(states[:-1] - x).sum(axis=1).argmin() for x in small.observations])
    # Forty of a hundred episodes, one in every two or three.
    assert set(np.diff(np.unique(place // length))) == {2, 3}
    np.testing.assert_allclose(small.observations, states[place], rtol=1e-3, atol=1e-6)
    going_on = ~small.terminals
    np.testing.assert_allclose(small.next_observations[going_on], states[place + 1][going_on], rtol=1e-3, atol=1e-6)


def test_the_embedded_set_is_small_and_of_the_task():
    assert transitions.EMBEDDED.stat().st_size <= 3e6
    found = transitions.load("", TASK)
    assert len(found.rewards) == pytest.approx(100_000, rel=0.02)
    assert len(found.returns) > 500 and found.returns.max() > 2_000
