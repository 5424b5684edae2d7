"""The blocks that the U-Nets and autoencoders of Hugging Face diffusers are made of.

A layer's path, joined by dots, is the name diffusers gives it (``down_blocks.0.resnets.1.conv1``), so that weights need
no table of names (`rtbjax.nets.pretrained.folder`). Here grids are channels-last, there channels-first.

Shapes: B batch, [H, W, F] features, D embedding width, [L, E] tokens of the condition. Normalisations compute in
float32, everything else in the dtype of its inputs and parameters.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rtbjax.nets.convolution import Conv


@dataclasses.dataclass(frozen=True)
class Spec:
    """What all blocks of a network share; the names are those of diffusers' configs.

    Attributes:
      norm_num_groups: groups of every group normalisation.
      norm_eps: of these, except in front of a transformer, where it is 1e-6.
      scale_shift: whether the embedding scales and shifts features (``resnet_time_scale_shift``) or is added to them.
      downsample_padding: 1 pads all sides of a grid, 0 only its lower and right side.
      use_linear_projection: whether transformers are entered by a matrix product or by a 1x1 convolution.
    """

    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    scale_shift: bool = False
    downsample_padding: int = 1
    use_linear_projection: bool = False


def group_norm(h: Float[Array, "B *S F"], groups: int, eps: float, name: str) -> Float[Array, "B *S F"]:
    """In float32; its parameters belong to the module that calls."""
    return _in_float32(nn.GroupNorm(groups, epsilon=eps, dtype=jnp.float32, use_fast_variance=False, name=name), h)


def layer_norm(h: Float[Array, "B L E"], name: str, eps: float = 1e-5) -> Float[Array, "B L E"]:
    """In float32; its parameters belong to the module that calls."""
    return _in_float32(nn.LayerNorm(eps, dtype=jnp.float32, use_fast_variance=False, name=name), h)


def attend(
    q: Float[Array, "B M N d"], k: Float[Array, "B L N d"], v: Float[Array, "B L N d"], mask: Array | None = None
) -> Float[Array, "B M N d"]:
    """Attention with N heads, its softmax in float32; a boolean ``mask[M, L]`` is true where M may look at L."""
    logits = jnp.einsum("bmnd,blnd->bnml", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask[None, None], logits, -jnp.inf)
    return jnp.einsum("bnml,blnd->bmnd", nn.softmax(logits).astype(v.dtype), v)


def _in_float32(norm: nn.Module, h: Array) -> Array:
    with jax.numpy_dtype_promotion("standard"):  # its float32 meets parameters that may be narrower
        return norm(h.astype(jnp.float32)).astype(h.dtype)


class ResNet(nn.Module):
    """Two 3x3 convolutions around the embedding, with a 1x1 shortcut where the width changes.

    Attributes:
      features: width of the result.
      spec: of the network.
      scale: what the sum with the shortcut is divided by.
      resample: ``up`` or ``down`` to change the sides by two, or None.
    """

    features: int
    spec: Spec
    scale: float = 1.0
    resample: str | None = None

    @nn.compact
    def __call__(self, h: Float[Array, "B H W C"], embedding: Float[Array, "N D"] | None) -> Float[Array, "B h w F"]:
        """N is 1 or B; an autoencoder has no embedding."""

        def norm(name, grid):
            return group_norm(grid, self.spec.norm_num_groups, self.spec.norm_eps, name)

        r = nn.silu(norm("norm1", h))
        if self.resample is not None:
            resize = enlarge if self.resample == "up" else shrink
            h, r = resize(h), resize(r)
        r = Conv(self.features, name="conv1")(r)
        shift = None
        if embedding is not None:
            width = self.features * (2 if self.spec.scale_shift else 1)
            shift = nn.Dense(width, name="time_emb_proj")(nn.silu(embedding))[:, None, None, :]
        if shift is not None and self.spec.scale_shift:
            scale, shift = jnp.split(shift, 2, axis=-1)
            r = norm("norm2", r) * (1.0 + scale) + shift
        else:
            r = norm("norm2", r if shift is None else r + shift)
        r = Conv(self.features, name="conv2")(nn.silu(r))
        if h.shape[-1] != self.features:
            h = Conv(self.features, (1, 1), name="conv_shortcut")(h)
        return (h + r) / self.scale


class Attention(nn.Module):
    """Attention of tokens to themselves or to a context.

    Attributes:
      heads: must divide the width.
      bias: of queries, keys and values.
    """

    heads: int
    bias: bool = False

    @nn.compact
    def __call__(self, h: Float[Array, "B M F"], context: Float[Array, "B L E"] | None = None) -> Float[Array, "B M F"]:
        context = h if context is None else context
        width = h.shape[-1]

        def heads(name, tokens):
            projected = nn.Dense(width, use_bias=self.bias, name=name)(tokens)
            return projected.reshape(*tokens.shape[:2], self.heads, width // self.heads)

        q, k, v = heads("to_q", h), heads("to_k", context), heads("to_v", context)
        # Of a grid of 64 x 64 the weights are 134 million numbers a sample: the gradient computes them again.
        mixed = jax.checkpoint(attend)(q, k, v).reshape(h.shape)
        return nn.Dense(width, name="to_out.0")(mixed)


class GridAttention(nn.Module):
    """Residual self-attention over the positions of a grid; ``groups`` of its normalisation, None leaves that out."""

    heads: int
    groups: int | None
    eps: float
    scale: float = 1.0

    @nn.compact
    def __call__(self, h: Float[Array, "B H W F"]) -> Float[Array, "B H W F"]:
        tokens = h if self.groups is None else group_norm(h, self.groups, self.eps, "group_norm")
        attention = Attention(self.heads, bias=True)
        nn.share_scope(self, attention)
        return (h + attention(tokens.reshape(h.shape[0], -1, h.shape[-1])).reshape(h.shape)) / self.scale


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, and a GEGLU layer, each residual behind a layer normalisation."""

    heads: int

    @nn.compact
    def __call__(self, h: Float[Array, "B M F"], context: Float[Array, "B L E"] | None) -> Float[Array, "B M F"]:
        h += Attention(self.heads, name="attn1")(layer_norm(h, "norm1"))
        h += Attention(self.heads, name="attn2")(layer_norm(h, "norm2"), context)
        width = 4 * h.shape[-1]
        value, gate = jnp.split(nn.Dense(2 * width, name="ff.net.0.proj")(layer_norm(h, "norm3")), 2, axis=-1)
        return h + nn.Dense(h.shape[-1], name="ff.net.2")(value * nn.gelu(gate, approximate=False))


