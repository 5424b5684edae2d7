"""Estimates against closed forms, and one test per verdict."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from oracles import GaussianData, LinearGaussian, QuadraticGaussian

from rtbjax import certificate
from rtbjax.process import vp
from rtbjax.schedules import linear_alpha_bar, respace
from rtbjax.trajectory import rollout


def normal_gaps(sigma, count=20_000, mean=0.0, seed=0):
    """Log-weights N(mean, sigma^2): log Z = mean + sigma^2 / 2 and ESS = exp(-sigma^2)."""
    return mean + sigma * np.random.default_rng(seed).normal(size=count)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0])
def test_lognormal_weights_have_their_closed_forms(sigma):
    """Tolerances are 5 standard errors of 20,000 draws by the delta method."""
    found = certificate.certify(normal_gaps(sigma, mean=2.0))
    error = 5 * np.sqrt((np.exp(sigma**2) - 1) / 20_000)
    assert abs(found.elbo - 2.0) < 5 * sigma / np.sqrt(20_000)
    assert abs(found.log_z_is - (2.0 + sigma**2 / 2)) < error
    np.testing.assert_allclose(found.ess, np.exp(-(sigma**2)), rtol=0.1 * sigma)
    np.testing.assert_allclose(found.path_kl_lower, sigma**2 / 2, rtol=0.15)
    assert found.num_paths == 20_000 and found.path_kl is found.eubo is found.log_z_reference is None


def test_path_kl_and_the_upper_bound_use_the_reference_and_the_exact_paths():
    """Tilting N(0, s^2) by its own exponential moves its mean to s^2: EUBO - ELBO is the sum of both divergences."""
    gap = normal_gaps(0.5)
    found = certificate.certify(gap, certificate.exact(0.125, "closed form"), normal_gaps(0.5, mean=0.25, seed=1))
    np.testing.assert_allclose(found.path_kl, 0.125, atol=0.02)
    np.testing.assert_allclose(found.eubo, 0.25, atol=0.02)
    assert found.log_z_reference == 0.125 and found.log_z_reference_ci == (0.125, 0.125)
    assert found.log_z_reference_source == "closed form"


def test_interval_covers_log_z_in_95_of_100_repeats():
    """Of 600 repeats of 400 paths: 95 % with a standard error of 0.9 %."""
    covered, below = 0, 0
    for seed in range(600):
        low, high = certificate.from_prior(normal_gaps(0.5, 400, seed=seed)).interval
        covered += low <= 0.125 <= high
        below += high < 0.125
    assert 0.915 < covered / 600 < 0.98
    assert below < 40  # misses fall on both sides


def test_an_estimate_from_the_prior_is_the_mean_reward():
    log_reward = np.log(np.random.default_rng(0).uniform(size=50_000))
    found = certificate.from_prior(log_reward, beta=2.0)
    np.testing.assert_allclose(found.log_z, np.log(1 / 3), atol=0.02)
    assert found.interval[0] < found.log_z < found.interval[1] and "50000 prior samples" in found.source


def test_effective_sample_size_of_some_equal_weights():
    log_w = np.where(np.arange(100) < 25, 700.0, -np.inf)
    np.testing.assert_allclose(certificate.effective_sample_size(log_w), 0.25)
    np.testing.assert_allclose(certificate.effective_sample_size(np.full(9, -2_000.0)), 1.0)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9, 2.0])
def test_pareto_k_recovers_a_known_tail(k):
    """Weights U^-k. The fit uses 212 of 5,000: a standard error of (1 + k) / sqrt(212), over 8 repeats."""
    found = [certificate.pareto_k(-k * np.log(np.random.default_rng(seed).uniform(size=5_000))) for seed in range(8)]
    assert abs(np.mean(found) - k) < 4 * (1 + k) / np.sqrt(212 * 8)
    # Only ratios of weights matter.
    log_w = -k * np.log(np.random.default_rng(0).uniform(size=5_000))
    np.testing.assert_allclose(certificate.pareto_k(log_w + 3_000.0), found[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spread", [1e-6, 1e-3, 1.0])
def test_bounded_weights_have_no_heavy_tail_however_close_they_are(spread):
    """Uniform weights have k = -1; so near each other that float32 is their resolution, they still do."""
    for seed in range(5):
        tail = certificate.pareto_k(np.log1p(spread * np.random.default_rng(seed).uniform(size=5_000)))
        assert tail is None or tail < 0.2
    assert spread <= certificate.RESOLUTION or tail is not None


@pytest.mark.parametrize("noise", [0.0, 1e-6])
@pytest.mark.parametrize("count", [500, 2_000])
def test_a_few_values_are_no_tail_also_beneath_the_rounding_of_float32(count, noise):
    """Weights 1 (98 %) and 4 (2 %), and four levels of them: bounded, their means known to a few percent."""
    rng = np.random.default_rng(0)
    for levels, shares in (((1.0, 4.0), (0.98, 0.02)), ((0.5, 1.0, 2.0, 4.0), (0.3, 0.5, 0.17, 0.03))):
        gap = np.log(rng.choice(levels, p=shares, size=count)) + noise * rng.normal(size=count)
        found = certificate.certify(gap, certificate.exact(np.log(np.dot(levels, shares)), "enumeration"))
        assert found.pareto_k is None and found.verdict == "consistent"


def test_one_weight_that_outweighs_all_others_is_unreliable():
    """No tail can be fitted to it: the interval says it."""
    found = certificate.certify(np.append(np.full(500, -30.0), 0.0))
    assert found.pareto_k is None and found.verdict == "unreliable"


def test_weights_beside_which_the_others_vanish_in_double_precision_have_no_tail():
    """Some seven hundred nats below the largest, where a double has hardly a digit left."""
    for spread in (700.0, 720.0, 740.0):
        log_w = np.append(np.linspace(-spread - 10.0, -spread, 500), 0.0)
        k = certificate.pareto_k(log_w)
        assert k is None or np.isfinite(k)
        assert certificate.certify(log_w).verdict == "unreliable"


def test_pareto_k_needs_a_tail():
    assert certificate.pareto_k(np.zeros(1000)) is None
    assert certificate.pareto_k(normal_gaps(1.0, certificate.MIN_PATHS - 1)) is None


# Verdicts


def paths_of(chain, posterior, log_reward, count=20_000, dim=1):
    """Log-weights of a posterior's paths, and log r of prior samples."""

    @jax.jit
    def run(key):
        paths = rollout(key, chain.process, chain.prior, posterior, shape=(count, dim))
        prior = rollout(jax.random.fold_in(key, 1), chain.process, chain.prior, shape=(count, dim))
        return jnp.sum(paths.log_ratio, axis=0) + log_reward(paths.xs[-1]), log_reward(prior.xs[-1]), paths.xs[-1]

    return jax.device_get(run(jax.random.key(0)))


