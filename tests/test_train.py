"""Sharded = unsharded, on 8 forced CPU devices; training reaches the closed-form log Z."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import LinearGaussian

import rtbjax
from rtbjax import losses, posterior
from rtbjax.certificate import effective_sample_size
from rtbjax.objective import LossInfo, path_log_ratio
from rtbjax.sharding import data_mesh
from rtbjax.train import TrainState, init_state, make_rollout, make_update, optimizer
from rtbjax.types import Policy

CHAIN = LinearGaussian(num_steps=5)


def conditional_log_z(params, cond):
    return params["scale"] * cond["c"][:, 0] + params["offset"]


LOG_Z = {
    "vargrad": ("vargrad", {}),
    "learned": ("learned", {"log_z": jnp.float32(0.4)}),
    "conditional": (conditional_log_z, {"log_z": {"scale": jnp.float32(0.2), "offset": jnp.float32(0.1)}}),
}


BASELINES = {
    "reinforce": losses.reinforce,
    "reinforce_reward": partial(losses.reinforce_reward, alpha=0.3),
    "ddpo": losses.ddpo,
    "dpok": partial(losses.dpok, kl_weight=0.5),
}


def conditions():
    """One for every four neighbours, who are on two of eight shards."""
    return {"c": (jnp.arange(16) // 4).astype(jnp.float32)[:, None]}


def by_number(cond):
    """Groups of other sizes, which span shards, too."""
    return (cond["c"][:, 0] > 1.0).astype(jnp.int32)


def batch(key, mesh):
    shifted = Policy({"shift": jax.random.normal(key, (5, 2))}, CHAIN.shifted_apply)
    run = make_rollout(CHAIN.process, (16, 2), mesh)
    paths = run(key, CHAIN.prior, shifted, conditions(), widen=0.2)
    return shifted.params, paths._replace(log_reward=CHAIN.log_reward(paths.xs[-1]))


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_paths_do_not_depend_on_the_number_of_devices(key, devices):
    _, paths = batch(key, data_mesh(devices))
    shifted = Policy({"shift": jax.random.normal(key, (5, 2))}, CHAIN.shifted_apply)
    plain = rtbjax.rollout(
        key, CHAIN.process, CHAIN.prior, shifted, shape=(16, 2), cond=paths.cond, widen=jnp.float32(0.2)
    )
    np.testing.assert_allclose(paths.xs, plain.xs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(paths.log_ratio, plain.log_ratio, rtol=1e-4, atol=1e-5)
    assert len(paths.xs.sharding.device_set) == devices


@pytest.mark.parametrize("widen", [-1.0, np.nan])
def test_exploration_that_narrows_is_refused(key, widen):
    run = make_rollout(CHAIN.process, (8, 2), data_mesh(1))
    with pytest.raises(ValueError, match=f"widen must be at least 0, got {widen}"):
        run(key, CHAIN.prior, widen=widen)


def test_given_starts_stay_with_their_paths_over_devices(key):
    start = jax.random.normal(key, (16, 2))
    run = make_rollout(CHAIN.process, (16, 2), data_mesh(8))
    paths = run(key, CHAIN.prior, start=start)
    np.testing.assert_array_equal(paths.xs[0], start)
    plain = rtbjax.rollout(key, CHAIN.process, CHAIN.prior, shape=(16, 2), start=start)
    np.testing.assert_allclose(paths.xs, plain.xs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("given", [True, False], ids=["log_ratio given", "log_ratio recomputed"])
@pytest.mark.parametrize(
    "name, group",
    [("vargrad", 4), ("vargrad", by_number), *((name, None) for name in (*LOG_Z, *BASELINES))],
)
def test_sharded_gradient_is_unsharded(key, name, group, given):
    """With plain SGD: Adam would hide a gradient that is wrong by the device count. Means are over the whole batch."""
    log_z, extra = LOG_Z.get(name, (None, {}))
    results = {}
    for devices in (1, 2, 8):
        policy, paths = batch(key, data_mesh(devices))
        if not given:
            paths = paths._replace(log_ratio=None)
        params = {"policy": policy, **extra}

        def objective(params, trajectory, *, key, axis_name):
            if name == "vargrad" and group is None:  # One posterior.
                trajectory = trajectory._replace(cond=None)
            chain = dict(process=CHAIN.process, apply_fn=CHAIN.shifted_apply, grad_steps=3, key=key)
            if name in BASELINES:
                log_ratio = path_log_ratio(params["policy"], trajectory, **chain)
                per_path = BASELINES[name](log_ratio, trajectory.log_reward, beta=0.7, axis_name=axis_name)
                return jnp.mean(per_path), LossInfo(log_ratio, jnp.zeros_like(log_ratio))
            return rtbjax.loss(params, trajectory, log_z=log_z, group=group, axis_name=axis_name, **chain)

        update = make_update(objective, optax.sgd(1.0), data_mesh(devices))
        state, info = update(init_state(jax.tree.map(jnp.array, params), optax.sgd(1.0)), paths, key)
        results[devices] = jax.device_get((state.params, info))
    for devices in (2, 8):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), results[devices], results[1])
    moved = jax.tree.map(lambda new, old: float(np.abs(new - old).max()), results[1][0], params)
    assert all(change > 1e-3 for change in jax.tree.leaves(moved))


def lora_policy(key):
    """Adapters on a prior of one layer, both halves away from zero."""
    weights = jax.random.normal(key, (2, 2))
    prior = Policy({"kernel": 0.1 * weights}, lambda params, x, t, cond: x @ params["kernel"])
    learner = posterior.lora(key, prior, 1)
    return prior, learner.replace(params=jax.tree.map(lambda leaf: leaf + 0.1, learner.params))


@pytest.mark.parametrize("name", LOG_Z)
def test_sharded_adapters_are_unsharded(key, name):
    log_z, extra = LOG_Z[name]
    prior, learner = lora_policy(key)
    results = {}
    for devices in (1, 2, 8):
        run = make_rollout(CHAIN.process, (16, 2), data_mesh(devices))
        paths = run(key, prior, learner, conditions())
        paths = paths._replace(log_reward=CHAIN.log_reward(paths.xs[-1]))
        objective = partial(_without_key, process=CHAIN.process, apply_fn=learner.apply_fn, log_z=log_z, group=4)
        update = make_update(objective, optax.sgd(1.0), data_mesh(devices))
        state, info = update(init_state({"policy": learner.params, **extra}, optax.sgd(1.0)), paths, key)
        results[devices] = jax.device_get((paths, state.params, info))
    for devices in (2, 8):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), results[devices], results[1])
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), results[1][1]["policy"], learner.params)
    assert all(change > 1e-3 for change in jax.tree.leaves(moved))


def test_batch_that_does_not_divide_names_the_nearest_sizes():
    with pytest.raises(ValueError, match="12 does not divide over 8 devices.*8 and 16"):
        make_rollout(CHAIN.process, (12, 2), data_mesh(8))


def test_more_devices_than_there_are():
    with pytest.raises(ValueError, match="1..8"):
        data_mesh(9)


@pytest.mark.parametrize("name", ["vargrad", "learned"])
def test_training_from_the_prior_reaches_the_closed_form(key, name):
    chain = LinearGaussian(num_steps=8)
    log_z, _ = LOG_Z[name]
    params = {"policy": chain.zero_shift} | ({"log_z": jnp.float32(0.0)} if name == "learned" else {})
    opt = optimizer(optax.cosine_decay_schedule(0.1, 300), 0.1)
    mesh = data_mesh(1)
    objective = partial(_without_key, process=chain.process, apply_fn=chain.shifted_apply, log_z=log_z)
    update, run = make_update(objective, opt, mesh), make_rollout(chain.process, (128, 2), mesh)
    state = init_state(params, opt)
    for step in range(300):
        shifted = Policy(state.params["policy"], chain.shifted_apply)
        paths = run(jax.random.fold_in(key, step), chain.prior, shifted)
        paths = paths._replace(log_reward=chain.log_reward(paths.xs[-1]))
        state, info = update(state, paths, key)
    np.testing.assert_allclose(info.log_z, chain.log_z, atol=0.02)
    np.testing.assert_allclose(np.mean(info.gap), chain.log_z, atol=0.02)
    assert effective_sample_size(info.gap) > 0.99
    np.testing.assert_allclose(state.params["policy"]["shift"], chain.exact_shift["shift"], atol=0.25)


def test_the_rule_is_the_policys_and_log_z_keeps_its_own():
    chosen = optimizer(0.5, 0.1, rule=optax.sgd)
    params = {"policy": jnp.zeros(2), "log_z": jnp.float32(0.0)}
    gradient = {"policy": jnp.asarray([3.0, 4.0]), "log_z": jnp.float32(7.0)}
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = chosen.update(gradient, chosen.init(params), params)
    np.testing.assert_allclose(updates["policy"], [-0.3, -0.4], rtol=1e-6)
    np.testing.assert_allclose(updates["log_z"], -0.1, rtol=1e-4)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("spoilt", ["log_reward", "log_prior", "xs", "log Z beyond its limit"])
def test_a_batch_that_cannot_be_learned_from_changes_nothing_and_is_counted(key, spoilt, devices):
    """One number of one path of one shard is enough, and what comes after it is as if it had never been."""
    mesh = data_mesh(devices)
    policy, paths = batch(key, mesh)
    params = {"policy": policy, "log_z": jnp.float32(0.4)}
    objective = partial(_without_key, process=CHAIN.process, apply_fn=CHAIN.shifted_apply, log_z="learned")
    update = make_update(objective, optimizer(0.1, 0.1), mesh, log_z_limit=50.0)

    def states(batches):
        state, found = init_state(params, optimizer(0.1, 0.1)), []
        for one in batches:
            state, _ = update(state, one, key)
            found.append(jax.device_get(state))
        return found

    good = paths._replace(log_ratio=None)
    if spoilt == "log Z beyond its limit":
        # The fault of the parameters: the batch is good, and so none is ever learned from again.
        state = init_state(params | {"log_z": jnp.float32(-51.0)}, optimizer(0.1, 0.1))
        for count in (1, 2):
            state, info = update(state, good, key)
            assert (state.skipped, state.skipped_in_row, state.params["log_z"]) == (count, count, -51.0)
            np.testing.assert_array_equal(state.params["policy"]["shift"], policy["shift"])
        return
    array = getattr(good, spoilt)
    bad = good._replace(**{spoilt: array.at[(0,) * (array.ndim - 1) + (-1,)].set(jnp.nan)})
    if spoilt == "xs":
        bad = good._replace(xs=array.at[2, -1, 0].set(jnp.inf))
    once, twice = states([good, good])
    found = states([good, bad, bad, good])
    assert [(int(s.step), int(s.skipped), int(s.skipped_in_row)) for s in found] == [
        (1, 0, 0),
        (2, 1, 1),
        (3, 2, 2),
        (4, 2, 0),
    ]
    for state in found[:3]:
        jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), (once.params, once.opt_state))
    last = found[3]
    jax.tree.map(np.testing.assert_array_equal, (last.params, last.opt_state), (twice.params, twice.opt_state))
    assert np.abs(twice.params["policy"]["shift"] - once.params["policy"]["shift"]).max() > 1e-3


def _without_key(params, trajectory, *, key, **arguments):
    return rtbjax.loss(params, trajectory, **arguments)


def test_the_loop_of_a_notebook_compiles_once(key):
    """Without a mesh, and with numbers of Python's for the prior's scale and log Z."""
    traces, prior = [], Policy({"scale": 1.0}, lambda params, x, t, cond: params["scale"] * CHAIN.prior(x, t, cond))

    def apply_fn(params, x, t, cond):
        traces.append(1)
        return CHAIN.shifted_apply(params, x, t, cond)

    rule = optimizer(1e-3)
    run = make_rollout(CHAIN.process, (16, 2))
    update = make_update(_without_key_of(apply_fn), rule)
    state, counts = init_state({"policy": {"shift": jnp.zeros((5, 2))}, "log_z": 0.0}, rule), []
    for _ in range(3):
        paths = run(key, prior, Policy(state.params["policy"], apply_fn))
        state, _ = update(state, paths._replace(log_reward=CHAIN.log_reward(paths.xs[-1])), key)
        counts.append(len(traces))
    assert counts[0] == counts[1] == counts[2]


def _without_key_of(apply_fn):
    return partial(_without_key, process=CHAIN.process, apply_fn=apply_fn, log_z="learned")


def test_paths_that_do_not_fit_are_refused_before_they_are_spread(key):
    mesh = data_mesh(2)
    _, paths = batch(key, mesh)
    update = make_update(
        partial(_without_key, process=CHAIN.process, apply_fn=CHAIN.shifted_apply), optax.adam(1e-3), mesh
    )

    def updated(**changes):
        state = init_state({"policy": {"shift": jnp.zeros((5, 2))}}, optax.adam(1e-3))
        return update(state, paths._replace(cond=None)._replace(**changes), key)

    rewards = np.asarray(paths.log_reward)
    jax.tree.map(np.testing.assert_array_equal, updated(log_reward=rewards.tolist())[1], updated()[1])
    with pytest.raises(ValueError, match=r"log_reward must have shape \(16,\), got \(\)"):
        updated(log_reward=0.0)
    with pytest.raises(ValueError, match=r"Conditions need a leading axis of 16, the paths, got shape \(4,\)"):
        updated(cond={"c": jnp.zeros(4)})


def test_update_compiles_once(key):
    _, paths = batch(key, data_mesh(2))

    @chex.assert_max_traces(n=1)
    def objective(params, trajectory, *, key, axis_name):
        chain = dict(process=CHAIN.process, apply_fn=CHAIN.shifted_apply)
        return rtbjax.loss(params, trajectory, group=16, axis_name=axis_name, **chain)

    update = make_update(objective, optax.adam(1e-3), data_mesh(2))
    state = init_state({"policy": {"shift": jnp.zeros((5, 2))}}, optax.adam(1e-3))
    for _ in range(4):
        state, _ = update(state, paths, key)
    with pytest.raises(AssertionError, match="traced"):  # Paths without ratios are another program: the count works.
        update(state, paths._replace(log_ratio=None), key)
    assert isinstance(state, TrainState) and state.step == 4
