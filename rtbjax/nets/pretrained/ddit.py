"""The diffusion transformer of SEDD (Lou et al. 2024) and of MDLM (Sahoo et al. 2024), from their published weights.

Both are one network: rotary positions, norms without biases that are modulated by the noise level, and a head over all
tokens and the mask. They differ in what it is told and what is read in its output:

    SEDD    told sigma; log scores p(v) / p(mask) after log(exp(sigma) - 1) + log V is taken off
    MDLM    told nothing of the noise; logits of the clean token

The parameters are named as in the files, cut at module borders (`rtbjax.nets.pretrained.folder`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from rtbjax.nets.pretrained import folder as folders
from rtbjax.nets.pretrained.config import Reader
from rtbjax.nets.pretrained.folder import PretrainedError
from rtbjax.nets.transformer import rotary
from rtbjax.types import Policy

FREQUENCIES = 256  # Of the noise level's embedding.
MOST_RATE = 1.0 - 1e-3  # Of masked tokens that SEDD was trained on: beyond it sigma would be infinite.


class DiffusionTransformer(nn.Module):
    """Attributes:
    vocab_size: V, the number of real tokens; the mask is token V.
    width: of the residual stream.
    cond_width: of the noise level's embedding.
    depth: number of blocks.
    heads: of their attention.
    head: ``sedd`` or ``mdlm``, as of `rtbjax.absorbing`.
    """

    vocab_size: int
    width: int
    cond_width: int
    depth: int
    heads: int
    head: str

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B L"], t: Float[Array, "*B"], span: tuple[int, int] | None = None
    ) -> Float[Array, "B l V"]:
        """Log scores (SEDD) or logits (MDLM) of the real tokens.

        Args:
          tokens: with masks.
          t: the share of tokens that is masked, a scalar or one of each sample.
          span: start and number of the positions wanted, all if None.
        """
        sigma = -jnp.log1p(-jnp.minimum(t, MOST_RATE)).reshape(-1)
        told = sigma if self.head == "sedd" else jnp.zeros_like(sigma)
        cond = nn.silu(_NoiseLevel(self.cond_width, name="sigma_map")(told))[:, None]
        table = self.param("vocab_embed.embedding", nn.initializers.normal(), (self.vocab_size + 1, self.width))
        h = jnp.asarray(table)[tokens]
        for i in range(self.depth):
            h = _Block(self.heads, name=f"blocks.{i}")(h, cond)
        if span is not None:
            h = jax.lax.dynamic_slice_in_dim(h, *span, axis=1)
        shift, scale = jnp.split(nn.Dense(2 * self.width, name="output_layer.adaLN_modulation")(cond), 2, axis=-1)
        h = _norm(h, "output_layer.norm_final") * (1.0 + scale) + shift
        logits = nn.Dense(self.vocab_size + 1, name="output_layer.linear")(h)[..., :-1]
        if self.head == "mdlm":
            return logits
        return logits - jnp.log(jnp.expm1(sigma)).reshape(-1, 1, 1) - jnp.log(jnp.float32(self.vocab_size))


class _NoiseLevel(nn.Module):
    """Cosines and sines of the noise level at a geometric range of rates, through two layers."""

    width: int

    @nn.compact
    def __call__(self, sigma: Float[Array, " b"]) -> Float[Array, "b C"]:
        half = FREQUENCIES // 2
        rates = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
        angle = sigma[:, None] * rates[None]
        waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        return nn.Dense(self.width, name="mlp.2")(nn.silu(nn.Dense(self.width, name="mlp.0")(waves)))


class _Block(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, h: Float[Array, "B L W"], cond: Float[Array, "#B 1 C"]) -> Float[Array, "B L W"]:
        width = h.shape[-1]
        changes = jnp.split(nn.Dense(6 * width, name="adaLN_modulation")(cond), 6, axis=-1)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = changes
        seen = _norm(h, "norm1") * (1.0 + scale) + shift
        q, k, v = jnp.split(nn.Dense(3 * width, use_bias=False, name="attn_qkv")(seen), 3, axis=-1)
        q, k, v = (a.reshape(*a.shape[:2], self.heads, -1) for a in (q, k, v))
        mixed = jax.nn.dot_product_attention(rotary(q), rotary(k), v).reshape(h.shape)
        h = h + gate * nn.Dense(width, use_bias=False, name="attn_out")(mixed)
        seen = _norm(h, "norm2") * (1.0 + scale_mlp) + shift_mlp
        return h + gate_mlp * nn.Dense(width, name="mlp.2")(nn.gelu(nn.Dense(4 * width, name="mlp.0")(seen)))


def _norm(h: Float[Array, "B L W"], name: str) -> Float[Array, "B L W"]:
    return nn.LayerNorm(epsilon=1e-5, use_bias=False, name=name)(h)


class MaskedLanguageModel(NamedTuple):
    """Attributes:
    module: to be applied as ``module.apply({"params": params}, tokens, t)``.
    params: named as in the file.
    """

    module: DiffusionTransformer
    params: PyTree

    def policy(self) -> Policy:
        """A prior of `rtbjax.absorbing` over ``module.vocab_size`` tokens by ``module.head``, or of `one_by_one`."""
        return Policy(self.params, lambda params, x, t, cond: self.module.apply({"params": params}, x, t))


def load(model: str | Path) -> MaskedLanguageModel:
    """Reads SEDD or MDLM from a folder or hub id with ``config.json`` and ``model.safetensors``.

    Raises:
      PretrainedError: a missing or unreadable file, other weights than the config's, or a network of another kind.
    """
    folder = folders.locate(model)
    module = from_config(folders.read_config(folder))
    like = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32), jnp.float32(0.5))["params"]
    return MaskedLanguageModel(module, folders.read_params(folder, "model", like))


_SEDD = {"hidden_size": None, "cond_dim": None, "n_blocks": None, "n_heads": None, "scale_by_sigma": True}
_MDLM = {"hidden_dim": None, "cond_dim": None, "n_blocks": None, "n_heads": None, "vocab_size": None}


def from_config(config: Mapping[str, Any]) -> DiffusionTransformer:
    """The network of a config: SEDD's has its sizes under ``model``, MDLM's at the top.

    Raises:
      PretrainedError: sizes are missing or do not fit, or an option that is not supported.
    """
    if isinstance(config.get("model"), Mapping):
        graph = config.get("graph", {}).get("type", "absorb")
        read = _reader(
            "SEDD", config["model"] | {"graph": graph, "tokens": config.get("tokens")}, _SEDD | {"tokens": None}
        )
        head, vocab_size, width = "sedd", read["tokens"], read["hidden_size"]
    else:
        read = _reader("MDLM", config, _MDLM)
        head, vocab_size, width = "mdlm", read["vocab_size"] - 1, read["hidden_dim"]
    heads = read["n_heads"]
    if width % (2 * heads):
        read.refuse(f"width {width} must be a multiple of twice n_heads={heads}")
    return DiffusionTransformer(vocab_size, width, read["cond_dim"], read["n_blocks"], heads, head)


def _reader(name: str, config: Mapping[str, Any], known: Mapping[str, Any]) -> Reader:
    fixed = {"graph": ("absorb",), "time_conditioning": (False,), "scale_by_sigma": (True,), "type": ("ddit",)}
    sizes = {key: value for key, value in known.items() if key not in fixed}
    read = Reader(name, {key: config[key] for key in {**sizes, **fixed} if key in config}, sizes, fixed)
    for key in sizes:
        if not isinstance(read[key], int) or read[key] < 1:
            raise PretrainedError(f"{name}: the config must give {key} as a positive integer, got {read[key]!r}.")
    return read