def test_the_exact_posterior_is_consistent():
    chain = LinearGaussian()
    gap, prior_rewards, _ = paths_of(chain, chain.exact, chain.log_reward, dim=2)
    for reference in (certificate.exact(chain.log_z, "closed form"), certificate.from_prior(prior_rewards)):
        # The weights are equal but for rounding: their interval has no width, and neither has the closed form's.
        found = certificate.certify(gap, reference)
        assert found.verdict == "consistent" and found.ess > 0.999
        assert abs(found.path_kl) < 0.1 and abs(found.log_z_is - chain.log_z) < 1e-4


def test_an_exact_posterior_is_called_another_no_oftener_than_its_intervals_say():
    """Both of 95 %: one in fifty to the one side by chance, and one in fifty to the other."""
    verdicts = [
        certificate.certify(
            normal_gaps(0.3, 2_000, -(0.3**2) / 2, seed), certificate.exact(0.0, "a closed form")
        ).verdict
        for seed in range(400)
    ]
    for verdict in ("modes_missing", "unreliable"):
        assert verdicts.count(verdict) < 0.025 * 400 + 3 * np.sqrt(0.025 * 400)
    assert verdicts.count("consistent") > 0.9 * 400


def test_a_collapsed_posterior_misses_modes_although_its_weights_are_even():
    """r has modes of equal mass at -2 and 2; the posterior is the exact one of the second alone (a closed form)."""
    half = QuadraticGaussian(b=0.0, c=16.0, q=8.0)

    def log_reward(x):
        return jnp.logaddexp(half.log_reward(x), half.log_reward(-x))

    gap, prior_rewards, x0 = paths_of(half, half.exact, log_reward)
    assert np.all(x0 > 0)
    found = certificate.certify(gap, certificate.from_prior(prior_rewards))
    assert found.ess > 0.99 and found.path_kl_lower < 0.01  # blind
    assert found.verdict == "modes_missing"
    np.testing.assert_allclose(found.log_z_reference - found.log_z_is, np.log(2), atol=0.15)
    np.testing.assert_allclose(found.path_kl, np.log(2), atol=0.15)
    # Without a reference it says that it cannot know; an honest posterior of one mode passes.
    assert certificate.certify(gap).verdict == "coverage_unchecked"
    gap, prior_rewards, _ = paths_of(half, half.exact, half.log_reward)
    assert certificate.certify(gap, certificate.from_prior(prior_rewards)).verdict == "consistent"


