"""Half precision in the network, float32 in every log-probability; a network that does not repeat itself is noticed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from oracles import LinearGaussian
from shrunk import bare_domain, changed, gmm

from experiments import loop, parity, run
from experiments.domains import gmm as gmm_domain
from rtbjax import Policy, rollout
from rtbjax.nets.mlp import PISNet
from rtbjax.nets.unet import UNet
from rtbjax.sharding import data_mesh

CHAIN = LinearGaussian(num_steps=4)


@pytest.mark.parametrize(
    "net, x", [(PISNet(3), (5, 2)), (UNet(channels=(4, 8), embed_dim=8), (2, 8, 8, 1))], ids=["mlp", "unet"]
)
def test_a_network_computes_in_half_precision_and_stays_float32_outside(net, x):
    half = net.clone(dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), x)
    params = jax.jit(net.init)(jax.random.key(1), x, jnp.float32(0.3))["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # The last layer starts at zero.
    lowered = jax.jit(lambda p: half.apply({"params": p}, x, jnp.float32(0.3)))
    with jax.numpy_dtype_promotion("standard"):  # Flax raises the statistics of a norm to float32 by promotion.
        text, out = lowered.lower(params).as_text(), lowered(params)
    products = [line for line in text.splitlines() if "dot_general" in line or "convolution" in line]
    # Attention scores its positions in float32.
    assert len([line for line in products if "bf16" not in line]) == (1 if isinstance(net, UNet) else 0)
    assert len(products) > 4
    full = net.apply({"params": params}, x, jnp.float32(0.3))
    assert out.dtype == jnp.float32
    error = np.abs(out - full).max() / np.abs(full).max()
    assert 1e-5 < error < 0.05


def test_log_probabilities_of_half_precision_are_float32_sums():
    def apply_fn(params, x, t, cond):
        return (params["w"] * x).astype(jnp.bfloat16)

    def rounded(params, x, t, cond):
        return apply_fn(params, x, t, cond).astype(jnp.float32)

    key, params = jax.random.key(0), {"w": jnp.float32(0.31)}
    half, full = (rollout(key, CHAIN.process, Policy(params, f), shape=(6, 2)) for f in (apply_fn, rounded))
    assert half.log_prior.dtype == half.xs.dtype == jnp.float32
    np.testing.assert_array_equal(half.log_prior, full.log_prior)


def with_shift(amount):
    return Policy({"shift": jnp.full((4, 2), amount)}, CHAIN.shifted_apply)


def test_the_difference_is_that_between_two_scorings():
    """A third of a nat more on one step of one path is a third of a nat."""
    policy = with_shift(0.2)
    paths = rollout(jax.random.key(0), CHAIN.process, CHAIN.prior, policy, shape=(16, 2))
    check = parity.checker(bare_domain(CHAIN, policy, (2,)))
    assert check(policy.params, paths) < 1e-4
    altered = paths._replace(log_ratio=paths.log_ratio.at[1, 5].add(-1 / 3))
    np.testing.assert_allclose(check(policy.params, altered), 1 / 3, atol=1e-4)
    assert check(with_shift(0.3).params, paths) > 0.01


def test_only_a_difference_beyond_the_tolerance_is_warned_of(monkeypatch):
    warned = []
    monkeypatch.setattr(logging, "warning", lambda message, *values: warned.append(message % values))
    parity.warn(3, 0.9 * parity.TOLERANCE)
    assert not warned
    parity.warn(4, 2 * parity.TOLERANCE)
    parity.warn(5, float("nan"))
    assert len(warned) == 2 and "At step 4" in warned[0] and "0.2 nats" in warned[0]


@pytest.mark.parametrize("precision, largest", [("float32", 1e-3), ("bfloat16", 20.0)])
def test_a_run_logs_it(tmp_path, precision, largest):
    config = changed(gmm(tmp_path), precision=precision)
    loop.run(config, gmm_domain.build(config), tmp_path, data_mesh(1), loop.Clock())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(0.0 <= line["parity"] < largest for line in lines)


def test_exact_sets_of_another_precision_are_others(tmp_path):
    config = gmm(tmp_path)
    fingerprints = {
        run.domain_module(config).build(changed(config, precision=p)).fingerprint for p in ("float32", "bfloat16")
    }
    assert len(fingerprints) == 2
