"""Sources of paths: accepted prior paths are exact, noised ones end where they should, mixtures join."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import LinearGaussian, QuadraticGaussian, assert_moments

from rtbjax import posterior as parametrise
from rtbjax.behaviour import accept, mix, renoise
from rtbjax.process.absorbing import one_by_one
from rtbjax.trajectory import noise, rollout, sample_keys, score
from rtbjax.types import Policy, Trajectory

CHAIN = QuadraticGaussian()


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_accepted_prior_paths_are_exact_posterior_paths(beta):
    """Of 60,000 prior paths the accepted have the closed-form moments, at the end and on the way."""
    chain, prior = CHAIN.tempered(beta), CHAIN.tempered(0.0)

    @jax.jit
    def run(key):
        paths = rollout(key, CHAIN.process, CHAIN.prior, shape=(60_000, 1))
        kept = accept(jax.random.fold_in(key, 1), CHAIN.log_reward(paths.xs[-1]), CHAIN.log_bound, beta=beta)
        return paths.xs, kept, rollout(key, chain.process, chain.exact, shape=(60_000, 1)).xs[4]

    xs, kept, exact_middle = jax.device_get(run(jax.random.key(0)))
    assert kept.dtype == np.bool_ and kept.sum() > 10_000
    assert abs(chain.mean - prior.mean) > 0.1 and chain.std < 0.9 * prior.std
    assert_moments(xs[-1][kept], chain.mean, chain.std)
    assert_moments(xs[4][kept], exact_middle.mean(0), exact_middle.std(0), standard_errors=6.0)
    # And the rate of acceptance is Z / R^beta.
    rate = np.exp(chain.log_z - beta * CHAIN.log_bound)
    assert abs(kept.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / 60_000)


def test_acceptance_has_the_declared_probability_and_depends_on_the_global_index():
    """5 standard errors of 20,000 coin flips are 0.018."""
    log_reward = jnp.log(jnp.repeat(jnp.asarray([0.0, 0.5, 2.0]), 20_000))
    kept = np.asarray(accept(jax.random.key(0), log_reward, np.log(2.0), beta=0.5)).reshape(3, -1)
    assert kept[0].sum() == 0 and kept[2].all()
    assert abs(kept[1].mean() - 0.5) < 0.018
    some = accept(jax.random.key(0), log_reward[30_000:30_050], np.log(2.0), beta=0.5, index=30_000 + jnp.arange(50))
    np.testing.assert_array_equal(some, kept.ravel()[30_000:30_050])


def test_rewards_above_their_bound_are_refused():
    """All of them would be kept, as if they were no better than the bound."""
    assert accept(jax.random.key(0), jnp.full(4, 1.00005), 1.0).all()  # A rounding.
    assert accept(jax.random.key(0), [1.0, -1000.0], 1.0).tolist() == [True, False]
    with pytest.raises(ValueError, match="log_reward reaches 3.0000, beyond its declared bound 1.0000"):
        accept(jax.random.key(0), jnp.asarray([0.0, 3.0]), 1.0)


def test_a_path_is_not_accepted_for_a_uniform_number_that_is_zero():
    """One in 2^23 float32 uniforms is, and this sample's is one of them; 5e-14 of the samples should be accepted."""
    key, index = jax.random.key(0), jnp.asarray([15_405_709], jnp.int32)
    assert jax.vmap(jax.random.uniform)(sample_keys(key, index)) == 0.0
    for log_reward, kept in ((-30.0, False), (-jnp.inf, False), (0.0, True)):
        assert accept(key, jnp.asarray([log_reward]), 0.0, index=index) == kept


def test_rewards_of_another_shape_are_errors():
    column = jnp.zeros((8, 1))
    with pytest.raises(ValueError, match=r"log_reward must have shape \(B,\), got \(8, 1\)"):
        accept(jax.random.key(0), column, 0.0)
    with pytest.raises(ValueError, match=r"index must have shape \(8,\), got \(3,\)"):
        accept(jax.random.key(0), column[:, 0], 0.0, index=jnp.arange(3))
    chain = LinearGaussian(num_steps=6)
    with pytest.raises(ValueError, match=r"log_reward must have shape \(8,\), got \(8, 1\)"):
        renoise(jax.random.key(0), chain.process, chain.prior, None, jnp.zeros((8, 2)), column)


def test_data_of_another_dtype_than_the_states_are_refused():
    chain, pixels = LinearGaussian(num_steps=6), jnp.zeros((8, 2), jnp.uint8)
    with pytest.raises(ValueError, match="x0 must be float32, as the states of this process are, got uint8"):
        renoise(jax.random.key(0), chain.process, chain.prior, None, pixels, jnp.zeros(8))
    with pytest.raises(ValueError, match="x0 must be int32, as the states of this process are, got float32"):
        noise(jax.random.key(0), one_by_one(2, 3), jnp.zeros((8, 2)))
    with pytest.raises(ValueError, match="start must be float32, as the states of this process are, got int32"):
        rollout(jax.random.key(0), chain.process, chain.prior, shape=(8, 2), start=jnp.zeros((8, 2), jnp.int32))


