"""Noise schedules against published values and hand-written tables."""

import warnings

import numpy as np
import pytest
import scipy.stats

from rtbjax import schedules


def test_linear_schedule_of_ddpm():
    """The ends of the DDPM schedule: beta_1 = 1e-4, and alpha-bar_1000 = 4.0358e-5 (Ho et al. release)."""
    a = schedules.linear_alpha_bar()
    assert a.shape == (1000,) and a.dtype == np.float64
    np.testing.assert_allclose([a[0], a[-1]], [0.9999, 4.0358e-05], rtol=1e-4)
    np.testing.assert_allclose(1 - a[-1] / a[-2], 0.02)


def test_scaled_linear_schedule_of_latent_diffusion():
    a = schedules.scaled_linear_alpha_bar()
    np.testing.assert_allclose([a[0], a[-1]], [0.99915, 0.0046601], rtol=1e-4)


def test_cosine_schedule():
    """alpha-bar_1000 = 2.4288e-9 is what the released code gives; the clip leaves 1/1000 of the step before."""
    a = schedules.cosine_alpha_bar()
    assert a[0] > 0.9999
    np.testing.assert_allclose(a[499], 0.4938436, rtol=1e-6)
    np.testing.assert_allclose(a[-1], 2.4288e-9, rtol=1e-4)
    np.testing.assert_allclose(a[-1] / a[-2], 1e-3)
    np.testing.assert_allclose(
        schedules.cosine_alpha_bar(max_beta=0.5)[-1] / schedules.cosine_alpha_bar(max_beta=0.5)[-2], 0.5
    )


@pytest.mark.parametrize("name", ["linear_alpha_bar", "scaled_linear_alpha_bar", "cosine_alpha_bar"])
@pytest.mark.parametrize("num_train_steps", [10, 1000])
def test_signal_falls_strictly_between_one_and_zero(name, num_train_steps):
    a = getattr(schedules, name)(num_train_steps)
    assert len(a) == num_train_steps
    assert np.all(np.diff(a) < 0) and a[0] < 1 and a[-1] > 0


# A toy that ends far from noise, of which `respace` warns.
pytestmark = pytest.mark.filterwarnings("ignore:The chain starts from pure noise")
ALPHA_BAR = np.asarray([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05])


