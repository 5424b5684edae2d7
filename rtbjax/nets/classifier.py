"""A small convolutional digit classifier: reward p(y | x), and features for sample metrics.

The shape follows the MNIST classifier of the relative-trajectory-balance paper
(Venkatraman et al., 2024, https://arxiv.org/abs/2405.20971): two 5x5 convolutions, each followed by
a rectifier and a 2x2 max-pool. A narrow layer is added before the logits, because a Fréchet
distance needs a covariance that a few hundred samples determine.
"""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from rtbjax.nets.convolution import Conv


class Classifier(nn.Module):
    """Class logits of small images in [-1, 1].

    Attributes:
      num_classes: number of classes K.
      channels: width of each convolution.
      num_features: width F of the penultimate layer.
    """

    num_classes: int = 10
    channels: Sequence[int] = (16, 32)
    num_features: int = 64

    def setup(self) -> None:
        self.convs = [Conv(width, (5, 5), padding="VALID") for width in self.channels]
        self.hidden = nn.Dense(self.num_features)
        self.head = nn.Dense(self.num_classes)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        """Logits of images in [-1, 1]."""
        return self.head(self.features(x))

    def features(self, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        """Penultimate activations, non-negative: ``apply(variables, x, method="features")``."""
        for conv in self.convs:
            x = _max_pool(nn.relu(conv(x)))
        return nn.relu(self.hidden(x.reshape(x.shape[0], -1)))


def _max_pool(x: Array) -> Array:
    """2x2 maximum; as a reshape, since the gradient of a windowed maximum is very slow on CPUs."""
    batch, rows, cols, width = x.shape
    return x.reshape(batch, rows // 2, 2, cols // 2, 2, width).max(axis=(2, 4))
