"""The numbers of a run do not depend on how many devices share it: paths, log-probabilities, gradients, metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrunk import changed, gmm

from experiments import batches, objectives, optimizers
from experiments.domains import gmm as gmm_domain
from experiments.domains.base import placed
from experiments.proposal import Proposal
from rtbjax.sharding import MIN_SPLIT, data_mesh
from rtbjax.train import init_state, make_update

STEPS = 2  # The second draws from what the first has put into the buffers.


def everything(folder):
    """A batch in which every behaviour has its part, in the order in which `batches.path_counts` names them."""
    config = changed(
        gmm(folder),
        train__batch_size=64,
        behaviour__prior=0.25,
        behaviour__accepted=0.25,
        behaviour__noised=0.125,
        behaviour__replay=0.125,
        behaviour__prior_paths=32,
        behaviour__widen=0.3,
        behaviour__widen_until=10,
        behaviour__capacity=64,
        train__warmup_steps=0,
    )
    assert all(batches.path_counts(config).values())
    return config


def steps(config, mesh):
    """Batches, buffers, parameters and infos of the first steps."""
    domain = placed(gmm_domain.build(config), mesh)
    optimizer = optimizers.make(config)
    source, update = Proposal(config, domain, mesh), make_update(objectives.make(config, domain), optimizer, mesh)
    state = init_state(objectives.initial_params(config, domain), optimizer, mesh)
    buffers = source.init(jax.random.key(1))
    seen = []
    for step in range(STEPS):
        key = jax.random.fold_in(jax.random.key(2), step)
        trajectory, buffers = source.propose(key, step, state.params["policy"], buffers)
        state, info = update(state, trajectory, key)
        seen.append(jax.device_get((trajectory, buffers, state.params, info)))
    return seen


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A config and its steps on one device."""
    config = everything(tmp_path_factory.mktemp("alone"))
    return config, steps(config, data_mesh(1))


DIVIDED_BY_STDS = ("log_reward", "log_ratio", "priority", "gap")


def assert_same(some, others):
    """To 1e-5 of each array's largest number, and what has a state's distance in standard deviations in it to 1e-4.

    Of a state of 10 the last digit of float32 is 1e-6. A step's standard deviation is a few tenths and a mode's 0.55,
    so that a log ratio and log r move by many times what the state moves by.
    """

    def close(path, a, b):
        largest = np.max(np.abs(b), initial=1.0, where=np.isfinite(b))
        name = jax.tree_util.keystr(path)
        share = 1e-4 if any(divided in name for divided in DIVIDED_BY_STDS) else 1e-5
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=share * largest, err_msg=name)

    jax.tree.map_with_path(close, some, others)


@pytest.mark.parametrize("devices, fsdp", [(2, 1), (8, 1), (8, 4)])
def test_every_behaviours_steps_are_those_on_one_device(alone, devices, fsdp):
    config, expected = alone
    assert_same(steps(config, data_mesh(devices, fsdp)), expected)


def test_the_parts_of_a_run_with_parameters_in_parts_are_parts(alone):
    config, _ = alone
    domain = placed(gmm_domain.build(config), data_mesh(8, 4))
    split = [leaf for leaf in jax.tree.leaves(domain.prior.params) if leaf.size >= MIN_SPLIT]
    assert split and all(leaf.addressable_shards[0].data.size == leaf.size // 4 for leaf in split)


@pytest.mark.parametrize("count, parts", [(16, 8), (6, 1)])
def test_off_policy_paths_are_scored_by_all_devices_if_these_divide_them(alone, count, parts):
    config, mesh = alone[0], data_mesh(8)
    domain = placed(gmm_domain.build(config), mesh)
    source = Proposal(config, domain, mesh)
    paths = source._accepted.sample(jax.random.key(0), source.blank().accepted, count)
    scored = source._rescored(domain.posterior.params, paths)
    ends = paths.xs[-1], jnp.zeros(count), None
    noised = source._renoised(jax.random.key(1), domain.prior, domain.posterior.params, *ends)
    for found in (scored, noised):
        assert {shard.data.shape[1] for shard in found.log_ratio.addressable_shards} == {count // parts}
