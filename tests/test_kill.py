"""A run killed by a signal, as a scheduler or a full memory kills it, in another process than this one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ARGUMENTS = (
    "--config=configs/mnist.py:smoke",
    "--config.steer.steps=6",
    "--config.steer.checkpoint_every=2",
    "--config.eval.exact_samples=16",
    "--config.eval.num_samples=64",
    "--config.eval.batch_size=64",
)


def start(folder: Path, workdir: str) -> subprocess.Popen:
    # A user's machine, not the eight devices of the other tests.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    env["JAX_COMPILATION_CACHE_DIR"] = str(folder / "xla")
    places = (f"--workdir={folder / workdir}", f"--config.eval.exact_cache={folder / 'exact'}")
    command = [sys.executable, "experiments/run.py", *ARGUMENTS, *places]
    return subprocess.Popen(command, cwd=REPOSITORY, env=env, stderr=subprocess.DEVNULL)


def kill_once(process: subprocess.Popen, reached) -> None:
    """SIGKILL as soon as ``reached()``: nothing in the process can react to it."""
    while not reached():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_sittings_that_ended_by_sigkill_are_one_run_bit_for_bit(tmp_path):
    assert start(tmp_path, "whole").wait() == 0
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    log = cut / "metrics.jsonl"
    # During the warm start, ...
    kill_once(start(tmp_path, "cut"), lambda: (cut / "steer" / "checkpoints" / "2").exists())
    assert not log.exists()
    # ... then between the checkpoints of the main loop, which are three steps apart, ...
    kill_once(start(tmp_path, "cut"), lambda: log.exists() and len(log.read_text().splitlines()) >= 4)
    # ... and then not at all.
    assert start(tmp_path, "cut").wait() == 0

    def lines(folder):
        parsed = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [{name: value for name, value in line.items() if name != "seconds"} for line in parsed]

    assert lines(cut) == lines(whole)
    final = "final_params.safetensors"
    assert (cut / final).read_bytes() == (whole / final).read_bytes()
    certificates = [json.loads((folder / "summary.json").read_text())["certificate"] for folder in (cut, whole)]
    assert certificates[0] == certificates[1]
