"""Text to image: p(x | prompt) r(x, prompt)^beta, the prior a latent diffusion with classifier-free guidance.

The prior is a Stable Diffusion pipeline in a folder of diffusers (1.x, 2.x), or the small one on coloured digits that
is shipped in the same form: one code path. A sample is a latent; rewards see what it is decoded to. Guidance is part
of the mean of prior and posterior alike, and the posterior is the prior with low-rank adapters.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from experiments import data, functions, hosts, weights
from experiments.domains.base import Domain, named
from experiments.errors import ConfigError, checking
from experiments.settings import (
    PRECISIONS,
    data_unread,
    get,
    no_strength,
    no_warm_start,
    one_of,
    other_precision,
    patience,
)
from experiments.streams import stream
from experiments.text_to_image import contrastive, hosted, rewards, training
from experiments.text_to_image.evaluation import Evaluation
from experiments.text_to_image.image_reward import TEXT, WEIGHTS, HostedImageReward
from rtbjax import Policy, Process, from_scheduler, lora, posterior
from rtbjax.nets.pretrained import Model, adapters, stable_diffusion
from rtbjax.nets.pretrained import folder as folders
from rtbjax.nets.pretrained.stable_diffusion import Pipeline
from rtbjax.rewards import evaluate
from rtbjax.types import Denoiser

# Rewards of PyTorch by their term, and what their field of the config says.
HOSTED = {
    "clip": (hosted.HostedClip, "the folder or hub id of a CLIP model"),
    "aesthetic": (hosted.HostedAesthetic, f"the folder of a CLIP model with {hosted.HEAD} beside it"),
    "image_reward": (HostedImageReward, f"a folder with {WEIGHTS}, {TEXT} and vocab.txt"),
}


def prompts(config: ConfigDict) -> tuple[str, ...]:
    """What is asked for; one posterior for all of them.

    Raises:
      ConfigError: nothing, or one thing twice.
    """
    found = tuple(prompt.strip() for prompt in config.prompt.split("|"))
    if not all(found) or len(set(found)) < len(found):
        raise ConfigError(f"config.prompt must be a text, or different ones separated by '|', got {config.prompt!r}.")
    return found


def check(config: ConfigDict) -> None:
    """Raises a ConfigError on a field of this domain that is not allowed."""
    one_of(config, "posterior.kind", ("lora",))
    no_warm_start(config)
    no_strength(config)
    terms = config.reward.terms
    for name in terms:
        if not 0.0 <= terms[name] < float("inf"):
            raise ConfigError(f"config.reward.terms.{name} must be at least 0 and finite, got {terms[name]}.")
    if not any(terms.values()):
        raise ConfigError(f"One of config.reward.terms ({', '.join(terms)}) must be positive.")
    for name, (_, what) in HOSTED.items():
        if terms[name] and not get(config, f"reward.{name}"):
            raise ConfigError(f"config.reward.terms.{name} needs config.reward.{name}: {what}.")
    if not 0.0 <= config.prior.guidance < float("inf"):
        raise ConfigError(f"config.prior.guidance must be at least 0 and finite, got {config.prior.guidance}.")


def load_pipeline(config: ConfigDict) -> Pipeline:
    """The prior's pipeline.

    Raises:
      PretrainedError: see `rtbjax.nets.pretrained.stable_diffusion.load`.
      ConfigError: its components do not fit together.
    """
    pipeline = stable_diffusion.load(weights.locate_model(config.prior.folder), _dtype(config))
    unet, vae, text = (part.module for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder))
    if (unet.in_channels, unet.out_channels) != (vae.latent_channels, vae.latent_channels):
        raise ConfigError(
            f"The U-Net in {config.prior.folder} maps {unet.in_channels} to {unet.out_channels} channels and the "
            f"autoencoder's latents have {vae.latent_channels}: inpainting and the like are not supported."
        )
    if unet.context_dim != text.width:
        raise ConfigError(
            f"The U-Net in {config.prior.folder} reads texts of width {unet.context_dim}, the text encoder's are "
            f"{text.width} wide."
        )
    return pipeline


def make_prior(pipeline: Pipeline, asked: tuple[str, ...], scale: float, remat: bool = False) -> Policy:
    """The guided U-Net; its ``cond`` is the place of a path's prompt in ``asked``, ``i32[B]``, None if there is one.

    Its parameters are those of the ``unet``, and ``contexts``, what the text encoder says of "" and of each prompt.
    """
    words = pipeline.text_encoder
    contexts = jax.jit(words.module.apply)({"params": words.params}, pipeline.tokenizer(["", *asked]))
    return Policy({"unet": pipeline.unet.params, "contexts": contexts}, guided_unet(pipeline.unet, scale, remat))


def guided_unet(unet: Model, scale: float, remat: bool) -> Denoiser:
    """What `make_prior` applies; with ``remat`` a gradient recomputes the inside of the U-Net's blocks."""
    denoise = unet._replace(module=unet.module.clone(remat=remat)).policy().apply_fn

    def apply_fn(params, x, t, cond):
        context = params["contexts"][1:][jnp.zeros(len(x), jnp.int32) if cond is None else cond]
        guided = denoise if scale == 1.0 else stable_diffusion.guided(denoise, scale, params["contexts"][0])
        return guided(params["unet"], x, t, context)

    return apply_fn


def make_process(config: ConfigDict, pipeline: Pipeline) -> Process:
    """DDIM with eta = 1 on the pipeline's schedule."""
    return from_scheduler(
        pipeline.scheduler, config.process.num_steps, sampler="ddim", eta=1.0, min_std=config.process.min_std
    )


