"""What samples of images are worth: against exact ones in the classifier's features, by its labels, and to the eye."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from experiments import data
from experiments.domains.base import Samples
from experiments.images.rewards import classes
from experiments.plots import one_panel_each
from rtbjax import RewardFn
from rtbjax.metrics.distances import classifier_two_sample, diversity, frechet

IN_ROW = 10  # Images of a picture of a set.


def in_batches(fn: Callable[[Any], Array], x: Any, size: int = 1000) -> np.ndarray:
    """``fn`` of the rows of x, ``size`` of them at a time."""
    return np.concatenate([np.asarray(fn(x[i : i + size])) for i in range(0, len(x), size)])


class Evaluation:
    """Metrics of the posteriors of the labels ``asked``; of several, sets of samples are ``[N, n, H, W, C]``."""

    def __init__(self, classifier: nn.Module, params: PyTree, log_reward: RewardFn, asked: tuple[str, ...]):
        self._asked = asked
        self._features = jax.jit(lambda x: classifier.apply({"params": params}, x, method="features"))
        self._predict = jax.jit(lambda x: jnp.argmax(classifier.apply({"params": params}, x), axis=-1))
        self._log_r = jax.jit(
            lambda x, condition: log_reward(x, None if condition is None else jnp.broadcast_to(condition, x.shape[:1]))
        )

    def metrics(self, samples: Samples) -> dict[str, Any]:
        """Of one label, or the mean over labels and each of them."""
        if len(self._asked) == 1:
            return self._of_label(samples, None)
        each = [self._of_label({name: x[i] for name, x in samples.items()}, i) for i in range(len(self._asked))]
        mean = jax.tree.map(lambda *values: float(np.mean(values)), *each)
        named = zip(self._asked, each, strict=True)
        return mean | {"per_condition": [{"condition": label} | one for label, one in named]}

    def _of_label(self, samples: Samples, condition: int | None) -> dict[str, Any]:
        """Each set, ``[n, H, W, C]``, against the exact one, in the classifier's features."""
        label = self._asked[condition or 0]
        compared = {"prior": samples["prior"], "rtb": samples["rtb"], "exact": samples["exact_again"]}
        # Equal sizes: a Fréchet distance grows as samples get fewer.
        size = min(map(len, samples.values()))
        exact = in_batches(self._features, samples["exact"][:size])
        metrics = {}
        for name, x in compared.items():
            x = x[:size]
            f, predicted = in_batches(self._features, x), in_batches(self._predict, x)
            metrics[name] = {
                "log_reward": float(in_batches(partial(self._log_r, condition=condition), x).mean()),
                "diversity": diversity(f),
                "frechet_to_exact": frechet(f, exact),
                "accuracy": float(np.isin(predicted, classes(label)).mean()),
                "classes": {number: float(np.mean(predicted == int(number))) for number in data.NUMBERS},
                "c2st": classifier_two_sample(f, exact),
            }
        return metrics


def plot(path: Path, panels: Samples) -> None:
    """A grid of the first samples of each set, by title.

    Where there are many labels, each has a row of a grid.
    """

    def draw(axis, x):
        first = x[: IN_ROW**2] if x.ndim == 4 else np.concatenate([row(of_one) for of_one in x])
        axis.imshow(0.5 + 0.5 * np.clip(grid(first), -1.0, 1.0), cmap="gray", vmin=0, vmax=1)
        axis.axis("off")

    one_panel_each(path, panels, draw, size=(4.5, 4.8))


def row(x: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "R H W C"]:
    """The first `IN_ROW` images, or what there are and black ones."""
    blank = np.full((max(IN_ROW - len(x), 0), *x.shape[1:]), -1.0, x.dtype)
    return np.concatenate([x[:IN_ROW], blank])


def grid(x: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "h w C"]:
    """One image of rows of `IN_ROW`, padded with black."""
    x = np.concatenate([row(x[start : start + IN_ROW]) for start in range(0, len(x), IN_ROW)])
    rows = len(x) // IN_ROW
    h, w, c = x.shape[1:]
    return x.reshape(rows, IN_ROW, h, w, c).swapaxes(1, 2).reshape(rows * h, IN_ROW * w, c)
