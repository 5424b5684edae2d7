"""A reward that fails in every way it can, thousands of times, costs time and no step."""

import collections
import dataclasses
import random
import time

import numpy as np
import pytest
from oracles import LinearGaussian
from shrunk import assert_same_run, bare_domain, changed, gmm, latest_step, log_of

from experiments import loop, run
from experiments.domains import gmm as domains
from rtbjax import Policy
from rtbjax.rewards import RewardError
from rtbjax.sharding import data_mesh

CHAIN = LinearGaussian(num_steps=3)
TIMEOUT = 0.5
FAULTS = ("raises", "hangs", "nan", "inf", "wrong shape", "no array", "one item", "dies for one item")


class Unreliable:
    """The chain's reward, with every fault there is; now and then it is away for longer than anyone asks."""

    def __init__(self, seed, rate, outages):
        self.calls, self.faults = 0, collections.Counter()
        self._chance, self._rate, self._outages, self._away = random.Random(seed), rate, outages, 0

    def __call__(self, x, cond):
        self.calls += 1
        if self._away or self._chance.random() < self._outages:
            self._away = (self._away or 4) - 1
            self.faults["outage"] += 1
            raise ConnectionError("the scorer is away")
        log_r = np.array(CHAIN.log_reward(x))
        if self._chance.random() > self._rate:
            return log_r
        # Hanging takes its time: less often.
        fault = self._chance.choices(FAULTS, weights=[1 if name == "hangs" else 20 for name in FAULTS])[0]
        self.faults[fault] += 1
        item = self._chance.randrange(len(log_r))
        if fault == "raises":
            raise RuntimeError("out of memory")
        if fault == "hangs":
            time.sleep(2 * TIMEOUT)
        if fault == "dies for one item":
            raise RewardError(f"sample {item} crashed the simulator")
        if fault == "one item":
            log_r[item] = self._chance.choice([np.nan, np.inf, -np.inf])
        return {
            "nan": log_r * np.nan,
            "inf": np.full_like(log_r, np.inf),
            "wrong shape": log_r[1:],
            "no array": "sorry",
        }.get(fault, log_r)


@pytest.mark.slow
def test_thousands_of_calls_to_a_reward_that_fails_lose_no_step(tmp_path):
    config = changed(
        gmm(tmp_path),
        train__steps=3000,
        train__batch_size=4,
        checkpoint__every=500,
        behaviour__accepted=0.0,
        behaviour__noised=0.0,
        objective__chunk=3,
        process__num_steps=3,
    )
    domain = bare_domain(CHAIN, Policy(CHAIN.zero_shift, CHAIN.shifted_apply), (2,))
    patience = {"retries": 3, "retry_seconds": 0.0, "timeout": TIMEOUT}
    reward = Unreliable(seed=0, rate=0.15, outages=0.001)
    unreliable = dataclasses.replace(domain, log_reward=reward, patience=patience)

    def train(which, workdir):
        return loop.run(config, which, workdir, data_mesh(1), loop.Clock())

    train(domain, tmp_path / "whole")
    sittings = 1
    while True:
        try:
            train(unreliable, tmp_path / "cut")
            break
        except RewardError as error:
            assert "is saved: the same command goes on at step" in str(error)
            sittings += 1
    assert [line["step"] for line in log_of(tmp_path / "cut")] == list(range(1, 3001))
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    assert reward.calls > 3300 and sittings > 2
    assert all(reward.faults[fault] > 2 for fault in (*FAULTS, "outage")), reward.faults


@pytest.mark.parametrize("asked_by, step", [("on_policy", 0), ("prior", 1), ("fresh", 1), ("fresh", 2)])
def test_a_reward_that_gives_up_leaves_a_checkpoint_of_that_very_step(tmp_path, step, asked_by):
    """Whichever of a step's rewards it is: no buffer has changed by then."""
    config = changed(gmm(tmp_path), behaviour__prior=0.25, behaviour__accepted=0.0, behaviour__prior_paths=32)
    domain, calls = domains.build(config), []

    def counting(x, cond):
        calls.append(len(x))
        return domain.log_reward(x, cond)

    def fails(x, cond):
        calls.append(len(x))
        if len(calls) == at:
            raise ConnectionError("the scorer is away")
        return domain.log_reward(x, cond)

    def train(reward, workdir):
        loop.run(config, dataclasses.replace(domain, log_reward=reward), workdir, data_mesh(1), loop.Clock())

    train(counting, tmp_path / "whole")
    gathering = len(calls) - 3 * config.train.steps
    assert gathering > 0
    at = gathering + 3 * step + 1 + ("on_policy", "prior", "fresh").index(asked_by)
    calls.clear()
    with pytest.raises(RewardError, match=f"scorer is away .1 try.* What was done is saved: .* at step {step}"):
        train(fails, tmp_path / "cut")
    assert latest_step(tmp_path / "cut") == step
    train(domain.log_reward, tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_run_asks_as_patiently_as_its_config_says(tmp_path):
    config = changed(gmm(tmp_path), reward__retries=4, reward__retry_seconds=0.25, reward__timeout=0.0)
    assert run.prepare(config)[0].patience == {"retries": 4, "retry_seconds": 0.25, "timeout": None}
    config = changed(config, reward__timeout=3.0)
    assert run.prepare(config)[0].patience["timeout"] == 3.0
