"""Classifier-guided images: p(x) p(class | x), the prior a small U-Net the project trains (paper, sec. 3.1)."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int
from ml_collections import ConfigDict

from experiments import data, hosts, noising, weights
from experiments.domains.base import ConditionalLogZ, Conditions, Domain, Value
from experiments.errors import ConfigError, checking
from experiments.plots import plt
from experiments.pretrain import fit
from experiments.settings import (
    PRECISIONS,
    check_group,
    data_unread,
    no_training,
    no_warm_start,
    one_of,
    other_precision,
)
from experiments.streams import stream
from experiments.weights import abstract_params
from rtbjax import Policy, Process, guidance, posterior, schedules
from rtbjax.metrics.distances import classifier_two_sample, diversity, frechet
from rtbjax.nets.classifier import Classifier, ResNet
from rtbjax.nets.unet import UNet
from rtbjax.nets.value import NoisyClassifier, from_denoiser
from rtbjax.process import vp
from rtbjax.train import make_rollout

MEANS = 8  # Steps of each path whose means a value is refined on.
VALUE_LEVELS = 128  # Noise levels the value is trained on, so that it serves shorter chains of any length.
SCORE_SCALE = 0.05  # A score of this size per pixel, in units of 1 / std, is worth about a nat a step.
STEERED = ("steered", "value_guided")  # By a score that the value teaches first.
GUIDED = ("classifier_guidance", "posterior_sampling", "loss_guidance")  # Nothing to train.
CLASSIFIERS = {"mnist": Classifier, "cifar10": ResNet}


def shape(config: ConfigDict) -> tuple[int, int, int]:
    """Of an image, ``[H, W, C]``."""
    return image_set(config).shape


def image_set(config: ConfigDict) -> data.ImageSet:
    """What images of ``data.set`` are."""
    one_of(config, "data.set", tuple(data.SETS))
    return data.SETS[config.data.set]


def classes(label: str) -> tuple[int, ...]:
    """The classes of one label: a number, a name, or a group of classes."""
    return (int(label),) if label in data.NUMBERS else data.CLASSES[label]


def labels(config: ConfigDict) -> tuple[str, ...]:
    """What ``reward.label`` stands for: itself, or the conditions of one posterior.

    Raises:
      ConfigError: not a label.
    """
    label, known = config.reward.label, image_set(config)
    if label in known.many:
        return known.many[label]
    if label not in (*data.NUMBERS, *known.labels):
        single, many = (", ".join(map(repr, names)) for names in (known.labels, known.many))
        raise ConfigError(f"config.reward.label must be 0..9, {single}, or for many at once {many}, got {label!r}.")
    return (label,)


def masks(asked: tuple[str, ...]) -> np.ndarray:
    """Which classes each label has, ``bool[N, 10]``."""
    return np.stack([np.isin(np.arange(10), classes(label)) for label in asked])


def unet(config: ConfigDict) -> UNet:
    return UNet(**config.prior.network, dtype=PRECISIONS[config.precision])


def small_unet(config: ConfigDict, out_channels: int, num_classes: int | None = None) -> UNet:
    """The network of a posterior that builds on the prior."""
    dtype = PRECISIONS[config.precision]
    net = UNet(out_channels=out_channels, num_classes=num_classes, dtype=dtype, **config.posterior.network)
    with checking("posterior.network"):
        abstract_params(net, blank(config, 1), jnp.float32(0.0))
    return net


def load(config: ConfigDict, what: str, like):
    """Weights of the ``prior`` or the ``reward``.

    Raises:
      WeightsError: they cannot be read; if there are none, by which command they are made.
    """
    path = weights.locate(config[what].weights)
    if not path.is_file():
        command = f"python experiments/run.py --config=configs/{config.data.set}.py --mode=pretrain"
        option = "" if what == "prior" else f" --config.pretrain.what={what}"
        raise weights.WeightsError(f"There is no weights file {path}; it is made by: {command}{option}")
    return weights.load(path, like)


def load_unet(config: ConfigDict):
    net = unet(config)
    with checking("prior.network"):
        like = abstract_params(net, blank(config, 1), jnp.float32(0.0))
    return net, load(config, "prior", like)


def load_prior(config: ConfigDict) -> Policy:
    net, params = load_unet(config)
    return Policy(params, lambda params, x, t, cond: net.apply({"params": params}, x, t))


def trained_on(config: ConfigDict) -> str:
    """What the prior's weights say of it."""
    return weights.metadata(weights.locate(config.prior.weights)).get("trained_on", "unknown")