class Transformer(nn.Module):
    """Transformer blocks over the positions of a grid, residual."""

    heads: int
    num_layers: int
    spec: Spec

    @nn.compact
    def __call__(self, h: Float[Array, "B H W F"], context: Float[Array, "B L E"] | None) -> Float[Array, "B H W F"]:
        width = h.shape[-1]

        def project(name, grid):
            layer = nn.Dense(width, name=name) if self.spec.use_linear_projection else Conv(width, (1, 1), name=name)
            return layer(grid)

        tokens = project("proj_in", group_norm(h, self.spec.norm_num_groups, 1e-6, "norm"))
        tokens = tokens.reshape(h.shape[0], -1, width)
        for i in range(self.num_layers):
            tokens = TransformerBlock(self.heads, name=f"transformer_blocks.{i}")(tokens, context)
        return h + project("proj_out", tokens.reshape(h.shape))


class _Level(nn.Module):
    """What the blocks of one resolution share.

    Attributes:
      kind: the name of diffusers' class; only what it starts with matters: ``CrossAttn``, ``Attn`` or neither.
      features: width.
      num_layers: residual blocks.
      spec: of the network.
      heads: of its attention.
      num_transformers: blocks per transformer.
      resample: how the block ends: ``conv``, ``resnet``, or None for the sides it began with.
    """

    kind: str
    features: int
    num_layers: int
    spec: Spec
    heads: int = 1
    num_transformers: int = 1
    resample: str | None = None

    def layer(self, i: int, h: Array, embedding: Array | None, context: Array | None) -> Array:
        """One residual block and the attention behind it."""
        h = ResNet(self.features, self.spec, name=f"resnets.{i}")(h, embedding)
        if self.kind.startswith("CrossAttn"):
            return Transformer(self.heads, self.num_transformers, self.spec, name=f"attentions.{i}")(h, context)
        if self.kind.startswith("Attn"):
            groups, eps = self.spec.norm_num_groups, self.spec.norm_eps
            return GridAttention(self.heads, groups, eps, name=f"attentions.{i}")(h)
        return h


