"""The domains' networks in PyTorch, with modules named as in Flax, so that the same weights go into both."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6  # Flax's, of all norms.


_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}  # Flax's, and those of PyTorch.


def load(net: nn.Module, params) -> nn.Module:
    """Copies Flax parameters into the modules of their names."""
    for name, value in params.items():
        if not hasattr(value, "items"):
            target = getattr(net, _NAMES.get(name, name))
            array = torch.tensor(np.asarray(value), device=target.device)
            if name == "kernel":  # Inputs before outputs, behind the window of a convolution.
                array = array.permute(-1, -2, *range(array.ndim - 2))
            target.data = array.reshape(target.shape).contiguous()
        else:
            load(getattr(net, name), value)
    return net


def weights_of(net: nn.Module, like) -> dict:
    """What `load` would have copied, in the shapes of ``like``: its inverse."""

    def read(name, value):
        if hasattr(value, "items"):
            return weights_of(getattr(net, name), value)
        array = getattr(net, _NAMES.get(name, name)).detach().cpu().numpy()
        if name == "kernel":
            array = np.moveaxis(array.reshape(*value.shape[-1:-3:-1], *value.shape[:-2]), (0, 1), (-1, -2))
        return np.array(array).reshape(value.shape)

    return {name: read(name, value) for name, value in like.items()}


class TimeEmbedding(nn.Module):
    """`rtbjax.nets.mlp.TimeEmbedding` of a scalar."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("rates", torch.linspace(0.1, 100.0, 64))
        self.phase = nn.Parameter(torch.zeros(64))
        # Flax numbers the outer layer first.
        self.Dense_1, self.Dense_0 = nn.Linear(128, width), nn.Linear(width, width)

    def forward(self, t: float) -> Tensor:
        angle = t * self.rates + self.phase
        return self.Dense_0(F.gelu(self.Dense_1(torch.cat([angle.sin(), angle.cos()])), approximate="tanh"))


class PISNet(nn.Module):
    """`rtbjax.nets.mlp.PISNet`."""

    def __init__(self, inputs: int, outputs: int, width: int):
        super().__init__()
        self.TimeEmbedding_0 = TimeEmbedding(width)
        self.Dense_0, self.Dense_3 = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.Dense_1, self.Dense_2 = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, t: float) -> Tensor:
        h = self.Dense_0(x) + self.TimeEmbedding_0(t)
        for layer in (self.Dense_1, self.Dense_2, self.Dense_3):
            h = layer(F.gelu(h, approximate="tanh"))
        return h


class ChannelNorm(nn.Module):
    """Root mean square over the channels of ``[B, C, H, W]``."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, h: Tensor) -> Tensor:
        return F.rms_norm(h.permute(0, 2, 3, 1), self.weight.shape, self.weight, EPSILON).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """`rtbjax.nets.unet.ResidualBlock`."""

    def __init__(self, width: int, embed_dim: int):
        super().__init__()
        self.film = nn.Linear(embed_dim, 2 * width)
        self.norm_in, self.norm_out = ChannelNorm(width), ChannelNorm(width)
        self.conv_in, self.conv_out = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[..., None, None].chunk(2)
        r = self.norm_out(self.conv_in(F.silu(self.norm_in(h))))
        return h + self.conv_out(F.silu(r * (1.0 + scale) + shift))


class GridAttention(nn.Module):
    """`rtbjax.nets.unet.Attention`."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.norm = heads, ChannelNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        tokens = self.norm(h).flatten(2).transpose(1, 2)
        return h + self.out(attend(self.qkv(tokens), self.heads)).transpose(1, 2).reshape(h.shape)


def attend(qkv: Tensor, heads: int, turn=lambda a: a) -> Tensor:
    """Attention of ``[B, L, 3 W]``; ``turn`` what is done to queries and keys ``[B, heads, L, D]`` before."""
    q, k, v = (a.unflatten(-1, (heads, -1)).transpose(1, 2) for a in qkv.chunk(3, dim=-1))
    return F.scaled_dot_product_attention(turn(q), turn(k), v).transpose(1, 2).flatten(2)


