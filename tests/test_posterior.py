"""Parametrisations start exactly at the prior and can leave it; low-rank adapters."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import LinearGaussian

import rtbjax
from rtbjax import behaviour, lora
from rtbjax import posterior as parametrise
from rtbjax.process import sde
from rtbjax.sharding import data_mesh
from rtbjax.train import make_rollout
from rtbjax.trajectory import log_prob, rollout, score
from rtbjax.types import LearnedStd, Policy, Steered

PROCESS = sde.brownian_bridge(5, 2.0)


class Drift(nn.Module):
    """A network with nested parameters."""

    @nn.compact
    def __call__(self, x, t):
        return nn.Dense(2, name="out")(nn.tanh(nn.Dense(4, name="inner")(x) + t))


NET = Drift()
PARAMS = NET.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.float32(0.0))
PRIOR = Policy(PARAMS, lambda params, x, t, cond: NET.apply(params, x, t))


def log_reward(x, cond):
    return jnp.sum(-0.5 * x**2, axis=-1)


def head(params, x, t, cond):
    return params["scale"][None, :] * (1.0 + x)


def change(params, x, t, cond, seen):
    return seen @ params["kernel"]


ZEROS = {"kernel": jnp.zeros((2, 2))}
HEAD = {"scale": jnp.zeros(2)}


def langevin(base):
    return parametrise.langevin(base, jnp.zeros(2), lambda p, t: p[None, :] * (1.0 + t), log_reward)


def correction(look=None):
    return parametrise.correction(ZEROS, change, look=look)


PARAMETRISATIONS = {
    "full copy": lambda: parametrise.full_copy(PRIOR),
    "lora": lambda: parametrise.lora(jax.random.key(1), PRIOR, rank=2),
    "correction": correction,
    "correction that looks": lambda: correction(lambda output, x, t, cond: output * x),
    "langevin": lambda: langevin(parametrise.full_copy(PRIOR)),
    "langevin on a correction": lambda: langevin(correction()),
    "learned std": lambda: parametrise.learned_std(parametrise.full_copy(PRIOR), HEAD, head),
    "learned std on langevin on a correction": lambda: parametrise.learned_std(langevin(correction()), HEAD, head),
    "step std": lambda: parametrise.step_std(parametrise.full_copy(PRIOR), PROCESS, (1,)),
    "langevin on learned std": lambda: langevin(parametrise.learned_std(parametrise.full_copy(PRIOR), HEAD, head)),
}


@pytest.mark.parametrize("make", PARAMETRISATIONS.values(), ids=PARAMETRISATIONS.keys())
def test_starts_exactly_at_the_prior_and_every_part_can_leave_it(make):
    policy = make()

    @jax.jit
    def run(key):
        def follow(params):
            return rollout(key, PROCESS, PRIOR, policy.replace(params=params), shape=(8, 2))

        paths = follow(policy.params)._replace(log_reward=jnp.arange(8.0))
        gradient, info = jax.grad(rtbjax.loss, has_aux=True)(
            {"policy": policy.params}, paths, process=PROCESS, apply_fn=policy.apply_fn
        )
        moved = jax.tree.map(lambda p, g: p - 0.01 * g, policy.params, gradient["policy"])
        return paths, gradient["policy"], info, follow(moved)

    paths, gradient, info, after = run(jax.random.key(0))
    # To the last bit or two: XLA may fuse two equal expressions differently (full copies are tested for exact zeros).
    np.testing.assert_allclose(paths.log_ratio, np.zeros((5, 8)), atol=1e-6)
    np.testing.assert_allclose(info.gap, paths.log_reward, atol=1e-6)
    assert np.abs(np.asarray(after.log_ratio)).max() > 1e-4
    # LoRA's A has no gradient while B is zero; everything else that is trainable has one.
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 1e-5 or jax.tree_util.keystr(path).endswith("['a']"), path


def score_of(params, x, t, cond, output):
    return x @ params["kernel"]


ALONE = PARAMETRISATIONS | {"steered": lambda: parametrise.steered(ZEROS, change)}


@pytest.mark.parametrize("make", ALONE.values(), ids=ALONE.keys())
def test_a_posterior_that_stands_alone_is_the_same_one_and_a_prior_of_the_next(make, key):
    policy = make()
    moved = policy.replace(params=jax.tree.map(lambda p: p + 0.1, policy.params))
    alone = parametrise.standalone(PRIOR, moved)
    second = parametrise.steered({"kernel": jnp.full((2, 2), 0.2)}, score_of)

    @jax.jit
    def run(key):
        beside = rollout(key, PROCESS, PRIOR, moved, shape=(8, 2))
        return beside, rollout(key, PROCESS, alone, shape=(8, 2)), rollout(key, PROCESS, alone, second, shape=(8, 2))

    beside, paths, further = run(key)
    np.testing.assert_allclose(paths.xs, beside.xs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(paths.log_prior, beside.log_prior - beside.log_ratio, rtol=1e-4, atol=1e-4)
    assert alone.look is None and np.abs(np.asarray(further.log_ratio)).max() > 1e-3
    # The mean of a step moves by its variance times the score, on top of what moved it before.
    twice = parametrise.standalone(alone, second)
    law, own = (
        PROCESS.reverse(p(jnp.ones((1, 2)), PROCESS.time(2), None), jnp.ones((1, 2)), 2) for p in (twice, alone)
    )
    np.testing.assert_allclose(law.mean - own.mean, own.std**2 * 0.4 * jnp.ones((1, 2)), rtol=1e-4)


@pytest.mark.parametrize("shape", [(1,), (2,), ()])
def test_what_builds_on_learned_variances_carries_them_for_each_sample(shape, key):
    """Over devices and in batches of several origins."""
    table = {"log_std": jnp.full((PROCESS.num_steps, *shape), 0.3)}

    def head(table, x, t, cond):
        number = table["log_std"][PROCESS.step_at(t)]
        return number[None] if shape else number

    prior = parametrise.standalone(PRIOR, parametrise.learned_std(parametrise.full_copy(PRIOR), table, head))
    second = parametrise.steered({"kernel": jnp.full((2, 2), 0.2)}, score_of)
    paths = make_rollout(PROCESS, (8, 2), data_mesh(2))(key, prior, second)._replace(log_reward=jnp.arange(8.0))
    assert all(leaf.shape[:2] == (5, 8) for leaf in jax.tree.leaves(paths.features))
    again = behaviour.mix(paths, paths)
    whole = score(PROCESS, prior, again.xs, None, second)
    np.testing.assert_allclose(whole.log_ratio, again.log_ratio, rtol=1e-4, atol=1e-5)
    value, _ = rtbjax.loss({"policy": second.params}, again, process=PROCESS, apply_fn=second.apply_fn)
    assert np.isfinite(value)


def test_a_prior_that_builds_on_another_says_how_to_stand_alone(key):
    for arguments in ((), (parametrise.full_copy(PRIOR),)):
        with pytest.raises(ValueError, match="builds on a prior of its own: .*posterior.standalone"):
            rollout(key, PROCESS, correction(), *arguments, shape=(8, 2))


def test_a_full_copy_is_not_the_prior_itself():
    copy = parametrise.full_copy(PRIOR)
    same = jax.tree.map(lambda a, b: a is b, copy.params, PRIOR.params)
    assert not any(jax.tree.leaves(same))
    jax.tree.map(np.testing.assert_array_equal, copy.params, PRIOR.params)


def test_a_function_among_the_parameters_cannot_be_trained_in_full():
    module = eqx.nn.MLP(2, 2, 3, 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="activation is a function: keep the arrays alone"):
        parametrise.full_copy(Policy(module, lambda module, x, t, cond: jax.vmap(module)(x)))


@pytest.mark.parametrize("again", [parametrise.full_copy, lambda base: parametrise.lora(jax.random.key(1), base, 1)])
def test_a_policy_that_looks_at_the_prior_still_does_when_it_is_trained_anew(again):
    params = {"kernel": jax.random.normal(jax.random.key(0), (2, 2))}
    base = parametrise.correction(params, lambda params, x, t, cond, seen: seen @ params["kernel"])
    chain = LinearGaussian(num_steps=3)
    first, second = (
        rollout(jax.random.key(0), chain.process, chain.prior, policy, shape=(4, 2)) for policy in (base, again(base))
    )
    assert np.abs(first.log_ratio).max() > 0.01
    np.testing.assert_allclose(second.log_ratio, first.log_ratio, rtol=1e-6)


@pytest.mark.parametrize("std", [False, True])
@pytest.mark.parametrize("kind", ["correction", "langevin"])
def test_a_change_that_would_be_broadcast_is_refused(kind, std, key):
    """Of a head of one output, all dimensions would move alike."""
    x, t = jnp.ones((4, 2)), jnp.float32(0.3)
    base = parametrise.learned_std(parametrise.full_copy(PRIOR), {"scale": jnp.zeros(2)}, head) if std else PRIOR
    output = base(x, t, None)
    if kind == "correction":
        policy = parametrise.correction({}, lambda params, x, t, cond, seen: x[:, :1])
    else:
        policy = parametrise.langevin(base, {}, lambda params, t: jnp.ones((3, 4, 2)), log_reward)
    message = r"The change of the network's output must have shape \(4, 2\), got"
    with jax.numpy_rank_promotion("allow"), pytest.raises(ValueError, match=message):
        policy(x, t, None, policy.look(output, x, t, None))


def test_langevin_adds_the_scaled_gradient_of_log_r():
    """Of log r = -|x|^2 / 2 that is -x, clipped at 1.5 per entry; the scale may depend on time."""
    policy = parametrise.langevin(
        parametrise.full_copy(PRIOR), jnp.float32(0.5), lambda p, t: p * (1.0 + t), log_reward, clip=1.5
    )
    x, t = jnp.asarray([[1.0, -7.0], [0.2, 0.4]]), jnp.float32(0.25)
    output = PRIOR(x, t, None)
    added = policy(x, t, None, policy.look(output, x, t, None)) - output
    np.testing.assert_allclose(added, 0.5 * 1.25 * np.asarray([[-1.0, 1.5], [-0.2, -0.4]]), rtol=1e-5, atol=1e-6)


def test_langevin_asks_the_reward_with_the_condition_and_one_sample_does_not_see_another():
    policy = parametrise.langevin(
        parametrise.full_copy(PRIOR), jnp.float32(1.0), lambda p, t: p, lambda x, cond: jnp.sum(x * cond, axis=-1)
    )
    x, cond = jnp.ones((2, 2)), jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    seen = policy.look(PRIOR(x, jnp.float32(0.0), cond), x, jnp.float32(0.0), cond)
    np.testing.assert_array_equal(seen["gradient"], cond)


def test_learned_std_changes_the_std_only():
    policy = parametrise.learned_std(parametrise.full_copy(PRIOR), {"scale": jnp.asarray([0.3, -0.2])}, head)
    x, t, i = jnp.asarray([[1.0, 3.0]]), jnp.float32(0.4), jnp.int32(2)
    law, base = PROCESS.reverse(policy(x, t, None), x, i), PROCESS.reverse(PRIOR(x, t, None), x, i)
    np.testing.assert_array_equal(law.mean, base.mean)
    np.testing.assert_allclose(law.std / base.std, np.exp([[0.3 * 2.0, -0.2 * 4.0]]), rtol=1e-5)


@pytest.mark.parametrize("shape, factors", [((1,), [0.3]), ((2,), [0.3, -0.2])])
def test_step_std_changes_the_std_of_one_step(shape, factors):
    policy = parametrise.step_std(parametrise.full_copy(PRIOR), PROCESS, shape)
    table = policy.params["log_std"]["log_std"].at[2].set(jnp.asarray(factors))
    policy = policy.replace(params=policy.params | {"log_std": {"log_std": table}})
    x = jnp.asarray([[1.0, 3.0], [0.0, 2.0]])
    for i, expected in ((1, np.ones((2, 2))), (2, np.exp(np.broadcast_to(factors, (2, 2))))):
        t = PROCESS.time(jnp.int32(i))
        law, base = PROCESS.reverse(policy(x, t, None), x, i), PROCESS.reverse(PRIOR(x, t, None), x, i)
        np.testing.assert_array_equal(law.mean, base.mean)
        np.testing.assert_allclose(np.broadcast_to(law.std / base.std, (2, 2)), expected, rtol=1e-5)


@pytest.mark.parametrize("steered", [False, True])
def test_learned_std_on_a_prior_that_has_one_adds_to_it(steered):
    """Also where the output is steered, whose push grows with the variance: one of zero leaves the mean."""

    def apply_fn(params, x, t, cond):
        output = LearnedStd(NET.apply(params, x, t), 0.1 + 0.0 * x)
        return Steered(output, jnp.zeros_like(x)) if steered else output

    prior = Policy(PARAMS, apply_fn)
    policy = parametrise.learned_std(parametrise.full_copy(prior), {"scale": jnp.asarray([0.3, 0.3])}, head)
    x, t, i = jnp.zeros((1, 2)), jnp.float32(0.4), jnp.int32(2)
    law, base = PROCESS.reverse(policy(x, t, None), x, i), PROCESS.reverse(prior(x, t, None), x, i)
    np.testing.assert_array_equal(law.mean, base.mean)
    np.testing.assert_allclose(law.std / base.std, np.exp(0.3) * np.ones((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("kind", ["correction", "langevin"])
def test_gradient_with_features_is_that_of_a_policy_that_runs_the_prior_itself(kind):
    """The same posterior written as one function of the state: rollout, scores and gradients agree."""
    seen_by = {"kernel": 0.3 * jax.random.normal(jax.random.key(2), (2, 2))}
    if kind == "correction":
        policy = parametrise.correction(seen_by, change, look=lambda output, x, t, cond: output * x)

        def plain_fn(params, x, t, cond):
            output = PRIOR(x, t, cond)
            return output + (output * x) @ params["kernel"]

    else:
        policy = langevin(parametrise.full_copy(PRIOR))
        policy = policy.replace(params=policy.params | {"scale": jnp.asarray([0.4, -0.3])})

        def plain_fn(params, x, t, cond):
            return NET.apply(params["base"], x, t) - x * params["scale"][None, :] * (1.0 + t)

    @jax.jit
    def run(key):
        paths = rollout(key, PROCESS, PRIOR, policy, shape=(8, 2))._replace(log_reward=jnp.arange(8.0))
        two_pass, _ = jax.grad(rtbjax.loss, has_aux=True)(
            {"policy": policy.params}, paths, process=PROCESS, apply_fn=policy.apply_fn
        )

        def plain_loss(params):
            log_post = jnp.sum(log_prob(PROCESS, Policy(params, plain_fn), paths.xs), axis=0)
            gap = jnp.sum(paths.log_prior, axis=0) - log_post + paths.log_reward
            return 0.5 * jnp.mean((jax.lax.stop_gradient(jnp.mean(gap)) - gap) ** 2)

        return (
            paths.log_ratio,
            score(PROCESS, PRIOR, paths.xs, posterior=Policy(policy.params, plain_fn)).log_ratio,
            two_pass["policy"],
            jax.grad(plain_loss)(policy.params),
        )

    log_ratio, plain_ratio, two_pass, plain = run(jax.random.key(0))
    assert np.abs(np.asarray(log_ratio)).max() > 0.01
    np.testing.assert_allclose(log_ratio, plain_ratio, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), two_pass, plain)


# Low-rank adapters


def tree():
    rng = np.random.default_rng(0)

    def leaf(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "params": {
            "conv": {"kernel": leaf(3, 3, 2, 4), "bias": leaf(4)},
            "block": {"dense": {"kernel": leaf(5, 6), "bias": leaf(6)}},
        }
    }


def test_adapters_start_at_the_base_and_cover_every_kernel():
    adapters = lora.init(jax.random.key(0), tree(), rank=2)
    shapes = jax.tree.map(jnp.shape, adapters, is_leaf=lambda x: hasattr(x, "shape"))
    assert shapes == {
        "params/conv/kernel": {"a": (18, 2), "b": (2, 4)},
        "params/block/dense/kernel": {"a": (5, 2), "b": (2, 6)},
    }
    jax.tree.map(np.testing.assert_array_equal, lora.merge(tree(), adapters, 7.0), tree())
    first, second = (adapters[path]["a"].ravel()[:10] for path in adapters)
    assert np.abs(first - second).min() > 1e-6  # independent keys


def test_merge_adds_the_scaled_product_of_the_factors():
    """Entry by entry, with the convolution's leading axes as one."""
    base, rank, alpha = tree(), 2, 6.0
    rng = np.random.default_rng(1)
    adapters = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), lora.init(jax.random.key(0), base, rank)
    )
    merged = lora.merge(base, adapters, alpha)["params"]
    a, b = (np.asarray(adapters["params/conv/kernel"][name], np.float64) for name in "ab")
    change = np.asarray(merged["conv"]["kernel"] - base["params"]["conv"]["kernel"])
    for row, col, channel, feature in np.ndindex(3, 3, 2, 4):
        expected = alpha / rank * sum(a[(row * 3 + col) * 2 + channel, k] * b[k, feature] for k in range(rank))
        np.testing.assert_allclose(change[row, col, channel, feature], expected, rtol=1e-4, atol=1e-5)
    a, b = (np.asarray(adapters["params/block/dense/kernel"][name], np.float64) for name in "ab")
    change = np.asarray(merged["block"]["dense"]["kernel"] - base["params"]["block"]["dense"]["kernel"])
    np.testing.assert_allclose(change, 3.0 * a @ b, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(merged["conv"]["bias"], base["params"]["conv"]["bias"])


def test_select_chooses_by_path_and_keeps_the_base_dtype():
    base = tree()
    base["params"]["conv"]["kernel"] = base["params"]["conv"]["kernel"].astype(jnp.bfloat16)
    adapters = lora.init(jax.random.key(0), base, rank=1, select=r"^params/conv")
    assert list(adapters) == ["params/conv/kernel"]
    moved = lora.merge(base, jax.tree.map(jnp.ones_like, adapters))
    assert moved["params"]["conv"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        moved["params"]["block"]["dense"]["kernel"], base["params"]["block"]["dense"]["kernel"]
    )


def test_alpha_defaults_to_the_rank():
    for alpha, strength in ((None, 1.0), (6.0, 2.0)):
        policy = parametrise.lora(jax.random.key(1), PRIOR, rank=3, alpha=alpha)
        ones = jax.tree.map(jnp.ones_like, policy.params)
        x = jnp.ones((1, 2))
        explicit = jax.tree.map(lambda w, s=strength: w + 3.0 * s if w.ndim == 2 else w, PARAMS)
        np.testing.assert_allclose(
            policy.replace(params=ones)(x, jnp.float32(0.3), None), NET.apply(explicit, x, jnp.float32(0.3)), rtol=1e-5
        )


def any_tree(kind):
    """Parameters with two kernels, and a function of them that is linear in both."""
    first, second = jax.random.normal(jax.random.key(5), (2, 3, 3))
    if kind == "list":
        return [first, [second]], lambda p, x: x @ p[0] @ p[1][0], ["0", "1/0"]
    if kind == "dict holding a list":
        return {"w": [first, second], "bias": None}, lambda p, x: x @ p["w"][0] @ p["w"][1], ["w/0", "w/1"]
    module = eqx.nn.MLP(3, 3, 3, 1, use_bias=False, use_final_bias=False, key=jax.random.key(5))
    module = eqx.tree_at(lambda m: (m.layers[0].weight, m.layers[1].weight), module, (first, second))
    if kind == "equinox arrays":
        module = eqx.filter(module, eqx.is_array)
    return module, lambda p, x: x @ p.layers[0].weight @ p.layers[1].weight, ["layers/0/weight", "layers/1/weight"]


@pytest.mark.parametrize("kind", ["list", "dict holding a list", "equinox", "equinox arrays"])
def test_adapters_of_any_tree(kind):
    """Also of an Equinox module with its functions still in it: what is no floating-point matrix is left alone."""
    params, apply, names = any_tree(kind)
    adapters = lora.init(jax.random.key(0), params, rank=3)
    assert list(adapters) == names
    x = jnp.ones((1, 3))
    np.testing.assert_array_equal(apply(lora.merge(params, adapters), x), apply(params, x))
    # With A the identity, B is the change itself: full rank can turn the second kernel into the identity.
    second = jax.tree.leaves(eqx.filter(params, eqx.is_array))[1]
    adapters[names[1]] = {"a": jnp.eye(3), "b": jnp.eye(3) - second}
    merged = lora.merge(params, adapters, alpha=3.0)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    first = jax.tree.leaves(eqx.filter(params, eqx.is_array))[0]
    np.testing.assert_allclose(apply(merged, x), x @ first, rtol=1e-5)


def test_an_adapter_of_another_tree_is_an_error():
    with pytest.raises(ValueError, match=r"no kernel at \['params/conv/kernel'\]"):
        lora.merge([jnp.zeros((2, 2))], {"params/conv/kernel": {"a": jnp.zeros((2, 1)), "b": jnp.zeros((1, 2))}})


def test_a_prior_that_is_an_argument_is_not_baked_into_the_program():
    """Adapted inside the jitted function, the frozen parameters are a traced argument of it like any other."""
    policy = parametrise.lora(jax.random.key(1), PRIOR, rank=2)

    @jax.jit
    def output(frozen, adapters, x):
        inner = parametrise.lora(jax.random.key(1), PRIOR.replace(params=frozen), rank=2)
        return inner.replace(params=adapters)(x, jnp.float32(0.3), None)

    x, twice = jnp.ones((1, 2)), jax.tree.map(lambda w: 2.0 * w, PARAMS)
    for frozen in (PARAMS, twice):
        expected = NET.apply(frozen, x, jnp.float32(0.3))
        np.testing.assert_allclose(output(frozen, policy.params, x), expected, rtol=1e-5)


def test_lora_errors():
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        lora.init(jax.random.key(0), tree(), rank=0)
    with pytest.raises(ValueError, match="No kernel's path matches 'attention'.*params/block/dense"):
        lora.init(jax.random.key(0), tree(), rank=2, select="attention")
    with pytest.raises(ValueError, match=r"select must be a regular expression, got '\(': missing \)"):
        lora.init(jax.random.key(0), tree(), rank=2, select="(")
    with pytest.raises(ValueError, match="'bias'"):  # matches, but is no matrix
        parametrise.lora(jax.random.key(0), PRIOR, rank=2, select="bias")


def test_steering_by_the_exact_value_is_the_exact_posterior(key):
    chain = LinearGaussian()
    steps = chain.num_steps
    # In units of score: the drift's shift, over the diffusion per unit time.
    slopes = chain.exact_shift["shift"] / 1.5

    def log_h(params, x, t, cond):
        return x @ params["slope"][jnp.round(t * steps).astype(jnp.int32)]

    steered = parametrise.value_guided({"slope": slopes}, log_h)
    paths = rollout(key, chain.process, chain.prior, steered, shape=(16, 2))
    paths = paths._replace(log_reward=chain.log_reward(paths.xs[-1]))
    arguments = dict(process=chain.process, apply_fn=steered.apply_fn)
    value, info = rtbjax.loss({"policy": steered.params}, paths, **arguments)
    assert value < 1e-8
    np.testing.assert_allclose(info.gap, chain.log_z, atol=1e-3)
    # And balance can train the value: away from the optimum its gradient is not zero.
    other = {"policy": {"slope": jnp.zeros_like(slopes)}}
    gradient, _ = jax.grad(rtbjax.loss, has_aux=True)(other, paths._replace(log_ratio=None), **arguments)
    assert float(jnp.abs(gradient["policy"]["slope"]).max()) > 0.01
