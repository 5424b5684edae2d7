"""25-Gaussian mixture: from 25 equal modes to 9 weighted ones (paper, sec. 3 and appendix C)."""

from configs.base import base


def get_config(variant: str = ""):
    config = base()
    config.domain = "gmm"
    config.prior = {"weights": "weights/gmm_prior.safetensors", "width": 64}
    config.process.num_steps = 100
    config.process.diffusion = 5.0
    config.train.steps = 2500
    config.train.batch_size = 500
    config.train.learning_rate = 2e-3
    config.behaviour.widen = 0.5
    config.behaviour.widen_hold = 250
    config.behaviour.widen_until = 1500
    config.objective.chunk = 10
    return config
