"""``AutoencoderKL`` of diffusers: images to the latents that Stable Diffusion's denoiser works on, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rtbjax.nets.convolution import Conv
from rtbjax.nets.pretrained.blocks import DownBlock, MidBlock, Spec, UpBlock, group_norm
from rtbjax.nets.pretrained.config import Reader


class AutoencoderKL(nn.Module):
    """Encodes images to a normal law of latents and decodes latents.

    Latents are those of the denoiser, multiplied by ``scale``. The sides of a latent are those of the image divided by
    ``2^(levels - 1)``.

    Attributes:
      in_channels: C of the images, like ``out_channels`` of the decoded ones.
      latent_channels: Z.
      channels: width of each level, finest first.
      layers: residual blocks per level of the encoder; one more in the decoder.
      spec: see `Spec`.
      mid: attention of the middle blocks (`MidBlock`).
      scale: what latents are multiplied by (``scaling_factor``).
      quantised: whether a 1x1 convolution follows the encoder, and whether one precedes the decoder.
    """

    in_channels: int
    out_channels: int
    latent_channels: int
    channels: Sequence[int]
    layers: int
    spec: Spec
    mid: str
    scale: float
    quantised: tuple[bool, bool]

    def setup(self):
        self.encoder = _Encoder(2 * self.latent_channels, self.channels, self.layers, self.spec, self.mid)
        self.decoder = _Decoder(self.out_channels, self.channels, self.layers, self.spec, self.mid)
        after, before = self.quantised
        self.quant_conv = Conv(2 * self.latent_channels, (1, 1)) if after else None
        self.post_quant_conv = Conv(self.latent_channels, (1, 1)) if before else None

    def encode(self, x: Float[Array, "B H W C"]) -> tuple[Float[Array, "B h w Z"], Float[Array, "B h w Z"]]:
        """Mean and standard deviation of the latents of images in [-1, 1].

        Raises:
          ValueError: other channels, or sides that do not divide by ``2^(levels - 1)``.
        """
        factor = 2 ** (len(self.channels) - 1)
        if x.ndim != 4 or x.shape[-1] != self.in_channels or x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(
                f"The autoencoder takes images [B, H, W, {self.in_channels}] with sides that divide by {factor}, "
                f"got {x.shape}."
            )
        moments = self.encoder(x)
        moments = moments if self.quant_conv is None else self.quant_conv(moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return self.scale * mean, self.scale * jnp.exp(0.5 * jnp.clip(log_variance, -30.0, 20.0))

    def decode(self, z: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
        """Images, about in [-1, 1].

        Raises:
          ValueError: other channels than Z.
        """
        if z.ndim != 4 or z.shape[-1] != self.latent_channels:
            raise ValueError(f"The autoencoder takes latents [B, h, w, {self.latent_channels}], got {z.shape}.")
        z = z / self.scale
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Images through the means of their latents and back."""
        return self.decode(self.encode(x)[0])

    def example(self) -> tuple[Any, ...]:
        """Shapes of arguments, to initialise with."""
        side = 2 ** (len(self.channels) - 1)
        return (jax.ShapeDtypeStruct((1, side, side, self.in_channels), jnp.float32),)


class _Encoder(nn.Module):
    features: int
    channels: Sequence[int]
    layers: int
    spec: Spec
    mid: str

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w F"]:
        h = Conv(self.channels[0], name="conv_in")(x)
        for i, width in enumerate(self.channels):
            resample = "conv" if i < len(self.channels) - 1 else None
            block = DownBlock(
                "DownEncoderBlock2D", width, self.layers, self.spec, resample=resample, name=f"down_blocks.{i}"
            )
            h, _ = block(h, None)
        h = MidBlock(self.mid, self.spec, attention_groups=self.spec.norm_num_groups, name="mid_block")(h, None)
        return _head(h, self.features, self.spec)


class _Decoder(nn.Module):
    features: int
    channels: Sequence[int]
    layers: int
    spec: Spec
    mid: str

    @nn.compact
    def __call__(self, z: Float[Array, "B h w Z"]) -> Float[Array, "B H W F"]:
        h = Conv(self.channels[-1], name="conv_in")(z)
        h = MidBlock(self.mid, self.spec, attention_groups=self.spec.norm_num_groups, name="mid_block")(h, None)
        for i, width in enumerate(self.channels[::-1]):
            resample = "conv" if i < len(self.channels) - 1 else None
            block = UpBlock(
                "UpDecoderBlock2D", width, self.layers + 1, self.spec, resample=resample, name=f"up_blocks.{i}"
            )
            h = block(h, [], None)
        return _head(h, self.features, self.spec)


def _head(h: Float[Array, "B H W C"], features: int, spec: Spec) -> Float[Array, "B H W F"]:
    h = nn.silu(group_norm(h, spec.norm_num_groups, spec.norm_eps, "conv_norm_out"))
    return Conv(features, name="conv_out")(h)


_DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "sample_size": 32,
    "force_upcast": True,
}
_FIXED = {"act_fn": ("silu", "swish")}


def from_config(config: Mapping[str, Any]) -> AutoencoderKL:
    """The autoencoder of a config.

    Raises:
      PretrainedError: an option or block that is not supported.
    """
    read = Reader("AutoencoderKL", config, _DEFAULTS, _FIXED)
    channels = read.sequence("block_out_channels")
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        for found in read.sequence(key, len(channels)):
            read.one_of(key, found, (kind,))
    return AutoencoderKL(
        in_channels=read["in_channels"],
        out_channels=read["out_channels"],
        latent_channels=read["latent_channels"],
        channels=channels,
        layers=read["layers_per_block"],
        spec=Spec(norm_num_groups=read.groups(channels), norm_eps=1e-6, downsample_padding=0),
        mid="self" if read["mid_block_add_attention"] else "none",
        scale=float(read["scaling_factor"]),
        quantised=(read["use_quant_conv"], read["use_post_quant_conv"]),
    )
