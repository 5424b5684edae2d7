"""Masked chains small enough to enumerate every path."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from oracles import TabularMasked, masked_paths

import rtbjax
from rtbjax.process.absorbing import absorbing, one_by_one
from rtbjax.process.autoregressive import left_to_right
from rtbjax.schedules import linear_mask_rate, loglinear_mask_rate
from rtbjax.trajectory import log_prob, noise, rollout
from rtbjax.types import LearnedStd, Policy, Steered

MASK = 2
CHAIN = TabularMasked(num_steps=3, length=2, vocab_size=2)
PRIOR = CHAIN.joint_prior()


def path_log_prob(process, policy, xs, cond=None):
    return np.asarray(jax.jit(lambda xs: jnp.sum(log_prob(process, policy, xs, cond), axis=0))(jnp.asarray(xs)))


def terminal_law(process, policy, xs, cond=None):
    """Probability of each end, by its tokens, over all enumerated paths."""
    law = {}
    for probability, end in zip(np.exp(path_log_prob(process, policy, xs, cond)), xs[-1], strict=True):
        law[tuple(end.tolist())] = law.get(tuple(end.tolist()), 0.0) + float(probability)
    return law


def assert_frequencies(samples, law):
    """Chi-square of samples ``[N, L]`` against a law; with N = 8,000, 0.03 moved between two ends gives p < 1e-3."""
    ends, counts = np.unique(samples, axis=0, return_counts=True)
    found = {tuple(e.tolist()): int(c) for e, c in zip(ends, counts, strict=True)}
    assert set(found) <= set(law)
    observed = np.asarray([found.get(end, 0) for end in law])
    expected = len(samples) * np.asarray(list(law.values())) / sum(law.values())
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3, (observed, expected)


@pytest.mark.parametrize(
    "head, rate",
    [("mdlm", linear_mask_rate(3)), ("mdlm", loglinear_mask_rate(3)), ("sedd", loglinear_mask_rate(3))],
    ids=["mdlm, linear", "mdlm, loglinear", "sedd, loglinear"],
)
def test_path_probabilities_sum_to_one_and_give_the_sampled_ends(head, rate):
    process = absorbing(rate, 2, head=head)
    # As scores, all the mass a token can take before the last step is used up to two thirds.
    logits = jax.random.normal(jax.random.key(4), (2, 2)) - (3.0 if head == "sedd" else 0.0)
    policy = Policy(logits, lambda params, x, t, cond: jnp.broadcast_to(params, (x.shape[0], 2, 2)) + 0.3 * t)
    law = terminal_law(process, policy, masked_paths(3, 2, 2))
    np.testing.assert_allclose(sum(law.values()), 1.0, rtol=1e-5)
    samples = jax.jit(lambda key: rollout(key, process, policy, shape=(8_000, 2)))(jax.random.key(0))
    assert_frequencies(np.asarray(samples.xs[-1]), law)


def test_a_prior_that_depends_on_the_revealed_tokens():
    process = absorbing(linear_mask_rate(3), 2)
    law = terminal_law(process, PRIOR, masked_paths(3, 2, 2))
    np.testing.assert_allclose(sum(law.values()), 1.0, rtol=1e-5)
    samples = jax.jit(lambda key: rollout(key, process, PRIOR, shape=(8_000, 2)))(jax.random.key(1))
    assert_frequencies(np.asarray(samples.xs[-1]), law)


def test_states_only_ever_go_from_mask_to_token_and_end_revealed():
    process = absorbing(linear_mask_rate(3), 2)
    paths = jax.jit(lambda key: rollout(key, process, PRIOR, shape=(500, 2)))(jax.random.key(0))
    xs = np.asarray(paths.xs)
    assert xs.dtype == np.int32 and np.all(xs[0] == MASK) and np.all(xs[-1] < MASK)
    changed = xs[1:] != xs[:-1]
    assert np.all(xs[:-1][changed] == MASK) and changed.any(axis=(1, 2)).all()
    # A step that changes nothing revealed before costs nothing once everything is revealed.
    done = np.all(xs[:-1] != MASK, axis=-1)
    assert done.any() and np.all(np.asarray(paths.log_prior)[done] == 0.0)
    assert np.all(np.asarray(paths.log_prior)[~done] < 0.0)


@pytest.mark.parametrize("head", ["mdlm", "sedd"])
def test_the_last_step_cannot_leave_a_mask(head):
    process = absorbing(np.linspace(0.99, 0.0, 4), 2, head=head)
    x = jnp.full((1, 2), MASK, jnp.int32)
    law = process.reverse(-20.0 * jnp.ones((1, 2, 2)), x, jnp.int32(2))
    np.testing.assert_allclose(np.exp(law.log_probs), [[[0.5, 0.5, 0.0]] * 2], atol=1e-6)
    before = process.reverse(-20.0 * jnp.ones((1, 2, 2)), x, jnp.int32(1))
    assert np.exp(before.log_probs)[0, :, MASK].min() > 0.4


def given_tokens(cond):
    return cond


def test_given_tokens_never_change_are_never_masked_and_contribute_nothing():
    chain = TabularMasked(num_steps=3, length=3, vocab_size=2)
    process = absorbing(linear_mask_rate(3), 2, given=given_tokens)
    prior = chain.joint_prior(seed=1)
    cond = jnp.tile(jnp.asarray([[MASK, 1, MASK]], jnp.int32), (500, 1))

    @jax.jit
    def sample(key):
        paths = rollout(key, process, prior, shape=(500, 3), cond=cond)
        noised = noise(key, process, paths.xs[-1], cond)
        direct = jax.vmap(lambda i: process.marginal(jax.random.split(key, 500), paths.xs[-1], i, cond))(jnp.arange(4))
        return paths, noised, direct

    paths, noised, direct = sample(jax.random.key(0))
    for xs in (paths.xs, noised, direct):
        assert np.all(np.asarray(xs)[:, :, 1] == 1)
        assert np.all(np.asarray(xs)[0][:, [0, 2]] == MASK) and np.all(np.asarray(xs)[-1] < MASK)
    # Every path of the two free positions: probabilities sum to one, so the given one adds no factor.
    xs = masked_paths(3, 3, 2, given=[None, 1, None])
    law = terminal_law(process, prior, xs, cond=jnp.tile(cond[:1], (xs.shape[1], 1)))
    np.testing.assert_allclose(sum(law.values()), 1.0, rtol=1e-5)
    # The logits of a given position have no gradient at all; those of a free one do.
    table = prior.params

    def total(table):
        return jnp.sum(log_prob(process, Policy(table, chain.apply), paths.xs, cond))

    gradient = np.asarray(jax.jit(jax.grad(total))(table))
    assert np.all(gradient[:, :, 1] == 0.0) and np.isfinite(gradient).all() and np.abs(gradient[:, :, 0]).max() > 1.0


PRODUCT_LAW = np.asarray([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])


@pytest.mark.parametrize(
    "rate", [np.linspace(0.99, 0.0, 5), loglinear_mask_rate(4)], ids=["almost linear", "loglinear"]
)
def test_sedd_with_exact_scores_is_mdlm_with_exact_logits(rate):
    """Of a product law the score of token v at a masked position is p(v) (1 - m) / m; the chain is exact for it."""
    log_p = jnp.asarray(np.log(PRODUCT_LAW), jnp.float32)

    def scores(params, x, t, cond):
        return jnp.broadcast_to(log_p + jnp.log1p(-t) - jnp.log(t), (x.shape[0], 2, 3))

    def logits(params, x, t, cond):
        return jnp.broadcast_to(log_p, (x.shape[0], 2, 3))

    xs = masked_paths(4, 2, 3)
    sedd, mdlm = absorbing(rate, 3, head="sedd"), absorbing(rate, 3)
    np.testing.assert_allclose(
        path_log_prob(sedd, Policy({}, scores), xs), path_log_prob(mdlm, Policy({}, logits), xs), rtol=2e-3
    )
    for process, policy in ((sedd, Policy({}, scores)), (mdlm, Policy({}, logits))):
        for end, probability in terminal_law(process, policy, xs).items():
            np.testing.assert_allclose(probability, PRODUCT_LAW[0, end[0]] * PRODUCT_LAW[1, end[1]], rtol=2e-3)


@pytest.mark.parametrize("rate", [linear_mask_rate(4), loglinear_mask_rate(4)], ids=["linear", "loglinear"])
def test_forward_steps_have_the_law_of_the_marginal_and_of_the_rates(rate):
    """20,000 paths of two positions; five standard errors of a mask frequency are at most 0.013."""
    process = absorbing(rate, 2)
    x0 = jnp.tile(jnp.asarray([[0, 1]], jnp.int32), (20_000, 1))

    @jax.jit
    def both(key):
        direct = jax.vmap(lambda i: process.marginal(jax.random.split(key, 20_000), x0, i, None))(jnp.arange(5))
        return noise(key, process, x0), direct

    expected = np.asarray([1.0, *rate[1:]])  # everything is masked at the start, whatever the table says
    for xs in map(np.asarray, both(jax.random.key(0))):
        masked = xs == MASK
        assert np.all((xs == np.asarray(x0)) | masked)
        error = 5 * np.sqrt(expected * (1 - expected) / 40_000)
        assert np.all(np.abs(masked.mean((1, 2)) - expected) <= error)
        together = (masked[:, :, 0] & masked[:, :, 1]).mean(1)
        assert np.all(np.abs(together - expected**2) <= 5 * np.sqrt(expected**2 * (1 - expected**2) / 20_000) + 1e-9)


def test_noising_never_unmasks():
    process = absorbing(linear_mask_rate(4), 2)
    x0 = jax.random.randint(jax.random.key(1), (500, 2), 0, 2, jnp.int32)
    xs = np.asarray(jax.jit(lambda key: noise(key, process, x0))(jax.random.key(0)))
    assert np.all((xs[1:] == MASK) <= (xs[:-1] == MASK))


@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_one_free_position_has_an_exact_posterior_with_zero_loss_on_every_path(beta):
    """The MDLM logits plus beta log r, for each given neighbour; log Z(c) = log sum_v p(v) r(v)^beta, in float64."""
    chain = TabularMasked(num_steps=4, length=2, vocab_size=3)
    process = absorbing(linear_mask_rate(4), 3, given=given_tokens)
    prior = chain.joint_prior(seed=2)
    rng = np.random.default_rng(0)
    log_r = rng.normal(size=(3, 3))  # of the given token and the free one

    xs, cond = [], []
    for token in range(3):
        xs.append(masked_paths(4, 2, 3, given=[token, None]))
        cond.append(np.tile([[token, 3]], (xs[-1].shape[1], 1)))
    xs, cond = np.concatenate(xs, axis=1), jnp.asarray(np.concatenate(cond), jnp.int32)
    assert xs.shape == (5, 36, 2)

    table = np.asarray(prior.params, np.float64)
    tilted, log_z = table.copy(), np.zeros(3)
    for token in range(3):
        state = chain.code(np.asarray([token, 3]))
        tilted[:, state, 1] += beta * log_r[token]
        p = scipy.special.log_softmax(table[0, state, 1])
        log_z[token] = scipy.special.logsumexp(p + beta * log_r[token])

    paths = rtbjax.score(process, prior, jnp.asarray(xs), cond)
    paths = paths._replace(log_reward=jnp.asarray(log_r[xs[-1, :, 0], xs[-1, :, 1]], jnp.float32))
    arguments = dict(process=process, apply_fn=chain.apply, beta=beta, log_z=lambda z, cond: z[cond[:, 0]])
    exact = {"policy": jnp.asarray(tilted, jnp.float32), "log_z": jnp.asarray(log_z, jnp.float32)}
    evaluate = jax.jit(lambda params: rtbjax.loss(params, paths, **arguments))
    value, info = evaluate(exact)
    np.testing.assert_allclose(info.gap, log_z[xs[-1, :, 0]], atol=1e-5)
    assert value < 1e-9
    assert evaluate(exact | {"policy": prior.params})[0] > 0.1
    # A single given token, and one learned scalar.
    one = slice(0, 12)
    first = rtbjax.Trajectory(paths.xs[:, one], cond[one], paths.log_reward[one], paths.log_prior[:, one])
    learned = {"policy": exact["policy"], "log_z": exact["log_z"][0]}
    assert rtbjax.loss(learned, first, **(arguments | {"log_z": "learned"}))[0] < 1e-9


def smallest_path_kl(chain, prior_table, free, given, log_r):
    """Least KL(q || posterior) over token laws that are independent per position, by dynamic programming in float64.

    Linear mask rates, two free positions of two tokens. Backwards over steps, the value of a state is
    ``min_q E_q[log q / p + value(next)]``; where two tokens may appear at once the minimum is searched on a grid.
    """
    num_steps = chain.num_steps
    grid = np.linspace(0.001, 0.999, 999)
    law = np.stack([grid, 1 - grid])  # [V, G]: q(token 0), q(token 1)

    def kl(p):
        return np.sum(law * (np.log(law) - np.log(p)[:, None]), axis=0)

    def state(tokens):
        full = np.asarray(given)
        full[free] = tokens
        return full

    tokens = range(3)
    value = {(a, b): -log_r(state([a, b])) for a in range(2) for b in range(2)}
    for i in reversed(range(num_steps)):
        reveal = 1.0 / (num_steps - i)
        new = {}
        for a in tokens:
            for b in tokens:
                p = scipy.special.softmax(prior_table[i, chain.code(state([a, b]))][free], axis=-1)
                if a < 2 and b < 2:
                    new[a, b] = value[a, b]
                elif (a < 2) != (b < 2):
                    ends = [value[(v, b) if b < 2 else (a, v)] for v in range(2)]
                    best = -scipy.special.logsumexp(np.log(p[1 if a < 2 else 0]) - ends)
                    new[a, b] = reveal * best + (1 - reveal) * value.get((a, b), 0.0)
                else:
                    only_a = kl(p[0]) + law[0] * value.get((0, 2), 0.0) + law[1] * value.get((1, 2), 0.0)
                    only_b = kl(p[1]) + law[0] * value.get((2, 0), 0.0) + law[1] * value.get((2, 1), 0.0)
                    ends = np.asarray([[value[v, w] for w in range(2)] for v in range(2)])
                    both = kl(p[0])[:, None] + kl(p[1])[None] + law.T @ ends @ law
                    cost = reveal**2 * both + reveal * (1 - reveal) * (only_a[:, None] + only_b[None])
                    new[a, b] = cost.min() + (1 - reveal) ** 2 * value.get((2, 2), 0.0)
        value = new
    return value[2, 2]


@pytest.mark.parametrize("fixed", [None, 1], ids=["no token given", "a token given"])
def test_training_coupled_positions_reaches_the_enumerated_floor_which_falls_like_one_over_steps(fixed):
    """On-policy RTB on tables of logits, against the dynamic programme above; path-KL by enumeration of all paths."""
    length = 2 if fixed is None else 3
    free, given = [0, 1] if fixed is None else [0, 2], np.asarray([2, 2] if fixed is None else [2, fixed, 2])
    bonus = np.log([[1.0, 0.15], [0.25, 0.8]])

    def log_r(x):
        """Couples the two free tokens, and the given one."""
        value = bonus[x[..., free[0]], x[..., free[1]]]
        return value if fixed is None else value - 0.5 * (x[..., 0] != x[..., 1])

    floors = {}
    for num_steps in (3, 6, 12) if fixed is None else (4,):
        chain = TabularMasked(num_steps, length, 2)
        prior = chain.joint_prior(seed=3)
        process = absorbing(linear_mask_rate(num_steps), 2, given=None if fixed is None else given_tokens)
        xs = jnp.asarray(masked_paths(num_steps, length, 2, [None, None] if fixed is None else [None, fixed, None]))

        def conditions(count, fixed=fixed, given=given):
            return None if fixed is None else jnp.tile(jnp.asarray(given[None], jnp.int32), (count, 1))

        everywhere = conditions(xs.shape[1])
        log_prior = np.float64(path_log_prob(process, prior, xs, everywhere))
        log_reward = log_r(np.asarray(xs[-1]))
        log_z = scipy.special.logsumexp(log_prior + log_reward)
        floor = smallest_path_kl(chain, np.asarray(prior.params, np.float64), free, given, log_r) + log_z

        table = jnp.asarray(log_r(np.stack(np.meshgrid(*[np.arange(2)] * length, indexing="ij"), axis=-1)), jnp.float32)
        trained = train(process, chain, prior, table, conditions)
        log_post = np.float64(path_log_prob(process, Policy(trained, chain.apply), xs, everywhere))
        np.testing.assert_allclose(np.exp(log_post).sum(), 1.0, rtol=1e-4)
        path_kl = np.sum(np.exp(log_post) * (log_post - log_prior - log_reward + log_z))
        prior_kl = np.sum(np.exp(log_prior) * (log_z - log_reward))
        assert floor > 0.005 and prior_kl > 2 * floor
        assert floor - 1e-4 <= path_kl <= 1.05 * floor + 3e-4, (num_steps, path_kl, floor)
        floors[num_steps] = path_kl
    if fixed is None:
        assert 1.5 < floors[3] / floors[6] < floors[6] / floors[12] < 2.1, floors  # towards 2, that of 1 / T


def train(process, chain, prior, log_reward, conditions, updates=400, batch=256):
    """Adam on ``rtbjax.loss`` from the prior, the whole run one scan."""
    opt = optax.adam(optax.cosine_decay_schedule(0.1, updates))

    def update(carry, key):
        params, opt_state = carry
        shape, cond = (batch, chain.length), conditions(batch)
        paths = rollout(key, process, prior, Policy(params["policy"], chain.apply), shape=shape, cond=cond)
        paths = paths._replace(log_reward=log_reward[tuple(jnp.moveaxis(paths.xs[-1], -1, 0))])
        group = None if cond is None else batch
        objective = partial(rtbjax.loss, process=process, apply_fn=chain.apply, group=group, chunk=process.num_steps)
        gradient, _ = jax.grad(objective, has_aux=True)(params, paths)
        with jax.numpy_dtype_promotion("standard"):
            change, opt_state = opt.update(gradient, opt_state)
        return (optax.apply_updates(params, change), opt_state), None

    @jax.jit
    def run(params, key):
        (params, _), _ = jax.lax.scan(update, (params, opt.init(params)), jax.random.split(key, updates))
        return params["policy"]

    return run({"policy": prior.params}, jax.random.key(0))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: absorbing(np.asarray([1.0, 0.5]), 2), "fall strictly from at most 1 to 0"),
        (lambda: absorbing(np.asarray([1.2, 0.5, 0.0]), 2), "fall strictly from at most 1 to 0"),
        (lambda: absorbing(np.asarray([0.5, 0.6, 0.0]), 2), "fall strictly from at most 1 to 0"),
        (lambda: absorbing(linear_mask_rate(2), 2, head="d3pm"), "'mdlm' or 'sedd', got 'd3pm'"),
        (lambda: absorbing(linear_mask_rate(2), 2, head="sedd"), "must start below 1 .* as .*loglinear_mask_rate does"),
    ],
)
def test_bad_arguments_say_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_scores_beyond_all_mass_have_a_gradient():
    """Where a token's score overflows, it is revealed as that one and the mask's share has no say."""
    process = absorbing(loglinear_mask_rate(4), 3, head="sedd")
    x, masked = jnp.asarray([[0, 3]], jnp.int32), jnp.asarray([[3, 3]], jnp.int32)

    @jax.jit
    @jax.value_and_grad
    def log_prob(score):
        return process.reverse(score, masked, jnp.int32(1)).log_prob(x)[0]

    value, gradient = log_prob(jnp.asarray([[[95.0, 0.0, 0.0], [-1.0, 0.0, 0.5]]]))
    assert np.isfinite(value) and np.isfinite(gradient).all() and np.abs(gradient[0, 1]).max() > 0.01


@pytest.mark.parametrize("output", [Steered(jnp.zeros((1, 1, 2)), 0.0), LearnedStd(jnp.zeros((1, 1, 2)), 0.0)])
def test_an_output_that_changes_a_gaussian_step_is_refused(output):
    process = absorbing(linear_mask_rate(2), 2)
    with pytest.raises(TypeError, match=rf"takes logits \[B, L, V\]; {type(output).__name__} changes a Gaussian step"):
        process.reverse(output, jnp.asarray([[2]], jnp.int32), 0)


MASKS = {
    "absorbing": (absorbing(linear_mask_rate(2), 3), (4, 2, 3)),
    "one by one": (one_by_one(2, 3), (4, 2, 3)),
    "left to right": (left_to_right(2, 3), (4, 3)),
}


@pytest.mark.parametrize("process, wanted", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("shape", [(1, 2, 3), (4, 1, 3), (4, 2, 4), (1, 3), (4, 1), ()])
def test_logits_of_another_shape_are_refused_and_not_broadcast(process, wanted, shape):
    with pytest.raises(ValueError, match=re.escape(f"The network's output must have shape {wanted}, got {shape}")):
        process.reverse(jnp.zeros(shape), jnp.full((4, 2), 3, jnp.int32), jnp.int32(0))


def test_the_network_is_told_the_mask_rate_and_its_best_guess_fills_the_masks():
    process = absorbing(linear_mask_rate(4), 3)
    np.testing.assert_allclose([process.time(jnp.int32(i)) for i in range(4)], [1.0, 0.75, 0.5, 0.25])
    output = jnp.asarray([[[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]]])
    guess = process.denoise(output, jnp.asarray([[3, 2]], jnp.int32), jnp.int32(1))
    np.testing.assert_array_equal(guess, [[1, 2]])
    assert guess.dtype == jnp.int32
