"""Classifier-guided images: p(x) p(class | x), the prior a small U-Net the project trains (paper, sec. 3.1)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import data, weights
from experiments.domains.base import Domain, Value
from experiments.errors import ConfigError
from experiments.plots import plt
from experiments.pretrain import fit
from experiments.settings import one_of
from experiments.streams import stream
from rtbjax import Policy, Process, posterior, schedules
from rtbjax.metrics.distances import diversity, frechet
from rtbjax.nets.classifier import Classifier
from rtbjax.nets.unet import UNet
from rtbjax.nets.value import ValueHead
from rtbjax.process import vp

SHAPE = (28, 28, 1)
SCORE_SCALE = 0.05  # A score of this size per pixel, in units of 1 / std, is worth about a nat a step.
LOGIT_SCALE = 5.0  # Of the classifier, about.
GROUPS = {"even": (0, 2, 4, 6, 8), "odd": (1, 3, 5, 7, 9)}


def classes(label: str) -> tuple[int, ...]:
    """The classes a ``reward.label`` stands for.

    Raises:
      ConfigError: neither 0..9 nor even or odd.
    """
    if label in GROUPS:
        return GROUPS[label]
    if label not in map(str, range(10)):
        raise ConfigError(f"config.reward.label must be 0..9, 'even' or 'odd', got {label!r}.")
    return (int(label),)


def unet(config: ConfigDict) -> UNet:
    return UNet(**config.prior.network)


def abstract_params(module, *inputs):
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def load_unet(config: ConfigDict):
    net = unet(config)
    like = abstract_params(net, jnp.zeros((1, *SHAPE)), jnp.float32(0.0))
    return net, weights.load(weights.locate(config.prior.weights), like)


def load_classifier(config: ConfigDict):
    net = Classifier()
    like = abstract_params(net, jnp.zeros((1, *SHAPE)))
    return net, weights.load(weights.locate(config.reward.weights), like)


def make_process(config: ConfigDict):
    p = config.process
    schedule = schedules.respace(schedules.cosine_alpha_bar(), p.num_steps, p.spacing)
    return vp.ddpm(
        schedule, prediction="v_prediction", variance=p.variance, clip_x0=p.clip_x0 or None, min_std=p.min_std
    )


def make_log_reward(net, params, label: str):
    """``max over the label's classes of log p(class | x)``, at most 0 (paper, sec. 3.1)."""
    chosen = np.array(classes(label))

    def log_reward(x, cond=None):
        return jnp.max(jax.nn.log_softmax(net.apply({"params": params}, x))[:, chosen], axis=-1)

    return log_reward


def build(config: ConfigDict) -> Domain:
    """The domain of a config.

    Raises:
      ConfigError: an unknown label or parametrisation.
      WeightsError: the prior's or the classifier's weights cannot be read.
    """
    one_of(config, "posterior.kind", ("full", "lora", "correction", "steered"))
    net, params = load_unet(config)
    classifier, classifier_params = load_classifier(config)
    prior = Policy(params, lambda params, x, t, cond: net.apply({"params": params}, x, t))
    log_reward = make_log_reward(classifier, classifier_params, config.reward.label)
    key, value_key = jax.random.split(stream(config.seed, "posterior"))
    process = make_process(config)
    value = None
    if config.posterior.kind == "full":
        learner = posterior.full_copy(prior)
    elif config.posterior.kind == "lora":
        learner = posterior.lora(key, prior, config.posterior.rank, select=config.posterior.select)
    elif config.posterior.kind == "correction":
        learner = correction(key, config, process, log_reward)
    else:
        learner = steered(key, config, process)
        value = make_value(value_key, config, process, classifier, classifier_params)
    if config.posterior.learn_variance:
        steps = config.process.num_steps
        table = {"log_std": jnp.zeros((steps, 1, 1, 1))}

        def head(table, x, t, cond):
            return table["log_std"][process.step_at(t)][None]

        learner = posterior.learned_std(learner, table, head)
    trained_on = weights.metadata(weights.locate(config.prior.weights)).get("trained_on", "unknown")
    return Domain(
        name="images",
        data_source=f"prior trained on {trained_on}",
        process=process,
        event_shape=SHAPE,
        prior=prior,
        posterior=learner,
        log_reward=jax.jit(log_reward),
        log_bound=0.0,
        fingerprint=weights.fingerprint(
            params, classifier_params, config.process.to_dict(), list(classes(config.reward.label))
        ),
        evaluate=make_evaluate(classifier, classifier_params, log_reward, config.reward.label),
        plot=plot,
        value=value,
    )


def correction(key, config: ConfigDict, process: Process, log_reward) -> Policy:
    """Adds a smaller U-Net to the output; it sees the state, the prior's estimate of x0, and grad log r there."""
    net = UNet(out_channels=SHAPE[-1], **config.posterior.network)

    def look(output, x, t, cond):
        x0 = process.denoise(output, x, process.step_at(t))
        gradient = jax.grad(lambda x0: jnp.sum(log_reward(x0, cond)))(x0)
        return jnp.concatenate([x0, jnp.clip(gradient, -1.0, 1.0)], axis=-1)

    def apply_fn(params, x, t, cond, seen):
        return net.apply({"params": params}, jnp.concatenate([x, seen], axis=-1), t)

    params = net.init(key, jnp.zeros((1, *SHAPE[:2], 3 * SHAPE[-1])), jnp.float32(0.0))["params"]
    return posterior.correction(params, apply_fn, look=look)