def test_uneven_weights_ask_for_reweighting():
    found = certificate.certify(normal_gaps(1.0), certificate.exact(0.5, "closed form"))
    assert found.ess < 0.5 and found.verdict == "importance_weight"


@pytest.mark.parametrize(
    "gap, reference, reason",
    [
        pytest.param(
            -0.95 * np.log(np.random.default_rng(0).uniform(size=20_000)),
            None,
            "the paths' weights have Pareto k 0.9",
            id="heavy tail",
        ),
        pytest.param(normal_gaps(1.5, 40), None, "the paths' log Z has an interval", id="a wide interval"),
        pytest.param([0.0, 0.1], certificate.exact(0.05, ""), "fewer than 25 paths", id="two paths"),
        pytest.param(
            np.zeros(certificate.MIN_PATHS - 1),
            certificate.exact(0.0, ""),
            "fewer than 25 paths",
            id="too few paths for a tail",
        ),
        pytest.param(
            normal_gaps(0.1),
            certificate.Estimate(0.1, (-0.3, 0.5), ""),
            "the reference has an interval 0.80 nats wide, above 0.5",
            id="a vague reference",
        ),
        pytest.param(
            normal_gaps(0.1),
            certificate.exact(-1.0, ""),
            "the reference's log Z is -1.000 without error, where the paths find at least 0.0",
            id="a reference that found less",
        ),
        pytest.param(
            normal_gaps(0.1),
            certificate.Estimate(0.0, (-0.1, 0.1), "", 0.8),
            "the reference's weights have Pareto k 0.80, above 0.7",
            id="a heavy-tailed reference",
        ),
    ],
)
def test_unreliable_and_which_of_its_reasons_holds(gap, reference, reason):
    found = certificate.certify(gap, reference)
    assert found.verdict == "unreliable" and found.reason.startswith(reason)


@pytest.mark.parametrize(
    "scale, path_kl, reason",
    [
        (1.0, 0.1, "ESS is 36.9%, below 50%"),
        (0.3, 0.4, "path-KL is 0.40 nats, above 0.2"),
        (1.0, 0.5, "ESS is 36.9%, below 50%, and path-KL is 0.50 nats, above 0.2"),
        (0.3, 0.045, "ESS is 91.4%, path-KL 0.045 nats"),
    ],
)
def test_what_is_too_far_is_said(scale, path_kl, reason):
    """Quantiles of lognormal weights, ESS ``exp(-scale^2)`` and ELBO 0, beside a reference that is vague enough."""
    gap = scale * scipy.stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    found = certificate.certify(gap, certificate.Estimate(path_kl, (0.0, 0.5), ""))
    assert found.reason == reason


