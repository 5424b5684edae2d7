"""MNIST: a diffusion prior over handwritten digits, the posterior "a seven" under a classifier's likelihood.

    python experiments/run.py --config=configs/mnist.py                     four to seven minutes
    python experiments/run.py --config=configs/mnist.py --config.reward.label=even --workdir=runs/mnist-even
    python experiments/run.py --config=configs/mnist.py:full                70 minutes; resumes where it was stopped
    python experiments/run.py --config=configs/mnist.py:smoke               the whole path in about a minute
    python experiments/run.py --config=configs/mnist.py:table2              the paper's table 2, 24 hours; resumes
    python experiments/run.py --config=configs/mnist.py:table2_even_odd     its second part, five hours
    python experiments/run.py --config=configs/mnist.py:table2_smoke        all its methods, one class, in three minutes

The three networks are shipped. Each is made anew (on --config.data.path=digits.npz, or on what this machine has; the
shipped value by larger settings, on a GPU: docs/results/mnist.md) by

    python experiments/run.py --config=configs/mnist.py --mode=pretrain                                the prior
    python experiments/run.py --config=configs/mnist.py --mode=pretrain --config.pretrain.what=reward  the classifier
    python experiments/run.py --config=configs/mnist.py:value --mode=pretrain                          the value

Cost of the table, per class and seed: RTB and six methods that train nothing, with 250 samples and exact sets of as
many, 17 minutes of one slow core (measured, docs/results/vision.md); RTB from the prior, REINFORCE, DPOK and DDPO 160
steps of 1.8 s on two free cores (a step of theirs, measured) and evaluation, 7 minutes each. With the 750 samples that
are configured here a day for ten classes and three seeds on two free cores, by estimate. Less of it by

    --config.table.labels="('7',)" --config.table.seeds="(0,)" --config.table.methods="('rtb', 'dpok')"

Expected: see docs/results/mnist.md and, of the table, vision.md there. Labels: 0..9, even, odd. One posterior for many
labels, which it is told, by

    python experiments/run.py --config=configs/mnist.py:conditional          the digits; hours, not measured

with --config.reward.label=digits_and_parity, or =parity --config.objective.group=30 (paths of each label in a batch).
"""

from configs.base import base, check_variant, regression
from configs.published import MNIST, MNIST_EVEN_ODD, beside

VARIANTS = ("", "full", "conditional", "value", "table2", "table2_even_odd", "table2_smoke", "smoke")


def set_prior(config) -> None:
    """The prior of digits and its chain."""
    config.data.set = "mnist"
    config.prior = {
        "weights": "weights/mnist_prior.safetensors",
        "network": {"patch": 2, "channels": (32, 128), "num_blocks": (1, 1)},
    }
    config.process.num_steps = 32
    config.process.spacing = "log_snr"
    config.process.variance = "fixed_small"
    config.process.min_std = 0.15
    config.process.clip_x0 = 0.0  # 0: no clipping.


