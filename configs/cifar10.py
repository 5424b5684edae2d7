"""CIFAR-10: a diffusion prior over small pictures, the posterior one class under a classifier's likelihood.

    python experiments/run.py --config=configs/cifar10.py                         a cat, an hour of one core and more
    python experiments/run.py --config=configs/cifar10.py --config.reward.label=vehicle --workdir=runs/vehicle
    python experiments/run.py --config=configs/cifar10.py:smoke                   the whole path in about a minute

Labels: airplane, ..., truck or 0..9, vehicle, animal. RTB needs no pictures. Both networks are shipped (the smoke
variant's have random weights). Each is made anew, on --config.data.path=FILE.npz (arrays images, uint8 [N, 32, 32, 3],
and labels in 0..9), on the folder cifar-10-batches-bin of the binary version, or on what TFDS has prepared (the shipped
ones by the settings in docs/results/cifar10.md), by

    python experiments/run.py --config=configs/cifar10.py --mode=pretrain                                the prior
    python experiments/run.py --config=configs/cifar10.py --mode=pretrain --config.pretrain.what=reward  the classifier

in minutes of a GPU, where larger batches are faster: --config.train.batch_size=512, --config.pretrain.batch_size=512.
A value of noisy pictures, as digits have one, is trained by --config.pretrain.what=value (not tried at this size), and
followed by --config.posterior.kind=value_guided --config.value.weights=FILE; none is shipped.
What was measured: docs/results/cifar10.md
"""

from configs.base import base, check_variant, regression

VARIANTS = ("", "smoke")


def get_config(variant: str = ""):
    check_variant("configs/cifar10.py", variant, VARIANTS)
    config = base()
    config.domain = "images"
    config.data.set = "cifar10"
    config.prior = {
        "weights": "weights/cifar10_prior.safetensors",
        "network": {"patch": 2, "channels": (64, 128, 128), "num_blocks": (1, 1, 1)},
    }
    config.reward.label = "cat"
    config.reward.weights = "weights/cifar10_classifier.safetensors"
    config.reward.network = {"channels": (32, 64, 96), "num_blocks": (1, 1, 1)}
    config.value = {"weights": "weights/cifar10_value.safetensors", "strength": 1.0}
    config.value.refine = regression(
        steps=2000, batch_size=128, learning_rate=1e-3, weight_decay=1e-2, ema=0.999, checkpoint_every=500
    )
    config.process.num_steps = 32
    config.process.spacing = "log_snr"
    config.process.variance = "fixed_small"
    config.process.min_std = 0.1
    config.process.clip_x0 = 0.0  # 0: no clipping.
    config.posterior.kind = "lora"
    config.posterior.rank = 8
    config.posterior.select = "kernel"
    config.posterior.network = {"patch": 2, "channels": (32, 64), "num_blocks": (1, 1)}
    config.train.steps = 300
    config.train.batch_size = 32
    config.train.warmup_steps = 10
    config.behaviour.accepted = 0.5
    config.behaviour.capacity = 512
    config.checkpoint.every = 50
    config.eval.num_samples = 500
    config.eval.batch_size = 250
    config.eval.exact_samples = 250
    config.pretrain.what = "prior"
    config.pretrain.paths = 100_000  # Prior samples that a value is trained on, beside the pictures.
    config.pretrain.steps = 40_000
    config.pretrain.batch_size = 128
    config.pretrain.learning_rate = 1e-3
    config.pretrain.weight_decay = 1e-3
    if variant == "smoke":
        config.prior.weights = "weights/cifar10_smoke_prior.safetensors"
        config.prior.network = {
            "patch": 4,
            "channels": (16, 32),
            "num_blocks": (1, 1),
            "embed_dim": 32,
        }
        config.reward.weights = "weights/cifar10_smoke_classifier.safetensors"
        config.reward.network = {"channels": (8, 16, 32), "num_blocks": (1, 1, 1)}
        config.process.num_steps = 5
        config.train.steps = 4
        config.train.batch_size = 16
        config.log.every = 1
        config.checkpoint.every = 2
        config.behaviour.capacity = config.behaviour.warm_accepted = 32
        config.eval.num_samples = config.eval.batch_size = 128
        config.eval.exact_samples = 32
        config.pretrain.steps = 600
        config.pretrain.paths, config.value.refine.steps = 256, 60
        config.pretrain.batch_size = 64
        config.pretrain.learning_rate = 3e-3
    return config
