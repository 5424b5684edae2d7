"""A config that cannot be is refused in one sentence that says what can, before anything is written."""

import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict
from shrunk import changed, gmm

from configs import mnist as mnist_config
from experiments import batches, compare, proposal, run, settings, table
from experiments.errors import ConfigError, UserError

CONFIGS = [
    importlib.import_module(f"configs.{path.stem}")
    for path in sorted(Path(mnist_config.__file__).parent.glob("*.py"))
    if "def get_config" in path.read_text()
]
VARIANTS = [(module, variant) for module in CONFIGS for variant in module.VARIANTS]
OWN = dict(behaviour__accepted=0.0, behaviour__noised=0.0, behaviour__replay=0.0)  # All paths on-policy.


@pytest.fixture
def config(tmp_path):
    return gmm(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(objective__grad_steps=101), r"grad_steps must be None or lie in 1..10"),
        (dict(objective__chunk=3), "chunk must divide the 10 steps"),
        (dict(eval__sampler="mcmc"), "eval.sampler must be one of paths, best_of, smc, smc_posterior, got 'mcmc'"),
        (dict(eval__sampler="best_of", eval__best_of=7), "eval.best_of must divide config.eval.batch_size=.*, got 7"),
        (dict(objective__log_z="exact"), "vargrad, learned, conditional"),
        (dict(objective__loss="ppo"), "rtb, reinforce"),
        (dict(objective__alpha=-1.0), "objective.alpha must be at least 0"),
        (dict(train__optimizer="sgd"), "adam, muon"),
        (dict(steer__optimizer="sgd"), "adam, muon"),
        (dict(steer__batch_size=0), "steer.batch_size must be at least 1"),
        (dict(precision="float16"), "float32, bfloat16"),
        (dict(fsdp=0), "fsdp must be at least 1"),
        (dict(train__batch_size=1), "VarGrad group of one"),
        (dict(train__batch_size=0), "at least 1"),
        (dict(process__num_steps=0), "at least 1"),
        (dict(train__steps=-1), "at least 0"),
        (dict(seed=2**31), "seed must be at least 0 and at most 2147483647, got 2147483648"),
        (dict(train__log_z_limit=0.0), "train.log_z_limit must be positive"),
        (dict(train__max_skipped=0), "train.max_skipped must be at least 1"),
        (dict(reward__retries=-1), "reward.retries must be at least 0"),
        (dict(reward__timeout=-1.0), "reward.timeout must be at least 0"),
        (dict(train__learning_rate=0.0), "positive"),
        (dict(train__learning_rate=float("inf")), "positive"),
        (dict(train__learning_rate=float("nan")), "positive"),
        (dict(train__clip_norm=0.0), "train.clip_norm must be positive"),
        (dict(behaviour__accepted=0.8), "sum to at most 1, got accepted=0.8, noised=0.25"),
        (dict(behaviour__replay=-0.1), "behaviour.replay must be at least 0"),
        (dict(eval__num_samples=1), "eval.num_samples must be at least 2"),
        (dict(eval__batch_size=1), "eval.batch_size must be at least 2"),
        (dict(eval__exact_samples=1), "eval.exact_samples must be at least 2"),
        (dict(steer__learning_rate=0.0), "steer.learning_rate must be positive"),
        (dict(steer__strength=0.0), "steer.strength must be positive"),
        (dict(pretrain__ema=1.0), "pretrain.ema must be at least 0 and below 1"),
        (dict(pretrain__steps=0), "pretrain.steps must be at least 1"),
        (dict(objective__loss="reinforce"), "set config.behaviour.accepted and config.behaviour.noised and"),
        (dict(process__num_steps=100_000_000), "process.num_steps must be at most 100000, got 100000000"),
        (dict(process__diffusion=0.0), "process.diffusion must be positive"),
        (dict(prior__width=-4), "prior.width must be at least 1, got -4"),
        # Fields that would do nothing.
        (dict(objective__alpha=5.0), "objective.alpha must be 0: config.objective.loss=rtb has no use for it"),
        (OWN | dict(objective__loss="reinforce", objective__alpha=5.0), "objective.alpha must be 0"),
        (
            OWN | dict(objective__loss="ddpo", objective__log_z="learned"),
            "objective.log_z must be vargrad: .*=ddpo",
        ),
        (OWN | dict(objective__loss="dpok", objective__cutoff=5.0), "objective.cutoff must be 0: .*loss=dpok"),
        (OWN | dict(behaviour__prior_paths=64), "behaviour.prior_paths must be 0: .*accepted and .*noised are 0"),
        (dict(behaviour__accepted=0.001), "behaviour.accepted=0.001 is not one of the 32 paths"),
        (
            dict(behaviour__accepted=0.5, behaviour__noised=0.0, behaviour__replay=0.5),
            "behaviour.replay must be 0: .* on-policy",
        ),
    ],
)
def test_a_field_out_of_range_says_what_is_allowed(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        settings.check(changed(config, **changes))


@pytest.mark.parametrize("module, variant", VARIANTS, ids=lambda part: getattr(part, "__name__", part))
def test_every_shipped_config_and_every_row_of_its_tables_is_allowed(module, variant):
    config = module.get_config(variant)
    settings.check(config)
    for one in compare.variations(config).values() if config.compare else ():
        settings.check(one)
    for method in table.chosen(config) if config.table else ():
        settings.check(table.cell(config, method, config.table.labels[0], 0, Path("w"))[0])


@pytest.mark.parametrize(
    "batch, fractions, counts",
    [
        (3, (0.5, 0.5, 0.0, 0.0), (0, 2, 1, 0, 0)),
        (10, (0.25, 0.25, 0.25, 0.0), (3, 3, 2, 2, 0)),
        (100, (0.29, 0.0, 0.1, 0.3), (31, 29, 0, 10, 30)),
        (3, (1 / 3 + 4e-10, 1 / 3 + 4e-10, 1 / 3, 0.0), (0, 1, 1, 1, 0)),
    ],
)
def test_a_batch_is_split_by_largest_remainder(config, batch, fractions, counts):
    shares = {f"behaviour__{name}": share for name, share in zip(batches.OFF_POLICY, fractions, strict=True)}
    assert tuple(batches.path_counts(changed(config, train__batch_size=batch, **shares)).values()) == counts


@pytest.mark.parametrize("loss", ["reinforce", "reinforce_reward", "ddpo", "dpok"])
def test_policy_gradients_take_their_own_paths_alone(config, loss):
    own = changed(config, objective__loss=loss, **OWN)
    settings.check(own)
    with pytest.raises(ConfigError, match="set config.behaviour.widen to 0"):
        settings.check(changed(own, behaviour__widen=0.5))


@pytest.mark.parametrize(
    "changes, message",
    [
        # A quarter of the batch is on-policy, and must divide too.
        (dict(train__batch_size=36), "train.batch_size=36 does not divide over 8 devices .* nearest are 32 and 64"),
        (dict(eval__batch_size=20), "eval.batch_size=20 does not divide over 8 devices; nearest are 16 and 24"),
        (dict(behaviour__prior_paths=4), "behaviour.prior_paths=4 does not divide over 8 devices; nearest are 8"),
    ],
)
def test_what_does_not_divide_over_the_devices_names_the_field_and_the_nearest_values(config, changes, message):
    batches.check_devices(config, 8)
    with pytest.raises(ConfigError, match=message + r"( and \d+)?; config.devices=1 takes any\.$"):
        batches.check_devices(changed(config, **changes), 8)
    with pytest.raises(ConfigError, match=message + r"( and \d+)?\.$"):  # Where one device cannot take the run.
        batches.check_devices(changed(config, fsdp=2, **changes), 8)


def test_data_that_training_does_not_read_are_warned_of(config, tmp_path, caplog):
    settings.data_unread(config)
    assert not caplog.text
    settings.data_unread(changed(config, data__path=str(tmp_path)))
    assert f"config.data.path={tmp_path} is not read: training needs no data here" in caplog.text
    with pytest.raises(ConfigError, match="config.data.path=none.npz: there is no such file or folder"):
        settings.data_unread(changed(config, data__path="none.npz"))


@pytest.mark.parametrize("field, size", [("train__batch_size", 36), ("eval__batch_size", 20)])
def test_the_nearest_values_are_right(config, field, size):
    """Both that are named divide, and nothing between them does."""

    def refusal(value):
        try:
            batches.check_devices(changed(config, **{field: value}), 8)
        except ConfigError as error:
            return str(error)

    below, above = map(int, re.findall(r"nearest are (\d+) and (\d+)", refusal(size) or "")[0])
    assert below < size < above
    assert [value for value in range(below, above + 1) if refusal(value) is None] == [below, above]


def test_accepted_paths_need_a_bound(config):
    without = changed(config, behaviour__accepted=0.0, behaviour__noised=0.0)
    boundless, bounded = (SimpleNamespace(log_bound=bound, conditions=None) for bound in (None, 0.0))
    proposal.check(without, boundless)
    proposal.check(config, bounded)
    with pytest.raises(ConfigError, match="must be 0: this reward has no declared bound"):
        proposal.check(config, boundless)


def shrink(config: ConfigDict) -> ConfigDict:
    return changed(mnist_config.get_config("smoke"), devices=1)


@pytest.mark.parametrize(
    "make, changes, message",
    [
        (shrink, dict(reward__label="seven"), "0..9, 'even', 'odd', or for many"),
        (shrink, dict(process__num_steps=5000), r"num_steps must lie in 1..1000"),
        (shrink, dict(posterior__kind="adapter"), "full, lora, correction, steered"),
        (shrink, dict(posterior__kind="lora"), "steer.steps must be 0: config.posterior.kind=lora"),
        (shrink, dict(value__strength=0.0), "value.strength must be positive"),
        (shrink, dict(value__refine__steps=0), "value.refine.steps must be at least 1"),
        (shrink, dict(value__refine__optimizer="sgd"), "config.value.refine.optimizer must be one of adam, muon"),
        (shrink, dict(process__spacing="foo"), "config.process.spacing must be one of leading, .*, got 'foo'"),
        (shrink, dict(process__variance="foo"), "config.process.variance must be one of fixed_.*, got 'foo'"),
        (shrink, dict(posterior__network__patch=3), "config.posterior.network: Image sides"),
        (shrink, dict(posterior__network__patch=0), "posterior.network.patch must be at least 1"),
        (shrink, dict(reward__label="digits", prior__weights="nowhere"), "objective.group must be at least 1"),
        (None, dict(posterior__kind="classifier_guidance"), "train.steps must be 0: .*classifier_guidance has nothing"),
        (None, dict(objective__group=8), "objective.group must be 0: this domain has no conditions"),
        (None, dict(prior__weights="nowhere.safetensors"), "no weights file"),
        (None, dict(behaviour__accepted=0.8), "sum to at most 1"),
        (None, dict(devices=8, train__batch_size=36), "does not divide over 8 devices"),
        (None, dict(devices=99), "config.devices must lie in 0..8, the devices there are, got 99"),
        (None, dict(fsdp=3), "config.fsdp must divide the 1 devices, got 3"),
    ],
)
def test_a_rejected_command_leaves_no_workdir(config, tmp_path, make, changes, message):
    with pytest.raises(UserError, match=message):
        run.execute(changed(make(config) if make else config, **changes), tmp_path / "runs" / "w")
    assert not (tmp_path / "runs").exists()


def test_evaluating_what_was_never_trained_leaves_no_workdir(config, tmp_path):
    with pytest.raises(UserError, match="train it first"):
        run.execute(config, tmp_path / "runs" / "w", "evaluate")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (("objective.loss", "ppo"), "rtb, reinforce"),
        (("posterior.kind", "lora"), "config.posterior.kind must be one of full, classifier_guidance"),
        (("train.batch_size", 31), "does not divide over 8 devices"),
    ],
)
def test_a_comparison_is_refused_for_any_of_its_variations_before_the_first_runs(config, tmp_path, change, message):
    config.devices = 8
    config.compare = {"runs": [("RTB", []), ("PPO", [change])]}
    with pytest.raises(UserError, match=message):
        compare.run(config, tmp_path / "w", run.execute, "train", run.prepare)
    assert not (tmp_path / "w").exists()


def test_gathering_is_given_up_once_it_is_clear_what_it_would_cost():
    for drawn, have in ((256, 0), (4096, 40)):
        proposal.check_cost(drawn, have, wanted=1000, size=256)
    with pytest.raises(UserError, match="40 of 4096 prior paths were accepted.* would take about 1,024,000, over"):
        proposal.check_cost(4096, 40, wanted=10_000, size=256)
    with pytest.raises(UserError, match="would take more than 40,960,000"):
        proposal.check_cost(4096, 0, wanted=10_000, size=256)
