"""One posterior for many conditions, on a chain where the posterior of each is known."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import LinearGaussian
from shrunk import bare_domain, changed

from configs.gmm import get_config
from experiments import evaluate, exact, loop, objectives, proposal, settings, weights
from experiments.domains.base import ConditionalLogZ, Conditions
from experiments.errors import ConfigError
from rtbjax import Policy, certificate
from rtbjax.sharding import data_mesh

CHAIN = LinearGaussian(num_steps=5)
VARIANCE = 1.5 / CHAIN.num_steps
# Of log r = c . x, each condition a c.
VALUES = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)


def log_z(c):
    """Closed form, by the recursion of `LinearGaussian` for another c."""
    slope, offset = np.asarray(c, np.float64), 0.0
    for _ in range(CHAIN.num_steps):
        offset += slope @ CHAIN.b / CHAIN.num_steps + 0.5 * VARIANCE * slope @ slope
        slope = slope * (1.0 + CHAIN.a / CHAIN.num_steps)
    return offset


def posterior_apply(params, x, t, cond):
    """Shifts the drift by a multiple of c at every step, which is what the exact posterior does."""
    i = CHAIN.process.step_at(t)
    return CHAIN.prior_apply(CHAIN._params, x, t, cond) + params["gain"][i] * cond["c"]


def quadratic(params, cond):
    return cond["c"] @ params["slope"] + params["curve"] * jnp.sum(cond["c"] ** 2, axis=-1)


def domain(**fields):
    conditions = Conditions(
        values={"c": jnp.asarray(VALUES)},
        evaluated={"c": jnp.asarray(VALUES[:4])},
        names=("a", "b", "c", "d"),
        examples=jnp.asarray(3.0 * VALUES),
        log_z=ConditionalLogZ({"slope": jnp.zeros(2), "curve": jnp.float32(0.0)}, quadratic),
    )
    start = Policy({"gain": jnp.zeros(CHAIN.num_steps)}, posterior_apply)
    made = bare_domain(CHAIN, start, (2,), conditions=conditions, **fields)
    return type(made)(**vars(made) | {"log_reward": lambda x, cond: jnp.sum(cond["c"] * x, axis=-1)})


def config(**changes):
    small = dict(
        devices=1,
        process__num_steps=CHAIN.num_steps,
        train__steps=150,
        train__batch_size=48,
        train__learning_rate=5e-2,
        objective__group=12,
        objective__chunk=5,
        behaviour__accepted=0.0,
        behaviour__prior=0.25,
        behaviour__noised=0.25,
        behaviour__replay=0.25,
        behaviour__capacity=64,
        behaviour__widen=0.0,
        eval__num_samples=500,
        eval__batch_size=512,
        eval__exact_samples=4_000,
    )
    return changed(get_config("smoke"), **small | changes)


@pytest.mark.parametrize("how", ["vargrad", "conditional"])
def test_training_reaches_the_posterior_of_every_condition(how, tmp_path):
    here, mesh = domain(), data_mesh(1)
    one = config(objective__log_z=how, eval__exact_cache=str(tmp_path / "exact"))
    settings.check(one)
    proposal.check(one, here)
    trained = loop.run(one, here, tmp_path, mesh, loop.Clock())
    known = exact.draw(one, here, mesh)
    found = evaluate.evaluate(one, here, trained.policy, known, tmp_path, mesh)["certificate"]
    closed = [log_z(c) for c in VALUES[:4]]
    assert [c["condition"] for c in found["per_condition"]] == ["a", "b", "c", "d"]
    for c, z in zip(found["per_condition"], closed, strict=True):
        # The exact posterior's paths all weigh the same.
        assert c["ess"] > 0.98 and abs(c["log_z_is"] - z) < 0.03 and abs(c["elbo"] - z) < 0.03, (c, z)
        assert abs(c["log_z_reference"] - z) < 0.25  # 4,000 prior samples of a log-normal weight.
    assert abs(found["elbo"] - np.mean(closed)) < 0.03 and found["num_paths"] == 2_000
    if how == "conditional":
        final = loop.restore(one, here, tmp_path)
        assert final.params.keys() == {"gain"} and isinstance(final.params["gain"], jax.Array)
    with np.load(tmp_path / "samples.npz") as file:
        assert file["x"].shape == (4, 500, 2) and file["log_weight"].shape == (4, 500)


def test_a_conditional_log_z_is_learned(tmp_path):
    here, mesh = domain(), data_mesh(1)
    one = config(objective__log_z="conditional", train__log_z_learning_rate=0.05, train__steps=300)
    loop.run(one, here, tmp_path, mesh, loop.Clock())
    found = weights.load(loop.final_params(tmp_path), objectives.initial_params(one, here))["log_z"]
    learned = quadratic(found, {"c": jnp.asarray(VALUES)})
    np.testing.assert_allclose(learned, [log_z(c) for c in VALUES], atol=0.05)


@pytest.mark.parametrize("devices", [1, 2])
def test_the_paths_of_a_condition_are_neighbours_with_its_own_first(devices):
    """Told apart by their ends: noised ones end in the condition's datum, the others nowhere near."""
    here, one = domain(), config(devices=devices)
    source = proposal.Proposal(one, here, data_mesh(devices))
    batch, buffers = source.propose(jax.random.key(0), 0, here.posterior.params, source.init(jax.random.key(1)))
    c = np.asarray(batch.cond["c"]).reshape(4, 12, 2)
    assert (c == c[:, :1]).all() and len(np.unique(c[:, 0], axis=0)) == 4
    ends = np.asarray(batch.xs[-1]).reshape(4, 12, 2)
    examples = 3.0 * c
    np.testing.assert_array_equal((ends == examples).all(-1), np.tile([False] * 6 + [True] * 3 + [False] * 3, (4, 1)))
    # What was just sampled is all there is to replay, and each condition replays its own.
    for own, again in zip(ends[:, :3], ends[:, 9:], strict=True):
        assert all((own == x).all(-1).any() for x in again)
    np.testing.assert_allclose(
        batch.log_reward, np.sum(np.asarray(batch.cond["c"]) * np.asarray(batch.xs[-1]), -1), rtol=1e-5
    )
    added = np.asarray(buffers.visited.added)
    assert sorted(added) == [0, 0, 3, 3, 3, 3]
    assert np.asarray(batch.log_ratio).shape == (CHAIN.num_steps, 48)


