"""Steps that cannot be learned from are skipped, counted, and in the end explained; no run is ruined in silence."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrunk import assert_same_run, changed, gmm, log_of

from experiments import loop, run
from experiments.checkpoint import Checkpoints
from experiments.domains import gmm as domains
from experiments.finite import Diverged, blame
from experiments.proposal import Proposal
from rtbjax import Policy, Trajectory
from rtbjax.sharding import data_mesh
from rtbjax.train import StepInfo


def step(*, xs=0.0, log_prior=0.0, log_ratio=0.0, log_reward=0.0, log_z=0.0, loss=0.0, grad_norm=0.0):
    """A step of four paths, the last two of them not the posterior's own; a list gives one number per path."""

    def per_path(value):
        return np.broadcast_to(np.asarray(value, np.float32), (4,))

    paths = Trajectory(
        xs=np.broadcast_to(per_path(xs)[None, :, None], (3, 4, 2)),
        cond=None,
        log_reward=per_path(log_reward),
        log_prior=np.broadcast_to(per_path(log_prior), (2, 4)),
    )
    gap = per_path(log_ratio) + 0.5 * per_path(log_reward)
    return paths, StepInfo(np.float32(loss), np.float32(log_z), np.float32(0.0), np.float32(grad_norm), gap)


NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    "spoilt, learned, blamed",
    [
        # A path that is no number takes everything with it; whose path it is decides.
        (dict(xs=[0, NAN, 0, 0], log_prior=NAN, log_ratio=NAN, log_reward=NAN), False, "the posterior, whose paths"),
        (dict(xs=[0, 0, 0, INF], log_prior=NAN, log_ratio=NAN, log_reward=NAN), False, "the prior, whose states"),
        (dict(log_prior=[0, 0, NAN, 0], log_ratio=[0, 0, NAN, 0], loss=NAN), False, "the prior"),
        (dict(log_reward=[0, NAN, 0, 0], loss=NAN), False, "the reward, whose log r is not finite"),
        (dict(log_ratio=[0, 0, 0, -INF], loss=NAN, grad_norm=NAN), False, "the posterior, whose log-prob"),
        (dict(loss=1.0, grad_norm=NAN), False, "the posterior, whose gradient"),
        # All finite, and too large.
        (
            dict(log_reward=-3e6, log_ratio=2.0, log_z=-1.5e6),
            False,
            r"the reward, whose beta log r reach 1\.5e\+06",
        ),
        (
            dict(log_reward=-5.0, log_ratio=[0, 8e6, 0, 0], log_z=2e6),
            False,
            r"the posterior, whose .* reach 8e\+06",
        ),
        (dict(log_reward=-5.0, log_z=-2e6), True, r"the learned log Z, which is -2e\+06"),
        (dict(log_reward=-5.0, log_ratio=1e20, log_z=1e20, loss=INF, grad_norm=NAN), False, "the posterior, whose log"),
    ],
)
def test_the_term_to_blame(spoilt, learned, blamed):
    paths, info = step(**spoilt)
    found = blame(paths, info, own=np.arange(paths.xs.shape[1]) < 2, beta=0.5, learned=learned)
    assert re.match(blamed, found), found


@pytest.fixture
def config(tmp_path):
    return gmm(tmp_path)


def poison(monkeypatch, steps):
    """In these steps the batch has a log r that is no number."""
    propose = Proposal.propose

    def poisoned(self, key, step, params, buffers):
        trajectory, buffers = propose(self, key, step, params, buffers)
        if step in steps:
            trajectory = trajectory._replace(log_reward=trajectory.log_reward.at[3].set(jnp.nan))
        return trajectory, buffers

    monkeypatch.setattr(Proposal, "propose", poisoned)


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_skipped_steps_are_counted_in_the_log_and_the_summary_and_survive_a_kill(config, tmp_path, monkeypatch, caplog):
    config = changed(config, train__steps=6, checkpoint__every=3)
    poison(monkeypatch, (1, 2, 4))
    whole = run.execute(config, tmp_path / "whole")
    assert [line["skipped"] for line in log_of(tmp_path / "whole")] == [0, 1, 2, 2, 3, 3]
    assert [line["loss"] is None for line in log_of(tmp_path / "whole")] == [False, True, True, False, True, False]
    assert whole.summary["skipped"] == 3
    assert "3 of 6 steps were skipped" in caplog.text
    again = run.execute(config, tmp_path / "whole", "evaluate")
    assert again.summary["skipped"] == 3

    save = Checkpoints.save

    def dies_at_three(self, step, tree):
        save(self, step, tree)
        if step == 3:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", dies_at_three)
    with pytest.raises(Killed):
        run.execute(config, tmp_path / "cut")
    monkeypatch.setattr(Checkpoints, "save", save)
    assert run.execute(config, tmp_path / "cut").summary["skipped"] == 3
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def nowhere(params, x, t, cond):
    return jnp.full_like(x, jnp.nan)


