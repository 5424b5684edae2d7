"""The zero-loss oracles, and the two-pass gradient against plain autodiff."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from oracles import GaussianData, LinearGaussian, QuadraticGaussian

import rtbjax
from rtbjax import schedules
from rtbjax.nets.mlp import PISNet
from rtbjax.process import sde, vp
from rtbjax.process.absorbing import absorbing
from rtbjax.sharding import data_mesh
from rtbjax.trajectory import log_prob, noise, rollout, score
from rtbjax.types import Policy


def trajectories(chain, key, batch=32):
    """Paths from the posterior, from the prior, widened, and noised from arbitrary data."""
    shape = (batch, *getattr(chain, "shape", (1,)))
    on_policy = rollout(key, chain.process, chain.prior, chain.exact, shape=shape)
    wide = rollout(key, chain.process, chain.prior, chain.exact, shape=shape, widen=0.7)
    prior = rollout(key, chain.process, chain.prior, shape=shape)
    noised = noise(key, chain.process, 3.0 * jax.random.normal(key, shape))
    noised = score(chain.process, chain.prior, noised, posterior=chain.exact)
    for name, paths in {"on_policy": on_policy, "wide": wide, "prior": prior, "noised": noised}.items():
        yield name, paths._replace(log_reward=chain.log_reward(paths.xs[-1]))


@pytest.mark.parametrize("chain", [LinearGaussian(), QuadraticGaussian()], ids=lambda c: type(c).__name__)
def test_exact_posterior_has_zero_loss_on_every_path(chain, key):
    for name, paths in trajectories(chain, key):
        params = {"policy": chain.exact.params, "log_z": jnp.float32(chain.log_z)}
        for log_z in ("learned", "vargrad"):
            value, info = rtbjax.loss(params, paths, process=chain.process, apply_fn=chain.exact.apply_fn, log_z=log_z)
            assert value < 1e-8, (name, log_z)
            np.testing.assert_allclose(info.gap, chain.log_z, atol=1e-3, err_msg=name)


def test_prior_is_not_the_posterior(key):
    chain = LinearGaussian()
    paths = rollout(key, chain.process, chain.prior, chain.prior, shape=(64, 2))
    paths = paths._replace(log_reward=chain.log_reward(paths.xs[-1]))
    value, _ = rtbjax.loss({"policy": chain.prior.params}, paths, process=chain.process, apply_fn=chain.prior_apply)
    assert value > 0.1


def random_case(key, num_steps=6):
    chain = LinearGaussian(num_steps=num_steps)
    params = {"policy": {"shift": jax.random.normal(key, (num_steps, 2))}, "log_z": jnp.float32(0.3)}
    posterior = Policy(params["policy"], chain.shifted_apply)
    paths = rollout(key, chain.process, chain.prior, posterior, shape=(16, 2), widen=0.3)
    return chain, params, paths._replace(log_reward=chain.log_reward(paths.xs[-1]))


def plain_loss(params, paths, chain, log_z):
    """The formula of the paper by plain autodiff through an unchunked scan, group means detached."""
    log_post = jnp.sum(log_prob(chain.process, Policy(params["policy"], chain.shifted_apply), paths.xs), axis=0)
    gap = jnp.sum(paths.log_prior, axis=0) - log_post + paths.log_reward
    z = params["log_z"] if log_z == "learned" else jax.lax.stop_gradient(jnp.mean(gap))
    return 0.5 * jnp.mean((z - gap) ** 2)


@pytest.mark.parametrize("log_z", ["learned", "vargrad"])
@pytest.mark.parametrize("chunk", [1, 3, 6])
def test_two_pass_gradient_is_plain_autodiff(key, log_z, chunk):
    chain, params, paths = random_case(key)
    expected = jax.grad(plain_loss)(params, paths, chain, log_z)
    for given in (paths, paths._replace(log_ratio=None)):
        actual, _ = jax.grad(rtbjax.loss, has_aux=True)(
            params, given, process=chain.process, apply_fn=chain.shifted_apply, log_z=log_z, chunk=chunk
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), actual, expected)


def test_finite_differences(key):
    chain, params, paths = random_case(key)
    paths = paths._replace(log_ratio=None)

    def value(params):
        params = jax.tree.map(jnp.asarray, params)
        return rtbjax.loss(params, paths, process=chain.process, apply_fn=chain.shifted_apply, log_z="learned")[0]

    check_grads(value, (params,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)


def test_gradients_of_bfloat16_parameters_are_summed_in_float32(key):
    """A thousand parts of one sign, of which a sum in bfloat16 would lose those below its last digit."""
    process = rtbjax.brownian_bridge(1000)
    prior = Policy({}, lambda params, x, t, cond: -x)
    paths = rtbjax.rollout(key, process, prior, shape=(8, 1))._replace(log_reward=jnp.zeros(8))
    paths = paths._replace(xs=jnp.broadcast_to(jnp.linspace(0.0, 50.0, 1001)[:, None, None], (1001, 8, 1)))

    def gradient(dtype):
        def apply_fn(params, x, t, cond):
            return -x + params["shift"].astype(jnp.float32)[None]

        params = {"policy": {"shift": jnp.asarray([0.5], dtype)}, "log_z": jnp.float32(0.0)}
        found, _ = jax.grad(rtbjax.loss, has_aux=True)(
            params, paths, process=process, apply_fn=apply_fn, log_z="learned"
        )
        return found["policy"]["shift"]

    low, high = gradient(jnp.bfloat16), gradient(jnp.float32)
    assert low.dtype == jnp.bfloat16 and high.dtype == jnp.float32
    np.testing.assert_allclose(low.astype(jnp.float32), high, rtol=2.0**-8)


def test_subsampled_gradient_is_unbiased_and_leaves_the_value(key):
    """Averaged over all C(6, 2) = 15 equally likely pairs of steps it must be the full gradient."""
    chain, params, paths = random_case(key)
    arguments = dict(process=chain.process, apply_fn=chain.shifted_apply, log_z="learned")
    full, _ = jax.grad(rtbjax.loss, has_aux=True)(params, paths, **arguments)
    seen = {}
    for seed in range(200):
        subkey = jax.random.key(seed)
        pair = frozenset(np.asarray(jax.random.choice(subkey, 6, (2,), replace=False)).tolist())
        if pair not in seen:
            (value, _), seen[pair] = jax.value_and_grad(rtbjax.loss, has_aux=True)(
                params, paths, grad_steps=2, key=subkey, **arguments
            )
            np.testing.assert_allclose(value, rtbjax.loss(params, paths, **arguments)[0], rtol=1e-6)
    assert len(seen) == 15
    mean = jax.tree.map(lambda *g: np.mean(np.stack(g), axis=0), *seen.values())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), mean, full)
    assert any(not np.allclose(g["policy"]["shift"], full["policy"]["shift"], rtol=1e-2) for g in seen.values())


@pytest.mark.parametrize("group", [None, 4, "ids"])
def test_vargrad_is_rtb_at_the_mean_gap_of_each_group(key, group):
    """Group by group it is the loss with a learned log Z that has found its best value, in value and gradient."""
    chain, params, paths = random_case(key)
    arguments = dict(process=chain.process, apply_fn=chain.shifted_apply)
    labels = np.arange(16) // 4 if group == 4 else np.asarray([0] * 4 + [1] * 8 + [2] * 4)
    labels = np.zeros(16, int) if group is None else labels
    ids = jnp.asarray(labels, jnp.int32) if group == "ids" else group
    differentiate = jax.value_and_grad(rtbjax.loss, has_aux=True)
    (value, info), gradient = differentiate(params, paths, group=ids, **arguments)
    total, total_gradient = 0.0, 0.0
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        some = paths._replace(
            xs=paths.xs[:, members],
            log_reward=paths.log_reward[members],
            log_prior=paths.log_prior[:, members],
            log_ratio=paths.log_ratio[:, members],
        )
        best = params | {"log_z": jnp.mean(info.gap[members])}
        (part, _), its_gradient = differentiate(best, some, log_z="learned", **arguments)
        np.testing.assert_allclose(its_gradient["log_z"], 0.0, atol=1e-5)  # It is the best value.
        total += len(members) / 16 * part
        total_gradient += len(members) / 16 * its_gradient["policy"]["shift"]
    np.testing.assert_allclose(value, total, rtol=1e-5)
    np.testing.assert_allclose(gradient["policy"]["shift"], total_gradient, rtol=1e-4, atol=1e-5)


def temporary_bytes(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_temporary_memory_does_not_grow_with_the_number_of_steps():
    def gradient_bytes(num_steps):
        chain = LinearGaussian(num_steps=num_steps, dim=8)

        def gradient(params, paths):
            return jax.grad(rtbjax.loss, has_aux=True)(
                params, paths, process=chain.process, apply_fn=chain.prior_apply
            )[0]

        paths = abstract_paths(chain.process, chain.prior, (256, 8))
        return temporary_bytes(gradient, {"policy": jax.eval_shape(lambda: chain.prior.params)}, paths)

    assert gradient_bytes(1000) <= 1.05 * gradient_bytes(100) + 16 * 1000


def abstract_paths(process, prior, shape):
    paths = jax.eval_shape(lambda key: rollout(key, process, prior, prior, shape=shape), jax.random.key(0))
    return paths._replace(log_reward=jax.ShapeDtypeStruct(shape[:1], jnp.float32))


def test_an_update_at_the_size_of_the_gaussian_mixture_grows_with_the_states_alone():
    """500 paths, a network of width 64, ten steps per call; the states are arguments, and no copy of them is made."""
    net = PISNet(features=2, width=64)
    weights = net.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.float32(0.0))
    prior = Policy(weights, lambda params, x, t, cond: net.apply(params, x, t))
    optimizer = rtbjax.optimizer(1e-3)

    def update_bytes(num_steps):
        process = sde.brownian_bridge(num_steps)
        objective = partial(rtbjax.loss, process=process, apply_fn=prior.apply_fn, chunk=10)
        update = rtbjax.make_update(objective, optimizer, data_mesh(1))
        paths = abstract_paths(process, prior, (500, 2))
        state = jax.eval_shape(lambda: rtbjax.init_state({"policy": weights}, optimizer))
        return temporary_bytes(update, state, paths, jax.eval_shape(lambda: jax.random.key(0)))

    assert update_bytes(1000) <= 1.05 * update_bytes(100)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(grad_steps=7, key=jax.random.key(0)), "1..6"),
        (dict(grad_steps=0, key=jax.random.key(0)), "1..6"),
        (dict(grad_steps=2), "needs a key"),
        (dict(chunk=4), r"\[1, 2, 3, 6\]"),
        (dict(group=1), "at least 2"),
        (dict(group=5), "divide the 16"),
        (dict(log_z="learnt"), "learnt"),
    ],
)
def test_bad_arguments_say_what_is_allowed(key, arguments, message):
    chain, params, paths = random_case(key)
    with pytest.raises(ValueError, match=message):
        rtbjax.loss(params, paths, process=chain.process, apply_fn=chain.shifted_apply, **arguments)


def test_a_path_alone_in_its_group_poisons_the_loss(key):
    chain, params, paths = random_case(key)
    group = jnp.asarray([0] * 15 + [1], jnp.int32)
    value, _ = rtbjax.loss(params, paths, process=chain.process, apply_fn=chain.shifted_apply, group=group)
    assert np.isnan(value)


@pytest.mark.parametrize("devices", [1, 4])
def test_a_group_of_different_conditions_is_a_step_that_is_skipped_and_counted(key, devices):
    """Within an update all is traced, and no error can be raised."""
    chain, params, paths = random_case(key)
    params.pop("log_z", None)
    loss = partial(rtbjax.loss, process=chain.process, apply_fn=chain.shifted_apply, group=4)
    mesh, rule = data_mesh(devices), rtbjax.optimizer(1e-3)
    update = rtbjax.make_update(loss, rule, mesh)
    number = jnp.arange(16)
    for cond, skipped in (
        (number // 4, 0),
        ({"label": number // 4, "seen": jnp.ones((16, 2), bool)}, 0),
        (number // 2, 1),
        ({"label": number // 4, "seen": (number == 3)[:, None] & jnp.ones((16, 2), bool)}, 1),
    ):
        state = rtbjax.init_state(params, rule, mesh)
        state, info = update(state, paths._replace(cond=cond), key)
        assert state.skipped == skipped and np.isnan(info.loss) == bool(skipped)


def test_parameters_without_their_name_are_an_error(key):
    chain, params, paths = random_case(key)
    for bare in (params["policy"], jnp.zeros(3)):
        for call in (
            lambda bare=bare: rtbjax.init_state(bare, rtbjax.optimizer(1e-3)),
            lambda bare=bare: rtbjax.loss(bare, paths, process=chain.process, apply_fn=chain.shifted_apply),
        ):
            with pytest.raises(ValueError, match='must be {"policy": posterior.params}, with "log_z" if it is learned'):
                call()


def test_a_module_that_is_not_all_arrays_is_an_error_that_names_the_rest():
    module = eqx.nn.MLP(2, 2, 4, 1, activation=jax.nn.gelu, key=jax.random.key(0))
    named = r"params\['policy'\].activation is a \w+; of an Equinox module, take .* eqx.partition"
    with pytest.raises(ValueError, match=named):
        rtbjax.init_state({"policy": module}, rtbjax.optimizer(1e-3))
    params, _ = eqx.partition(module, eqx.is_inexact_array)
    rtbjax.init_state({"policy": params}, rtbjax.optimizer(1e-3))


def test_truth_values_are_no_reward(key):
    chain, params, paths = random_case(key)
    paths = paths._replace(log_reward=paths.xs[-1][:, 0] > 0)
    with pytest.raises(ValueError, match="truth values, not log r: jnp.where"):
        rtbjax.loss(params, paths, process=chain.process, apply_fn=chain.shifted_apply, log_z="learned")


def test_missing_reward_is_an_error(key):
    chain, params, paths = random_case(key)
    with pytest.raises(ValueError, match="log_reward"):
        rtbjax.loss(params, paths._replace(log_reward=None), process=chain.process, apply_fn=chain.shifted_apply)


@pytest.mark.parametrize(
    "field, axis, message",
    [
        ("log_reward", -1, r"log_reward must have shape \(16,\), got \(16, 1\)"),
        ("log_prior", -1, r"log_prior must have shape \(6, 16\), got \(6, 16, 1\)"),
        ("log_ratio", -1, r"log_ratio must have shape \(6, 16\), got \(6, 16, 1\)"),
        ("log_ratio", None, r"log_ratio must have shape \(6, 16\), got \(16,\)"),
    ],
)
def test_an_array_of_another_shape_is_an_error_and_not_broadcast(key, field, axis, message):
    """A log_reward[B, 1] would make the gap [B, B], where promotion of ranks is allowed, as it is by default."""
    chain, params, paths = random_case(key)
    value = getattr(paths, field)
    paths = paths._replace(**{field: value.sum(0) if axis is None else jnp.expand_dims(value, axis)})
    with jax.numpy_rank_promotion("allow"), pytest.raises(ValueError, match=message):
        rtbjax.loss(params, paths, process=chain.process, apply_fn=chain.shifted_apply)


def test_apply_fn_may_close_over_traced_base_parameters(key):
    """A frozen base can be an argument of the jitted update, not a constant baked into it."""
    chain, params, paths = random_case(key)

    @jax.jit
    def gradient(base, params):
        def apply_fn(p, x, t, cond):
            return chain.shifted_apply(p, x, t, cond) + 0.0 * base["b"][None, :]

        return jax.grad(rtbjax.loss, has_aux=True)(params, paths, process=chain.process, apply_fn=apply_fn)[0]

    expected, _ = jax.grad(rtbjax.loss, has_aux=True)(
        params, paths, process=chain.process, apply_fn=chain.shifted_apply
    )
    actual = gradient(chain.prior.params, params)
    np.testing.assert_allclose(actual["policy"]["shift"], expected["policy"]["shift"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["ddpm", "ve"])
def test_denoising_loss_is_least_at_the_optimal_denoiser(key, kind):
    """For Gaussian data the optimum is known; any shift of it costs more, on the same noise."""
    data = GaussianData()
    alpha_bar = schedules.cosine_alpha_bar()
    if kind == "ddpm":
        process = vp.ddpm(schedules.respace(alpha_bar, 10), prediction="sample", min_std=0.05)
        policy = data.vp(alpha_bar, "sample")
    else:
        process = sde.variance_exploding(schedules.geometric_sigma(10, 5.0, 0.1), prediction="sample", min_std=0.05)
        policy = data.ve()
    x0 = data.mean + data.std * jax.random.normal(key, (4096, 1))

    def loss(shift):
        shifted = Policy({}, lambda params, x, t, cond: policy(x, t, cond) + shift)
        return jnp.mean(rtbjax.denoising_loss(key, process, shifted, x0))

    values = jax.jit(jax.vmap(loss))(jnp.asarray([-0.05, 0.0, 0.05]))
    assert values[1] < values[0] and values[1] < values[2]


def test_denoising_loss_is_the_divergence_of_all_steps(key):
    """A drift to the only datum, off by its own amount at every step, which costs ``(off dt)^2 / (2 diffusion dt)``."""
    diffusion, off = 1.5, np.array([0.5, -1.0, 2.0, 0.25])
    process, datum = sde.brownian_bridge(4, diffusion), 0.7

    def drift(params, x, t, cond):
        return (datum - x) / (1.0 - t) + params[process.step_at(t)]

    policy = Policy(jnp.asarray(off, jnp.float32), drift)
    found = jax.jit(lambda key: rtbjax.denoising_loss(key, process, policy, jnp.full((8, 1), datum)))(key)
    # Of 8 paths two are asked for each step.
    np.testing.assert_allclose(found.mean(), np.sum(off**2) / 4 / (2.0 * diffusion), rtol=1e-4)


def test_denoising_loss_of_a_masked_chain_is_least_at_the_conditionals(key):
    process = absorbing(schedules.linear_mask_rate(4), 3)
    x0 = jax.random.categorical(key, jnp.log(jnp.asarray([0.5, 0.3, 0.2])), shape=(4096, 1)).astype(jnp.int32)

    def loss(logits):
        policy = Policy(logits, lambda params, x, t, cond: jnp.broadcast_to(params, (*x.shape, 3)))
        return jnp.mean(rtbjax.denoising_loss(key, process, policy, x0))

    counts = jnp.bincount(x0[:, 0], length=3)
    gradient = jax.grad(loss)(jnp.log(counts.astype(jnp.float32)))
    # The noise masks a random subset, whose frequencies differ from the whole by 1 / sqrt(4096).
    assert float(jnp.abs(gradient).max()) < 0.1
    assert float(jnp.abs(jax.grad(loss)(jnp.zeros(3))).max()) > 0.1


def test_denoising_loss_asks_for_the_prior_it_builds_on(key):
    chain = LinearGaussian()
    policy = Policy({}, lambda params, x, t, cond, features: features, lambda output, x, t, cond: output)
    with pytest.raises(ValueError, match="prior="):
        rtbjax.denoising_loss(key, chain.process, policy, jnp.zeros((4, 2)))
    given = rtbjax.denoising_loss(key, chain.process, policy, jnp.ones((4, 2)), prior=chain.prior)
    plain = rtbjax.denoising_loss(key, chain.process, chain.prior, jnp.ones((4, 2)))
    np.testing.assert_allclose(given, plain, rtol=1e-6)
