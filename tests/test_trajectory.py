"""The scans: what a rollout scores is what re-scoring finds; a path depends on its index and not on its batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import LinearGaussian, TabularMasked

import rtbjax
from rtbjax import posterior as parametrise
from rtbjax.objective import path_log_ratio
from rtbjax.process import sde
from rtbjax.process.absorbing import absorbing, one_by_one
from rtbjax.schedules import linear_mask_rate
from rtbjax.trajectory import log_prob, noise, rescore, rollout, score
from rtbjax.types import Policy

GAUSSIAN = LinearGaussian(num_steps=6)
MASKED = TabularMasked(num_steps=6, length=2, vocab_size=3)


def gaussian():
    posterior = Policy({"shift": jax.random.normal(jax.random.key(1), (6, 2))}, GAUSSIAN.shifted_apply)
    return GAUSSIAN.process, GAUSSIAN.prior, posterior


def masked():
    prior = MASKED.joint_prior()
    change = 0.5 * jax.random.normal(jax.random.key(1), prior.params.shape)
    return absorbing(linear_mask_rate(6), 3), prior, Policy(prior.params + change, MASKED.apply)


def with_features():
    """A posterior that sees the prior's output and something else of the state."""
    process, prior, _ = gaussian()

    def apply_fn(params, x, t, cond, seen):
        return params["gain"] * jnp.tanh(seen + t)

    params = {"gain": jnp.float32(0.8)}
    return process, prior, parametrise.correction(params, apply_fn, look=lambda output, x, t, cond: output * x + t)


CASES = {"gaussian": gaussian, "masked": masked, "features": with_features}


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    """Process, prior, posterior, and widened paths of the posterior with their scores."""
    process, prior, posterior = CASES[request.param]()
    run = jax.jit(lambda key: rollout(key, process, prior, posterior, shape=(16, 2), widen=0.3))
    return process, prior, posterior, run(jax.random.key(0))


def test_rollout_scores_are_those_of_scoring_again(case):
    process, prior, posterior, paths = case
    assert paths.xs.shape == (7, 16, 2) and paths.log_prior.shape == paths.log_ratio.shape == (6, 16)
    assert paths.log_reward is None and float(jnp.abs(paths.log_ratio).max()) > 0.01

    @jax.jit
    def again(paths):
        scored = score(process, prior, paths.xs, paths.cond, posterior)
        pair = log_prob(process, prior, paths.xs), log_prob(process, posterior, paths.xs, features=scored.features)
        return scored, pair, rescore(process, posterior, paths._replace(log_ratio=None))

    scored, (log_prior, log_post), rescored = again(paths)
    np.testing.assert_allclose(scored.log_prior, paths.log_prior, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(log_prior, paths.log_prior, rtol=1e-5, atol=1e-5)
    for log_ratio in (scored.log_ratio, rescored.log_ratio, log_prior - log_post):
        np.testing.assert_allclose(log_ratio, paths.log_ratio, rtol=1e-4, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), scored.features, paths.features)


def test_steps_choose_rows_and_chunks_change_nothing(case):
    process, _, posterior, paths = case
    steps = jnp.asarray([4, 0, 5, 1], jnp.int32)

    @jax.jit
    def every_way():
        def run(**arguments):
            return log_prob(process, posterior, paths.xs, features=paths.features, **arguments)

        return run(), [run(chunk=c) for c in (2, 3, 6)], run(steps=steps), run(steps=steps, chunk=2)

    full, chunked, subset, chunked_subset = every_way()
    assert np.unique(np.asarray(full).sum(1)).size == 6
    for other in chunked:
        np.testing.assert_allclose(other, full, rtol=1e-5, atol=1e-5)
    for some in (subset, chunked_subset):
        np.testing.assert_allclose(some, full[np.asarray(steps)], rtol=1e-5, atol=1e-5)