def test_batches_do_not_depend_on_the_number_of_devices():
    def first(devices):
        here, one = domain(), config(devices=devices)
        source = proposal.Proposal(one, here, data_mesh(devices))
        return source.propose(jax.random.key(0), 0, here.posterior.params, source.init(jax.random.key(1)))[0]

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), first(1), first(4))


def test_exact_samples_of_every_condition_by_rejection(tmp_path):
    """log r = min(c . x, 0), bounded; conditions of other acceptance rates get as many samples."""
    here = domain()
    bounded = {"log_reward": lambda x, cond: jnp.minimum(jnp.sum(cond["c"] * x, axis=-1), 0.0), "log_bound": 0.0}
    here = type(here)(**vars(here) | bounded)
    one = config(eval__exact_samples=400, eval__exact_cache=str(tmp_path))
    known = exact.draw(one, here, data_mesh(1))
    assert known.samples.shape == (4, 800, 2) and known.first().shape == (4, 400, 2)
    again = exact.cached(one, here)
    assert again is not None and again.log_z == known.log_z
    np.testing.assert_array_equal(again.samples, known.samples)
    for c, x, estimate in zip(VALUES, known.samples, known.log_z, strict=False):
        # E_post[1 / r] = 1 / Z, by another route than the estimate's.
        inverse = np.exp(-np.minimum(x @ c, 0.0))
        error = inverse.std() / np.sqrt(len(x)) / inverse.mean()
        assert abs(-np.log(inverse.mean()) - estimate.log_z) < 5 * error + 0.1