def test_the_tail_of_weights_that_are_even_does_not_matter():
    """Excesses of a ten-thousandth with a tail index of 0.95: heavy only under the microscope."""
    weights = 1.0 + 1e-4 * np.random.default_rng(0).uniform(size=20_000) ** -0.95
    found = certificate.certify(np.log(weights), certificate.exact(np.log(weights.mean()), ""))
    assert found.pareto_k > 0.7 and found.verdict == "consistent"


def test_a_reference_of_heavy_tailed_rewards_vouches_for_nothing():
    """Prior weights U^-0.9 of mean 10, and an exact sampler of the posterior that is cut where U < 1e-4: it lacks 40 %.

    Where the interval is narrow it is narrow by luck, and the reference misses what the posterior lacks.
    """
    cut = np.log(10 * (1 - 1e-4**0.1))  # log of the mass that is left, which every path of that sampler has.
    narrow = 0
    for seed in range(20):
        log_r = -0.9 * np.log(np.random.default_rng(seed).uniform(size=20_000))
        reference = certificate.from_prior(log_r)
        narrow += np.diff(reference.interval)[0] < certificate.MAX_INTERVAL
        assert reference.pareto_k > 0.7
        assert certificate.certify(np.full(1000, cut), reference).verdict != "consistent"
    assert narrow > 5
    # Were the largest one the bound, the last samples would be worth 28 acceptances, and little could be hidden.
    assert certificate.from_prior(log_r, log_bound=float(log_r.max())).pareto_k is None
    assert certificate.from_prior(log_r, log_bound=float(log_r.max()) + 1.0).pareto_k > 0.7
    # Nor is there much in the tail of rewards that are all alike.
    weights = 1.0 + 1e-4 * np.random.default_rng(0).uniform(size=20_000) ** -0.95
    assert certificate.from_prior(np.log(weights)).pareto_k is None


def test_no_reference_leaves_coverage_unchecked():
    assert certificate.certify(normal_gaps(0.1)).verdict == "coverage_unchecked"


def test_every_verdict_is_explained_and_the_certificate_is_json():
    found = certificate.certify(jnp.asarray(normal_gaps(0.1), jnp.float32), certificate.from_prior(normal_gaps(0.1)))
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert found.verdict in certificate.VERDICTS and again["verdict"] == found.verdict
    assert again["log_z_is_ci"] == list(found.log_z_is_ci) and again["eubo"] is None
    assert set(again) == set(certificate.Certificate.__dataclass_fields__)
    json.dumps(certificate.certify(np.zeros(30)).to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "gap, message",
    [
        (np.zeros(1), r"gap must hold at least 2 numbers, got shape \(1,\)"),
        (np.zeros((4, 2)), r"gap must have shape \(N,\), got \(4, 2\)"),
        (np.asarray([0.0, np.nan, -np.inf]), "2 of 3 numbers in gap are not finite"),
    ],
)
def test_weights_that_cannot_be_certified(gap, message):
    with pytest.raises(ValueError, match=message):
        certificate.certify(gap)


@pytest.mark.parametrize(
    "exact_gap, message",
    [
        (np.zeros((4, 1)), r"exact_gap must have shape \(M,\), got \(4, 1\)"),
        (np.zeros(0), r"exact_gap must hold at least 1 number, got shape \(0,\)"),
        (np.asarray([0.0, np.nan]), "1 of 2 numbers in exact_gap are not finite"),
    ],
)
def test_exact_paths_that_cannot_bound(exact_gap, message):
    with pytest.raises(ValueError, match=message):
        certificate.certify(normal_gaps(0.1), exact_gap=exact_gap)


