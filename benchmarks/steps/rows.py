"""What `benchmarks/time_to_quality.py` compares on the 25-Gaussian mixture, each a change of the config's fields."""

from typing import Any

from ml_collections import ConfigDict

from configs.gmm import get_config

PYTORCH = "PyTorch, the paper's settings"

# As in its code: the text has a learning rate of 1e-4. How wide its paths explore is `pytorch.exploration`.
_PAPER = {
    "train.steps": 5000,
    "train.learning_rate": 1e-3,
    "train.log_z_learning_rate": 0.1,
    "train.clip_norm": 1e9,  # None.
    "objective.log_z": "learned",
}
# The default's schedules in a sixth of its steps: what a default is worth shows there first.
_SHORT = {"train.steps": 600, "behaviour.widen_hold": 35, "behaviour.widen_until": 240}
_ALONE = _SHORT | {"behaviour.accepted": 0.0}

GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "pytorch": {PYTORCH: _PAPER},
    "default": {"default": {}},
    "variance": {"learned step variances": {"posterior.learn_variance": True, "train.steps": 4000}},
    "subsampling": {
        "all 100 steps": _SHORT,
        **{f"{steps} of 100 steps": _SHORT | {"objective.grad_steps": steps} for steps in (50, 25, 10)},
    },
    "behaviours": {
        "on-policy": _ALONE | {"behaviour.widen": 0.0},
        "on-policy, widened": _ALONE,
        "prior 0.4": _ALONE | {"behaviour.prior": 0.4},
        "replay 0.4": _ALONE | {"behaviour.replay": 0.4},
        "noised 0.4": _ALONE | {"behaviour.noised": 0.4},
        "accepted 0.4, not widened": _SHORT | {"behaviour.widen": 0.0},
        "accepted 0.2": _SHORT | {"behaviour.accepted": 0.2},
        "accepted 0.7": _SHORT | {"behaviour.accepted": 0.7},
        "accepted 1": _SHORT | {"behaviour.accepted": 1.0},
        "accepted 0.2, replay 0.2": _SHORT | {"behaviour.accepted": 0.2, "behaviour.replay": 0.2},
    },
}


def config_of(changes: dict[str, Any], seed: int) -> ConfigDict:
    """The config of a row."""
    config = get_config()
    config.seed = seed
    config.update_from_flattened_dict(changes)
    return config
