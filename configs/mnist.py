"""MNIST: a diffusion prior over handwritten digits, the posterior "a seven" under a classifier's likelihood."""

from configs.base import base


def get_config(variant: str = ""):
    config = base()
    config.domain = "images"
    config.prior = {
        "weights": "weights/mnist_prior.safetensors",
        "network": {"patch": 2, "channels": (32, 128), "num_blocks": (1, 1)},
    }
    config.reward = {"label": "7", "weights": "weights/mnist_classifier.safetensors"}
    config.process.num_steps = 20
    config.process.spacing = "trailing"
    config.process.variance = "fixed_large"
    config.process.min_std = 0.15
    config.process.clip_x0 = 0.0  # 0: no clipping.
    config.posterior.kind = "correction"
    config.posterior.rank = 8
    config.posterior.select = "kernel"
    config.posterior.network = {"patch": 2, "channels": (16, 64), "num_blocks": (1, 1)}
    config.train.steps = 300
    config.train.batch_size = 64
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 20
    config.behaviour.accepted = 0.5
    config.behaviour.capacity = 512
    config.behaviour.warm_accepted = 256
    config.eval.num_samples = 2_000
    config.eval.batch_size = 1_000
    config.eval.exact_samples = 1_000
    return config