def make_classifier(config: ConfigDict) -> Classifier | ResNet:
    return CLASSIFIERS[config.data.set](**config.reward.get("network", {}))


def load_classifier(config: ConfigDict):
    net = make_classifier(config)
    return net, load(config, "reward", abstract_params(net, blank(config, 1)))


def make_schedule(config: ConfigDict, num_steps: int | None = None) -> schedules.Respaced:
    """Steps of the config's chain, or of one like it of another length."""
    return schedules.respace(
        schedules.cosine_alpha_bar(), num_steps or config.process.num_steps, config.process.spacing
    )


def make_process(config: ConfigDict, num_steps: int | None = None) -> Process:
    """The config's chain, or one like it of another length."""
    p = config.process
    return vp.ddpm(
        make_schedule(config, num_steps),
        prediction="v_prediction",
        variance=p.variance,
        clip_x0=p.clip_x0 or None,
        min_std=p.min_std,
    )


def chosen_classes(asked: tuple[str, ...], cond: Int[Array, " B"] | None) -> Bool[Array, "N 10"]:
    """The classes of each sample's label; N is 1 for the same of all."""
    table = jnp.asarray(masks(asked))
    return table[:1] if cond is None else table[cond]


def make_log_reward(net, params, asked: tuple[str, ...]):
    """``max over the label's classes of log p(class | x)``, at most 0 (paper, sec. 3.1).

    ``cond`` is the place of a sample's label in ``asked``, ``i32[B]``, or None where there is one label.
    """

    def log_reward(x, cond=None):
        log_p = jax.nn.log_softmax(net.apply({"params": params}, x))
        return jnp.max(log_p, axis=-1, where=chosen_classes(asked, cond), initial=-jnp.inf)

    return log_reward


def build(config: ConfigDict) -> Domain:
    """The domain of a config.

    Raises:
      ConfigError: an unknown label or parametrisation.
      WeightsError: the prior's or the classifier's weights cannot be read.
    """
    one_of(config, "posterior.kind", ("full", "lora", "correction", *STEERED, *GUIDED))
    one_of(config, "process.spacing", ("leading", "trailing", "linspace", "log_snr"))
    one_of(config, "process.variance", ("fixed_large", "fixed_small"))
    data_unread(config)
    asked = labels(config)
    conditional = len(asked) > 1
    check_group(config, len(asked) if conditional else 0)
    if conditional:  # The prior's network has no place for a label.
        one_of(config, "posterior.kind", ("correction", *STEERED, *GUIDED))
    if config.posterior.kind in GUIDED:
        no_training(config)
    if config.posterior.kind not in STEERED:
        no_warm_start(config, f"config.posterior.kind={config.posterior.kind} does not follow a value")
    steers = config.posterior.kind in STEERED and config.steer.steps > 0
    if steers and config.objective.beta != 1.0:
        raise ConfigError(
            "config.steer.steps must be 0 unless config.objective.beta is 1: the value is that of r itself."
        )
    prior = load_prior(config)
    classifier, classifier_params = load_classifier(config)
    log_reward = make_log_reward(classifier, classifier_params, asked)
    key = stream(config.seed, "posterior")
    process = make_process(config)
    value = None
    if config.posterior.kind == "full":
        learner = posterior.full_copy(prior)
    elif config.posterior.kind == "lora":
        learner = posterior.lora(key, prior, config.posterior.rank, select=config.posterior.select)
    elif config.posterior.kind == "correction":
        learner = correction(key, config, process, log_reward)
    elif config.posterior.kind in GUIDED:
        learner = guided(config, process, prior, log_reward)
    else:
        guides = config.posterior.kind == "value_guided"
        judges = config.eval.sampler == "smc_posterior" and config.objective.beta == 1.0
        value = make_value(config) if guides or steers or judges else None
        learner = value_guided(key, config, process, value, log_reward) if guides else steered(key, config, process)
    if config.posterior.learn_variance:
        steps = config.process.num_steps
        table = {"log_std": jnp.zeros((steps, 1, 1, 1))}

        def head(table, x, t, cond):
            return table["log_std"][process.step_at(t)][None]

        learner = posterior.learned_std(learner, table, head)
    return Domain(
        name="images",
        data_source=f"prior trained on {trained_on(config)}",
        process=process,
        event_shape=shape(config),
        prior=prior,
        posterior=learner,
        log_reward=jax.jit(log_reward),
        log_bound=0.0,
        fingerprint=weights.fingerprint(
            prior.params,
            classifier_params,
            config.process.to_dict(),
            *(list(classes(label)) for label in asked),
            *other_precision(config),
        ),
        evaluate=make_evaluate(classifier, classifier_params, log_reward, asked),
        plot=plot,
        value=value,
        conditions=make_conditions(asked) if conditional else None,
    )