@pytest.mark.parametrize(
    "log_reward, message",
    [
        ([], r"log_reward must hold at least 2 numbers, got shape \(0,\)"),
        ([0.7], r"log_reward must hold at least 2 numbers, got shape \(1,\)"),
        ([0.3, np.nan, np.inf], "2 of 3 numbers in log_reward are not finite"),
        ([-np.inf] * 4, "All 4 numbers in log_reward are -inf: no weight is left"),
    ],
)
def test_prior_samples_that_are_no_reference(log_reward, message):
    with pytest.raises(ValueError, match=message):
        certificate.from_prior(log_reward)


def test_some_prior_samples_may_violate_a_hard_constraint():
    assert certificate.from_prior([0.0, -np.inf, 0.0, -np.inf]).log_z == pytest.approx(np.log(0.5))


@pytest.mark.parametrize("log_z", [np.nan, np.inf, -np.inf])
def test_a_reference_that_is_no_number(log_z):
    with pytest.raises(ValueError, match=f"finite log Z, got {log_z}"):
        certificate.exact(log_z, "closed form")
    for reference in (
        certificate.Estimate(log_z, (0.0, 1.0), "mine"),
        certificate.Estimate(0.0, (0.0, log_z), "mine"),
    ):
        with pytest.raises(ValueError, match=f"its interval must be finite, got .*{log_z}.*mine"):
            certificate.certify(normal_gaps(0.1), reference)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_cannot_be_resampled(bad):
    x = jnp.arange(5.0)[:, None]
    with pytest.raises(ValueError, match="1 of 5 numbers in gap are not finite"):
        certificate.importance_resample(jax.random.key(0), x, np.asarray([0.0, 0.0, bad, 0.0, 0.0]), 6)
    with pytest.raises(ValueError, match="All 5 numbers in gap are -inf"):
        certificate.importance_resample(jax.random.key(0), x, np.full(5, -np.inf), 6)
    only, ess = certificate.importance_resample(jax.random.key(0), x, np.where(np.arange(5) == 3, 0.0, -np.inf), 6)
    np.testing.assert_array_equal(only, np.full((6, 1), 3.0))
    assert ess == pytest.approx(0.2)


def test_effective_sample_size_is_of_one_axis():
    with pytest.raises(ValueError, match=r"log_w must have shape \(N,\), got \(4, 3\)"):
        certificate.effective_sample_size(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="at least 1 number"):
        certificate.effective_sample_size([])


def test_start_excess_needs_pairs():
    with pytest.raises(ValueError, match=r"log_reward must hold at least 2 numbers, got shape \(1,\)"):
        certificate.start_excess([0.0], [0.0])
    with pytest.raises(ValueError, match="1 of 2 numbers in log_reward_again are not finite"):
        certificate.start_excess([0.0, 0.0], [0.0, np.nan])


def test_rewards_of_another_shape_are_errors():
    column = np.zeros((8, 1))
    with pytest.raises(ValueError, match=r"log_reward must have shape \(N,\), got \(8, 1\)"):
        certificate.from_prior(column)
    with pytest.raises(ValueError, match=r"log_reward_again must have shape \(8,\), got \(8, 1\)"):
        certificate.start_excess(column[:, 0], column)
    with pytest.raises(ValueError, match=r"gap must have shape \(8,\), got \(8, 1\)"):
        certificate.importance_resample(jax.random.key(0), jnp.zeros((8, 2)), column, 4)


def test_importance_resampling_corrects_a_biased_sampler():
    """Proposals N(0, 1), target N(0.5, 1): log-weights 0.5 x - 0.125. Five errors of 10,000 draws are 0.08."""
    x = np.random.default_rng(0).normal(size=(40_000, 1)).astype(np.float32)
    found, ess = certificate.importance_resample(
        jax.random.key(0), jnp.asarray(x), jnp.asarray(0.5 * x[:, 0] + 7.0), num_samples=10_000
    )
    assert found.shape == (10_000, 1)
    np.testing.assert_allclose(np.mean(found), 0.5, atol=0.08)
    np.testing.assert_allclose(np.std(found), 1.0, atol=0.06)
    np.testing.assert_allclose(ess, np.exp(-0.25), rtol=0.1)
    assert np.isin(np.asarray(found), x).all()


