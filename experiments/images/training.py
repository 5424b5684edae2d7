"""How the networks of the images' domain are made: the prior, the classifier, and the value."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from experiments import data, hosts, noising, weights
from experiments.errors import ConfigError, checking
from experiments.images import networks
from experiments.pretrain import fit
from experiments.streams import stream
from rtbjax import Process
from rtbjax.nets.classifier import Classifier, ResNet
from rtbjax.nets.unet import UNet
from rtbjax.nets.value import NoisyClassifier, from_denoiser
from rtbjax.train import make_rollout

MEANS = 8  # Steps of each path whose means a value is refined at.
VALUE_LEVELS = 128  # Noise levels the value is trained on, so that it serves shorter chains of any length.

Loss = Callable[..., Float[Array, ""]]  # ``(params, key, data)``, as `experiments.pretrain.fit` takes it.


def mirrored(key: Array, images: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Each image or its mirror image, by lot."""
    turned = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(turned, images[:, :, ::-1], images)


def prior_loss(net: UNet, batch: int, mirror: bool) -> Loss:
    """`noising.v_errors` of images drawn anew, mirrored by lot where that leaves them what they are."""

    def loss(params, key, images):
        pick, time, noise, turn = jax.random.split(key, 4)
        x0 = images[jax.random.randint(pick, (batch,), 0, images.shape[0])]
        x0 = mirrored(turn, x0) if mirror else x0
        return jnp.mean(noising.v_errors(lambda x, t: net.apply({"params": params}, x, t), time, noise, x0))

    return loss


def classifier_loss(net: Classifier | ResNet, batch: int, mirror: bool, max_noise: float = 0.2) -> Loss:
    """Cross-entropy on noisy, shifted images: the last diffusion step leaves noise, and r must read through it."""

    def loss(params, key, data):
        images, labels = data
        pick, level, noise, shift, turn = jax.random.split(key, 5)
        index = jax.random.randint(pick, (batch,), 0, images.shape[0])
        std = jax.random.uniform(level, (batch, 1, 1, 1), maxval=max_noise)
        x = jnp.roll(images[index], jax.random.randint(shift, (2,), -1, 2), (1, 2))
        x = mirrored(turn, x) if mirror else x
        logits = net.apply({"params": params}, x + std * jax.random.normal(noise, x.shape))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[index]).mean()

    return loss


