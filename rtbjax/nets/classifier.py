"""Convolutional classifiers of small images: reward p(y | x), and features for sample metrics.

The shape of `Classifier` follows the MNIST classifier of the relative-trajectory-balance paper
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


class ResNet(nn.Module):
    """Class logits of small pictures in [-1, 1]: residual blocks on grids that halve level by level (He et al. 2016).

    Normalised by the root mean square of the features at each place, so that no statistics of a batch are kept.

    Attributes:
      num_classes: number of classes K.
      channels: width per level, finest first; the last is the number F of features. H and W must divide by
        2^(levels - 1). (64, 128, 256, 512) with two blocks each is the shape of ResNet-18.
      num_blocks: residual blocks per level.
    """

    num_classes: int = 10
    channels: Sequence[int] = (32, 64, 128)
    num_blocks: Sequence[int] = (1, 1, 1)

    def setup(self) -> None:
        self.stem = Conv(self.channels[0])
        self.blocks = [
            [_Block(width) for _ in range(depth)] for width, depth in zip(self.channels, self.num_blocks, strict=True)
        ]
        self.widen = [nn.Dense(width) for width in self.channels[1:]]
        self.norm = nn.RMSNorm()
        self.head = nn.Dense(self.num_classes)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        """Logits of images in [-1, 1]."""
        return self.head(self.features(x))

    def features(self, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        """Penultimate activations, non-negative: ``apply(variables, x, method="features")``."""
        x = self.stem(x)
        for level, blocks in enumerate(self.blocks):
            if level > 0:
                x = self.widen[level - 1](_max_pool(x))
            for block in blocks:
                x = block(x)
        return nn.relu(self.norm(x)).mean(axis=(1, 2))


class _Block(nn.Module):
    """Two 3x3 convolutions, added to their input."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W F"]) -> Float[Array, "B H W F"]:
        h = Conv(self.width)(nn.relu(nn.RMSNorm()(x)))
        return x + Conv(self.width, kernel_init=nn.initializers.zeros)(nn.relu(nn.RMSNorm()(h)))


def _max_pool(x: Array) -> Array:
    """2x2 maximum; as a reshape, since the gradient of a windowed maximum is very slow on CPUs."""
    batch, rows, cols, width = x.shape
    return x.reshape(batch, rows // 2, 2, cols // 2, 2, width).max(axis=(2, 4))
