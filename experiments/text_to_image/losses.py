"""What the networks of the embedded pipeline are trained by."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from experiments import noising
from rtbjax.nets.pretrained.autoencoder import AutoencoderKL
from rtbjax.types import Denoiser

PIXEL_STD = 0.1  # Of the law of a pixel given its latent: what the autoencoder may lose of it.


def autoencoder(net: AutoencoderKL, params: PyTree, key: Array, x: Float[Array, "B H W C"]) -> Float[Array, " B"]:
    """Minus the evidence bound (Kingma & Welling 2014) of pictures, in nats per number of a picture."""
    mean, std = encode(net, params, x)
    z = mean + std * jax.random.normal(key, mean.shape)
    decoded = decode(net, params, z)
    misfit = jnp.sum((decoded - x) ** 2, axis=(1, 2, 3)) / (2.0 * PIXEL_STD**2)
    divergence = jnp.sum(0.5 * (mean**2 + std**2 - 1.0) - jnp.log(std), axis=(1, 2, 3))
    return (misfit + divergence) / x[0].size


def denoiser(
    apply_fn: Denoiser, params: PyTree, key: Array, z: Float[Array, "B h w Z"], context: Float[Array, "B L E"]
) -> Float[Array, " B"]:
    """Mean of `experiments.noising.v_errors` over the numbers of each latent."""
    time_key, noise_key = jax.random.split(key)
    errors = noising.v_errors(lambda x, t: apply_fn(params, x, t, context), time_key, noise_key, z)
    return jnp.mean(errors, axis=(1, 2, 3))


def encode(net: AutoencoderKL, params: PyTree, x: Float[Array, "B H W C"]) -> Any:
    """Means and standard deviations of latents."""
    return net.apply({"params": params}, x, method="encode")


def decode(net: AutoencoderKL, params: PyTree, z: Float[Array, "B h w Z"]) -> Any:
    """Pictures of latents."""
    return net.apply({"params": params}, z, method="decode")
