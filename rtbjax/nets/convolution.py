"""A 3x3 convolution whose gradients are plain convolutions.

JAX differentiates a convolution into ones with reversed or permuted operands. Inside a scan, XLA on CPU does not bring
those into the form its fast kernel needs: the gradient of a small U-Net then takes ten times as long as outside
(measured, jaxlib 0.10). Here the operands are reversed and transposed explicitly, which costs little anywhere and
leaves the same sums.
"""

import flax.linen as nn
import jax
from jaxtyping import Array, Float


class Conv3x3(nn.Module):
    """``nn.Conv(features, (3, 3))`` with stride 1 and zero padding, under the same parameter names."""

    features: int
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W F"]:
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return conv3x3(x, kernel) + bias[None, None, None, :]


@jax.custom_vjp
def conv3x3(x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C F"]) -> Float[Array, "B H W F"]:
    """Cross-correlation with zero padding; reverse mode only, so `jax.jvp` of it alone is an error."""
    return _convolve(x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    grad_x = _convolve(grad, kernel[::-1, ::-1].swapaxes(2, 3))
    # The batch is what the weight gradient sums over, so it takes the place of the input channels.
    grad_kernel = _convolve(x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3)).transpose(1, 2, 0, 3)
    return grad_x, grad_kernel


def _convolve(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))


conv3x3.defvjp(_forward, _backward)
