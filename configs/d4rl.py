"""Offline reinforcement learning on D4RL's locomotion tasks (paper, sec. 3.4 and app. G).

    python experiments/run.py --config=configs/d4rl.py                     Hopper, on the embedded set
    python experiments/run.py --config=configs/d4rl.py:paper               the paper's sizes; for an accelerator
    python experiments/run.py --config=configs/d4rl.py:smoke               the whole path in about a minute

Prior and values of the default are shipped. For other data, here a D4RL file (or an npz, a TFDS or Minari folder),
each is made first, and alpha chosen (paper, table G.2: `ALPHA`):

    D="--config=configs/d4rl.py --config.environment=walker2d --config.data.path=walker2d-medium.npz"
    python experiments/run.py $D --mode=pretrain                                   the behaviour prior
    python experiments/run.py $D --mode=pretrain --config.pretrain.what=reward     IQL's values
    python experiments/run.py $D --config.prior.weights=... --config.reward.weights=... --config.reward.alpha=0.05
"""

from ml_collections import ConfigDict

from configs.base import base, check_variant

VARIANTS = ("", "paper", "smoke")
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
    config.reward.alpha = ALPHA["hopper-medium-replay"]  # Of Q, in units of its scaled rewards.
    config.iql = ConfigDict()
    config.iql.width = 256
    config.iql.expectile = 0.7
    config.iql.discount = 0.99
    config.iql.target_rate = 0.005
    config.iql.steps = 30_000
    config.iql.batch_size = 256
    config.iql.learning_rate = 3e-4
    config.iql.checkpoint_every = 5_000
    config.process.num_steps = 15
    config.process.min_std = 0.02
    config.posterior.kind = "correction"  # correction | full | lora
    config.posterior.width = 128
    config.posterior.langevin = True
    config.posterior.langevin_clip = 100.0
    config.posterior.rank = 8
    config.posterior.select = "kernel"
    config.objective.group = 32
    config.train.steps = 600
    config.train.batch_size = 16 * 32
    config.train.learning_rate = 1e-3
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
    return config
