"""Parameters in parts over the mesh: the numbers of whole ones, at a part of the memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from oracles import LinearGaussian

import rtbjax
from rtbjax.sharding import MIN_SPLIT, batch_axes, data_mesh, parameter_shardings, parameter_specs, shards, split_cpu
from rtbjax.train import init_state, make_rollout, make_update, optimizer
from rtbjax.types import Policy

CHAIN = LinearGaussian(num_steps=4)
WIDTH, DEPTH = 128, 12
MESHES = {"1x8": (8, 8), "2x4": (8, 4), "1x2": (2, 2)}  # fsdp of all devices


def network(params, x, t, cond):
    """A stack of square layers, each much smaller than all of them."""
    h = jnp.tanh(x @ params["first"])
    for kernel in params["layers"]:
        h = h + jnp.tanh(h @ kernel)
    return 0.1 * (h @ params["last"]) + params["bias"][None]


def network_params(key):
    keys = jax.random.split(key, DEPTH + 3)
    layers = [jax.random.normal(k, (WIDTH, WIDTH)) / WIDTH for k in keys[:DEPTH]]
    first, last = jax.random.normal(keys[-3], (2, WIDTH)), jax.random.normal(keys[-2], (WIDTH, 2)) / WIDTH**0.5
    return {"first": first, "layers": layers, "last": last, "bias": jax.random.normal(keys[-1], (2,))}


def scaled(params, cond):
    return params["scale"] * cond[:, 0]


LOG_Z = {
    "vargrad": ("vargrad", {}),
    "learned": ("learned", {"log_z": jnp.float32(0.4)}),
    "conditional": (scaled, {"log_z": {"scale": jnp.float32(0.2)}}),
}


def objective(log_z="vargrad"):
    def mean_loss(params, trajectory, *, key, axis_name):
        chain = dict(process=CHAIN.process, apply_fn=network, grad_steps=2, key=key)
        return rtbjax.loss(params, trajectory, log_z=log_z, group=8, axis_name=axis_name, **chain)

    return mean_loss


def rolled(key, mesh, params):
    prior = Policy(jax.tree.map(lambda leaf: 0.5 * leaf, params), network)
    cond = jnp.repeat(jnp.linspace(0.0, 1.0, 2), 8)[:, None]
    paths = make_rollout(CHAIN.process, (16, 2), mesh)(key, prior, Policy(params, network), cond)
    return paths._replace(log_reward=CHAIN.log_reward(paths.xs[-1]))


def two_updates(key, mesh, rule, log_z="vargrad", extra=None):
    params = network_params(key)
    update = make_update(objective(log_z), rule, mesh)
    state = init_state({"policy": params, **(extra or {})}, rule, mesh)
    seen = []
    for step in range(2):
        paths = rolled(jax.random.fold_in(key, step), mesh, state.params["policy"])
        state, info = update(state, paths, key)
        seen.append(jax.device_get((paths, info)))
    return state, seen


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("log_z", LOG_Z)
def test_parameters_in_parts_give_the_numbers_of_whole_ones(key, log_z, mesh):
    """With plain SGD: Adam would hide a gradient that is wrong by a count of devices."""
    chosen, extra = LOG_Z[log_z]
    rule = optax.sgd(0.5)
    whole, seen = two_updates(key, data_mesh(1), rule, chosen, extra)
    parts, seen_in_parts = two_updates(key, data_mesh(*MESHES[mesh]), rule, chosen, extra)
    same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(same, seen_in_parts, seen)
    jax.tree.map(same, jax.device_get(parts.params), jax.device_get(whole.params))
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), whole.params["policy"], network_params(key))
    assert all(change > 1e-3 for change in jax.tree.leaves(moved))


def test_adam_with_clipping_is_the_same_in_parts(key):
    rule = optimizer(1e-2, 0.1, clip_norm=0.5)
    whole, _ = two_updates(key, data_mesh(1), rule)
    parts, _ = two_updates(key, data_mesh(8, 4), rule)
    # To a hundredth of a step: of the smallest gradients Adam magnifies the rounding.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *map(jax.device_get, (parts, whole)))


def bytes_on_first_device(tree):
    first = jax.devices()[0]
    shards = [s for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards if s.device == first]
    return sum(shard.data.nbytes for shard in shards)


def test_a_device_holds_its_part_of_parameters_and_moments_only(key):
    rule = optax.adam(1e-3)
    held = {}
    for fsdp in (1, 2, 8):
        state, _ = two_updates(key, data_mesh(8, fsdp), rule)
        held[fsdp] = bytes_on_first_device(state)
        assert bytes_on_first_device(init_state(state.params, rule, data_mesh(8, fsdp))) == held[fsdp]
    small = 3 * 4 * (2 + 2 * WIDTH + 2 * WIDTH)  # What is too small to split, and its two moments.
    assert held[1] > 3 * 4 * DEPTH * WIDTH**2
    for fsdp in (2, 8):
        assert held[fsdp] < held[1] / fsdp + small + 64


def test_an_update_is_given_a_part_and_returns_a_part(key):
    """As XLA counts the bytes of one device."""
    rule = optax.adam(1e-3)
    given, returned = {}, {}
    for fsdp in (1, 8):
        mesh = data_mesh(8, fsdp)
        state = init_state({"policy": network_params(key)}, rule, mesh)
        paths = rolled(key, mesh, state.params["policy"])
        memory = jax.jit(make_update(objective(), rule, mesh)).lower(state, paths, key).compile().memory_analysis()
        given[fsdp], returned[fsdp] = memory.argument_size_in_bytes, memory.output_size_in_bytes
    assert given[8] < 0.15 * given[1]
    assert returned[8] < 0.15 * returned[1]


def test_a_gradient_keeps_no_whole_parameter(key):
    """What JAX saves for the backward pass has the shapes of parts; of whole parameters, were they not in parts."""
    saved = {}
    for fsdp in (1, 8):
        mesh, params = data_mesh(8, fsdp), network_params(key)
        specs = parameter_specs(params, mesh)

        def residuals(params, x, fsdp=fsdp, specs=specs):
            def run(params):
                return Policy(params, network)(x, jnp.float32(0.0), None)

            out, back = jax.vjp(run, shards(params, specs))
            saved[fsdp] = [leaf.shape for leaf in jax.tree.leaves(back)]
            return out

        mapped = jax.shard_map(
            residuals, mesh=mesh, in_specs=(specs, P(batch_axes(mesh))), out_specs=P(batch_axes(mesh))
        )
        jax.eval_shape(mapped, params, jnp.zeros((16, 2)))
    assert saved[1].count((WIDTH, WIDTH)) == DEPTH
    assert (WIDTH, WIDTH) not in saved[8] and saved[8].count((WIDTH // 8, WIDTH)) == DEPTH


def test_parameters_are_gathered_within_each_step_of_a_scan(key):
    """Gathered before it, as XLA does with what a loop leaves alone, they would lie on every device all the time."""
    mesh = data_mesh(8, 8)
    params = jax.device_put(network_params(key), parameter_shardings(network_params(key), mesh))
    policy = Policy(params, network)
    run = make_rollout(CHAIN.process, (16, 2), mesh)
    text = jax.jit(run).lower(key, policy, policy).compile().as_text()
    entry = text[text.index("\nENTRY") :]
    assert "all-gather" in text and "all-gather" not in entry


def test_the_largest_divisible_axis_is_split():
    mesh = data_mesh(8, 4)
    like = {"wide": (16, 64), "tall": (512, 6), "odd": (7, 1024), "prime": (31, 37), "small": (8, 8), "scalar": ()}
    assert 8 * 8 < MIN_SPLIT
    specs = parameter_specs({name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in like.items()}, mesh)
    split = {"wide": P(None, "fsdp"), "tall": P("fsdp"), "odd": P(None, "fsdp")}
    assert specs == {name: split.get(name, P()) for name in like}


def test_a_mesh_of_ones_own_needs_the_data_axis_only(key):
    mine = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    state, seen = two_updates(key, mine, optax.sgd(0.5))
    _, alone = two_updates(key, data_mesh(1), optax.sgd(0.5))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), seen, alone)
    assert all(s.spec == P() for s in jax.tree.leaves(parameter_shardings(state, mine)))


def test_what_does_not_divide_the_devices():
    with pytest.raises(ValueError, match="fsdp must divide the 8 devices, got 3"):
        data_mesh(8, 3)


def test_a_cpu_is_split_where_nothing_else_says_into_how_many_devices(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.config, "update", lambda *change: asked.append(change))
    split_cpu(2)
    assert not asked, "the flags of these tests ask for eight"
    monkeypatch.delenv("XLA_FLAGS")
    split_cpu(1)
    assert not asked
    split_cpu(2)
    assert asked == [("jax_num_cpu_devices", 2)]
