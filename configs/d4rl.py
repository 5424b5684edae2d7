"""Offline reinforcement learning on D4RL's locomotion tasks (paper, sec. 3.4 and app. G).

    python experiments/run.py --config=configs/d4rl.py                     Hopper, on the embedded set: two minutes
    python experiments/run.py --config=configs/d4rl.py:paper               the paper's sizes; for an accelerator
    python experiments/run.py --config=configs/d4rl.py:smoke               the whole path in about a minute
    python experiments/run.py --config=configs/d4rl.py:table4              RTB and seven others; an hour a seed
    python experiments/run.py --config=configs/d4rl.py:online_vs_mixed     recorded actions or none; 7 minutes a seed
    python experiments/run.py --config=configs/d4rl.py:alpha_sweep         five alphas (G.2); 15 minutes a seed

Tables are of the data sets in the folder --config.data.path, or of the embedded one; all in them is made anew for every
seed. Costs and results: docs/results/control.md.

Prior and values of the default are shipped. For other data, here a D4RL file (or an npz, a TFDS or Minari folder),
each is made first, and alpha chosen: the smallest at which importance sampling from the prior can say in most states
what the posterior is (`trusted` in summary.json). The paper's (table G.2: `ALPHA`) are smaller.

    D="--config=configs/d4rl.py --config.environment=walker2d --config.data.path=walker2d-medium.npz"
    python experiments/run.py $D --mode=pretrain                                   the behaviour prior
    python experiments/run.py $D --mode=pretrain --config.pretrain.what=reward     IQL's values
    python experiments/run.py $D --config.prior.weights=... --config.reward.weights=... --config.reward.alpha=0.5
"""

from ml_collections import ConfigDict

from configs.base import base, check_variant, regression

VARIANTS = ("", "paper", "table4", "online_vs_mixed", "alpha_sweep", "smoke")
SWEEP = (0.1, 0.2, 0.5, 1.0, 2.0)
ALPHA = {
    "halfcheetah-medium-expert": 0.1,
    "halfcheetah-medium": 0.05,
    "halfcheetah-medium-replay": 0.05,
    "hopper-medium-expert": 0.5,
    "hopper-medium": 0.1,
    "hopper-medium-replay": 0.05,
    "walker2d-medium-expert": 0.1,
    "walker2d-medium": 0.05,
    "walker2d-medium-replay": 0.1,
}


def get_config(variant: str = ""):
    check_variant("configs/d4rl.py", variant, VARIANTS)
    config = base()
    config.domain = "control"
    config.environment = "hopper"  # hopper | halfcheetah | walker2d
    config.prior = {"weights": "weights/control/hopper_prior.safetensors", "width": 256}
    config.reward.weights = "weights/control/hopper_iql.safetensors"
    # Of Q, in units of its scaled rewards. At the paper's 0.05 importance sampling from the prior, which says what the
    # posterior is, has 5 effective samples of 2,000 in the median state, and RTB ends 8.5 nats from it.
    config.reward.alpha = 0.5
    config.iql = ConfigDict()
    config.iql.width = 256
    config.iql.expectile = 0.7
    config.iql.discount = 0.99
    config.iql.target_rate = 0.005
    config.iql.steps = 30_000
    config.iql.batch_size = 256
    config.iql.learning_rate = 3e-4
    config.iql.checkpoint_every = 5_000
    config.baseline = baselines()
    config.process.num_steps = 15
    config.process.min_std = 0.02
    config.posterior.kind = "correction"  # correction | full | lora
    config.posterior.width = 128
    config.posterior.langevin = True
    config.posterior.langevin_clip = 100.0
    config.posterior.rank = 8
    config.posterior.select = "kernel"
    config.objective.group = 16
    config.train.steps = 600
    config.train.batch_size = 32 * 16
    config.train.learning_rate = 3e-3
    config.train.warmup_steps = 20
    config.behaviour.noised = 0.25  # Recorded actions, with their reward, within every group.
    config.checkpoint.every = 100
    config.eval.states = 16
    config.eval.num_samples = 2_000
    config.eval.batch_size = 4_000
    config.eval.exact_samples = 2_000
    config.pretrain.what = "prior"
    config.pretrain.steps = 12_000
    config.pretrain.batch_size = 512
    if variant == "paper":
        config.reward.alpha = ALPHA["hopper-medium-replay"]
        config.posterior.width = 256
        config.process.num_steps = 75
        config.objective.group = 64
        config.train.batch_size = 64 * 64
        config.train.steps = 150_000
        config.train.learning_rate = 5e-4
        config.behaviour.noised = 0.5
        config.checkpoint.every = 5_000
        config.iql.steps = 750_000
        config.pretrain.steps = 1_500_000
        config.pretrain.learning_rate = 5e-4
    if variant in ("table4", "online_vs_mixed", "alpha_sweep"):
        config.prior.weights = config.reward.weights = ""  # Made in every cell.
        config.reward.alpha = 0.0  # Each data set has its own.
        config.compare = comparison(variant)
    if variant == "smoke":
        config.process.num_steps = 5
        config.train.steps = 6
        config.objective.group = 4
        config.train.batch_size = 16
        config.log.every = 1
        config.checkpoint.every = 3
        config.eval.states = 4
        config.eval.num_samples = 64
        config.eval.batch_size = 64
        config.eval.exact_samples = 64
        config.pretrain.steps = 100
        config.iql.steps = 200
        config.baseline.steps = 200
        config.baseline.states = 50
    return config


def baselines() -> ConfigDict:
    """What every baseline is trained by, and what each has of its own."""
    b = regression(steps=20_000, batch_size=256, learning_rate=3e-4, weight_decay=0.0, checkpoint_every=5_000)
    b.width = 256
    b.target_rate = 0.005
    b.temperature = 3.0  # awr: IQL's policy weighs actions by exp(temperature (Q - V)).
    b.conservatism = 5.0  # cql: of its penalty.
    b.q_weight = 1.0  # dql: of Q beside the imitation.
    b.num_steps = 5  # dql: of its chain.
    b.candidates = 50  # dql: actions that one is chosen from.
    b.states = 20_000  # qgpo: recorded states in which actions of the prior are drawn,
    b.support = 16  # qgpo: so many in each.
    return b


def comparison(variant: str) -> ConfigDict:
    """What `experiments.control.tables` reads."""
    runs = {
        "table4": {"RTB": {}},
        "online_vs_mixed": {"online": {"behaviour.noised": 0.0}, "mixed": {"behaviour.noised": 0.5}},
        "alpha_sweep": {f"alpha {alpha:g}": {"reward.alpha": alpha} for alpha in SWEEP},
    }
    sets = {
        "table4": tuple(ALPHA),
        "online_vs_mixed": tuple(name for name in ALPHA if name.endswith("replay")),
        "alpha_sweep": tuple(ALPHA),
    }
    c = ConfigDict()
    c.table = variant
    c.runs = [(name, list(changes.items())) for name, changes in runs[variant].items()]
    c.sets = [(n, [("environment", n.split("-")[0]), ("reward.alpha", ALPHA[n])]) for n in sets[variant]]
    c.policies = ("gaussian", "awr", "cql", "dql", "qgpo") if variant == "table4" else ()
    c.alpha = 0.0  # Of all sets, in place of the paper's for each.
    c.seeds = 5
    c.episodes = 10
    c.candidates = 32  # Actions that IDQL chooses from.
    return c
