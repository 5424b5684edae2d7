"""25-Gaussian mixture: from 25 equal modes to 9 weighted ones (paper, sec. 3 and appendix C).

    python experiments/run.py --config=configs/gmm.py                     two and a half minutes on two cores
    python experiments/run.py --config=configs/gmm.py:learned_variance    step variances are learned, too; four minutes
    python experiments/run.py --config=configs/gmm.py:figure1             RTB and eight comparisons, about an hour
    python experiments/run.py --config=configs/gmm.py:smoke               the whole path in about a minute

Expected: see docs/results/gmm.md. The prior is shipped; --mode=pretrain makes it anew in two minutes.
"""

from configs.base import base, check_variant

VARIANTS = ("", "learned_variance", "figure1", "smoke")


def get_config(variant: str = ""):
    check_variant("configs/gmm.py", variant, VARIANTS)
    config = base()
    config.domain = "gmm"
    config.prior = {"weights": "weights/gmm_prior.safetensors", "width": 64}
    config.process.num_steps = 100
    config.process.diffusion = 5.0
    config.train.steps = 3500
    config.train.batch_size = 500
    config.train.optimizer = "muon"
    config.train.learning_rate = 1e-2
    config.behaviour.accepted = 0.4
    config.behaviour.capacity = config.behaviour.warm_accepted = 16_384
    config.behaviour.widen = 0.5
    config.behaviour.widen_hold = 200
    config.behaviour.widen_until = 1400
    config.pretrain.batch_size = 2048
    config.pretrain.learning_rate = 2e-3
    if variant == "learned_variance":
        config.posterior.learn_variance = True
        config.train.steps = 4000
    if variant == "figure1":
        config.compare = comparisons()
        # The paper's optimizer for all methods alike.
        config.train.optimizer = "adam"
        config.train.learning_rate = 2e-3
        config.train.steps = 5000
        config.behaviour.widen_hold = 300
        config.behaviour.widen_until = 2000
    if variant == "smoke":
        config.train.steps = 40
        config.checkpoint.every = 20
        config.behaviour.capacity = config.behaviour.warm_accepted = 512
        config.eval.num_samples = config.eval.exact_samples = 4_000
    return config


def comparisons():
    """The paper's figure 1 and C.1, and the fair KL-regularised baseline (Deleu et al. 2025)."""
    on_policy = {"behaviour.widen": 0.0, "behaviour.accepted": 0.0}
    runs = {"RTB": {}}
    runs["REINFORCE on r, no KL"] = on_policy | {"objective.loss": "reinforce_reward"}
    for alpha in (1.0, 0.8, 0.7, 0.5, 0.3):
        runs[f"REINFORCE on r, squared KL {alpha:g}"] = on_policy | {
            "objective.loss": "reinforce_reward",
            "objective.alpha": alpha,
        }
    runs["REINFORCE on log r, KL in the advantage"] = on_policy | {"objective.loss": "reinforce"}
    runs["classifier guidance"] = on_policy | {"posterior.kind": "classifier_guidance", "train.steps": 0}
    # Dots separate fields in a config's names, so the list is kept as text.
    tuned = [name for name, changes in runs.items() if "objective.alpha" in changes]
    return {"tuned": tuned, "runs": [(name, list(changes.items())) for name, changes in runs.items()]}
