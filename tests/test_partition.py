"""log Z per path, by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtbjax.partition import group_mean, log_z_per_path

GAP = jnp.asarray([1.0, 3.0, 5.0, 11.0, 2.0, 4.0])


@pytest.mark.parametrize(
    "group, expected",
    [
        (None, [26 / 6] * 6),
        (2, [2.0, 2.0, 8.0, 8.0, 3.0, 3.0]),
        (3, [3.0, 3.0, 3.0, 17 / 3, 17 / 3, 17 / 3]),
        (6, [26 / 6] * 6),
        ([0, 1, 0, 1, 0, 1], [8 / 3, 6.0, 8 / 3, 6.0, 8 / 3, 6.0]),
        ([5, 5, 2, 2, 2, 5], [8 / 3, 8 / 3, 6.0, 6.0, 6.0, 8 / 3]),
    ],
)
def test_group_means_by_hand(group, expected):
    group = jnp.asarray(group, jnp.int32) if isinstance(group, list) else group
    for actual in (group_mean(GAP, group), log_z_per_path("vargrad", {}, GAP, None, group, None)):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_a_path_alone_in_its_group_is_nan_and_the_others_are_not():
    actual = group_mean(GAP, jnp.asarray([0, 0, 3, 1, 1, 1], jnp.int32))
    np.testing.assert_allclose(actual, [2.0, 2.0, np.nan, 17 / 3, 17 / 3, 17 / 3], rtol=1e-6)


@pytest.mark.parametrize("stray", [-1, 6, 600])
def test_an_id_out_of_range_is_an_error_and_under_jit_a_nan_that_leaves_the_others(stray):
    ids = jnp.asarray([0, 0, stray, 1, 1, 1], jnp.int32)
    with pytest.raises(ValueError, match=rf"ids must lie in 0..5 \(B - 1\), got {stray}"):
        group_mean(GAP, ids)
    with pytest.raises(ValueError, match="ids must lie in"):
        group_mean(GAP, np.asarray(ids))
    np.testing.assert_allclose(jax.jit(group_mean)(GAP, ids), [2.0, 2.0, np.nan, *[17 / 3] * 3], rtol=1e-6)


@pytest.mark.parametrize("kind", [np.int64, np.int32, jnp.int32, np.asarray], ids=lambda kind: kind.__name__)
def test_a_size_may_be_any_integer(kind):
    np.testing.assert_allclose(group_mean(GAP, kind(2)), [2.0, 2.0, 8.0, 8.0, 3.0, 3.0])
    with pytest.raises(ValueError, match="divide the 6 paths, got 4"):
        group_mean(GAP, kind(4))


def test_a_size_that_is_no_integer_is_an_error():
    with pytest.raises(TypeError, match="integer"):
        group_mean(GAP, 2.0)


def test_the_mean_is_detached():
    for group in (None, 2, jnp.asarray([0, 0, 1, 1, 1, 1], jnp.int32)):
        gradient = jax.grad(lambda gap, group=group: jnp.sum(group_mean(gap, group) ** 2))(GAP)
        np.testing.assert_array_equal(gradient, jnp.zeros(6))


def test_learned_is_one_trainable_scalar():
    def total(z):
        return jnp.sum(log_z_per_path("learned", {"log_z": z}, GAP, None, None, None))

    np.testing.assert_array_equal(
        log_z_per_path("learned", {"log_z": jnp.float32(0.75)}, GAP, None, None, None), [0.75] * 6
    )
    np.testing.assert_allclose(jax.grad(total)(jnp.float32(0.75)), 6.0)


def test_conditional_sees_its_parameters_and_the_conditions():
    cond = jnp.arange(6.0)[:, None]

    def log_z(params, cond):
        return params["slope"] * cond[:, 0]

    actual = log_z_per_path(log_z, {"log_z": {"slope": jnp.float32(2.0)}}, GAP, cond, None, None)
    np.testing.assert_array_equal(actual, 2.0 * np.arange(6.0))


@pytest.mark.parametrize("shape", [(), (1,), (6, 1)], ids=str)
def test_a_conditional_log_z_of_another_shape_is_an_error(shape):
    with pytest.raises(ValueError, match=rf"conditional log Z must have shape \(6,\), got {re.escape(str(shape))}"):
        log_z_per_path(lambda p, cond: jnp.zeros(shape), {"log_z": None}, GAP, None, None, None)


@pytest.mark.parametrize("shape", [(1,), (6,)], ids=str)
def test_a_learned_log_z_that_is_no_scalar_is_an_error(shape):
    message = rf"params\['log_z'\] must have shape \(\), got {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=message):
        log_z_per_path("learned", {"log_z": jnp.zeros(shape)}, GAP, None, None, None)


def test_gaps_and_ids_of_another_shape_are_errors():
    with pytest.raises(ValueError, match=r"gap must have shape \(6,\), got \(6, 1\)"):
        group_mean(GAP[:, None])
    with pytest.raises(ValueError, match=r"group must have shape \(6,\), got \(3,\)"):
        group_mean(GAP, jnp.zeros(3, jnp.int32))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("learnt", {}, GAP, None, None, None), "'vargrad', 'learned' or a function.*got 'learnt'"),
        (("learned", {"policy": 0}, GAP, None, None, None), r"needs params\['log_z'\].*\['policy'\]"),
        ((lambda p, c: GAP, {"policy": 0}, GAP, None, None, None), r"needs params\['log_z'\]"),
        (("vargrad", {}, GAP, None, 1, None), "at least 2 and divide the 6 paths, got 1"),
        (("vargrad", {}, GAP, None, 4, None), "at least 2 and divide the 6 paths, got 4"),
        (("vargrad", {}, GAP[:1], None, None, None), "at least 2 paths per group, got 1"),
    ],
)
def test_errors_say_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        log_z_per_path(*arguments)


def test_groups_of_different_conditions_are_refused():
    cond = {"class": np.array([0, 0, 1, 1, 0, 0]), "y": jnp.arange(6.0).reshape(3, 2).repeat(2, axis=0)}
    shared = log_z_per_path("vargrad", {}, GAP, cond, 2, None)
    np.testing.assert_array_equal(shared, group_mean(GAP, 2))
    by_class = np.array([1, 1, 5, 5, 1, 1], np.int32)
    np.testing.assert_array_equal(
        log_z_per_path("vargrad", {}, GAP, cond["class"], by_class, None), group_mean(GAP, by_class)
    )
    with pytest.raises(ValueError, match="that of path 2 is not that of path 0, the first of its group"):
        log_z_per_path("vargrad", {}, GAP, cond, 3, None)
    with pytest.raises(ValueError, match="that of path 4 is not that of path 0, the first of its group"):
        log_z_per_path("vargrad", {}, GAP, cond, by_class, None)


def test_conditions_without_a_group_are_refused():
    cond = jnp.zeros(6)
    with pytest.raises(ValueError, match="say by group how many neighbours do, 6 if all these paths do"):
        jax.jit(lambda gap, cond: log_z_per_path("vargrad", {}, gap, cond, None, None))(GAP, cond)
    np.testing.assert_allclose(
        log_z_per_path("vargrad", {}, GAP, cond, 6, None), log_z_per_path("vargrad", {}, GAP, None, None, None)
    )
    log_z_per_path("learned", {"log_z": jnp.float32(0.0)}, GAP, cond, None, None)