@pytest.mark.parametrize("eta, forgets", [(1.0, True), (0.1, False)])
def test_start_excess_tells_a_chain_that_forgets_its_start_from_one_that_remembers(eta, forgets):
    """DDIM of Gaussian data, log r = x0 / std: were x0 a function of xs[0], the excess would be e - 1."""
    data = GaussianData()
    process = vp.ddim(respace(linear_alpha_bar(), 40, "trailing"), eta=eta)
    prior = data.vp(linear_alpha_bar())

    @jax.jit
    def run(key):
        start = process.init(jax.random.split(key, 8_000), (8_000, 1), None)
        pinned = dataclasses.replace(process, init=lambda keys, shape, cond: start)

        def log_reward(seed):
            return rollout(jax.random.fold_in(key, seed), pinned, prior, shape=(8_000, 1)).xs[-1, :, 0] / data.std

        return log_reward(1), log_reward(2)

    pair = jax.device_get(run(jax.random.key(0)))
    excess, error = certificate.start_excess(*pair)
    assert 0 < error < 0.25
    if forgets:
        assert abs(excess) < 0.06 + 3 * error and error < 0.06
    else:
        assert excess > 0.8 and excess > 5 * error
    # Tempering the reward shrinks what its start can cost.
    half, _ = certificate.start_excess(*pair, beta=0.5)
    assert forgets or half < 0.5 * excess


def test_even_weights_do_not_make_distant_samples_consistent():
    """Lognormal weights of log-std 0.75: ESS exp(-0.5625) = 0.57 would pass, a path-KL of 0.28 nats does not."""
    gap = 0.75 * np.random.default_rng(0).normal(size=20_000) - 0.28125
    found = certificate.certify(gap, certificate.exact(0.0, "closed form"))
    assert found.ess > certificate.MIN_ESS and found.path_kl > certificate.MAX_PATH_KL
    assert found.verdict == "importance_weight"


def test_a_reference_takes_bound_and_floor_at_their_word():
    log_r = np.asarray([-np.inf, -9.0, -1.0, 0.5])
    with pytest.raises(ValueError, match="log_reward reaches 0.5000, beyond its declared bound 0.0000"):
        certificate.from_prior(log_r, log_bound=0.0)
    floored = certificate.from_prior(log_r, log_floor=-6.0)
    assert floored.log_z == pytest.approx(np.log(np.mean(np.exp([-6.0, -6.0, -1.0, 0.5]))))


def test_what_certify_cannot_take_is_said():
    with pytest.raises(TypeError, match="one of rtbjax.from_prior or rtbjax.certificate.exact, got float"):
        certificate.certify(normal_gaps(0.1), -1.0)
    with pytest.raises(ValueError, match="1 of 3 numbers in gap are not finite. Of a hard constraint"):
        certificate.certify([0.0, 1.0, -np.inf])


@pytest.mark.parametrize("floor", [-30.0, -13.7])  # float32 raises the latter.
def test_a_reference_in_which_no_sample_meets_a_constraint_is_refused(floor):
    """Else an untrained posterior, every path of which is at the floor, would agree with it and be consistent."""
    at_floor = np.full(100, floor, np.float32)
    assert certificate.certify(at_floor, certificate.from_prior(at_floor)).verdict == "consistent"
    with pytest.raises(ValueError, match=f"None of 100 prior samples is above the floor of log r, {floor}"):
        certificate.from_prior(at_floor, log_floor=floor)
    one = np.where(np.arange(100) == 7, np.float32(0.0), at_floor)
    assert certificate.from_prior(one, log_floor=floor).log_z == pytest.approx(np.log(0.01), abs=1e-3)