def get_config(variant: str = ""):
    check_variant("configs/mnist.py", variant, VARIANTS)
    config = base()
    config.domain = "images"
    set_prior(config)
    config.reward.label = "7"
    config.reward.weights = "weights/mnist_classifier.safetensors"
    config.posterior.kind = "value_guided"  # steered: a third of the cost a sample, and farther.
    config.value = {"weights": "weights/mnist_value.safetensors"}  # Serves every label.
    config.value.strength = 1.2  # Of its gradient, at the start of value_guided.
    config.value.refine = regression(
        steps=300, batch_size=256, learning_rate=3e-4, weight_decay=1e-2, ema=0.995, checkpoint_every=100
    )
    config.steer.learning_rate = 1e-2
    config.steer.strength = 1.5
    config.posterior.rank = 8
    config.posterior.select = "kernel"
    config.posterior.network = {"patch": 2, "channels": (16, 64), "num_blocks": (1, 1)}
    config.train.steps = 20  # More do not bring it nearer: docs/results/mnist.md.
    config.train.batch_size = 64
    config.train.optimizer = "muon"
    config.train.learning_rate = 5e-4
    config.train.warmup_steps = 5
    config.checkpoint.every = 10
    config.log.every = 5
    config.eval.num_samples = 1_000
    config.eval.batch_size = 500
    config.eval.exact_samples = 750  # For the default label they are shipped, in weights/exact.
    config.pretrain.what = "prior"
    config.pretrain.paths = 30_000  # Prior samples that the value is trained on, beside the digits.
    config.pretrain.steps = 15_000
    config.pretrain.batch_size = 64
    config.pretrain.learning_rate = 2e-3
    config.pretrain.weight_decay = 1e-3
    if variant == "full":
        config.train.steps, config.train.batch_size = 160, 256
        config.train.learning_rate = 5e-3
        config.eval.num_samples = 2_000
    if variant == "conditional":
        config.reward.label = "digits"
        config.value.strength = 1.0
        config.steer.steps, config.steer.batch_size = 2000, 16
        config.train.steps = 200
        config.objective.group = 6
        config.train.batch_size = 60
        config.eval.num_samples = 200
        config.eval.exact_samples = 100
    if variant == "value":
        config.pretrain.what = "value"
        config.pretrain.steps = 7000
        config.pretrain.batch_size = 256
        config.pretrain.learning_rate = 1e-3
        config.pretrain.weight_decay = 1e-2
    if variant.startswith("table2"):
        even_odd = variant == "table2_even_odd"
        config.table = {
            "runs": methods(2 if variant == "table2_smoke" else 160),
            "methods": (),  # Of these; (): all.
            "labels": ("even", "odd") if even_odd else tuple("0123456789"),
            "seeds": (0, 1, 2),
            "published": beside(MNIST_EVEN_ODD if even_odd else MNIST),
        }
        config.eval.num_samples = config.eval.exact_samples
        config.eval.batch_size = 250
    if variant in ("smoke", "table2_smoke"):
        config.process.num_steps = 5
        config.train.steps = 6
        config.steer.steps, config.steer.batch_size = 2, 8
        config.value.refine.steps = 2
        config.train.batch_size = 16
        config.log.every = 1
        config.checkpoint.every = 3
        config.behaviour.accepted = 0.5
        config.behaviour.capacity = config.behaviour.warm_accepted = 32
        config.eval.num_samples = config.eval.batch_size = 128
        config.eval.exact_samples = 32
    if variant == "table2_smoke":
        config.table.labels, config.table.seeds = ("7",), (0,)
        config.behaviour.accepted = 0.0
        config.train.steps = 2
        config.eval.num_samples, config.eval.batch_size, config.eval.particles = 40, 40, 20
    return config


def methods(policy_steps: int):
    """Table 2 and more: name, title, the method whose posterior it starts from, and its changes of the config.

    Policy gradients and RTB from the prior train a score alone, which is zero at the prior. They take more steps than
    RTB, which starts from a value that was trained beforehand.
    """
    untrained = {"train.steps": 0, "steer.steps": 0}
    score = {"posterior.kind": "steered", "steer.steps": 0}
    from_prior = score | {"train.steps": policy_steps, "train.learning_rate": 2e-3}
    rows = [
        ("rtb", "RTB", "", {}),
        ("smc_rtb", "SMC, RTB proposes", "rtb", untrained | {"eval.sampler": "smc_posterior"}),
        ("rtb_from_prior", "RTB from the prior", "", from_prior),
        ("reinforce", "REINFORCE, log r, KL", "", from_prior | {"objective.loss": "reinforce"}),
        ("dpok", "DPOK, KL 0.1", "", from_prior | {"objective.loss": "dpok", "objective.alpha": 0.1}),
        ("ddpo", "DDPO", "", from_prior | {"objective.loss": "ddpo"}),
        ("classifier_guidance", "classifier guidance", "", untrained | {"posterior.kind": "classifier_guidance"}),
        ("posterior_sampling", "DPS", "", untrained | {"posterior.kind": "posterior_sampling"}),
        ("loss_guidance", "LGD-MC", "", untrained | {"posterior.kind": "loss_guidance"}),
        (
            "smc_guided",
            "SMC, DPS proposes",
            "",
            untrained | {"posterior.kind": "posterior_sampling", "eval.sampler": "smc_posterior"},
        ),
        ("smc", "SMC, the prior proposes", "", untrained | {"eval.sampler": "smc"}),
        ("best_of", "best of 10", "", untrained | {"eval.sampler": "best_of"}),
    ]
    # Dots separate fields in a config's names, so the changes are kept as pairs.
    return [(name, title, after, list(changes.items())) for name, title, after, changes in rows]
