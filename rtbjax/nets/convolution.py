"""A stride-1 convolution whose gradients are plain convolutions, or on CPU matrix products.

JAX differentiates a convolution into ones with reversed or permuted operands. Inside a scan, XLA on CPU does not bring
those into the form its fast kernel needs: the gradient of a small U-Net then takes ten times as long as outside, that
of a classifier with respect to its input sixteen times (measured, jaxlib 0.10). Here the operands are reversed and
transposed explicitly, which costs little anywhere and leaves the same sums.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rtbjax.types import varying_like

Sides = tuple[tuple[int, int], ...]
NONE: Sides = ((0, 0), (0, 0))


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
        sides = NONE
        if self.padding == "SAME":
            sides = tuple(((size - 1) // 2, size // 2) for size in self.kernel_size)
        # Under shard_map a cotangent must vary over the mesh as its primal does.
        found: Any = convolve(varying_like(x, kernel), varying_like(kernel, x), sides)
        return found + bias[None, None, None, :]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: Float[Array, "B H W C"], kernel: Float[Array, "k l C F"], sides: Sides = NONE) -> Array:
    """Cross-correlation of ``x`` with so many zeros above and below, left and right.

    Reverse mode only: `jax.jvp` of it is an error.

    Returns:
      ``[B, H + above + below - k + 1, W + left + right - l + 1, F]``.
    """
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _forward(x: Array, kernel: Array, sides: Sides) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel, sides), (x, kernel)


def _backward(sides: Sides, residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    # So many zeros that there is no gradient but that of x itself.
    around = tuple((size - 1 - low, size - 1 - high) for size, (low, high) in zip(kernel.shape, sides, strict=False))
    grad_x: Any = convolve(grad, kernel[::-1, ::-1].swapaxes(2, 3), around)
    surrounded = jnp.pad(x, ((0, 0), *sides, (0, 0)))
    weights: Any = jax.lax.platform_dependent(surrounded, grad, cpu=by_products, default=by_convolution)
    return grad_x, weights


def by_convolution(x: Float[Array, "B H W C"], grad: Float[Array, "B h w F"]) -> Float[Array, "k l C F"]:
    """The gradient of the kernel; the batch is what it sums over, so it takes the place of the input channels."""
    found: Any = convolve(x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3))
    return found.transpose(1, 2, 0, 3)


def by_products(x: Float[Array, "B H W C"], grad: Float[Array, "B h w F"]) -> Float[Array, "k l C F"]:
    """The same, a matrix product for each place of the kernel: on CPU in half to three quarters of the time.

    Measured at 16 to 128 channels, a 3x3 kernel, 64 images, on one core, jaxlib 0.10.
    """
    height, width, features = grad.shape[1:]
    rows, cols = x.shape[1] - height + 1, x.shape[2] - width + 1
    flat = grad.reshape(-1, features)
    places = [[x[:, i : i + height, j : j + width] for j in range(cols)] for i in range(rows)]
    return jnp.stack([jnp.stack([seen.reshape(flat.shape[0], -1).T @ flat for seen in row]) for row in places])


convolve.defvjp(_forward, _backward)