def value_loss(net: NoisyClassifier, process: Process, batch: int) -> Loss:
    """Cross-entropy of noised images against the classifier on clean ones, least at ``E[p(class | x_0) | x]``.

    Half of a batch are the prior's own samples, half are real images, however many there are of each.
    """

    def loss(params, key, data: ValueData):
        pick, step, noise = jax.random.split(key, 3)
        parts = zip(jax.random.split(pick), (data.samples, data.images), strict=True)
        drawn = [[a[jax.random.randint(k, (batch // 2,), 0, len(a))] for a in part] for k, part in parts]
        x0, probabilities = (jnp.concatenate(both).astype(jnp.float32) for both in zip(*drawn, strict=True))
        steps = jax.random.randint(step, (len(x0),), 0, process.num_steps)

        def at(key, x0, i):
            return process.marginal(key[None], x0[None], i, None)[0], process.time(i)

        log_p = net.apply({"params": params}, *jax.vmap(at)(jax.random.split(noise, len(x0)), x0, steps))
        return -jnp.mean(jnp.sum(probabilities * log_p, axis=-1))

    return loss


def refined_value_loss(net: NoisyClassifier, batch: int) -> Loss:
    """Cross-entropy at the means of the prior's own steps, least at ``E[p(class | x_0) | mean]``.

    The law of a step is normal about its mean m, so what the posterior adds to m is the step's variance times the
    gradient, in m, of the log of this mean of r, and exactly so (Tweedie's formula). Noised data tell less: the states
    of a chain of few steps are not data with noise, nor is the mean of a step a state.
    """

    def loss(params, key, data):
        means, times, probabilities = (a[jax.random.randint(key, (batch,), 0, len(a))] for a in data)
        log_p = net.apply({"params": params}, means.astype(jnp.float32), times)
        return -jnp.mean(jnp.sum(probabilities.astype(jnp.float32) * log_p, axis=-1))

    return loss


class ValueData(NamedTuple):
    """What a value is trained on. Class probabilities are the classifier's, of what an image is or becomes.

    Attributes:
      samples: the prior's, ``f16[P, H, W, C]``, and their class probabilities ``f16[P, K]``.
      images: real ones with the noise that such samples keep, and theirs.
      means: of steps of the samples' paths, the time at which `rtbjax.guidance.value_guidance` asks for the value
        there, and the class probabilities of the paths' ends.
    """

    samples: tuple[Array, Array]
    images: tuple[Array, Array]
    means: tuple[Array, Array, Array]


def value_data(config: ConfigDict, process: Process, images: Float[Array, "N H W C"], key: Array) -> ValueData:
    """From ``pretrain.paths`` paths of the prior, rounded up to batches, of which `MEANS` steps each are kept."""
    prior = networks.load_prior(config)
    classifier, classifier_params = networks.load_classifier(config)
    batch = config.eval.batch_size
    roll = make_rollout(process, (batch, *networks.shape(config)))
    probabilities = jax.jit(lambda x: jax.nn.softmax(classifier.apply({"params": classifier_params}, x)))

    @jax.jit
    def means(key, xs):
        last = process.num_steps - 1  # It leads to the data, where log h is log r.
        steps = jax.random.choice(key, last, (min(MEANS, last),), replace=False)

        def one(_, i):
            law: Any = process.reverse(prior(xs[i], process.time(i), None), xs[i], i)
            return None, (law.mean, jnp.full(batch, process.time(i + 1)))

        return jax.lax.scan(one, None, steps)[1]

    def labelled(x):
        return np.asarray(x, np.float16), np.asarray(probabilities(x), np.float16)

    def joined(rows):
        return tuple(jnp.concatenate(column) for column in zip(*rows, strict=True))

    roll_key, noise_key = jax.random.split(key)
    samples, seen = [], []
    for first in hosts.progress(range(0, config.pretrain.paths, batch), desc="prior samples", unit="batch"):
        xs = roll(jax.random.fold_in(roll_key, first), prior).xs
        samples.append(labelled(xs[-1]))
        for mean, time in zip(*means(jax.random.fold_in(noise_key, first), xs), strict=True):
            seen.append((np.asarray(mean, np.float16), np.asarray(time), samples[-1][1]))
    noisy = images + config.process.min_std * jax.random.normal(noise_key, images.shape)
    parts = (noisy[first : first + batch] for first in range(0, len(images), batch))
    return ValueData(joined(samples), joined(map(labelled, parts)), joined(seen))


def train(config: ConfigDict, what: str, workdir: Path) -> None:
    """Trains the ``prior``, the ``reward`` or the ``value``, and writes its weights to the workdir.

    Raises:
      ConfigError: a number that is not allowed.
      DataError: the images cannot be read.
      WeightsError: the value needs prior and classifier, and their weights cannot be read.
    """
    settings, known = config.pretrain, networks.image_set(config)
    if what == "value" and "value" not in config:
        raise ConfigError("config.pretrain.what must be prior or reward: this config has no section for a value.")
    if what == "value" and (settings.paths < 1 or settings.batch_size < 2):
        raise ConfigError("config.pretrain.paths must be at least 1 and config.pretrain.batch_size at least 2.")
    found = data.load(config.data.set, config.data.path)
    images, labels = jnp.asarray(found.images), jnp.asarray(found.labels)
    init_key, data_key, fit_key = jax.random.split(stream(config.seed, "pretrain"), 3)
    x, t = images[:1], jnp.float32(0.0)
    if what == "prior":
        net = networks.make_unet(config)
        with checking("prior.network"):
            params = net.init(init_key, x, t)["params"]
        loss, source = prior_loss(net, settings.batch_size, known.mirrors), images
    elif what == "reward":
        net = networks.make_classifier(config)
        with checking("reward.network"):
            params = net.init(init_key, x)["params"]
        loss, source = classifier_loss(net, settings.batch_size, known.mirrors), (images, labels)
    else:
        denoiser, net = networks.load_unet(config)[1], NoisyClassifier(**config.prior.network)
        params = from_denoiser(net.init(init_key, x, t)["params"], denoiser)
        with checking():
            process, levels = networks.make_process(config), networks.make_process(config, VALUE_LEVELS)
        loss, source = value_loss(net, levels, settings.batch_size), value_data(config, process, images, data_key)
    label = f"{config.data.set} {what}"
    params = fit(loss, params, source, settings, key=fit_key, workdir=workdir, label=label)
    if what == "value":
        refine = config.value.refine
        where = dict(workdir=workdir / "refine", label=f"{label}, at means")
        params = fit(refined_value_loss(net, refine.batch_size), params, source.means, refine, key=fit_key, **where)
    made = "classifier" if what == "reward" else what
    path = workdir / f"{config.data.set}_{made}.safetensors"
    trained_on = f"{len(images)} {known.nouns} from {found.source}"
    if what == "value":
        trained_on += f" and {settings.paths} samples of the prior"
    weights.save(path, params, {"trained_on": trained_on, "steps": settings.steps})
    hosts.say(f"{path}: use it by --config.{what}.weights={path}")
