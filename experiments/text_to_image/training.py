"""Training of the embedded pipeline's networks, one at a time, and of the contrastive reward.

Each is written below ``pipeline`` in the workdir: a component that diffusers or transformers read, or the reward.
What a network needs of the others is read from ``config.prior.folder``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from experiments import records, weights
from experiments.data import Images
from experiments.pretrain import fit
from experiments.text_to_image import captions, contrastive, losses, networks
from rtbjax.nets import pretrained
from rtbjax.nets.pretrained import Model

Draw = Callable[[Array, captions.Digits, int], tuple[Array, Array]]  # Pictures and their captions.
MADE = "pipeline"  # The folder of what was trained.
DROPPED = 0.1  # Of captions the prior is trained without, for classifier-free guidance.
NOISE = 0.3  # At most so much, in a latent's standard deviations, before the reward reads what it is decoded to.
TESTED = 512  # Fresh pictures to measure on.


def vae(config: ConfigDict, found: Images, key: Array, workdir: Path) -> dict[str, float]:
    """The autoencoder, with the scale that makes its latents of variance 1.

    Returns:
      Its mean squared error of a number of a picture in [-1, 1].
    """
    digits = captions.digits(found)
    init_key, fit_key, test_key = jax.random.split(key, 3)
    model = pretrained.build(init_key, networks.VAE)

    def loss(params, key, digits):
        draw_key, noise_key = jax.random.split(key)
        x, _ = captions.draw(draw_key, digits, config.pretrain.batch_size)
        return jnp.mean(losses.autoencoder(model.module, params, noise_key, x))

    params = _fit(config, loss, model.params, digits, fit_key, workdir)
    x, _ = captions.draw(test_key, digits, TESTED)
    mean, _ = losses.encode(model.module, params, x)
    error = jnp.mean((losses.decode(model.module, params, mean) - x) ** 2)
    scale = float(1.0 / jnp.std(mean))
    pretrained.save(
        workdir / MADE / "vae", model._replace(params=params, config=networks.VAE | {"scaling_factor": scale})
    )
    return {"squared_error": float(error)}


def text(config: ConfigDict, found: Images, key: Array, workdir: Path) -> dict[str, float]:
    """The tokenizer, and the text encoder as half of a contrastive model of training's pictures.

    Returns:
      How often that model gives a picture its own caption the highest probability.
    """
    settings, net, params, measured = _contrastive(
        config, workdir / MADE, captions.digits(found), captions.draw, key, workdir
    )
    pretrained.save(workdir / MADE / "text_encoder", Model(net.text, params["text_encoder"], settings))
    return measured


def reward(config: ConfigDict, found: Images, key: Array, workdir: Path) -> dict[str, float]:
    """The contrastive reward, of all captions equally often, on pictures that are decoded from noisy latents.

    Returns:
      As of `text`.
    """
    model = pretrained.load(weights.locate(config.prior.folder), "vae")

    def draw(key, digits, count):
        choose, paint, level, noise = jax.random.split(key, 4)
        answer = jax.random.randint(choose, (count,), 0, len(captions.CAPTIONS))
        z, _ = losses.encode(model.module, model.params, captions.pictures(paint, digits, answer))
        std = jax.random.uniform(level, (count, 1, 1, 1), maxval=NOISE)
        return losses.decode(model.module, model.params, z + std * jax.random.normal(noise, z.shape)), answer

    here = workdir / MADE / "reward"
    settings, _, params, measured = _contrastive(config, here, captions.digits(found), draw, key, workdir)
    contrastive.save(here, settings, params, {"trained_on": found.source, "steps": config.pretrain.steps})
    return measured


def prior(config: ConfigDict, found: Images, key: Array, workdir: Path) -> dict[str, float]:
    """The denoiser, with its scheduler and the pipeline's index.

    Returns:
      Its mean squared error of a number of v on fresh pictures.
    """
    folder, settings, digits = weights.locate(config.prior.folder), config.pretrain, captions.digits(found)
    encoder, words = pretrained.load(folder, "vae"), pretrained.load(folder, "text_encoder")
    tokens = pretrained.tokenizer.load(folder)([*captions.CAPTIONS, ""])
    contexts = words.module.apply({"params": words.params}, tokens)
    init_key, data_key, fit_key, test_key = jax.random.split(key, 4)
    model = pretrained.build(init_key, networks.UNET)
    apply_fn = model.policy().apply_fn

    def loss(params, key, data):
        pick, encode, drop, noise = jax.random.split(key, 4)
        mean, std, answer, contexts = data
        rows = jax.random.randint(pick, (settings.batch_size,), 0, len(answer))
        mean, std = (part[rows].astype(jnp.float32) for part in (mean, std))
        asked = jnp.where(jax.random.bernoulli(drop, DROPPED, rows.shape), len(captions.CAPTIONS), answer[rows])
        z = mean + std * jax.random.normal(encode, mean.shape)
        return jnp.mean(losses.denoiser(apply_fn, params, noise, z, contexts[asked]))

    latents = _latents(encoder, digits, data_key, settings.pictures)
    params = _fit(config, loss, model.params, (*latents, contexts), fit_key, workdir)
    fresh = (*_latents(encoder, digits, test_key, TESTED), contexts)
    error = np.mean([jax.jit(loss)(params, jax.random.fold_in(test_key, i), fresh) for i in range(20)])
    here = workdir / MADE
    pretrained.save(here / "unet", model._replace(params=params))
    records.write_json(here / "scheduler" / "scheduler_config.json", networks.SCHEDULER)
    records.write_json(here / "model_index.json", networks.INDEX | {"_trained_on": found.source})
    return {"squared_error": float(error)}


TRAINERS = {"vae": vae, "text": text, "prior": prior, "reward": reward}


def _contrastive(
    config: ConfigDict, folder: Path, digits: captions.Digits, draw: Draw, key: Array, workdir: Path
) -> tuple[dict[str, Any], contrastive.Towers, PyTree, dict[str, float]]:
    """Its text encoder's config, the model, its parameters and its accuracy; writes the tokenizer to the folder."""
    settings = networks.TEXT | {"vocab_size": networks.write_tokenizer(folder / "tokenizer")}
    words = pretrained.tokenizer.load(folder)
    net, tokens = contrastive.towers(settings, words), jnp.asarray(words(captions.CAPTIONS))
    init_key, fit_key, test_key = jax.random.split(key, 3)

    def loss(params, key, digits):
        x, answer = draw(key, digits, config.pretrain.batch_size)
        return jnp.mean(contrastive.loss(net, params, x, tokens, answer))

    params = _fit(config, loss, contrastive.init(net, init_key), digits, fit_key, workdir)
    x, answer = draw(test_key, digits, TESTED)
    log_p: Any = net.apply({"params": params}, x, tokens)
    return settings, net, params, {"accuracy": float(jnp.mean(jnp.argmax(log_p, axis=1) == answer))}


def _fit(config: ConfigDict, loss, params: PyTree, source: PyTree, key: Array, workdir: Path) -> PyTree:
    return fit(loss, params, source, config.pretrain, key=key, workdir=workdir, label=config.pretrain.what)


def _latents(model: Model, digits: captions.Digits, key: Array, count: int, batch: int = 500) -> tuple[Array, ...]:
    """Means and standard deviations of ``count`` pictures' latents, in half precision, and their captions."""

    @jax.jit
    def one(key):
        x, answer = captions.draw(key, digits, batch)
        mean, std = losses.encode(model.module, model.params, x)
        return mean.astype(jnp.float16), std.astype(jnp.float16), answer

    parts = [one(jax.random.fold_in(key, first)) for first in range(0, count, batch)]
    return tuple(jnp.concatenate(column)[:count] for column in zip(*parts, strict=True))