def guided(config: ConfigDict, process: Process, prior: Policy, log_reward) -> Policy:
    """Training-free, by the gradient of ``beta log r``: at the state itself, or through the denoiser."""
    settings, beta = config.posterior, config.objective.beta

    def tempered(x, cond):
        return beta * log_reward(x, cond)

    if settings.kind == "classifier_guidance":
        return guidance.classifier_guidance(prior, tempered, strength=settings.strength)
    if settings.kind == "posterior_sampling":
        return guidance.posterior_sampling(process, prior, tempered, strength=settings.strength)
    # The spread of x_0 given x that data of unit variance would have (Song et al. 2023).
    noise = jnp.asarray(np.sqrt(1.0 - make_schedule(config).alpha_bar), jnp.float32)
    return guidance.loss_guidance(
        process,
        prior,
        tempered,
        lambda i: noise[i],
        num_samples=settings.num_samples,
        strength=settings.strength,
    )


def make_conditions(asked: tuple[str, ...]) -> Conditions:
    """Every label is trained on and evaluated; log Z is a number for each."""
    every = jnp.arange(len(asked))
    log_z = ConditionalLogZ(jnp.zeros(len(asked)), lambda table, cond: table[cond])
    return Conditions(values=every, evaluated=every, names=asked, log_z=log_z)


def correction(key, config: ConfigDict, process: Process, log_reward) -> Policy:
    """Adds a smaller U-Net to the output; it sees the state, the prior's estimate of x0, and grad log r there."""
    net = labelled_unet(config)

    def look(output, x, t, cond):
        x0 = process.denoise(output, x, process.step_at(t))
        gradient = jax.grad(lambda x0: jnp.sum(log_reward(x0, cond)))(x0)
        return jnp.concatenate([x0, jnp.clip(gradient, -1.0, 1.0)], axis=-1)

    def apply_fn(params, x, t, cond, seen):
        return net.apply({"params": params}, jnp.concatenate([x, seen], axis=-1), t, cond)

    params = jax.jit(net.init)(key, blank(config, 3), jnp.float32(0.0))["params"]
    return posterior.correction(params, apply_fn, look=look)


def blank(config: ConfigDict, images: int) -> Array:
    """As many images as one, along the channels."""
    rows, cols, channels = shape(config)
    return jnp.zeros((1, rows, cols, images * channels))


def labelled_unet(config: ConfigDict) -> UNet:
    """A smaller U-Net, which knows the label where there are several."""
    asked = labels(config)
    return small_unet(config, shape(config)[-1], len(asked) if len(asked) > 1 else None)


def steered(key, config: ConfigDict, process: Process) -> Policy:
    """A smaller U-Net gives the score; it sees the state and the prior's estimate of x0."""
    net = labelled_unet(config)

    def score(params, x, t, cond, output):
        i = process.step_at(t)
        law = process.reverse(output, x, i)
        seen = jnp.concatenate([x, process.denoise(output, x, i)], axis=-1)
        return SCORE_SCALE / law.std * net.apply({"params": params}, seen, t, cond)

    params = jax.jit(net.init)(key, blank(config, 2), jnp.float32(0.0))["params"]
    return posterior.steered(params, score)


