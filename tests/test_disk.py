"""A disk that is full or read-only costs the run, not what it had done."""

import os
import resource
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
from shrunk import assert_same_run, changed, gmm, latest_step

from experiments import loop, records, run, weights
from experiments.checkpoint import CheckpointError, Checkpoints
from experiments.errors import UserError
from experiments.files import WriteError, replacing
from rtbjax.sharding import data_mesh


@contextmanager
def files_limited_to(size):
    """The system refuses to write beyond so many bytes of a file, to root as well."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run.execute(gmm(folder), folder / "w")
    return folder / "w"


class Disk:
    """A small file system of its own."""

    def __init__(self, path):
        self.path = path
        path.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True)
        if mounted.returncode:
            pytest.skip("only root may mount a file system; the tests with a limit on files say the same to others")

    def remount(self, option):
        subprocess.run(["mount", "-o", f"remount,{option}", self.path], check=True)

    def fill(self, but):
        """Leaves so many bytes free."""
        free = os.statvfs(self.path)
        (self.path / "filler").write_bytes(b"\0" * (free.f_bavail * free.f_frsize - but))


@pytest.fixture
def disk(tmp_path):
    found = Disk(tmp_path / "disk")
    yield found
    subprocess.run(["umount", "-l", found.path], check=True)


@pytest.mark.parametrize("fails", [1, 2])
def test_a_checkpoint_the_system_refuses_leaves_the_one_before_and_the_run_goes_on_from_there(
    tmp_path, monkeypatch, fails, whole
):
    """The first is at step 2, the second at step 4."""
    config, cut, save = gmm(tmp_path), tmp_path / "cut", Checkpoints.save
    count = []

    def refused(self, step, tree):
        count.append(step)
        with files_limited_to(500 if len(count) == fails else resource.RLIM_INFINITY):
            save(self, step, tree)

    monkeypatch.setattr(Checkpoints, "save", refused)
    with pytest.raises(
        CheckpointError, match=f"of step {2 * fails} cannot be written to .*File too large.*once it can"
    ):
        run.execute(config, cut)
    assert latest_step(cut) == (2 if fails == 2 else None)
    assert not list((cut / "checkpoints").glob(f"{2 * fails}*"))  # Not half there.
    monkeypatch.setattr(Checkpoints, "save", save)
    run.execute(config, cut)
    assert_same_run(cut, whole)


def test_a_line_of_the_log_that_does_not_fit_is_one_sentence_and_leaves_whole_lines(tmp_path, monkeypatch, whole):
    config, cut, write = gmm(tmp_path), tmp_path / "cut", records.Metrics.write

    def refused(self, step, values):
        # Half of the third line still fits.
        size = (cut / "metrics.jsonl").stat().st_size + 50
        with files_limited_to(size if step == 3 else resource.RLIM_INFINITY):
            write(self, step, values)

    monkeypatch.setattr(records.Metrics, "write", refused)
    with pytest.raises(WriteError, match="metrics.jsonl cannot be written .File too large.; once it can"):
        run.execute(config, cut)
    monkeypatch.setattr(records.Metrics, "write", write)
    run.execute(config, cut)
    assert_same_run(cut, whole)


def test_a_file_that_does_not_fit_is_not_half_there(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save(path, {"x": np.zeros(3, np.float32)})
    before = path.read_bytes()
    with files_limited_to(200):
        for write in (
            lambda: weights.save(path, {"x": np.zeros(100, np.float32)}),
            lambda: records.write_json(path, {"text": "x" * 300}),
        ):
            with pytest.raises(WriteError, match="w.safetensors cannot be written .File too large."):
                write()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(path.name, before)]


@pytest.mark.parametrize("free", [20_000, 100_000])
def test_a_full_disk_ends_a_run_in_one_sentence_and_the_emptied_one_lets_it_go_on(tmp_path, disk, free, whole):
    config, cut = gmm(tmp_path), disk.path / "cut"
    (disk.path / "cut").mkdir()
    disk.fill(but=free)
    with pytest.raises(UserError, match="No space left on device"):
        run.execute(config, cut)
    (disk.path / "filler").unlink()
    run.execute(config, cut)
    assert_same_run(cut, whole)


def test_a_workdir_that_turns_read_only_ends_a_run_in_one_sentence(tmp_path, monkeypatch, disk, whole):
    config, cut, write = gmm(tmp_path), disk.path / "cut", records.Metrics.write

    def turns(self, step, values):
        write(self, step, values)
        if step == 4:
            self._file.close()  # A file that is open for writing would keep the file system writable.
            disk.remount("ro")

    monkeypatch.setattr(records.Metrics, "write", turns)
    # Without the lock, for the same reason.
    records.claim(cut, config.to_dict())
    with pytest.raises(CheckpointError, match="step 4 cannot be written to .*Read-only file system"):
        loop.run(config, run.prepare(config)[0], cut, data_mesh(1), loop.Clock())
    with pytest.raises(CheckpointError, match="must be a folder that can be written to"):
        Checkpoints(disk.path / "new", keep=2)
    with pytest.raises(records.WorkdirError, match="Read-only file system.*choose another --workdir"):
        run.execute(config, cut)
    with pytest.raises(records.WorkdirError, match="Read-only file system.*choose another --workdir"):
        run.execute(config, disk.path / "new")
    monkeypatch.setattr(records.Metrics, "write", write)
    disk.remount("rw")
    run.execute(config, cut)
    assert_same_run(cut, whole)
    disk.remount("ro")
    assert run.execute(config, cut).summary["steps"] == config.train.steps  # What has finished can still be read.


def test_a_file_where_a_folder_ought_to_be(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written to .*Not a directory"):
        Checkpoints(tmp_path / "checkpoints", keep=2).save(1, {"x": np.zeros(3)})
    with pytest.raises(WriteError, match="cannot be written"), replacing(tmp_path / "checkpoints" / "x.json"):
        raise AssertionError
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(records.WorkdirError, match="move it away"):
        loop.check_nothing_lost(tmp_path, every=1)
    config = changed(gmm(tmp_path), eval__exact_cache=str(tmp_path / "checkpoints"))
    with pytest.raises(WriteError, match="cannot be written"):
        run.execute(config, tmp_path / "w")
