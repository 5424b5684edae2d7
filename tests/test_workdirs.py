"""What lies in a workdir: whose it is, files that appear whole, checkpoints and logs that survive."""

import json
import shutil

import numpy as np
import pytest
from shrunk import changed, gmm

from experiments import loop, records, weights
from experiments.checkpoint import ITEM, CheckpointError, Checkpoints
from experiments.files import replacing


@pytest.fixture
def config(tmp_path):
    return gmm(tmp_path)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_workdir_of_another_config_is_refused_with_the_difference(config, tmp_path):
    workdir = tmp_path / "w"
    records.claim(workdir, config.to_dict())
    before = contents(workdir)
    other = changed(config, train__learning_rate=0.5)
    with pytest.raises(records.OtherRun, match=f"train.learning_rate: {config.train.learning_rate} there, 0.5 here"):
        records.claim(workdir, other.to_dict())
    assert contents(workdir) == before
    assert records.confirm(workdir, changed(config, eval__num_samples=5).to_dict(), ignore=("eval",))


@pytest.mark.parametrize("left", ["checkpoints", "final_params.safetensors"])
def test_a_run_without_its_config_is_nobodys_to_go_on_with(config, tmp_path, left):
    (tmp_path / left).mkdir()
    with pytest.raises(records.WorkdirError, match=f"has {left} of a run, and no config.json to say of which; choose"):
        records.claim(tmp_path, config.to_dict())


def test_of_many_differences_some_are_named_and_of_another_domain_only_that(config, tmp_path):
    records.claim(tmp_path / "w", config.to_dict())
    many = {f"train__{name}": 9 for name in ("steps", "batch_size", "learning_rate", "warmup_steps", "clip_norm")}
    with pytest.raises(records.OtherRun, match=r"clip_norm: 1.0 there, 9.0 here; .*; and 1 more\)"):
        records.claim(tmp_path / "w", changed(config, **many).to_dict())
    other = {"domain": "images", "new": 1}
    with pytest.raises(records.OtherRun, match=r"\(domain: 'gmm' there, 'images' here; and \d+ more\)"):
        records.claim(tmp_path / "w", other)
    with pytest.raises(records.OtherRun, match=r"\(new: not set there, 1 here\)"):
        records.claim(tmp_path / "w", config.to_dict() | {"new": 1})


