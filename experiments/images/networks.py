"""Which set of images, which networks and which chain a config means: their sizes and their weights."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from experiments import data, weights
from experiments.errors import checking
from experiments.settings import PRECISIONS, one_of
from rtbjax import Policy, Process, schedules
from rtbjax.nets.classifier import Classifier, ResNet
from rtbjax.nets.unet import UNet
from rtbjax.process import vp

CLASSIFIERS = {"mnist": Classifier, "cifar10": ResNet}


def image_set(config: ConfigDict) -> data.ImageSet:
    """What images of ``data.set`` are.

    Raises:
      ConfigError: an unknown set.
    """
    one_of(config, "data.set", tuple(data.SETS))
    return data.SETS[config.data.set]


def shape(config: ConfigDict) -> tuple[int, int, int]:
    """Of an image, ``[H, W, C]``."""
    return image_set(config).shape


def blank(config: ConfigDict, images: int = 1) -> Float[Array, "1 H W C"]:
    """What a network of the config's images is initialised with: so many of them along the channels."""
    rows, cols, channels = shape(config)
    return jnp.zeros((1, rows, cols, images * channels))


def load(config: ConfigDict, what: str, like: PyTree) -> PyTree:
    """Weights of the ``prior``, the ``reward`` or the ``value``, as of ``like``.

    Raises:
      WeightsError: they cannot be read; if there are none, by which command they are made.
    """
    path = weights.locate(config[what].weights)
    if not path.is_file():
        command = f"python experiments/run.py --config=configs/{config.data.set}.py --mode=pretrain"
        option = "" if what == "prior" else f" --config.pretrain.what={what}"
        raise weights.WeightsError(
            f"There is no weights file {path}, which config.{what}.weights asks for; one is made, and named, by: "
            f"{command}{option}"
        )
    return weights.load(path, like)


def make_unet(config: ConfigDict) -> UNet:
    """The prior's network."""
    return UNet(**config.prior.network, dtype=PRECISIONS[config.precision])


def make_small_unet(config: ConfigDict, num_classes: int | None = None) -> UNet:
    """The network of a posterior that builds on the prior.

    Raises:
      ConfigError: a size that is not allowed.
    """
    dtype, channels = PRECISIONS[config.precision], shape(config)[-1]
    net = UNet(out_channels=channels, num_classes=num_classes, dtype=dtype, **config.posterior.network)
    with checking("posterior.network"):
        weights.abstract_params(net, blank(config), jnp.float32(0.0))
    return net


def load_unet(config: ConfigDict) -> tuple[UNet, PyTree]:
    """The prior's network and its parameters.

    Raises:
      ConfigError: a size that is not allowed.
      WeightsError: see `load`.
    """
    net = make_unet(config)
    with checking("prior.network"):
        like = weights.abstract_params(net, blank(config), jnp.float32(0.0))
    return net, load(config, "prior", like)


def load_prior(config: ConfigDict) -> Policy:
    """The prior; see `load_unet`."""
    net, params = load_unet(config)
    return Policy(params, lambda params, x, t, cond: net.apply({"params": params}, x, t))


def trained_on(config: ConfigDict) -> str:
    """What the prior's weights say of it."""
    return weights.metadata(weights.locate(config.prior.weights)).get("trained_on", "unknown")


def make_classifier(config: ConfigDict) -> Classifier | ResNet:
    """The reward's network, of a kind that the set of images decides."""
    return CLASSIFIERS[config.data.set](**config.reward.get("network", {}))


def load_classifier(config: ConfigDict) -> tuple[Classifier | ResNet, PyTree]:
    """The reward's network and its parameters.

    Raises:
      WeightsError: see `load`.
    """
    net = make_classifier(config)
    return net, load(config, "reward", weights.abstract_params(net, blank(config)))


def make_schedule(config: ConfigDict, num_steps: int | None = None) -> schedules.Respaced:
    """Steps of the config's chain, or of one like it of another length."""
    steps = num_steps or config.process.num_steps
    return schedules.respace(schedules.cosine_alpha_bar(), steps, config.process.spacing)


def check_process(config: ConfigDict) -> None:
    """Raises a ConfigError unless spacing and variance are among those there are."""
    one_of(config, "process.spacing", ("leading", "trailing", "linspace", "log_snr"))
    one_of(config, "process.variance", ("fixed_large", "fixed_small"))


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