class DownBlock(_Level):
    """``DownBlock2D``, ``AttnDownBlock2D``, ``CrossAttnDownBlock2D``, ``DownEncoderBlock2D``."""

    @nn.compact
    def __call__(
        self, h: Float[Array, "B H W C"], embedding: Float[Array, "N D"] | None, context: Array | None = None
    ) -> tuple[Float[Array, "B h w F"], list[Array]]:
        """The grid, and what the way up will ask for: the grid after each layer and after the change of sides."""
        skips = []
        for i in range(self.num_layers):
            h = self.layer(i, h, embedding, context)
            skips.append(h)
        if self.resample == "resnet":
            h = ResNet(self.features, self.spec, resample="down", name="downsamplers.0")(h, embedding)
        elif self.resample == "conv":
            sides = ((self.spec.downsample_padding, 1),) * 2
            h = nn.Conv(self.features, (3, 3), 2, padding=sides, name="downsamplers.0.conv")(h)
        return h, skips + [h] * (self.resample is not None)


class UpBlock(_Level):
    """``UpBlock2D``, ``AttnUpBlock2D``, ``CrossAttnUpBlock2D``, ``UpDecoderBlock2D``."""

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "B H W C"],
        skips: list[Array],
        embedding: Float[Array, "N D"] | None,
        context: Array | None = None,
    ) -> Float[Array, "B h w F"]:
        """``skips``: one per layer, the last is used first; an autoencoder has none."""
        for i in range(self.num_layers):
            h = self.layer(i, jnp.concatenate([h, skips[-1 - i]], axis=-1) if skips else h, embedding, context)
        if self.resample == "resnet":
            h = ResNet(self.features, self.spec, resample="up", name="upsamplers.0")(h, embedding)
        elif self.resample == "conv":
            h = Conv(self.features, name="upsamplers.0.conv")(enlarge(h))
        return h


class MidBlock(nn.Module):
    """``UNetMidBlock2D`` and ``UNetMidBlock2DCrossAttn``: a residual block, then attention and another one.

    Attributes:
      attention: ``cross``, ``self``, ``none`` (the second residual block follows at once), or ``absent`` (it does not).
      spec: of the network.
      heads: of the attention.
      num_transformers: blocks of its transformer.
      attention_groups: of the normalisation in front of self-attention; None leaves it out.
      scale: what every residual sum is divided by.
    """

    attention: str
    spec: Spec
    heads: int = 1
    num_transformers: int = 1
    attention_groups: int | None = None
    scale: float = 1.0

    @nn.compact
    def __call__(
        self, h: Float[Array, "B H W F"], embedding: Float[Array, "N D"] | None, context: Array | None = None
    ) -> Float[Array, "B H W F"]:
        width = h.shape[-1]
        h = ResNet(width, self.spec, self.scale, name="resnets.0")(h, embedding)
        if self.attention == "absent":
            return h
        if self.attention == "cross":
            h = Transformer(self.heads, self.num_transformers, self.spec, name="attentions.0")(h, context)
        elif self.attention == "self":
            h = GridAttention(self.heads, self.attention_groups, self.spec.norm_eps, self.scale, name="attentions.0")(h)
        return ResNet(width, self.spec, self.scale, name="resnets.1")(h, embedding)


def enlarge(h: Float[Array, "B H W F"]) -> Float[Array, "B 2H 2W F"]:
    """Every position four times."""
    return jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)


def shrink(h: Float[Array, "B H W F"]) -> Float[Array, "B H/2 W/2 F"]:
    """Means of 2x2 positions."""
    batch, rows, cols, width = h.shape
    return h.reshape(batch, rows // 2, 2, cols // 2, 2, width).mean(axis=(2, 4))
