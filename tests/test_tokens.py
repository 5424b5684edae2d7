"""The machinery of `experiments` on tokens: batches, buffers, exact sets of a masked chain with a known posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrunk import changed

from configs.gmm import get_config
from experiments import evaluate, exact, loop, proposal, settings
from experiments.domains.base import Conditions, Domain
from rtbjax import Policy, absorbing
from rtbjax.schedules import linear_mask_rate
from rtbjax.sharding import data_mesh

VOCAB, LENGTH = 3, 2
COSTS = np.array([[0.0, 1.0, 2.0], [2.0, 0.5, 0.0], [1.5, 0.0, 0.5], [0.0, 0.0, 3.0]], np.float32)
EXAMPLES = np.array([[0, 2], [2, 2], [1, 2], [0, 2]], np.int32)  # The prior hardly ever ends in a 2.
PROCESS = absorbing(linear_mask_rate(3), VOCAB)
PRIOR = Policy({}, lambda params, x, t, cond: jnp.broadcast_to(jnp.array([0.0, 0.0, -6.0]), (*x.shape, VOCAB)))


def log_reward(x, cond):
    return -jnp.take_along_axis(cond["cost"], x[:, :1], axis=1)[:, 0]


def log_z(cost):
    p = np.exp([0.0, 0.0, -6.0])
    return np.log(p @ np.exp(-cost) / p.sum())


def posterior_apply(params, x, t, cond):
    """The exact posterior tilts the first token's logits by minus its cost."""
    tilt = jnp.stack([-params["gain"] * cond["cost"], jnp.zeros_like(cond["cost"])], axis=1)
    return PRIOR.apply_fn({}, x, t, cond) + tilt


def domain():
    conditions = Conditions(
        values={"cost": jnp.asarray(COSTS)},
        evaluated={"cost": jnp.asarray(COSTS[:3])},
        names=("a", "b", "c"),
        examples=jnp.asarray(EXAMPLES),
    )
    return Domain(
        name="tokens",
        data_source="none",
        process=PROCESS,
        event_shape=(LENGTH,),
        prior=PRIOR,
        posterior=Policy({"gain": jnp.float32(0.0)}, posterior_apply),
        log_reward=log_reward,
        log_bound=0.0,
        fingerprint="tokens",
        evaluate=lambda samples: {},
        plot=lambda path, panels: path.touch(),
        conditions=conditions,
    )


@pytest.fixture
def config(tmp_path):
    return changed(
        get_config("smoke"),
        devices=1,
        process__num_steps=3,
        train__steps=100,
        train__batch_size=48,
        train__learning_rate=5e-2,
        objective__group=12,
        objective__chunk=3,
        behaviour__accepted=0.0,
        behaviour__prior=0.25,
        behaviour__noised=0.25,
        behaviour__replay=0.25,
        behaviour__capacity=16,
        behaviour__widen=0.0,
        eval__num_samples=200,
        eval__batch_size=600,
        eval__exact_samples=400,
        eval__exact_cache=str(tmp_path / "exact"),
    )


def test_the_buffers_hold_tokens_and_give_them_back(config):
    here = domain()
    source = proposal.Proposal(config, here, data_mesh(1))
    batch, buffers = source.propose(jax.random.key(0), 0, here.posterior.params, source.init(jax.random.key(1)))
    assert here.dtype == batch.xs.dtype == buffers.visited.items["x0"].dtype == jnp.int32
    cost, ends = np.asarray(batch.cond["cost"]).reshape(4, 12, VOCAB), np.asarray(batch.xs[-1]).reshape(4, 12, LENGTH)
    for own, of_group in zip(cost[:, 0], ends, strict=True):
        on_policy, noised, replayed = of_group[:3], of_group[6:9], of_group[9:]
        example = EXAMPLES[(own == COSTS).all(axis=1).argmax()]
        np.testing.assert_array_equal(noised, np.tile(example, (3, 1)))
        assert all((on_policy == end).all(axis=1).any() for end in replayed)
    np.testing.assert_allclose(batch.log_reward.reshape(4, 12), -np.take_along_axis(cost, ends[..., :1], 2)[..., 0])


@pytest.mark.slow
def test_training_on_every_behaviour_reaches_the_posterior(config, tmp_path):
    here, mesh = domain(), data_mesh(1)
    settings.check(config)
    proposal.check(config, here)
    trained = loop.run(config, here, tmp_path, mesh, loop.Clock())
    assert float(trained.policy.params["gain"]) == pytest.approx(1.0, abs=0.05)
    known = exact.draw(config, here, mesh)
    found = evaluate.evaluate(config, here, trained.policy, known, tmp_path, mesh)["certificate"]
    for one, cost in zip(found["per_condition"], COSTS, strict=False):
        assert one["log_z_is"] == pytest.approx(log_z(cost), abs=0.02) and one["ess"] > 0.99


def test_exact_sets_come_back_from_the_cache_as_tokens(config):
    here = domain()
    drawn = exact.draw(config, here, data_mesh(1))
    again = exact.cached(config, here)
    assert again is not None and again.log_z == drawn.log_z
    assert drawn.samples.dtype == again.samples.dtype == np.int32
    np.testing.assert_array_equal(again.samples, drawn.samples)
    for cost, x in zip(COSTS, drawn.samples, strict=False):
        law = np.exp([0.0, 0.0, -6.0]) * np.exp(-cost)
        frequency = np.bincount(x[:, 0], minlength=VOCAB) / len(x)
        np.testing.assert_allclose(frequency, law / law.sum(), atol=5 * 0.5 / np.sqrt(len(x)))