def random_posterior(chain):
    return Policy({"shift": jax.random.normal(jax.random.key(1), (chain.num_steps, 2))}, chain.shifted_apply)


def test_noised_samples_end_where_they_were_and_are_scored():
    chain = LinearGaussian(num_steps=6)
    posterior = random_posterior(chain)
    x0, log_reward = jax.random.normal(jax.random.key(2), (8, 2)), jnp.arange(8.0)

    @jax.jit
    def run(key):
        paths = renoise(key, chain.process, chain.prior, posterior, x0, log_reward)
        part = renoise(key, chain.process, chain.prior, None, x0[4:], log_reward[4:], index=4 + jnp.arange(4))
        return paths, score(chain.process, chain.prior, paths.xs, posterior=posterior), part

    paths, expected, part = run(jax.random.key(0))
    np.testing.assert_array_equal(paths.xs[-1], x0)
    np.testing.assert_array_equal(paths.xs[0], jnp.zeros((8, 2)))
    np.testing.assert_array_equal(paths.log_reward, log_reward)
    np.testing.assert_allclose(paths.log_prior, expected.log_prior, rtol=1e-5)
    np.testing.assert_allclose(paths.log_ratio, expected.log_ratio, rtol=1e-5)
    np.testing.assert_allclose(part.xs, paths.xs[:, 4:], rtol=1e-6)
    assert part.log_ratio is None


def test_mixtures_that_do_not_join_are_errors():
    with pytest.raises(ValueError, match="at least one trajectory"):
        mix()
    paths = Trajectory(jnp.zeros((2, 3, 1)), {"a": jnp.zeros(3)}, None, jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="cond of one structure"):
        mix(paths, paths._replace(cond={"b": jnp.zeros(3)}))


def test_widened_rollouts_move_further_and_are_scored_under_the_law_itself():
    chain = LinearGaussian(num_steps=6)
    posterior = random_posterior(chain)

    @jax.jit
    def run(key):
        wide = rollout(key, chain.process, chain.prior, posterior, shape=(2_000, 2), widen=1.5)
        narrow = rollout(key, chain.process, chain.prior, posterior, shape=(2_000, 2))
        return wide, narrow, score(chain.process, chain.prior, wide.xs, posterior=posterior)

    wide, narrow, expected = run(jax.random.key(0))
    # One step from the origin: variances 1.5 / 6 and 1.5 / 6 + 1.5^2.
    np.testing.assert_allclose(np.std(np.asarray(narrow.xs[1]), axis=0), np.sqrt(0.25), rtol=0.08)
    np.testing.assert_allclose(np.std(np.asarray(wide.xs[1]), axis=0), np.sqrt(2.5), rtol=0.08)
    np.testing.assert_allclose(wide.log_prior, expected.log_prior, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(wide.log_ratio, expected.log_ratio, rtol=1e-4, atol=1e-4)


def some_paths(count, offset, **fields):
    chain = LinearGaussian(num_steps=6)
    seen = parametrise.correction({}, lambda params, x, t, cond, seen: 0.0 * seen)
    cond = {"id": offset + jnp.arange(count)}
    paths = rollout(jax.random.key(offset), chain.process, chain.prior, seen, shape=(count, 2), cond=cond)
    return paths._replace(log_reward=offset + jnp.arange(float(count)))._replace(**fields)


def test_a_mixture_joins_everything_along_the_batch_in_order():
    first, second = some_paths(3, 0), some_paths(2, 10)
    joined = mix(first, second)
    assert joined.xs.shape == (7, 5, 2)
    np.testing.assert_array_equal(joined.cond["id"], [0, 1, 2, 10, 11])
    np.testing.assert_array_equal(joined.log_reward, [0.0, 1.0, 2.0, 10.0, 11.0])
    for part, rows in ((first, slice(0, 3)), (second, slice(3, 5))):
        np.testing.assert_array_equal(joined.xs[:, rows], part.xs)
        np.testing.assert_array_equal(joined.log_prior[:, rows], part.log_prior)
        np.testing.assert_array_equal(joined.log_ratio[:, rows], part.log_ratio)
        np.testing.assert_array_equal(joined.features["output"][:, rows], part.features["output"])
    bare = mix(*(part._replace(log_ratio=None, features=None, cond=None, log_reward=None) for part in (first, second)))
    assert bare.log_ratio is bare.features is bare.cond is bare.log_reward is None


@pytest.mark.parametrize("name", ["log_reward", "log_ratio", "features", "cond"])
def test_a_mixture_of_paths_with_and_without_something_is_an_error(name):
    first = some_paths(3, 0)
    for pair in ((first, first._replace(**{name: None})), (first._replace(**{name: None}), first)):
        with pytest.raises(ValueError, match=f"have {name} or none has"):
            mix(*pair)