ON_POLICY = dict(behaviour__accepted=0.0, behaviour__noised=0.0, behaviour__replay=0.0)


@pytest.mark.parametrize(
    "broken, changes, blamed",
    [
        ("prior", {}, "the prior"),
        ("posterior", dict(behaviour__replay=0.25), "the posterior, whose paths"),
        ("reward", {}, "the reward, whose beta log r"),
        (
            "log_z",
            dict(objective__log_z="learned", train__log_z_limit=0.05, train__learning_rate=1e-6),
            "the learned log Z",
        ),
    ],
)
@pytest.mark.parametrize("silent", [True, False])
def test_persistent_trouble_stops_the_run_and_names_the_term(config, tmp_path, broken, changes, blamed, silent):
    config = changed(
        config,
        train__steps=8,
        train__max_skipped=3,
        train__log_z_learning_rate=0.1,
        log__every=8 if silent else 1,
        checkpoint__every=4 if silent else 8,
        **ON_POLICY | changes,
    )
    domain = domains.build(config)
    spoilt = {
        "prior": dict(prior=Policy(domain.prior.params, nowhere)),
        "posterior": dict(posterior=Policy(domain.posterior.params, nowhere)),
        "reward": dict(log_reward=lambda x, cond: -1e7 * jnp.ones(len(x)), log_bound=None),
        # All gaps are 0.01, and log Z steps by 0.1 towards them: the first step takes it beyond its limit.
        "log_z": dict(log_reward=lambda x, cond: 0.01 * jnp.ones(len(x)), log_bound=None),
    }[broken]
    with pytest.raises(Diverged, match=f"steps in a row, up to step .*To blame is {blamed}") as error:
        loop.run(config, dataclasses.replace(domain, **spoilt), tmp_path / "w", data_mesh(1), loop.Clock())
    # Noticed when the third is logged, or a checkpoint is due; log Z takes one good step before.
    good = int(broken == "log_z")
    noticed = 4 if silent else 3 + good
    assert str(error.value).startswith(f"{noticed - good} steps in a row, up to step {noticed},")
    assert not (tmp_path / "w" / "final_params.safetensors").exists()


def test_a_run_in_which_no_step_taught_anything_has_not_succeeded(config, tmp_path, monkeypatch):
    """Four steps, where ten in a row are allowed."""
    poison(monkeypatch, range(4))
    assert config.train.steps < config.train.max_skipped
    with pytest.raises(Diverged, match="4 steps in a row, up to step 4.*To blame is the reward"):
        loop.run(config, domains.build(config), tmp_path, data_mesh(1), loop.Clock())


def test_samples_that_are_no_numbers_are_not_remembered(config, tmp_path):
    config = changed(config, **ON_POLICY | dict(behaviour__replay=0.5))
    domain = domains.build(config)

    # The network breaks for the first half of the batch only.
    def half(params, x, t, cond):
        return jnp.where((jnp.arange(len(x)) < 4)[:, None], jnp.nan, domain.posterior.apply_fn(params, x, t, cond))

    source = Proposal(
        config, dataclasses.replace(domain, posterior=Policy(domain.posterior.params, half)), data_mesh(1)
    )
    paths, buffers = source.propose(jax.random.key(0), 0, domain.posterior.params, source.blank())
    # Nor is anything replayed in their place: the batch teaches nothing.
    assert np.isnan(paths.log_reward).all()
    assert buffers.visited.added == 0 and np.isneginf(buffers.visited.priority).all()