def test_a_path_depends_on_its_global_index_and_not_on_its_batch(case):
    process, prior, posterior, paths = case
    index = jnp.asarray([3, 11, 5], jnp.int32)

    @jax.jit
    def part(key):
        return rollout(key, process, prior, posterior, shape=(3, 2), widen=0.3, index=index)

    some = part(jax.random.key(0))
    np.testing.assert_allclose(some.xs, paths.xs[:, index], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(some.log_ratio, paths.log_ratio[:, index], rtol=1e-4, atol=1e-5)
    assert len(np.unique(np.asarray(paths.xs[1:]).transpose(1, 0, 2).reshape(16, -1), axis=0)) > 10
    assert not np.array_equal(part(jax.random.key(1)).xs, some.xs)


def test_noise_ends_in_the_data_and_depends_on_the_global_index(case):
    process, _, _, paths = case
    x0 = paths.xs[-1]
    xs, some = jax.jit(
        lambda key: (
            noise(key, process, x0),
            noise(key, process, x0[jnp.asarray([3, 11])], index=jnp.asarray([3, 11], jnp.int32)),
        )
    )(jax.random.key(5))
    assert xs.shape == paths.xs.shape and xs.dtype == paths.xs.dtype
    np.testing.assert_array_equal(xs[-1], x0)
    np.testing.assert_allclose(some, xs[:, jnp.asarray([3, 11])], rtol=1e-6)
    assert not np.array_equal(xs[3], paths.xs[3])


def test_a_posterior_equal_to_the_prior_has_ratio_zero_exactly(case):
    process, prior, _, paths = case
    run = jax.jit(lambda key: rollout(key, process, prior, parametrise.full_copy(prior), shape=(16, 2)))
    assert np.all(np.asarray(run(jax.random.key(0)).log_ratio) == 0.0)
    copy = parametrise.full_copy(prior)
    assert np.all(np.asarray(jax.jit(lambda xs: score(process, prior, xs, posterior=copy).log_ratio)(paths.xs)) == 0.0)


def test_without_a_posterior_the_paths_are_the_priors():
    process, prior, posterior = with_features()

    @jax.jit
    def run(key):
        alone = rollout(key, process, prior, shape=(16, 2), look=posterior.look)
        return (
            alone,
            rollout(key, process, prior, parametrise.full_copy(prior), shape=(16, 2)),
            rescore(process, posterior, alone),
        )

    alone, together, rescored = run(jax.random.key(0))
    assert alone.log_ratio is None and together.features is None
    np.testing.assert_allclose(alone.xs, together.xs, rtol=1e-6)
    np.testing.assert_allclose(alone.log_prior, together.log_prior, rtol=1e-5, atol=1e-6)
    # Prior paths that kept their features can be scored under the posterior without the prior.
    expected = jax.jit(lambda xs: score(process, prior, xs, posterior=posterior).log_ratio)(alone.xs)
    np.testing.assert_allclose(rescored.log_ratio, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims, num_steps, most", [(784, 20, 5e-4), (16_384, 50, 5e-2)])
def test_rescoring_loses_the_digits_of_two_totals_per_step_and_no_more(dims, num_steps, most):
    """Against `score`, which compares the two laws (test_kernels.py tests that against float64)."""
    process = sde.brownian_bridge(num_steps, 1.0)
    prior = Policy(jnp.float32(0.0), lambda params, x, t, cond: params - x)
    posterior = prior.replace(params=jnp.float32(0.02))

    @jax.jit
    def run(key):
        paths = rollout(key, process, prior, shape=(8, dims))
        scored = score(process, prior, paths.xs, posterior=posterior)
        return jnp.sum(scored.log_ratio, axis=0), jnp.sum(rescore(process, posterior, paths).log_ratio, axis=0)

    scored, rescored = run(jax.random.key(0))
    error = np.abs(scored - rescored).max()
    assert 1e-3 * most < error < most and np.abs(scored).max() > 0.5


def test_a_given_start_is_the_path_start_and_nothing_else_changes(case):
    process, prior, posterior, paths = case
    run = jax.jit(lambda key, start: rollout(key, process, prior, posterior, shape=(16, 2), widen=0.3, start=start))
    same = run(jax.random.key(0), paths.xs[0])
    jax.tree.map(np.testing.assert_array_equal, same, paths)
    with pytest.raises(ValueError, match=r"start must have shape \(16, 2\), got \(16, 1\)"):
        run(jax.random.key(0), paths.xs[0][:, :1])
    other = run(jax.random.key(1), paths.xs[0])
    np.testing.assert_array_equal(other.xs[0], paths.xs[0])
    assert np.any(np.asarray(other.xs[-1]) != np.asarray(paths.xs[-1]))


@pytest.mark.parametrize(
    "process", [absorbing(linear_mask_rate(4), 3), one_by_one(2, 3)], ids=["absorbing", "one by one"]
)
def test_a_step_impossible_under_both_policies_contributes_nothing_however_it_is_scored(process):
    """Data with a token that neither can write."""

    def unconditional(p):
        return Policy(jnp.log(jnp.asarray(p)), lambda params, x, t, cond: jnp.broadcast_to(params, (*x.shape, 3)))

    prior, posterior = unconditional([0.5, 0.5, 0.0]), unconditional([0.2, 0.8, 0.0])

    @jax.jit
    def run(key):
        xs = noise(key, process, jnp.asarray([[2, 0]], jnp.int32))
        scored = score(process, prior, xs, posterior=posterior)
        return scored, rescore(process, posterior, scored._replace(log_ratio=None))

    scored, rescored = run(jax.random.key(0))
    assert jnp.sum(scored.log_prior) == -np.inf
    for paths in (scored, rescored):
        np.testing.assert_allclose(jnp.sum(paths.log_ratio), np.log(2.5), rtol=1e-5)


@pytest.mark.parametrize("steps", [5, 7])
def test_a_path_of_another_length_is_refused(case, steps):
    process, prior, posterior, paths = case
    other = paths._replace(xs=jnp.resize(paths.xs, (steps + 1, *paths.xs.shape[1:])))
    message = rf"A path of 6 steps has 7 states, got {steps + 1}"
    for use in (
        lambda: log_prob(process, prior, other.xs),
        lambda: score(process, prior, other.xs, posterior=posterior),
        lambda: rescore(process, posterior, other),
        lambda: path_log_ratio(posterior.params, other, process=process, apply_fn=posterior.apply_fn),
    ):
        with pytest.raises(ValueError, match=message):
            use()


def test_paths_kept_as_numpy_arrays_are_scored_alike(case):
    process, prior, posterior, paths = case
    kept = jax.device_get(paths._replace(log_reward=jnp.ones(16)))
    again = score(process, prior, kept.xs, posterior=posterior)
    np.testing.assert_allclose(again.log_ratio, paths.log_ratio, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(rescore(process, posterior, kept).log_ratio, paths.log_ratio, rtol=1e-4, atol=2e-5)
    losses = [
        rtbjax.loss({"policy": posterior.params}, one, process=process, apply_fn=posterior.apply_fn)[0]
        for one in (kept, jax.tree.map(jnp.asarray, kept))
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_an_index_of_other_than_the_batch_is_refused(case, key):
    process, prior, *_ = case
    with pytest.raises(ValueError, match=r"index must have shape \(8,\), got \(3,\)"):
        rollout(key, process, prior, shape=(8, 2), index=jnp.arange(3))


def test_features_that_do_not_fit_the_policy_are_refused():
    process, prior, looking = with_features()
    alone = rollout(jax.random.key(0), process, prior, shape=(4, 2))._replace(log_reward=jnp.zeros(4))
    with pytest.raises(ValueError, match="the paths carry none"):
        rescore(process, looking, alone)
    with pytest.raises(ValueError, match="the paths carry none"):
        rtbjax.loss({"policy": looking.params}, alone, process=process, apply_fn=looking.apply_fn)
    seen = rollout(jax.random.key(0), process, prior, looking, shape=(4, 2))._replace(log_reward=jnp.zeros(4))
    for copy in (prior, parametrise.full_copy(prior)):
        with pytest.raises(ValueError, match="takes no features, and the paths carry those of another"):
            rescore(process, copy, seen)


def test_the_prior_runs_once_per_step():
    process, prior, posterior = with_features()
    calls = []

    def counted(params, x, t, cond):
        calls.append(1)
        return prior.apply_fn(params, x, t, cond)

    counting = Policy(prior.params, counted)
    jax.eval_shape(lambda key: rollout(key, process, counting, posterior, shape=(4, 2)), jax.random.key(0))
    assert len(calls) == 1


def test_scores_are_float32_and_conditions_reach_the_network():
    process, _, _ = gaussian()
    shifted = Policy(jnp.float32(1.0), lambda params, x, t, cond: params * cond + 0.0 * x)
    cond = jnp.asarray([[0.0, 0.0], [60.0, -60.0]])
    paths = jax.jit(lambda key: rollout(key, process, shifted, shape=(2, 2), cond=cond))(jax.random.key(0))
    assert paths.log_prior.dtype == jnp.float32
    assert np.all(np.abs(paths.xs[-1, 0]) < 20) and paths.xs[-1, 1, 0] > 40 and paths.xs[-1, 1, 1] < -40
    np.testing.assert_array_equal(paths.cond, cond)


def test_errors_name_what_is_allowed():
    process, prior, posterior = with_features()
    xs = jnp.zeros((7, 2, 2))
    with pytest.raises(ValueError, match=r"chunk=4 does not divide the 6 steps; use one of \[1, 2, 3, 6\]"):
        log_prob(process, prior, xs, chunk=4)
    with pytest.raises(ValueError, match="chunk=0"):
        log_prob(process, prior, xs, chunk=0)
    for steps in ([4, 6], [-1], np.asarray([0, 7])):
        with pytest.raises(ValueError, match=r"Steps must lie in 0\.\.5, got \["):
            log_prob(process, prior, xs, steps=steps)
    with pytest.raises(ValueError, match="the paths carry none"):
        rtbjax.log_prob(process, posterior, xs)
    for widen in (-1.0, np.nan):
        with pytest.raises(ValueError, match=f"widen must be at least 0, got {widen}"):
            rollout(jax.random.key(0), process, prior, shape=(2, 2), widen=widen)