def make_posterior(config: ConfigDict, process: Process, prior: Policy) -> Policy:
    """Adapters on the U-Net's kernels that ``posterior.select`` finds: new ones, or those of ``posterior.adapters``.

    Raises:
      PretrainedError: no such adapters, or others.
    """
    p, key = config.posterior, stream(config.seed, "posterior")
    if p.adapters:
        like = jax.eval_shape(lambda key: lora.init(key, prior.params, p.rank, p.select), key)
        found = adapters.load(weights.locate(p.adapters), like, prior.params)
        learner = posterior.adapted(prior, found, alpha=p.rank)
    else:
        learner = posterior.lora(key, prior, p.rank, select=p.select)
    return posterior.step_std(learner, process, (1, 1, 1)) if p.learn_variance else learner


def decoder(pipeline: Pipeline):
    """Latents to pictures, about in [-1, 1], float32."""
    vae = pipeline.vae

    @jax.jit
    def decode(params, z: Float[Array, "B h w Z"]) -> Float[Array, "B H W 3"]:
        dtype = jax.tree.leaves(params)[0].dtype
        decoded: Any = vae.module.apply({"params": params}, z.astype(dtype), method="decode")
        return decoded.astype(jnp.float32)

    return lambda z: decode(vae.params, jnp.asarray(z))


def build(config: ConfigDict) -> Domain:
    """The domain of a config.

    Raises:
      ConfigError: a field that is not allowed, or components that do not fit together.
      PretrainedError: a pipeline that is missing, incomplete or not supported.
      WeightsError: the contrastive model cannot be read.
      DataError, UserError: nor can a model that is asked on the host.
    """
    check(config)
    data_unread(config)
    asked = prompts(config)
    model = contrastive.load(weights.locate(config.reward.folder))
    alignment, first_choice = rewards.alignment(model, asked)
    on_host = {
        name: make(get(config, f"reward.{name}"), asked)
        for name, (make, _) in HOSTED.items()
        if config.reward.terms[name]
    }
    picture_reward = make_reward(config, asked, alignment, on_host)
    pipeline = load_pipeline(config)
    prior = make_prior(pipeline, asked, config.prior.guidance, config.prior.remat)
    process = make_process(config, pipeline)
    weights.keep_out_of_programs(prior.params)  # Adapters close over them.
    decode = decoder(pipeline)

    def log_reward(z, cond=None):
        return picture_reward(decode(z), np.zeros(len(z), np.int32) if cond is None else np.asarray(cond))

    # A log-probability, and minus a size, are at most 0.
    log_bound = None if config.reward.terms.function or on_host else 0.0

    def patiently(x, places):
        return evaluate(picture_reward, x, places, log_bound=log_bound, **patience(config))

    unet = pipeline.unet.module
    evaluation = Evaluation(asked, decode, patiently, first_choice, jax.jit(model.embedding))
    return Domain(
        name="text_to_image",
        data_source=f"prior trained on {trained_on(config)}",
        process=process,
        event_shape=(*unet.sample_size, unet.in_channels),
        prior=prior,
        posterior=make_posterior(config, process, prior),
        log_reward=log_reward,
        log_bound=log_bound,
        rare=config.reward.rare,
        fingerprint=weights.fingerprint(
            prior.params,
            pipeline.vae.params,
            model.params,
            pipeline.scheduler,
            config.process.to_dict(),
            config.prior.guidance,
            config.reward.terms.to_dict(),
            functions.fingerprint(config.reward.function if config.reward.terms.function else ""),
            *(one.fingerprint for one in on_host.values()),
            list(asked),
            *other_precision(config),
        ),
        evaluate=evaluation.metrics,
        plot=evaluation.plot,
        conditions=named(asked) if len(asked) > 1 else None,
    )


def make_reward(
    config: ConfigDict,
    asked: tuple[str, ...],
    alignment: rewards.PictureReward,
    on_host: Mapping[str, rewards.PictureReward],
) -> rewards.PictureReward:
    """The terms whose weights are not 0."""
    terms = config.reward.terms
    own = rewards.named(config.reward.function, asked) if terms.function else None
    made = {"contrastive": alignment, "jpeg": rewards.jpeg, "function": own, **on_host}
    return rewards.weighted([(weight, made[name]) for name, weight in terms.items() if weight])


def trained_on(config: ConfigDict) -> str:
    """What the pipeline's folder says of it, or its name."""
    folder = weights.locate(config.prior.folder)
    if not folder.is_dir():
        return config.prior.folder
    return folders.read_config(folder, "model_index.json").get("_trained_on", f"{folder.name}'s data")


def pretrain(config: ConfigDict, workdir: Path) -> None:
    """Trains a network of the embedded pipeline, or by ``pretrain.what`` the reward, and writes it to the workdir.

    Raises:
      ConfigError: a field that is not allowed, or a component that is missing.
      DataError: the digits cannot be read.
    """
    one_of(config, "pretrain.what", tuple(training.TRAINERS))
    if config.pretrain.pictures < 1:
        raise ConfigError(f"config.pretrain.pictures must be at least 1, got {config.pretrain.pictures}.")
    what, found = config.pretrain.what, data.mnist(config.data.path)
    with checking():
        measured = training.TRAINERS[what](config, found, stream(config.seed, f"pretrain {what}"), workdir)
    hosts.say(f"{what}, on fresh pictures: {', '.join(f'{name} {value:.4f}' for name, value in measured.items())}.")
    hosts.say(f"To use it: cp -r {workdir / training.MADE}/. {weights.locate(config.prior.folder)}")


def _dtype(config: ConfigDict) -> Any:
    return PRECISIONS[config.precision] or jnp.float32
