"""The denoisers of diffusers: ``UNet2DModel`` (images) and ``UNet2DConditionModel`` (Stable Diffusion 1.5's family)."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rtbjax.nets.convolution import Conv
from rtbjax.nets.pretrained.blocks import DownBlock, MidBlock, Spec, UpBlock, group_norm
from rtbjax.nets.pretrained.config import Reader
from rtbjax.nets.pretrained.folder import PretrainedError
from rtbjax.nets.unet import timestep_embedding
from rtbjax.types import check_shape


class UNet(nn.Module):
    """Maps a noisy grid at a training timestep to what the process predicts from.

    Attributes:
      in_channels: C of the input, like ``out_channels`` of the output.
      down: kind of the block of each level, finest first; ``up`` those of the way up, coarsest first.
      mid: attention of the middle block (`MidBlock`), or None for no such block.
      channels: width of each level; H and W must divide by ``2^(levels - 1)``.
      layers: residual blocks per level on the way down; one more on the way up.
      heads: of the attention of each level; the middle has those of the last.
      transformers: blocks per transformer of each level, likewise.
      spec: see `Spec`.
      mid_groups: see `MidBlock.attention_groups`.
      mid_scale: see `MidBlock.scale`.
      resample: how blocks with self-attention change the sides (``conv`` or ``resnet``), down and up.
      center: whether inputs in [0, 1] are first mapped to [-1, 1].
      embed_dim: width of the embedding.
      time: ``positional``, ``fourier`` or ``learned``.
      time_shift: see `timestep_embedding`, like ``cos_first``.
      num_timesteps: rows of the table of learned times.
      num_classes: number of labels, or None.
      context_dim: E of the context, or None.
      sample_size: H and W it was trained on.
      remat: whether a gradient recomputes what is inside a block instead of keeping it (``module.clone(remat=True)``).
    """

    in_channels: int
    out_channels: int
    down: Sequence[str]
    mid: str | None
    up: Sequence[str]
    channels: Sequence[int]
    layers: Sequence[int]
    heads: Sequence[int]
    transformers: Sequence[int]
    spec: Spec
    mid_groups: int | None
    mid_scale: float
    resample: tuple[str, str]
    center: bool
    embed_dim: int
    time: str
    time_shift: float
    cos_first: bool
    num_timesteps: int | None
    num_classes: int | None
    context_dim: int | None
    sample_size: tuple[int, int]
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], t: Float[Array, "*B"], cond: Array | None = None) -> Array:
        """The raw output ``[B, H, W, C]``.

        Args:
          x: noisy grids.
          t: training timesteps; a scalar is embedded once, not per sample.
          cond: labels ``int[B]`` or tokens ``[B, L, E]``, for a network that has these; else None.

        Raises:
          ValueError: other channels or sides than the network's, a condition it does not have, or none where it does.
        """
        self._check(x, t, cond)
        embedding = self._embed(t, x.dtype)
        if self.num_classes is not None:
            embedding += nn.Embed(self.num_classes, self.embed_dim, name="class_embedding")(cond)
        context = cond if self.context_dim is not None else None

        down, middle, up = DownBlock, MidBlock, UpBlock
        if self.remat:
            down, middle, up = nn.remat(DownBlock), nn.remat(MidBlock), nn.remat(UpBlock)
        h = Conv(self.channels[0], name="conv_in")(2.0 * x - 1.0 if self.center else x)
        skips = [h]
        lowest = len(self.channels) - 1
        for i, kind in enumerate(self.down):
            block = down(**self._level(i, kind, i < lowest, self.resample[0]), name=f"down_blocks.{i}")
            h, more = block(h, embedding, context)
            skips += more
        if self.mid is not None:
            sizes = (self.heads[-1], self.transformers[-1], self.mid_groups, self.mid_scale)
            h = middle(self.mid, self.spec, *sizes, name="mid_block")(h, embedding, context)
        for i, kind in enumerate(self.up):
            options = self._level(lowest - i, kind, i < lowest, self.resample[1])
            options["num_layers"] += 1
            block = up(**options, name=f"up_blocks.{i}")
            h = block(h, [skips.pop() for _ in range(options["num_layers"])][::-1], embedding, context)
        h = nn.silu(group_norm(h, self.spec.norm_num_groups, self.spec.norm_eps, "conv_norm_out"))
        h = Conv(self.out_channels, name="conv_out")(h)
        return h / t.reshape(-1, 1, 1, 1).astype(h.dtype) if self.time == "fourier" else h

    def example(self) -> tuple[Any, ...]:
        """Shapes of arguments, to initialise with."""
        cond = None
        if self.num_classes is not None:
            cond = jax.ShapeDtypeStruct((1,), jnp.int32)
        elif self.context_dim is not None:
            cond = jax.ShapeDtypeStruct((1, 1, self.context_dim), jnp.float32)
        x = jax.ShapeDtypeStruct((1, *self.sample_size, self.in_channels), jnp.float32)
        return x, jax.ShapeDtypeStruct((), jnp.float32), cond

    def _level(self, i: int, kind: str, resized: bool, resample: str) -> dict[str, Any]:
        return {
            "kind": kind,
            "features": self.channels[i],
            "num_layers": self.layers[i],
            "spec": self.spec,
            "heads": self.heads[i],
            "num_transformers": self.transformers[i],
            "resample": (resample if kind.startswith("Attn") else "conv") if resized else None,
        }

    def _check(self, x: Array, t: Array, cond: Array | None) -> None:
        factor = 2 ** (len(self.channels) - 1)
        if x.ndim != 4 or x.shape[-1] != self.in_channels or x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(
                f"The U-Net takes grids [B, H, W, {self.in_channels}] with sides that divide by {factor}, "
                f"got {x.shape}."
            )
        if t.ndim > 1 or t.ndim == 1 and t.shape != x.shape[:1]:
            raise ValueError(f"t must be a scalar or one value per sample, got shape {t.shape}.")
        if self.num_classes is not None:
            wanted, shape = "labels", (x.shape[0],)
        elif self.context_dim is not None:
            wanted, shape = "tokens", (x.shape[0], "L", self.context_dim)
        elif cond is not None:
            raise ValueError(f"This U-Net has no condition, but one of shape {cond.shape} was given.")
        else:
            return
        if cond is None:
            raise ValueError(f"This U-Net needs {wanted} of shape {shape} as its condition.".replace("'", ""))
        check_shape(f"The U-Net's {wanted}", cond, shape)

    def _embed(self, t: Array, dtype: jnp.dtype) -> Float[Array, "N D"]:
        width, times = self.channels[0], t.reshape(-1)
        if self.time == "learned":
            waves = nn.Embed(self.num_timesteps or 0, width, name="time_proj")(times.astype(jnp.int32))
        elif self.time == "fourier":
            rates = self.param("time_proj.weight", nn.initializers.normal(16.0), (width,)).astype(jnp.float32)
            angles = jnp.log(times)[:, None] * rates[None, :] * (2.0 * jnp.pi)
            waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        else:
            waves = timestep_embedding(times, width, self.time_shift, self.cos_first)
        h = nn.silu(nn.Dense(self.embed_dim, name="time_embedding.linear_1")(waves.astype(dtype)))
        return nn.Dense(self.embed_dim, name="time_embedding.linear_2")(h)


_SHARED = {
    "sample_size": None,
    "center_input_sample": False,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
}
_IMAGE = _SHARED | {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "downsample_type": "conv",
    "upsample_type": "conv",
    "attn_norm_num_groups": None,
    "add_attention": True,
    "num_train_timesteps": None,
    "num_class_embeds": None,
    "time_embedding_type": "positional",
}
_CONDITION = _SHARED | {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "use_linear_projection": False,
}
# Options that other networks of the class use, with the only values supported here.
_IMAGE_FIXED = {"act_fn": ("silu", "swish"), "class_embed_type": (None,)}
_CONDITION_FIXED = {
    "act_fn": ("silu", "swish"),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "time_embedding_type": ("positional",),
    "upcast_attention": (False, True),  # softmax is in float32 anyway
    "only_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),
    "dual_cross_attention": (False,),
    "addition_embed_type": (None,),
    "addition_time_embed_dim": (None,),
    "addition_embed_type_num_heads": (64,),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1, 1.0),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "projection_class_embeddings_input_dim": (None,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "cross_attention_norm": (None,),
}


def from_config(config: Mapping[str, Any]) -> UNet:
    """The network of a config whose ``_class_name`` is ``UNet2DModel`` or ``UNet2DConditionModel``.

    Raises:
      PretrainedError: an option or block that is not supported.
    """
    if config["_class_name"] == "UNet2DModel":
        return _image(Reader("UNet2DModel", config, _IMAGE, _IMAGE_FIXED))
    if config.get("addition_embed_type") == "text_time":
        raise PretrainedError("U-Nets of Stable Diffusion XL are not supported, only those of 1.x and 2.x.")
    return _conditional(Reader("UNet2DConditionModel", config, _CONDITION, _CONDITION_FIXED))


def _image(read: Reader) -> UNet:
    channels, head_dim = read.sequence("block_out_channels"), read["attention_head_dim"]
    options = _shared(read, channels, "Attn")
    for width in channels:
        if head_dim is not None and width % head_dim:
            read.refuse(f"attention_head_dim={head_dim} does not divide {width} channels")
    heads = tuple(1 if head_dim is None else width // head_dim for width in channels)
    read.one_of("mid_block_type", read["mid_block_type"], ("UNetMidBlock2D", None))
    mid = "self" if read["add_attention"] else "none"
    groups = None if options["spec"].scale_shift else options["spec"].norm_num_groups
    resample = [read.one_of(key, read[key], ("conv", "resnet")) for key in ("downsample_type", "upsample_type")]
    time = read.one_of("time_embedding_type", read["time_embedding_type"], ("positional", "fourier", "learned"))
    if time == "learned" and not read["num_train_timesteps"]:
        read.refuse("time_embedding_type='learned' needs num_train_timesteps")
    return UNet(
        **options,
        mid=None if read["mid_block_type"] is None else mid,
        heads=heads,
        transformers=(1,) * len(channels),
        mid_groups=read["attn_norm_num_groups"] or groups,
        resample=(resample[0], resample[1]),
        time=time,
        num_timesteps=read["num_train_timesteps"],
        num_classes=read["num_class_embeds"],
        context_dim=None,
    )


def _conditional(read: Reader) -> UNet:
    channels = read.sequence("block_out_channels")
    heads = read.per_level("attention_head_dim", len(channels))  # these are what the name says not: numbers of heads
    for width, number in zip(channels, heads, strict=True):
        if width % number:
            read.refuse(f"attention_head_dim={number} heads do not divide {width} channels")
    if not isinstance(read["cross_attention_dim"], int):
        read.refuse(f"cross_attention_dim={read['cross_attention_dim']!r} is not supported, only one for all levels")
    mids = {"UNetMidBlock2DCrossAttn": "cross", "UNetMidBlock2D": "absent", None: None}
    return UNet(
        **_shared(read, channels, "CrossAttn"),
        mid=mids[read.one_of("mid_block_type", read["mid_block_type"], mids)],
        heads=heads,
        transformers=read.per_level("transformer_layers_per_block", len(channels)),
        mid_groups=None,
        resample=("conv", "conv"),
        time="positional",
        num_timesteps=None,
        num_classes=None,
        context_dim=read["cross_attention_dim"],
    )


def _shared(read: Reader, channels: tuple[int, ...], attention: str) -> dict[str, Any]:
    kinds = {}
    for key, way in (("down_block_types", "Down"), ("up_block_types", "Up")):
        kinds[way] = read.sequence(key, len(channels))
        for kind in kinds[way]:
            read.one_of(key, kind, (f"{way}Block2D", f"{attention}{way}Block2D"))
    size = read["sample_size"] or 2 ** (len(channels) - 1)
    shift = read.one_of("resnet_time_scale_shift", read["resnet_time_scale_shift"], ("default", "scale_shift"))
    return {
        "in_channels": read["in_channels"],
        "out_channels": read["out_channels"],
        "down": kinds["Down"],
        "up": kinds["Up"],
        "channels": channels,
        "layers": read.per_level("layers_per_block", len(channels)),
        "spec": Spec(
            norm_num_groups=read.groups(channels),
            norm_eps=read["norm_eps"],
            scale_shift=shift == "scale_shift",
            downsample_padding=read.one_of("downsample_padding", read["downsample_padding"], (0, 1)),
            use_linear_projection=attention == "CrossAttn" and read["use_linear_projection"],
        ),
        "mid_scale": float(read["mid_block_scale_factor"]),
        "center": read["center_input_sample"],
        "embed_dim": read["time_embedding_dim"] or 4 * channels[0],
        "time_shift": float(read["freq_shift"]),
        "cos_first": read["flip_sin_to_cos"],
        "sample_size": (size, size) if isinstance(size, int) else tuple(size),
    }
