"""Inverse problems: an image that was seen through an operator and noise, and all the images it may have been.

    python experiments/run.py --config=configs/inverse.py                     half a digit is missing; not measured
    python experiments/run.py --config=configs/inverse.py:super_resolution    of means of 4 x 4 pixels; not measured
    python experiments/run.py --config=configs/inverse.py:deblurring          under a Gaussian blur; not measured
    python experiments/run.py --config=configs/inverse.py:phase_retrieval     of Fourier amplitudes; not measured
    python experiments/run.py --config=configs/inverse.py:calibration         one for many, its coverage; not measured
    python experiments/run.py --config=configs/inverse.py:smoke               the whole path in about a minute

The reward is r(x) = N(y | A(x), noise^2), and log Z the evidence log p(y). y is made of an image of the data
(--config.reward.index=3) or of a sample of the prior (--config.reward.truth=prior), or is your own, by
--config.reward.measurement=FILE.npz with an array y. The prior is that of digits; another one of the images' domain by
--config.data.set, --config.prior.weights and --config.prior.network.

Expected: see docs/results/inverse.md. samples.png shows mean, standard deviation and samples of the posterior beside
the prior's and those of diffusion posterior sampling (DPS).
"""

from configs.base import base, check_variant
from configs.mnist import set_prior

OPERATORS = ("super_resolution", "deblurring", "phase_retrieval")
VARIANTS = ("", *OPERATORS, "calibration", "smoke")


def get_config(variant: str = ""):
    check_variant("configs/inverse.py", variant, VARIANTS)
    config = base()
    config.domain = "inverse"
    set_prior(config)
    config.reward.operator = variant if variant in OPERATORS else "inpainting"
    config.reward.noise = 0.3  # Standard deviation of the measurement; pixels lie in [-1, 1].
    config.reward.box = (14, 0, 14, 28)  # Top, left, height and width of what inpainting does not see.
    config.reward.factor = 4  # Sides of the squares of super-resolution.
    config.reward.width = 1.5  # Of the blur, in pixels.
    config.reward.oversampling = 2  # Of the Fourier transform.
    config.reward.measurement = ""  # An npz file with an array y; "" makes y of an image.
    config.reward.truth = "data"  # data | prior: what y is made of.
    config.reward.index = 0  # Which image.
    config.reward.problems = 0  # Measurements that share one posterior in training; 0: there is one.
    config.reward.evaluated = 0  # Further ones to evaluate it on.
    config.reward.rare = True  # False: exact samples by rejection, where y says little.
    config.posterior.kind = "guided"
    config.posterior.learn_variance = True
    config.posterior.network = {"patch": 2, "channels": (16, 64), "num_blocks": (1, 1)}
    config.train.steps = 60
    config.train.batch_size = 16
    config.train.learning_rate = 5e-3
    config.train.warmup_steps = 5
    config.checkpoint.every = 20
    config.log.every = 5
    config.eval.num_samples = 200
    config.eval.batch_size = 100
    config.eval.dps_strength = 0.3  # Of the gradient of log r; 1 is the formula.
    if variant == "phase_retrieval":
        config.reward.noise = 0.1  # Amplitudes are small numbers.
    if variant == "calibration":
        config.reward.truth = "prior"
        config.reward.problems, config.reward.evaluated = 64, 64
        config.objective.group = 8
        config.eval.num_samples = 25  # As few as a certificate allows.
        config.eval.batch_size = 64
    if variant == "smoke":
        config.process.num_steps = 5
        config.train.steps = 4
        config.train.batch_size = 8
        config.log.every = 1
        config.checkpoint.every = 2
        config.eval.num_samples = config.eval.batch_size = 16
    return config
