"""Processes from diffusers' scheduler configs: mean and standard deviation of every step are the scheduler's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtbjax.process.pretrained import from_scheduler

DDPM = {
    "as the CIFAR-10 denoiser": {"variance_type": "fixed_large"},
    "fixed_small": {},
    "no clipping, an offset": {"clip_sample": False, "steps_offset": 1},
    "a wide clip": {"clip_sample_range": 2.5, "variance_type": "fixed_large"},
    "trailing": {"timestep_spacing": "trailing", "variance_type": "fixed_large"},
    "linspace": {"timestep_spacing": "linspace"},
    "cosine, v": {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    "scaled, x0": {"beta_schedule": "scaled_linear", "prediction_type": "sample"},
    "short, other ends": {"num_train_timesteps": 200, "beta_start": 5e-4, "beta_end": 0.1},
    "betas by hand": {"num_train_timesteps": 20, "trained_betas": np.linspace(0.01, 0.3, 20).tolist()},
}
STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "clip_sample": False,
    "steps_offset": 1,
}
DDIM = {
    "as Stable Diffusion": STABLE_DIFFUSION,
    "clipping": {},
    "trailing, v": {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "clip_sample": False},
}


@pytest.fixture(scope="module")
def diffusers():
    pytest.importorskip("torch", reason="parity needs the extra 'parity'")
    return pytest.importorskip("diffusers", reason="parity needs the extra 'parity'")


def steps(scheduler, outputs, x, monkeypatch, **options):
    """Mean and standard deviation of their steps: what a step gives for noise 0 and 1 at every pixel."""
    import torch

    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    found = []
    for noise in (0.0, 1.0):
        monkeypatch.setattr(module, "randn_tensor", lambda shape, noise=noise, **_: torch.full(tuple(shape), noise))
        found.append(
            np.stack(
                [
                    scheduler.step(torch.tensor(output), int(t), torch.tensor(x), **options).prev_sample.numpy()
                    for t, output in zip(scheduler.timesteps, outputs, strict=True)
                ]
            )
        )
    return found[0], found[1] - found[0]


def laws(process, outputs, x):
    @jax.jit
    def law(i, output):
        kernel = process.reverse(output, jnp.asarray(x), i)
        return kernel.mean, jnp.broadcast_to(kernel.std, x.shape)

    return jax.device_get(jax.vmap(law)(jnp.arange(process.num_steps), jnp.asarray(outputs)))


def inputs(num_steps):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num_steps, 2, 3, 2, 2)).astype(np.float32), rng.normal(size=(2, 3, 2, 2)).astype(np.float32)


def times(process):
    return [int(process.time(jnp.int32(i))) for i in range(process.num_steps)]


@pytest.mark.parametrize("num_steps", [10, 7])
@pytest.mark.parametrize("config", DDPM.values(), ids=DDPM.keys())
def test_ddpm_steps_are_those_of_diffusers(diffusers, config, num_steps, monkeypatch):
    scheduler = diffusers.DDPMScheduler(**config)
    scheduler.set_timesteps(num_steps)
    process = from_scheduler(dict(scheduler.config), num_steps, sampler="ddpm", min_std=1e-6)
    assert times(process) == scheduler.timesteps.tolist()
    outputs, x = inputs(num_steps)
    (mean, std), (our_mean, our_std) = steps(scheduler, outputs, x, monkeypatch), laws(process, outputs, x)
    np.testing.assert_allclose(our_mean, mean, rtol=1e-4, atol=1e-4)
    if scheduler.timesteps[-1] == 0:  # where diffusers adds no noise
        assert np.all(std[-1] == 0.0)
        std, our_std = std[:-1], our_std[:-1]
    np.testing.assert_allclose(our_std, std, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("eta", [1.0, 0.3])
@pytest.mark.parametrize("config", DDIM.values(), ids=DDIM.keys())
def test_ddim_steps_are_those_of_diffusers(diffusers, config, eta, monkeypatch):
    scheduler = diffusers.DDIMScheduler(**config)
    scheduler.set_timesteps(10)
    process = from_scheduler({"_class_name": "DDIMScheduler", **config}, 10, eta=eta, min_std=1e-6)
    assert times(process) == scheduler.timesteps.tolist()
    outputs, x = inputs(10)
    mean, std = steps(scheduler, outputs, x, monkeypatch, eta=eta, use_clipped_model_output=True)
    our_mean, our_std = laws(process, outputs, x)
    np.testing.assert_allclose(our_mean, mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(our_std, std, rtol=1e-4, atol=1e-5)


def test_defaults_are_those_of_diffusers(diffusers):
    for scheduler in (diffusers.DDPMScheduler(), diffusers.DDIMScheduler()):
        name = type(scheduler).__name__
        outputs, x = inputs(5)
        bare = from_scheduler({"_class_name": name}, 5)
        full = from_scheduler(dict(scheduler.config) | {"_class_name": name}, 5)
        jax.tree.map(np.testing.assert_array_equal, laws(bare, outputs, x), laws(full, outputs, x))


def test_the_last_step_has_the_least_std_and_pndm_configs_serve_ddim():
    process = from_scheduler({"_class_name": "PNDMScheduler"} | STABLE_DIFFUSION, 50, sampler="ddim", min_std=0.5)
    assert times(process)[:2] == [981, 961] and times(process)[-1] == 1
    outputs, x = inputs(50)
    assert np.min(laws(process, outputs, x)[1]) == 0.5


@pytest.mark.parametrize(
    "config, message",
    [
        ({"_class_name": "PNDMScheduler"}, "class 'PNDMScheduler' needs a sampler: 'ddpm' or 'ddim'"),
        ({}, "class '' needs a sampler"),
        ({"_class_name": "DDPMScheduler", "thresholding": True}, "thresholding=True is not supported"),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True is not"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}, "'squaredcos_cap_v2', got 'sigmoid'"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "'fixed_small'.*got 'learned_range'"),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": 4}, "1..4 .*got 10"),
    ],
)
def test_what_is_not_supported_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        from_scheduler(config, 10)


def test_an_unknown_sampler_names_the_known():
    with pytest.raises(ValueError, match="'ddpm' or 'ddim', got 'euler'"):
        from_scheduler({}, 10, sampler="euler")
