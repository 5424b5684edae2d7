"""Runs killed by signals, as a scheduler or a full memory kills them, are one run bit for bit."""

import json
import random
import signal
import time

import pytest
from shrunk import assert_same_run
from sittings import server, sit

from experiments.stopping import EXIT_CODE

SMALL_EVALUATION = (
    "--config.eval.exact_samples=16",
    "--config.eval.num_samples=64",
    "--config.eval.batch_size=64",
)
GMM = (
    "--config=configs/gmm.py:smoke",
    "--config.process.num_steps=4",
    "--config.train.steps=400",
    "--config.train.batch_size=16",
    "--config.log.every=1",
    "--config.checkpoint.every=4",
    "--config.behaviour.capacity=64",
    "--config.behaviour.warm_accepted=16",
    *SMALL_EVALUATION,
)
CONFIGS = {
    "on-policy": (*GMM, "--config.behaviour.accepted=0.0", "--config.objective.log_z=learned"),
    "replay": (
        *GMM,
        "--config.behaviour.accepted=0.25",
        "--config.behaviour.noised=0.25",
        "--config.behaviour.replay=0.25",
        "--config.behaviour.prior_paths=16",
    ),
}
KILLS = 12  # Of each config: in turn at a random time, while a checkpoint is written, and soon after one.
WARM_START = (
    "--config=configs/mnist.py:smoke",
    "--config.posterior.kind=steered",  # Resumed as value_guided is, and compiled sooner.
    "--config.steer.steps=6",
    "--config.steer.checkpoint_every=2",
    *SMALL_EVALUATION,
)


class Runs:
    """Sittings in one folder, which share what is compiled and the exact set."""

    def __init__(self, folder, monkeypatch):
        self.folder, self._context = folder, server(monkeypatch)

    def start(self, arguments, name):
        places = [f"--workdir={self.folder / name}", f"--config.eval.exact_cache={self.folder / 'exact'}"]
        process = self._context.Process(target=sit, args=([*arguments, *places], str(self.folder / "xla")))
        process.start()
        return process

    def finish(self, arguments, name):
        process = self.start(arguments, name)
        process.join()
        assert process.exitcode == 0
        return self.folder / name


@pytest.fixture
def runs(tmp_path, monkeypatch):
    return Runs(tmp_path, monkeypatch)


def wait_until(reached, process):
    while not reached():
        assert process.is_alive(), "it ended before it could be killed"
        time.sleep(0.001)


def kill(process, number=signal.SIGKILL):
    """Nothing in the process can react to a SIGKILL; SIGTERM has its exit code."""
    process.terminate() if number == signal.SIGTERM else process.kill()
    process.join()
    assert process.exitcode == (EXIT_CODE if number == signal.SIGTERM else -number)


def half_written(workdir):
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def logged(workdir):
    log = workdir / "metrics.jsonl"
    return len(log.read_bytes().splitlines()) if log.exists() else 0


def newest(workdir):
    return max((int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()), default=0)


def kill_at_any_time(process, cut, chance):
    """From its first moments on, and before it is through."""
    last, end = newest(cut), time.monotonic() + chance.uniform(0.0, 6.0)
    wait_until(lambda: time.monotonic() > end or logged(cut) > last + 25, process)
    kill(process)


def kill_while_writing(process, cut, chance):
    last = newest(cut)
    wait_until(lambda: newest(cut) > last and half_written(cut), process)
    time.sleep(chance.uniform(0.0, 0.02))
    kill(process)


def kill_between_checkpoints(process, cut, chance):
    last = newest(cut)
    wait_until(lambda: newest(cut) > last, process)
    time.sleep(chance.uniform(0.0, 0.05))
    kill(process)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_killed_at_any_moment_and_started_again_it_is_one_run_bit_for_bit(runs, name):
    arguments, chance = CONFIGS[name], random.Random(name)
    whole, cut = runs.finish(arguments, "whole"), runs.folder / "cut"
    while_writing = 0
    for _ in range(KILLS // 3):
        for strike in (kill_at_any_time, kill_while_writing, kill_between_checkpoints):
            strike(runs.start(arguments, "cut"), cut, chance)
            while_writing += bool(half_written(cut))
    assert while_writing >= 2
    process, last = runs.start(arguments, "cut"), newest(cut)
    wait_until(lambda: newest(cut) > last, process)
    kill(process, signal.SIGTERM)
    runs.finish(arguments, "cut")
    assert_same_run(cut, whole)
    certificates = [json.loads((folder / "summary.json").read_text())["certificate"] for folder in (cut, whole)]
    assert certificates[0] == certificates[1]
    assert not half_written(cut)


@pytest.mark.slow
def test_killed_during_the_warm_start_it_is_one_run_too(runs):
    whole, cut = runs.finish(WARM_START, "whole"), runs.folder / "cut"
    for number, step in ((signal.SIGKILL, 2), (signal.SIGTERM, 4)):
        process = runs.start(WARM_START, "cut")
        wait_until((cut / "steer" / "checkpoints" / str(step)).exists, process)
        kill(process, number)
        assert not logged(cut)
    # And between the checkpoints of the main loop, which are three steps apart.
    process = runs.start(WARM_START, "cut")
    wait_until(lambda: logged(cut) >= 4, process)
    kill(process)
    runs.finish(WARM_START, "cut")
    assert_same_run(cut, whole)