class UNet(nn.Module):
    """`rtbjax.nets.unet.UNet` of two levels with a block each, on images ``[B, H, W, C]``."""

    def __init__(self, inputs: int, outputs: int, patch: int, channels: tuple[int, ...], num_blocks: tuple[int, ...]):
        super().__init__()
        if len(channels) != 2 or tuple(num_blocks) != (1, 1):
            raise ValueError(f"Only two levels with a block each, got {channels} and {num_blocks}.")
        high, low, dim = *channels, 128
        self.patch = patch
        decay = np.log(10_000.0) / (dim // 2)
        self.register_buffer("frequencies", torch.exp(-decay * torch.arange(dim // 2)).float())
        self.time_in, self.time_out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.stem = nn.Conv2d(patch**2 * inputs, high, 3, padding=1)
        self.down_0_0, self.up_0_0 = ResidualBlock(high, dim), ResidualBlock(high, dim)
        self.shrink_1, self.grow_0 = nn.Conv2d(4 * high, low, 1), nn.Conv2d(low, 4 * high, 1)
        self.down_1_0, self.attention = ResidualBlock(low, dim), GridAttention(low, 4)
        self.norm, self.head = ChannelNorm(high), nn.Conv2d(high, patch**2 * outputs, 3, padding=1)

    def forward(self, x: Tensor, t: float) -> Tensor:
        waves = t * self.frequencies
        embedding = F.silu(self.time_out(F.silu(self.time_in(torch.cat([waves.sin(), waves.cos()])))))
        h = skip = self.down_0_0(self.stem(_gather(x.permute(0, 3, 1, 2), self.patch)), embedding)
        h = self.attention(self.down_1_0(self.shrink_1(_gather(h, 2)), embedding))
        h = self.up_0_0(_spread(self.grow_0(h), 2) + skip, embedding)
        return _spread(self.head(F.silu(self.norm(h))), self.patch).permute(0, 2, 3, 1)


def _gather(h: Tensor, side: int) -> Tensor:
    """Patches to channels, in the order of `rtbjax.nets.unet`, which is not that of ``F.pixel_unshuffle``."""
    batch, width, rows, cols = h.shape
    h = h.reshape(batch, width, rows // side, side, cols // side, side).permute(0, 3, 5, 1, 2, 4)
    return h.reshape(batch, -1, rows // side, cols // side)


def _spread(h: Tensor, side: int) -> Tensor:
    batch, width, rows, cols = h.shape
    h = h.reshape(batch, side, side, width // side**2, rows, cols).permute(0, 3, 4, 1, 5, 2)
    return h.reshape(batch, -1, rows * side, cols * side)


class SelfAttention(nn.Module):
    """`rtbjax.nets.transformer.Attention`, where all see all."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return self.out(attend(self.qkv(h), self.heads, rotary))


def rotary(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    rates = 10_000.0 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(x.shape[-2], device=x.device)[:, None] * rates
    first, second = x[..., :half], x[..., half:]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class Block(nn.Module):
    """`rtbjax.nets.transformer.Block`, modulated by time."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention, self.modulation = SelfAttention(width, heads), nn.Linear(width, 6 * width)
        self.Dense_0, self.Dense_1 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(time).chunk(6, dim=-1)
        h = h + gate * self.attention(_normalised(h) * (1.0 + scale) + shift)
        widened = F.gelu(self.Dense_0(_normalised(h) * (1.0 + scale_mlp) + shift_mlp), approximate="tanh")
        return h + gate_mlp * self.Dense_1(widened)


def _normalised(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=EPSILON)


class MaskedTransformer(nn.Module):
    """`rtbjax.nets.transformer.MaskedTransformer`."""

    def __init__(self, vocab_size: int, width: int, depth: int, heads: int, *, sees_context: bool):
        super().__init__()
        self.tokens, self.time = nn.Embedding(vocab_size + 1, width), TimeEmbedding(width)
        if sees_context:
            self.context = nn.Embedding(vocab_size, width)
        self.depth = depth
        for number in range(depth):
            self.add_module(f"block_{number}", Block(width, heads))
        self.modulation, self.head = nn.Linear(width, 2 * width), nn.Linear(width, vocab_size)

    def forward(self, tokens: Tensor, t: float, span: slice, context: Tensor | None = None) -> Tensor:
        h, time = self.tokens(tokens), self.time(t)[None, None]
        if context is not None:
            time = time + self.context(context).sum(dim=1, keepdim=True)
        time = F.silu(time)
        for number in range(self.depth):
            h = getattr(self, f"block_{number}")(h, time)
        shift, scale = self.modulation(time).chunk(2, dim=-1)
        return self.head(_normalised(h[:, span]) * (1.0 + scale) + shift)
