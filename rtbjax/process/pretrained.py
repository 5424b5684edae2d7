"""Processes from the scheduler configs of Hugging Face diffusers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rtbjax.process import Process, vp
from rtbjax.schedules import cosine_alpha_bar, linear_alpha_bar, respace, scaled_linear_alpha_bar

_SCHEDULES = {
    "linear": linear_alpha_bar,
    "scaled_linear": scaled_linear_alpha_bar,
    "squaredcos_cap_v2": cosine_alpha_bar,
}
_SAMPLERS = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim"}
_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "thresholding": False,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
}


def from_scheduler(
    config: Mapping[str, Any],
    num_steps: int,
    *,
    sampler: str | None = None,
    eta: float = 1.0,
    min_std: float = 1e-2,
) -> Process:
    """The process that a diffusers scheduler samples with.

    Each step has the mean and the standard deviation of the scheduler's, with three differences:

    - No step's standard deviation is below ``min_std``, not even that of the last, to which DDPM adds no noise.
    - Where DDIM clips x0, the noise is recomputed from the clipped x0 (``use_clipped_model_output=True``).
    - DDIM goes to the next timestep of its list. In diffusers it goes back by ``num_train_timesteps // num_steps``,
      which is not on the list with ``linspace``, or with ``trailing`` steps that do not divide ``num_train_timesteps``.

    Args:
      config: of ``scheduler_config.json``.
      num_steps: T.
      sampler: ``ddpm`` or ``ddim``; None takes that of the config's class. Stable Diffusion's config, written for
        another class, gives its noise schedule to ``ddim``.
      eta: noise of ``ddim`` in [0, 1].
      min_std: see `rtbjax.process.vp`.

    Raises:
      ValueError: an option that is not supported, or values that `rtbjax.schedules.respace` or `rtbjax.process.vp`
        refuse.
    """
    name = config.get("_class_name", "")
    if sampler is None and name not in _SAMPLERS:
        raise ValueError(f"A scheduler of class {name!r} needs a sampler: 'ddpm' or 'ddim'.")
    sampler = sampler or _SAMPLERS[name]
    if sampler not in ("ddpm", "ddim"):
        raise ValueError(f"sampler must be 'ddpm' or 'ddim', got {sampler!r}.")
    options = _DEFAULTS | {key: config[key] for key in _DEFAULTS if key in config}
    for key in ("thresholding", "rescale_betas_zero_snr"):
        if options[key]:
            raise ValueError(f"The scheduler's option {key}={options[key]} is not supported.")
    alpha_bar = _alpha_bar(options)
    # A DDPM scheduler always ends in the data; a DDIM scheduler may end a little before.
    ends_in_data = sampler == "ddpm" or options["set_alpha_to_one"]
    schedule = respace(
        alpha_bar,
        num_steps,
        options["timestep_spacing"],
        steps_offset=options["steps_offset"] if options["timestep_spacing"] == "leading" else 0,
        final_alpha_bar=1.0 if ends_in_data else float(alpha_bar[0]),
    )
    clip_x0 = float(options["clip_sample_range"]) if options["clip_sample"] else None
    shared = {"prediction": options["prediction_type"], "clip_x0": clip_x0, "min_std": min_std}
    if sampler == "ddim":
        return vp.ddim(schedule, eta=eta, **shared)
    return vp.ddpm(schedule, variance=options["variance_type"], **shared)


def _alpha_bar(options: Mapping[str, Any]) -> np.ndarray:
    if options["trained_betas"] is not None:
        return np.cumprod(1.0 - np.asarray(options["trained_betas"], np.float64))
    name, length = options["beta_schedule"], options["num_train_timesteps"]
    if name not in _SCHEDULES:
        raise ValueError(f"beta_schedule must be one of {', '.join(map(repr, _SCHEDULES))}, got {name!r}.")
    ends = () if name == "squaredcos_cap_v2" else (options["beta_start"], options["beta_end"])
    return _SCHEDULES[name](length, *ends)