@pytest.mark.parametrize(
    "num_steps, spacing, offset, timesteps",
    [
        (3, "leading", 0, [6, 3, 0]),
        (3, "leading", 1, [7, 4, 1]),
        (5, "leading", 0, [8, 6, 4, 2, 0]),
        (3, "trailing", 0, [9, 6, 2]),
        (4, "trailing", 0, [9, 7, 4, 1]),
        (5, "trailing", 0, [9, 7, 5, 3, 1]),
        (10, "leading", 0, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (10, "trailing", 0, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (1, "trailing", 0, [9]),
        (4, "linspace", 0, [9, 6, 3, 0]),
        (3, "linspace", 0, [9, 4, 0]),
        (1, "linspace", 0, [9]),
    ],
)
def test_respacing_tables(num_steps, spacing, offset, timesteps):
    respaced = schedules.respace(ALPHA_BAR, num_steps, spacing, steps_offset=offset, final_alpha_bar=0.99)
    np.testing.assert_array_equal(respaced.timesteps, timesteps)
    np.testing.assert_array_equal(respaced.alpha_bar, [ALPHA_BAR[t] for t in timesteps] + [0.99])
    assert schedules.respace(ALPHA_BAR, num_steps, spacing).alpha_bar[-1] == 1.0


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_number_of_steps_gives_that_many_falling_timesteps(spacing):
    alpha_bar = np.linspace(0.99, 0.01, 1000)
    for num_steps in range(1, 1001):
        t = schedules.respace(alpha_bar, num_steps, spacing).timesteps
        assert len(t) == num_steps and np.all(np.diff(t) < 0), num_steps
        assert 0 <= t[-1] and t[0] <= 999, num_steps
        if spacing != "leading":
            assert t[0] == 999, num_steps


@pytest.mark.parametrize("num_steps", [0, 11])
def test_too_many_or_few_steps_name_the_range(num_steps):
    with pytest.raises(ValueError, match=rf"1\.\.10.*got {num_steps}"):
        schedules.respace(ALPHA_BAR, num_steps)


def test_unknown_spacing_names_the_known():
    with pytest.raises(ValueError, match="'leading', 'trailing', 'linspace' or 'log_snr', got 'even'"):
        schedules.respace(ALPHA_BAR, 3, "even")


@pytest.mark.parametrize("betas", [np.linspace(1e-4, 0.02, 1000), np.full(1000, 0.01), -np.linspace(0.0, 1.0, 9)])
def test_what_cannot_be_left_of_a_signal_is_refused(betas):
    with pytest.raises(ValueError, match=r"alpha_bar must fall within 0\.\.1, .* it is np.cumprod\(1 - betas\)"):
        schedules.respace(betas, 5)


def test_a_last_timestep_without_noise_is_refused():
    """Its step would divide 0 by 0."""
    betas = np.append(0.0, np.linspace(1e-4, 0.02, 999))
    with pytest.raises(ValueError, match="below final_alpha_bar, 1: at timestep 0 it is 1, and no noise is left"):
        schedules.respace(np.cumprod(1 - betas), 10)


def test_a_chain_that_would_not_start_in_noise_is_warned_of():
    with pytest.warns(UserWarning, match=r"pure noise at timestep 99, where noised data keep a share 0\.36"):
        schedules.respace(schedules.linear_alpha_bar(100), 10, "trailing")
    with pytest.warns(UserWarning, match="at timestep 500, .* spacing='trailing' if there are few steps"):
        schedules.respace(schedules.cosine_alpha_bar(), 2)
    with warnings.catch_warnings(action="error"):
        schedules.respace(schedules.linear_alpha_bar(), 10)


def test_linear_mask_rate_table():
    np.testing.assert_allclose(schedules.linear_mask_rate(4), [1.0, 0.75, 0.5, 0.25, 0.0])


def test_loglinear_mask_rate_is_that_of_sedds_noise():
    """A token is masked with probability 1 - exp(-sigma); sigma as in SEDD's paper, then the denoising step."""
    rate = schedules.loglinear_mask_rate(5, eps=0.01, time_eps=0.1)
    assert rate.shape == (6,) and rate[-1] == 0.0
    t = np.asarray([1.0, 0.775, 0.55, 0.325, 0.1])
    sigma = -np.log1p(-(1 - 0.01) * t)
    np.testing.assert_allclose(rate[:-1], 1 - np.exp(-sigma), rtol=1e-12)
    np.testing.assert_allclose(schedules.loglinear_mask_rate(1), [0.999, 0.0])


def test_geometric_sigma_table():
    np.testing.assert_allclose(schedules.geometric_sigma(3, 8.0, 2.0), [8.0, 4.0, 2.0, 0.0])


@pytest.mark.parametrize("offset", [-1, 1])
def test_an_offset_beyond_the_schedule_is_an_error(offset):
    with pytest.raises(ValueError, match=r"steps_offset must lie in 0\.\.0"):
        schedules.respace(ALPHA_BAR, len(ALPHA_BAR), "leading", steps_offset=offset)


def test_log_snr_spacing_follows_a_logistic_law_and_begins_at_the_last_timestep():
    alpha_bar = schedules.cosine_alpha_bar()
    respaced = schedules.respace(alpha_bar, 32, "log_snr", log_snr=(-1.4, 1.1))
    assert len(respaced.timesteps) == 32 and respaced.timesteps[0] == 999
    levels = np.log(respaced.alpha_bar[1:-1] / (1.0 - respaced.alpha_bar[1:-1]))
    # As near as the 1000 training timesteps allow.
    below = scipy.stats.logistic.cdf(levels, loc=-1.4, scale=1.1)
    np.testing.assert_allclose(below, (np.arange(31) + 0.5) / 31, atol=2e-3)
    assert schedules.respace(alpha_bar, 1, "log_snr").timesteps.tolist() == [999]


def test_more_log_snr_steps_than_timesteps_is_an_error():
    with pytest.raises(ValueError, match=r"9 steps by log_snr \(-1.4, 0.1\) are more than the schedule can tell apart"):
        schedules.respace(ALPHA_BAR, 9, "log_snr", log_snr=(-1.4, 0.1))
    with pytest.raises(ValueError, match=r"reaches from -4.38 to 1.58; the schedule from -2.94 to 2.20"):
        schedules.respace(ALPHA_BAR, 9, "log_snr")


def test_a_schedule_with_a_number_that_is_none_is_refused():
    alpha_bar = schedules.linear_alpha_bar(10)
    alpha_bar[4] = np.nan
    with pytest.raises(ValueError, match="must fall within 0..1"):
        schedules.respace(alpha_bar, 5)
