"""What the networks of the embedded pipeline are trained by."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from rtbjax import schedules
from rtbjax.nets.pretrained.autoencoder import AutoencoderKL
from rtbjax.types import Denoiser

PIXEL_STD = 0.1  # Of the law of a pixel given its latent: what the autoencoder may lose of it.


def autoencoder(net: AutoencoderKL, params: PyTree, key: Array, x: Float[Array, "B H W C"]) -> Float[Array, " B"]:
    """Minus the evidence bound (Kingma & Welling 2014) of pictures, in nats per number of a picture."""
    mean, std = _apply(net, params, x, method="encode")
    z = mean + std * jax.random.normal(key, mean.shape)
    decoded = _apply(net, params, z, method="decode")
    misfit = jnp.sum((decoded - x) ** 2, axis=(1, 2, 3)) / (2.0 * PIXEL_STD**2)
    divergence = jnp.sum(0.5 * (mean**2 + std**2 - 1.0) - jnp.log(std), axis=(1, 2, 3))
    return (misfit + divergence) / x[0].size


def denoiser(
    apply_fn: Denoiser, params: PyTree, key: Array, z: Float[Array, "B h w Z"], context: Float[Array, "B L E"]
) -> Float[Array, " B"]:
    """Squared error of v at stratified timesteps of the cosine schedule (Salimans & Ho 2022)."""
    alpha_bar = jnp.asarray(schedules.cosine_alpha_bar(), jnp.float32)
    time_key, noise_key = jax.random.split(key)
    parts = jnp.arange(len(z), dtype=jnp.float32) + jax.random.uniform(time_key)
    t = jnp.floor(parts / len(z) * len(alpha_bar))
    kept = alpha_bar[t.astype(jnp.int32)][:, None, None, None]
    signal, std = jnp.sqrt(kept), jnp.sqrt(1.0 - kept)
    noise = jax.random.normal(noise_key, z.shape)
    found = apply_fn(params, signal * z + std * noise, t, context)
    return jnp.mean((found - (signal * noise - std * z)) ** 2, axis=(1, 2, 3))


def _apply(net: Any, params: PyTree, *arguments: Any, **options: Any) -> Any:
    return net.apply({"params": params}, *arguments, **options)
