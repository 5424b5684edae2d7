"""Two real processes that share a run give the numbers of one, killed and resumed or not, and fail together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from machine import environment
from safetensors.numpy import load_file

REPOSITORY = Path(__file__).resolve().parents[1]
ARGUMENTS = (
    "--config=configs/gmm.py:smoke",
    "--config.process.num_steps=10",
    "--config.train.steps=12",
    "--config.train.batch_size=64",
    "--config.log.every=1",
    "--config.checkpoint.every=4",
    "--config.behaviour.widen=0.0",
    "--config.behaviour.accepted=0.25",
    "--config.behaviour.noised=0.125",
    "--config.behaviour.replay=0.125",
    "--config.behaviour.prior=0.25",
    "--config.behaviour.prior_paths=32",
    "--config.behaviour.capacity=64",
    "--config.behaviour.warm_accepted=16",
    "--config.eval.num_samples=64",
    "--config.eval.batch_size=64",
    "--config.eval.exact_samples=16",
)


def start(folder: Path, workdir: str, *extra: str, devices: int = 1) -> subprocess.Popen:
    places = (f"--workdir={folder / workdir}", f"--config.eval.exact_cache={folder / f'exact-{workdir}'}")
    command = [sys.executable, "experiments/run.py", *ARGUMENTS, *places, *extra]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start_two(folder: Path, workdir: str, *extra: str) -> list[subprocess.Popen]:
    shared = ("--config.distributed=True", f"--coordinator={free_address()}", "--num_processes=2", *extra)
    return [start(folder, workdir, *shared, f"--process_id={index}") for index in range(2)]


def finish(processes: list[subprocess.Popen]) -> list[tuple[str, str]]:
    """What each printed; all must end well."""
    try:
        outputs = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs


def kill_at(processes: list[subprocess.Popen], step: int, log: Path) -> None:
    """SIGKILL to both once ``step`` is logged."""
    while not log.exists() or len(log.read_text().splitlines()) < step:
        assert all(process.poll() is None for process in processes), "it ended before it could be killed"
        time.sleep(0.02)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()


def lines(folder: Path) -> list[dict]:
    parsed = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in parsed]


def numbers(folder: Path) -> dict:
    summary = json.loads((folder / "summary.json").read_text())
    return {"metrics": lines(folder), "certificate": summary["certificate"], "of the samples": summary["metrics"]}


def assert_close(some, others):
    if isinstance(others, dict):
        assert some.keys() == others.keys()
        for name in others:
            assert_close(some[name], others[name])
    elif isinstance(others, list):
        assert len(some) == len(others)
        for one, other in zip(some, others, strict=True):
            assert_close(one, other)
    elif isinstance(others, float):
        np.testing.assert_allclose(some, others, rtol=1e-5, atol=1e-5)
    else:
        assert some == others


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 2])
def test_two_processes_are_one_and_survive_being_killed(tmp_path, fsdp):
    split = f"--config.fsdp={fsdp}"
    finish([start(tmp_path, "one", split, devices=2)])
    outputs = finish(start_two(tmp_path, "two", split))
    # Only the first says and writes anything.
    assert "verdict" in outputs[0][0] and "verdict" not in outputs[1][0]
    assert not list((tmp_path / "two").rglob("*.partial*"))
    assert_close(numbers(tmp_path / "two"), numbers(tmp_path / "one"))
    one, two = (load_file(tmp_path / name / "final_params.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5, atol=1e-5)

    cut = start_two(tmp_path, "cut", split)
    kill_at(cut, 6, tmp_path / "cut" / "metrics.jsonl")
    assert not (tmp_path / "cut" / "summary.json").exists()
    shutil.copytree(tmp_path / "cut", tmp_path / "moved")
    resumed = finish(start_two(tmp_path, "cut", split))
    assert "Resuming" in resumed[0][0]
    final = "final_params.safetensors"
    assert (tmp_path / "cut" / final).read_bytes() == (tmp_path / "two" / final).read_bytes()
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "two")
    # Checkpoints of two processes serve one.
    same_config = f"--config.eval.exact_cache={tmp_path / 'exact-cut'}"
    outputs = finish([start(tmp_path, "moved", split, same_config, devices=2)])
    assert "Resuming" in outputs[0][0]
    assert_close(numbers(tmp_path / "moved"), numbers(tmp_path / "one"))


SCORER = """
import sys

import jax
import numpy as np

jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))

from oracles import LinearGaussian
from shrunk import bare_domain

from experiments import hosts
from experiments.domains.base import rewarded
from rtbjax import make_rollout
from rtbjax.rewards import RewardError

chain = LinearGaussian(num_steps=3)
domain = bare_domain(chain, chain.prior, (2,))
paths = make_rollout(chain.process, (8, 2))(jax.random.key(0), chain.prior)


def asked(log_reward):
    object.__setattr__(domain, "log_reward", log_reward)
    return rewarded(domain, paths)


def scorer(x, cond):
    assert isinstance(x, np.ndarray) and x.shape == (4, 2)
    return x[:, 0]


scored = asked(scorer)
np.testing.assert_array_equal(hosts.whole(scored.log_reward), hosts.whole(paths.xs[-1])[:, 0])


def down(x, cond):
    if jax.process_index() == 1:
        raise OSError("the scorer is down")
    return x[:, 0]


try:
    asked(down)
except RewardError as error:
    print("RewardError:", error)
"""


@pytest.mark.slow
def test_each_host_scores_its_own_paths_and_a_scorer_that_is_down_on_one_stops_all():
    env = environment() | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    address = free_address()
    outputs = finish(
        [
            subprocess.Popen(
                [sys.executable, "-c", SCORER, address, str(index)],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(2)
        ]
    )
    assert "RewardError: Process 1 of 2 failed" in outputs[0][0]
    assert "RewardError: The reward raised OSError: the scorer is down" in outputs[1][0]


@pytest.mark.slow
def test_a_workdir_that_the_hosts_do_not_share_is_refused_on_all(tmp_path):
    shared = ("--config.distributed=True", f"--coordinator={free_address()}", "--num_processes=2")
    processes = [start(tmp_path, f"host-{index}", *shared, f"--process_id={index}") for index in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "Process 1 of 2 failed" in outputs[0][1]
    assert "does not see" in outputs[1][1] and "file system that all hosts share" in outputs[1][1]
    assert not list(tmp_path.glob("host-*/*"))