@pytest.mark.parametrize("text", ["[1, 2]", "null", '"text"', "{", "\xff"])
def test_a_config_that_is_no_object_is_one_sentence(config, tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(records.WorkdirError, match="choose another --workdir"):
        records.claim(tmp_path, config.to_dict())


def test_a_workdir_that_cannot_be_made_is_one_sentence(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(records.WorkdirError, match="choose another --workdir"):
        records.claim(tmp_path / "file" / "w", config.to_dict())
    with pytest.raises(records.WorkdirError, match="file is no folder; choose another --workdir"):
        records.claim(tmp_path / "file", config.to_dict())


def test_weights_that_are_gone_are_said_to_be_made_anew_by_what_makes_them(tmp_path):
    with pytest.raises(CheckpointError, match="train it first"):
        loop.final_params(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(CheckpointError, match="move its summary.json away"):
        loop.final_params(tmp_path)
    with pytest.raises(weights.WeightsError, match="That is a folder; a finished run's weights are its final_params"):
        weights.load(tmp_path, {})


def test_a_computation_that_left_nothing_gives_the_workdir_back(config, tmp_path):
    workdir = tmp_path / "runs" / "w"
    with pytest.raises(RuntimeError), records.claimed(workdir, config.to_dict()):
        (workdir / "checkpoints").mkdir()
        (workdir / "metrics.jsonl").touch()
        raise RuntimeError
    assert not (tmp_path / "runs").exists()


def test_a_computation_that_left_something_keeps_the_workdir(config, tmp_path):
    with pytest.raises(RuntimeError), records.claimed(tmp_path / "w", config.to_dict()):
        (tmp_path / "w" / "metrics.jsonl").write_text("{}\n")
        raise RuntimeError
    assert {path.name for path in (tmp_path / "w").iterdir()} == {"config.json", "lock", "metrics.jsonl"}


def test_a_second_run_on_a_workdir_is_refused_while_the_first_lasts(config, tmp_path):
    with records.claimed(tmp_path / "w", config.to_dict()):
        before = contents(tmp_path)
        for second in (records.claimed(tmp_path / "w", config.to_dict()), records.locked(tmp_path / "w")):
            with pytest.raises(records.WorkdirError, match="in use by a run that has not ended"), second:
                raise AssertionError
        assert contents(tmp_path) == before
        with records.claimed(tmp_path / "another", config.to_dict()):
            pass
    with records.claimed(tmp_path / "w", config.to_dict()):
        pass


def test_another_runs_workdir_is_not_even_locked(config, tmp_path):
    records.claim(tmp_path / "w", config.to_dict())
    before = contents(tmp_path)
    with pytest.raises(records.OtherRun), records.claimed(tmp_path / "w", changed(config, seed=1).to_dict()):
        raise AssertionError
    assert contents(tmp_path) == before


def test_what_a_killed_writer_left_is_removed_by_the_next_run(config, tmp_path):
    (tmp_path / "samples.partial-0123abcd.png").write_bytes(b"half")
    (tmp_path / "samples.png").write_bytes(b"whole")
    with records.locked(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {"lock", "samples.png"}


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "shared.npz"
    with replacing(path) as first, replacing(path) as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert contents(tmp_path) == {path.relative_to(tmp_path): b"first"}


def test_files_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "samples.png"
    with replacing(path) as partial:
        partial.write_bytes(b"one")
        assert partial.suffix == ".png" and not path.exists()
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_bytes(b"half")
        raise RuntimeError
    assert contents(tmp_path / "new") == {path.relative_to(path.parent): b"one"}


def tree(value):
    return {"x": np.full(3, value, np.float32)}


def spoil(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"\0" * 7)


def test_a_corrupt_checkpoint_falls_back_to_the_one_before_and_its_step_is_saved_again(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for step in (1, 2):
        checkpoints.save(step, tree(step))
    spoil(tmp_path / "c" / "2")
    step, found = checkpoints.restore(tree(0))
    assert step == checkpoints.latest() == 1
    np.testing.assert_array_equal(found["x"], 1.0)
    checkpoints.save(2, tree(20))
    assert [float(x) for x in Checkpoints(tmp_path / "c", keep=2).restore(tree(0))[1]["x"]] == [20.0] * 3


def test_without_a_readable_checkpoint_nothing_is_deleted(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for step in (1, 2):
        checkpoints.save(step, tree(step))
        shutil.rmtree(tmp_path / "c" / str(step) / ITEM)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match="None of the checkpoints"):
        checkpoints.restore(tree(0))
    assert contents(tmp_path) == before


def test_the_log_is_not_overwritten_where_its_checkpoints_are_gone(tmp_path):
    log = tmp_path / "metrics.jsonl"
    loop.check_nothing_lost(tmp_path, every=2)
    # Killed between the log's line and the checkpoint of the second step.
    log.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2)))
    loop.check_nothing_lost(tmp_path, every=2)
    log.write_text(log.read_text() + json.dumps({"step": 3}) + "\n" + '{"step": 4, "lo')
    with pytest.raises(CheckpointError, match="reaches step 3, but .* holds no checkpoint"):
        loop.check_nothing_lost(tmp_path, every=2)


def test_weights_survive_a_failed_save(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save(path, tree(1))
    before = contents(tmp_path)
    with pytest.raises(Exception, match="object|dtype|type"):
        weights.save(path, {"x": np.array([object()])})
    assert contents(tmp_path) == before