def steered(key, config: ConfigDict, process: Process) -> Policy:
    """A smaller U-Net gives the score; it sees the state and the prior's estimate of x0."""
    net = UNet(out_channels=SHAPE[-1], **config.posterior.network)

    def score(params, x, t, cond, output):
        i = process.step_at(t)
        law = process.reverse(output, x, i)
        seen = jnp.concatenate([x, process.denoise(output, x, i)], axis=-1)
        return SCORE_SCALE / law.std * net.apply({"params": params}, seen, t)

    params = net.init(key, jnp.zeros((1, *SHAPE[:2], 2 * SHAPE[-1])), jnp.float32(0.0))["params"]
    return posterior.steered(params, score)


def make_value(key, config: ConfigDict, process: Process, net: Classifier, params) -> Value:
    """log h by a small head on the classifier's logits at the prior's estimate of x0."""
    head = ValueHead(initial=config.posterior.initial_value)

    def look(output, x, t, cond):
        x0 = process.denoise(output, x, process.step_at(t))
        return net.apply({"params": params}, x0) / LOGIT_SCALE

    def log_h(params, features, t):
        return head.apply({"params": params}, features, t)

    return Value(head.init(key, jnp.zeros((1, net.num_classes)), jnp.float32(0.0))["params"], look, log_h)


def prior_loss(net: UNet, batch: int):
    """Squared error of v at stratified timesteps of the cosine schedule (Salimans & Ho 2022)."""
    alpha_bar = jnp.asarray(schedules.cosine_alpha_bar(), jnp.float32)
    steps = alpha_bar.shape[0]

    def loss(params, key, digits):
        images, _ = digits
        pick, time, noise = jax.random.split(key, 3)
        x0 = images[jax.random.randint(pick, (batch,), 0, images.shape[0])]
        offset = jax.random.uniform(time)
        t = jnp.floor((jnp.arange(batch, dtype=jnp.float32) + offset) / batch * steps)
        a = alpha_bar[t.astype(jnp.int32)][:, None, None, None]
        signal, std = jnp.sqrt(a), jnp.sqrt(1.0 - a)
        eps = jax.random.normal(noise, x0.shape)
        v = net.apply({"params": params}, signal * x0 + std * eps, t)
        return jnp.mean((v - (signal * eps - std * x0)) ** 2)

    return loss


def classifier_loss(net: Classifier, batch: int, max_noise: float = 0.2):
    """Cross-entropy on noisy, shifted images: the last diffusion step leaves noise, and r must read through it."""

    def loss(params, key, digits):
        images, labels = digits
        pick, level, noise, shift = jax.random.split(key, 4)
        index = jax.random.randint(pick, (batch,), 0, images.shape[0])
        std = jax.random.uniform(level, (batch, 1, 1, 1), maxval=max_noise)
        x = jnp.roll(images[index], jax.random.randint(shift, (2,), -1, 2), (1, 2))
        logits = net.apply({"params": params}, x + std * jax.random.normal(noise, x.shape))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[index]).mean()

    return loss


def pretrain(config: ConfigDict, workdir: Path) -> None:
    """Trains the prior, or with ``pretrain.what = "reward"`` the classifier, and writes its weights to the workdir."""
    one_of(config, "pretrain.what", ("prior", "reward"))
    settings = config.pretrain
    found = data.mnist(config.data.path)
    images, labels = jnp.asarray(found.images), jnp.asarray(found.labels)
    init_key, fit_key = jax.random.split(stream(config.seed, "pretrain"))
    if settings.what == "prior":
        net = unet(config)
        params = net.init(init_key, images[:1], jnp.float32(0.0))["params"]
        loss = prior_loss(net, settings.batch_size)
    else:
        net = Classifier()
        params = net.init(init_key, images[:1])["params"]
        loss = classifier_loss(net, settings.batch_size)
    params = fit(loss, params, (images, labels), settings, key=fit_key, workdir=workdir, label=f"mnist {settings.what}")
    path = workdir / f"mnist_{'prior' if settings.what == 'prior' else 'classifier'}.safetensors"
    weights.save(path, params, {"trained_on": f"{len(images)} digits from {found.source}"})
    print(f"{path}: use it by --config.{settings.what}.weights={path}")


def make_evaluate(net, params, log_reward, label):
    features = jax.jit(lambda x: net.apply({"params": params}, x, method="features"))
    log_r = jax.jit(log_reward)
    predict = jax.jit(lambda x: jnp.argmax(net.apply({"params": params}, x), axis=-1))
    chosen = classes(label)

    def in_batches(fn, x, size=1000):
        return np.concatenate([np.asarray(fn(x[i : i + size])) for i in range(0, len(x), size)])

    def evaluate(samples):
        """Each set against the exact one, in the classifier's features."""
        exact = in_batches(features, samples["exact"])
        compared = {"prior": samples["prior"], "rtb": samples["rtb"], "exact": samples["exact_again"]}
        metrics = {}
        for name, x in compared.items():
            # Equal sizes: a Fréchet distance grows as samples get fewer.
            x = x[: len(exact)]
            f = in_batches(features, x)
            metrics[name] = {
                "log_reward": float(in_batches(log_r, x).mean()),
                "diversity": diversity(f),
                "frechet_to_exact": frechet(f, exact),
                "accuracy": float(np.isin(in_batches(predict, x), chosen).mean()),
            }
        return metrics

    return evaluate


def plot(path: Path, panels):
    """Grids of the first hundred samples of each set, by title, side by side."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 4.8), squeeze=False)
    for axis, (title, x) in zip(axes.flat, panels.items(), strict=True):
        axis.imshow(grid(x[:100]), cmap="gray", vmin=-1, vmax=1)
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