def value_guided(key, config: ConfigDict, process: Process, value: Value, log_reward) -> Policy:
    """Starts as the prior guided by the value, whose gradient every step then takes."""
    beta = config.objective.beta
    guide = guidance.value_guidance(
        process,
        lambda x, t, cond: beta * value.log_h(value.params, x, t, cond),
        lambda x, cond: beta * log_reward(x, cond),
        strength=config.posterior.strength,
    )
    return with_score(key, config, process, guide, labelled_unet(config))


def with_score(key, config: ConfigDict, process: Process, guide: Policy, net: UNet) -> Policy:
    """The guide with a strength for each step, plus the score of a smaller U-Net, which sees what the guide says."""

    def change(params, x, t, cond, steered):
        i = process.step_at(t)
        std = process.reverse(steered.output, x, i).std
        seen = jnp.concatenate([x, process.denoise(steered.output, x, i), std * steered.score], axis=-1)
        own: Any = net.apply({"params": params["network"]}, seen, t, None if net.num_classes is None else cond)
        return jnp.exp(params["log_strength"][i]) * steered.score + SCORE_SCALE / std * own

    params = {
        "network": jax.jit(net.init)(key, blank(config, 3), jnp.float32(0.0))["params"],
        "log_strength": jnp.zeros(process.num_steps),
    }
    return posterior.guided(guide, params, change)


def make_value(config: ConfigDict) -> Value:
    """log h: the noisy classifier's log probability of the label's classes.

    The reward of several classes is the largest of their probabilities and this is their sum, which differ where the
    classifier hesitates between them.
    """
    net = NoisyClassifier(**config.prior.network)
    like = abstract_params(net, blank(config, 1), jnp.float32(0.0))
    params = load(config, "value", like)
    asked = labels(config)

    def log_h(params, x, t, cond):
        log_p: Any = net.apply({"params": params}, x, t)
        return jax.nn.logsumexp(log_p, axis=-1, where=chosen_classes(asked, cond))

    return Value(params, log_h)


def mirrored(key: Array, images: Array) -> Array:
    """Each image or its mirror image, by lot."""
    turned = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(turned, images[:, :, ::-1], images)


def prior_loss(net: UNet, batch: int, mirror: bool):
    """`noising.v_errors` of images drawn anew, mirrored by lot where that leaves them what they are."""

    def loss(params, key, images):
        pick, time, noise = jax.random.split(key, 3)
        x0 = images[jax.random.randint(pick, (batch,), 0, images.shape[0])]
        x0 = mirrored(jax.random.fold_in(pick, 1), x0) if mirror else x0
        return jnp.mean(noising.v_errors(lambda x, t: net.apply({"params": params}, x, t), time, noise, x0))

    return loss


def classifier_loss(net: Classifier | ResNet, batch: int, mirror: bool, max_noise: float = 0.2):
    """Cross-entropy on noisy, shifted images: the last diffusion step leaves noise, and r must read through it."""

    def loss(params, key, data):
        images, labels = data
        pick, level, noise, shift = jax.random.split(key, 4)
        index = jax.random.randint(pick, (batch,), 0, images.shape[0])
        std = jax.random.uniform(level, (batch, 1, 1, 1), maxval=max_noise)
        x = jnp.roll(images[index], jax.random.randint(shift, (2,), -1, 2), (1, 2))
        x = mirrored(jax.random.fold_in(shift, 1), x) if mirror else x
        logits = net.apply({"params": params}, x + std * jax.random.normal(noise, x.shape))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[index]).mean()

    return loss


