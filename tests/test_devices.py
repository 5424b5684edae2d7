"""The numbers of a run do not depend on how many devices share it: paths, log-probabilities, gradients, metrics."""

import jax
import numpy as np
from shrunk import changed, gmm

from experiments import objectives, optimizers, settings
from experiments.domains import gmm as gmm_domain
from experiments.proposal import Proposal
from rtbjax.sharding import data_mesh
from rtbjax.train import init_state, make_update

STEPS = 2  # The second draws from what the first has put into the buffers.


def everything(folder):
    """A batch in which every behaviour has its part, in the order in which `settings.path_counts` names them."""
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
    assert all(settings.path_counts(config).values())
    return config


def steps(config, mesh):
    """Batches, buffers, parameters and infos of the first steps."""
    domain = gmm_domain.build(config)
    optimizer = optimizers.make(config)
    source, update = Proposal(config, domain, mesh), make_update(objectives.make(config, domain), optimizer, mesh)
    state = init_state(objectives.initial_params(config, domain), optimizer)
    buffers = source.init(jax.random.key(1))
    seen = []
    for step in range(STEPS):
        key = jax.random.fold_in(jax.random.key(2), step)
        trajectory, buffers = source.propose(key, step, state.params["policy"], buffers)
        state, info = update(state, trajectory, key)
        seen.append(jax.device_get((trajectory, buffers, state.params, info)))
    return seen


def assert_same(some, others):
    """To 1e-5 of each array's largest number: log r is a difference of larger ones, which do not all share its sign."""

    def close(a, b):
        largest = np.max(np.abs(b), initial=1.0, where=np.isfinite(b))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * largest)

    jax.tree.map(close, some, others)


def test_every_behaviours_steps_are_the_same_on_1_2_and_8_devices(tmp_path):
    config = everything(tmp_path)
    alone = steps(config, data_mesh(1))
    for devices in (2, 8):
        assert_same(steps(config, data_mesh(devices)), alone)
