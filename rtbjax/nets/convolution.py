"""A stride-1 convolution whose gradients are plain convolutions.

JAX differentiates a convolution into ones with reversed or permuted operands. Inside a scan, XLA on CPU does not bring
those into the form its fast kernel needs: the gradient of a small U-Net then takes ten times as long as outside, that
of a classifier with respect to its input sixteen times (measured, jaxlib 0.10). Here the operands are reversed and
transposed explicitly, which costs little anywhere and leaves the same sums.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rtbjax.types import varying_like


class Conv(nn.Module):
    """``nn.Conv`` with stride 1, under the same parameter names.

    Attributes:
      features: F, output channels.
      kernel_size: rows and columns.
      padding: ``SAME`` (zeros) or ``VALID``.
      kernel_init: of the kernel; the bias starts at zero.
      dtype: of the computation; that of the inputs if None.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    padding: str = "SAME"
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w F"]:
        rows, cols = self.kernel_size
        kernel = self.param("kernel", self.kernel_init, (rows, cols, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.dtype is not None:
            x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        if self.padding == "SAME":
            sides = [((size - 1) // 2, size // 2) for size in self.kernel_size]
            x = jnp.pad(x, ((0, 0), *sides, (0, 0)))
        # Under shard_map a cotangent must vary over the mesh as its primal does.
        return convolve(varying_like(x, kernel), varying_like(kernel, x)) + bias[None, None, None, :]


@jax.custom_vjp
def convolve(x: Float[Array, "B H W C"], kernel: Float[Array, "k l C F"]) -> Float[Array, "B h w F"]:
    """Cross-correlation without padding, ``h = H - k + 1``; reverse mode only, so `jax.jvp` of it is an error."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=dimensions)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    rows, cols = kernel.shape[:2]
    padded = jnp.pad(grad, ((0, 0), (rows - 1, rows - 1), (cols - 1, cols - 1), (0, 0)))
    grad_x = convolve(padded, kernel[::-1, ::-1].swapaxes(2, 3))
    # The batch is what the weight gradient sums over, so it takes the place of the input channels.
    grad_kernel = convolve(x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3)).transpose(1, 2, 0, 3)
    return grad_x, grad_kernel


convolve.defvjp(_forward, _backward)