def test_the_average_of_certificates():
    rng = np.random.default_rng(0)
    gaps = [z + 0.3 * rng.normal(size=4_000) - 0.045 for z in (1.0, -2.0)]
    each = [
        certificate.certify(gap, certificate.exact(z, "closed form")) for gap, z in zip(gaps, (1.0, -2.0), strict=True)
    ]
    mean = certificate.average(each)
    assert mean.log_z_reference == pytest.approx(-0.5) and mean.path_kl == pytest.approx(0.045, abs=0.02)
    assert mean.num_paths == 8_000 and mean.verdict == "consistent"
    low, high = mean.log_z_is_ci
    half = np.diff([c.log_z_is_ci for c in each]).ravel() / 2
    assert np.sqrt(np.sum(half**2)) / 2 < (high - low) / 2 < half.max()
    unknown = certificate.average([*each, certificate.certify(gaps[0])])
    assert unknown.log_z_reference is None and unknown.verdict == "coverage_unchecked"
    few = [certificate.certify(np.full(24, z), certificate.exact(z, "closed form")) for z in (1.0, -2.0)]
    assert certificate.average(few).num_paths == 48 and certificate.average(few).verdict == "unreliable"
    with pytest.raises(ValueError, match="at least one certificate"):
        certificate.average([])


def test_bounds_of_an_average_are_of_the_same_conditions():
    """Else the mean of the two upper bounds that exist, -5, would lie below the mean log Z, -2.5."""
    low = certificate.certify(np.full(30, -5.0), certificate.exact(-5.0, "closed form"), np.full(30, -5.0))
    high = certificate.certify(np.full(30, 0.0), certificate.exact(0.0, "closed form"))
    assert certificate.average([low, low]).eubo == -5.0
    assert certificate.average([low, high]).eubo is None


@pytest.mark.parametrize(
    "heavy, verdict", [(0, "consistent"), (1, "consistent"), (10, "consistent"), (11, "unreliable"), (50, "unreliable")]
)
@pytest.mark.parametrize("field", ["pareto_k", "log_z_reference_pareto_k"])
def test_more_than_one_heavy_tail_in_ten_makes_an_average_unreliable(heavy, verdict, field):
    gap = 0.3 * np.random.default_rng(0).normal(size=4_000) - 0.045
    log_z = certificate.certify(gap).log_z_is
    one = dataclasses.replace(certificate.certify(gap, certificate.exact(log_z, "closed form")), pareto_k=None)
    each = [dataclasses.replace(one, **{field: 0.95})] * heavy + [one] * (100 - heavy)
    found = certificate.average(each)
    assert found.verdict == verdict
    assert getattr(found, field) == (0.95 if heavy > 10 else None)


def test_the_bias_of_many_small_estimates_is_within_the_interval_of_their_average():
    """Of 50 log-normal weights each: log Z is 0, the log of their mean about -(e - 1) / 100, and 2,500 agree on it."""
    gaps = np.random.default_rng(0).normal(size=(2_500, 50)) - 0.5
    mean = certificate.average([certificate.certify(gap) for gap in gaps])
    low, high = mean.log_z_is_ci
    assert low < 0.0 < high and abs(mean.log_z_is + (np.e - 1.0) / 100) < 0.01


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective__group": 0}, r"objective.group must be at least 1: this domain has conditions"),
        ({"objective__log_z": "learned"}, "log_z must be vargrad or conditional: .* one learned log Z is wrong"),
        ({"objective__group": 4}, r"group=4 asks for 12 conditions in a batch of 48, and there are 6"),
        ({"behaviour__accepted": 0.25, "behaviour__replay": 0.0}, "config.behaviour.prior_paths must be 0"),
    ],
)
def test_batches_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        proposal.check(config(**changes), domain())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective__group": 7}, "objective.group must divide config.train.batch_size=48, got 7"),
        ({"objective__group": 1}, "objective.group must be at least 2: a VarGrad group of one path"),
    ],
)
def test_groups_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        settings.check(config(**changes))


def test_groups_and_conditions_belong_together():
    alone = bare_domain(CHAIN, CHAIN.prior, (2,))
    with pytest.raises(ConfigError, match="group must be 0: this domain has no conditions"):
        proposal.check(config(behaviour__noised=0.0), alone)
    with pytest.raises(ConfigError, match="this domain has no conditional log Z"):
        _ = alone.log_z