def value_loss(net: NoisyClassifier, process: Process, batch: int):
    """Cross-entropy of noised images against the classifier on clean ones, least at ``E[p(class | x_0) | x]``.

    Half of a batch are the prior's own samples, half are digits, however many there are of each.
    """

    def loss(params, key, data: ValueData):
        pick, step, noise = jax.random.split(key, 3)
        parts = zip(jax.random.split(pick), (data.samples, data.digits), strict=True)
        drawn = [[a[jax.random.randint(k, (batch // 2,), 0, len(a))] for a in part] for k, part in parts]
        x0, probabilities = (jnp.concatenate(both).astype(jnp.float32) for both in zip(*drawn, strict=True))
        steps = jax.random.randint(step, (len(x0),), 0, process.num_steps)

        def at(key, x0, i):
            return process.marginal(key[None], x0[None], i, None)[0], process.time(i)

        log_p = net.apply({"params": params}, *jax.vmap(at)(jax.random.split(noise, len(x0)), x0, steps))
        return -jnp.mean(jnp.sum(probabilities * log_p, axis=-1))

    return loss


def refined_value_loss(net: NoisyClassifier, batch: int):
    """Cross-entropy at the means of the prior's own steps, least at ``E[p(class | x_0) | mean]``.

    The law of a step is normal about its mean m, so what a posterior adds to m is the step's variance times the
    gradient, in m, of the log of this mean of r, and exactly so (Tweedie's formula). Noised data tell less: the states
    of a chain of few steps are not data with noise, nor is the mean of a step a state.
    """

    def loss(params, key, data):
        means, times, probabilities = (a[jax.random.randint(key, (batch,), 0, len(a))] for a in data)
        log_p = net.apply({"params": params}, means.astype(jnp.float32), times)
        return -jnp.mean(jnp.sum(probabilities.astype(jnp.float32) * log_p, axis=-1))

    return loss


class ValueData(NamedTuple):
    """What a value is trained on; class probabilities are the classifier's.

    Attributes:
      samples: the prior's, and their class probabilities.
      digits: images with the noise that such samples keep, and theirs.
      means: of steps of the samples' paths, the time that `value_guidance` asks for there, and the class probabilities
        of what became of them.
    """

    samples: tuple[Array, Array]
    digits: tuple[Array, Array]
    means: tuple[Array, Array, Array]


def value_data(config: ConfigDict, images, key: Array) -> ValueData:
    """Draws ``pretrain.paths`` prior paths, and keeps the means of `MEANS` steps of each."""
    prior, process = load_prior(config), make_process(config)
    classifier, classifier_params = load_classifier(config)
    batch = config.eval.batch_size
    roll = make_rollout(process, (batch, *shape(config)))
    probabilities = jax.jit(lambda x: jax.nn.softmax(classifier.apply({"params": classifier_params}, x)))

    @jax.jit
    def means(key, xs):
        """Of steps that lead to a state other than the data, where log h is log r."""
        steps = jax.random.choice(key, process.num_steps - 1, (min(MEANS, process.num_steps - 1),), replace=False)

        def one(_, i):
            law: Any = process.reverse(prior(xs[i], process.time(i), None), xs[i], i)
            return None, (law.mean, jnp.full(batch, process.time(i + 1)))

        return jax.lax.scan(one, None, steps)[1]

    def small(x):
        return np.asarray(x, np.float16)

    def joined(rows):
        return tuple(jnp.concatenate(column) for column in zip(*rows, strict=True))

    roll_key, noise_key = jax.random.split(key)
    samples, seen = [], []
    for first in hosts.progress(range(0, config.pretrain.paths, batch), desc="prior samples", unit="batch"):
        xs = roll(jax.random.fold_in(roll_key, first), prior).xs
        samples.append((small(xs[-1]), small(probabilities(xs[-1]))))
        at, times = means(jax.random.fold_in(noise_key, first), xs)
        seen += [(small(m), np.asarray(t), samples[-1][1]) for m, t in zip(at, times, strict=True)]
    noisy = images + config.process.min_std * jax.random.normal(noise_key, images.shape)
    parts = (noisy[first : first + batch] for first in range(0, len(images), batch))
    return ValueData(joined(samples), joined((small(x), small(probabilities(x))) for x in parts), joined(seen))


def pretrain(config: ConfigDict, workdir: Path) -> None:
    """Trains the prior, or by ``pretrain.what`` the classifier or the value, and writes weights to the workdir."""
    one_of(config, "pretrain.what", ("prior", "reward", "value"))
    settings, known = config.pretrain, image_set(config)
    if settings.what == "value" and (settings.paths < 1 or settings.batch_size < 2):
        raise ConfigError("config.pretrain.paths must be at least 1 and config.pretrain.batch_size at least 2.")
    found = data.load(config.data.set, config.data.path)
    images, labels = jnp.asarray(found.images), jnp.asarray(found.labels)
    init_key, data_key, fit_key = jax.random.split(stream(config.seed, "pretrain"), 3)
    x, t = images[:1], jnp.float32(0.0)
    if settings.what == "prior":
        net = unet(config)
        params = net.init(init_key, x, t)["params"]
        loss, source = prior_loss(net, settings.batch_size, known.mirrors), images
    elif settings.what == "reward":
        net = make_classifier(config)
        params = net.init(init_key, x)["params"]
        loss, source = classifier_loss(net, settings.batch_size, known.mirrors), (images, labels)
    else:
        net = NoisyClassifier(**config.prior.network)
        params = from_denoiser(net.init(init_key, x, t)["params"], load_unet(config)[1])
        loss = value_loss(net, make_process(config, VALUE_LEVELS), settings.batch_size)
        source = value_data(config, images, data_key)
    label = f"{config.data.set} {settings.what}"
    params = fit(loss, params, source, settings, key=fit_key, workdir=workdir, label=label)
    if settings.what == "value":
        loss, refine = refined_value_loss(net, config.value.refine.batch_size), workdir / "refine"
        params = fit(
            loss, params, source.means, config.value.refine, key=fit_key, workdir=refine, label=f"{label}, means"
        )
    made = "classifier" if settings.what == "reward" else settings.what
    path = workdir / f"{config.data.set}_{made}.safetensors"
    trained_on = f"{len(images)} {known.nouns} from {found.source}"
    if settings.what == "value":
        trained_on += f" and {settings.paths} samples of the prior"
    weights.save(path, params, {"trained_on": trained_on, "steps": settings.steps})
    hosts.say(f"{path}: use it by --config.{settings.what}.weights={path}")


def in_batches(fn, x, size=1000):
    return np.concatenate([np.asarray(fn(x[i : i + size])) for i in range(0, len(x), size)])


def make_evaluate(net, params, log_reward, asked: tuple[str, ...]):
    features = jax.jit(lambda x: net.apply({"params": params}, x, method="features"))
    predict = jax.jit(lambda x: jnp.argmax(net.apply({"params": params}, x), axis=-1))

    @jax.jit
    def log_r(x, condition):
        return log_reward(x, None if condition is None else jnp.broadcast_to(condition, x.shape[:1]))

    def of_one(samples, condition: int | None):
        """Each set against the exact one, in the classifier's features."""
        label = asked[condition or 0]
        compared = {"prior": samples["prior"], "rtb": samples["rtb"], "exact": samples["exact_again"]}
        # Equal sizes: a Fréchet distance grows as samples get fewer.
        size = min(map(len, samples.values()))
        exact = in_batches(features, samples["exact"][:size])
        metrics = {}
        for name, x in compared.items():
            x = x[:size]
            f, predicted = in_batches(features, x), in_batches(predict, x)
            metrics[name] = {
                "log_reward": float(in_batches(partial(log_r, condition=condition), x).mean()),
                "diversity": diversity(f),
                "frechet_to_exact": frechet(f, exact),
                "accuracy": float(np.isin(predicted, classes(label)).mean()),
                "classes": {digit: float(np.mean(predicted == int(digit))) for digit in data.NUMBERS},
                "c2st": classifier_two_sample(f, exact),
            }
        return metrics

    def evaluate(samples):
        """Of one label, or the mean over labels and each of them."""
        if len(asked) == 1:
            return of_one(samples, None)
        each = [of_one({name: x[i] for name, x in samples.items()}, i) for i in range(len(asked))]
        mean = jax.tree.map(lambda *values: float(np.mean(values)), *each)
        named = zip(asked, each, strict=True)
        return mean | {"per_condition": [{"condition": label} | one for label, one in named]}

    return evaluate


def plot(path: Path, panels):
    """Grids of the first samples of each set, by title, at most five in a row.

    Where there are many labels, each has a row of a grid.
    """
    columns = min(len(panels), 5)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.5 * columns, 4.8 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, x) in zip(axes.flat, panels.items(), strict=False):
        first = x[:100] if x.ndim == 4 else np.concatenate([of_one[:10] for of_one in x])
        axis.imshow(0.5 + 0.5 * np.clip(grid(first), -1.0, 1.0), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def grid(x, columns=10):
    """``[N, H, W, C]`` to one image of rows of ``columns``, padded with black."""
    rows = -(-len(x) // columns)
    x = np.concatenate([x, np.full((rows * columns - len(x), *x.shape[1:]), -1.0, x.dtype)])
    h, w, c = x.shape[1:]
    return x.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)
