"""SEDD and MDLM from files as they are published, against the same architecture in PyTorch with random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtbjax
from rtbjax.nets.pretrained import PretrainedError, ddit
from rtbjax.schedules import loglinear_mask_rate

TOKENS, WIDTH, COND, DEPTH, HEADS = 11, 16, 6, 2, 2
CONFIGS = {
    "sedd": {
        "tokens": TOKENS,
        "graph": {"type": "absorb", "file": "data", "report_all": False},
        "noise": {"type": "loglinear"},
        "model": {
            "name": "small",
            "type": "ddit",
            "hidden_size": WIDTH,
            "cond_dim": COND,
            "length": 1024,
            "n_blocks": DEPTH,
            "n_heads": HEADS,
            "scale_by_sigma": True,
            "dropout": 0.1,
        },
    },
    "mdlm": {
        "model_type": "mdlm",
        "architectures": ["MDLM"],
        "vocab_size": TOKENS + 1,
        "hidden_dim": WIDTH,
        "cond_dim": COND,
        "model_length": 1024,
        "n_blocks": DEPTH,
        "n_heads": HEADS,
        "dropout": 0.1,
        "time_conditioning": False,
    },
}
SHARES = np.array([0.3, 0.9, 1.0], np.float32)


def random_weights(torch):
    """By the names of the published files."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "vocab_embed.embedding": (TOKENS + 1, WIDTH),
        "sigma_map.mlp.0.weight": (COND, 256),
        "sigma_map.mlp.0.bias": (COND,),
        "sigma_map.mlp.2.weight": (COND, COND),
        "sigma_map.mlp.2.bias": (COND,),
        "output_layer.norm_final.weight": (WIDTH,),
        "output_layer.linear.weight": (TOKENS + 1, WIDTH),
        "output_layer.linear.bias": (TOKENS + 1,),
        "output_layer.adaLN_modulation.weight": (2 * WIDTH, COND),
        "output_layer.adaLN_modulation.bias": (2 * WIDTH,),
    }
    for block in range(DEPTH):
        shapes |= {
            f"blocks.{block}.{name}": shape
            for name, shape in {
                "norm1.weight": (WIDTH,),
                "attn_qkv.weight": (3 * WIDTH, WIDTH),
                "attn_out.weight": (WIDTH, WIDTH),
                "norm2.weight": (WIDTH,),
                "mlp.0.weight": (4 * WIDTH, WIDTH),
                "mlp.0.bias": (4 * WIDTH,),
                "mlp.2.weight": (WIDTH, 4 * WIDTH),
                "mlp.2.bias": (WIDTH,),
                "adaLN_modulation.weight": (6 * WIDTH, COND),
                "adaLN_modulation.bias": (6 * WIDTH,),
            }.items()
        }
    return {name: 0.5 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def in_torch(torch, w, tokens, sigma):
    """Output over all tokens and the mask, as the papers describe the network."""
    F = torch.nn.functional

    def linear(name, x):
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def modulated(name, x, shift, scale):
        return F.layer_norm(x, (WIDTH,)) * w[f"{name}.weight"] * (1 + scale) + shift

    def turned(x):
        """Each pair of features, half the head apart, is a complex number turned by its position."""
        half = x.shape[-1] // 2
        rate = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * rate
        turn = torch.polar(torch.ones_like(angle), angle)[None, :, None]
        pairs = torch.complex(x[..., :half].double(), x[..., half:].double()) * turn
        return torch.cat([pairs.real, pairs.imag], -1).float()

    rate = torch.exp(-np.log(10_000.0) * torch.arange(128) / 128)
    angle = sigma[:, None] * rate
    waves = torch.cat([torch.cos(angle), torch.sin(angle)], -1)
    cond = F.silu(linear("sigma_map.mlp.2", F.silu(linear("sigma_map.mlp.0", waves))))[:, None]
    h = w["vocab_embed.embedding"][tokens]
    for block in range(DEPTH):
        name = f"blocks.{block}"
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = linear(f"{name}.adaLN_modulation", cond).chunk(6, -1)
        qkv = linear(f"{name}.attn_qkv", modulated(f"{name}.norm1", h, shift, scale))
        q, k, v = qkv.reshape(*tokens.shape, 3, HEADS, WIDTH // HEADS).unbind(2)
        q, k, v = (a.transpose(1, 2) for a in (turned(q), turned(k), v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape)
        h = h + gate * linear(f"{name}.attn_out", mixed)
        hidden = F.gelu(
            linear(f"{name}.mlp.0", modulated(f"{name}.norm2", h, shift_mlp, scale_mlp)), approximate="tanh"
        )
        h = h + gate_mlp * linear(f"{name}.mlp.2", hidden)
    shift, scale = linear("output_layer.adaLN_modulation", cond).chunk(2, -1)
    return linear("output_layer.linear", modulated("output_layer.norm_final", h, shift, scale))


@pytest.fixture(params=CONFIGS)
def published(request, tmp_path):
    """A folder as of the hub, its head and its weights."""
    torch = pytest.importorskip("torch", reason="parity needs the extra 'parity'")
    from safetensors.torch import save_file

    w = random_weights(torch)
    prefix = "backbone." if request.param == "mdlm" else ""
    buffers = {"rotary_emb.inv_freq": torch.ones(WIDTH // HEADS // 2)}
    save_file({prefix + name: tensor for name, tensor in (w | buffers).items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[request.param]))
    return tmp_path, request.param, w


def test_outputs_are_those_of_the_same_network_in_pytorch(published):
    import torch

    folder, head, w = published
    tokens = torch.randint(0, TOKENS + 1, (3, 9), generator=torch.Generator().manual_seed(1))
    share = np.minimum(SHARES, 1.0 - 1e-3)
    sigma = torch.tensor(-np.log1p(-share))
    with torch.no_grad():
        expected = in_torch(torch, w, tokens, sigma if head == "sedd" else torch.zeros(3))[..., :-1]
    if head == "sedd":
        expected = expected - torch.log(torch.exp(sigma) - 1)[:, None, None] - np.log(TOKENS)
    model = ddit.load(folder)
    assert model.module.head == head and model.module.vocab_size == TOKENS
    found = jax.jit(model.policy().apply_fn)(model.params, jnp.asarray(tokens.numpy(), jnp.int32), SHARES, None)
    assert expected.std() > 0.5
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_it_is_a_prior_that_writes_whole_texts(published, key):
    folder, head, _ = published
    model = ddit.load(folder)
    process = rtbjax.absorbing(loglinear_mask_rate(5), TOKENS, head=head)
    paths = jax.jit(lambda key: rtbjax.rollout(key, process, model.policy(), shape=(4, 7)))(key)
    assert (paths.xs[-1] < TOKENS).all() and np.isfinite(paths.log_prior).all()


@pytest.mark.parametrize("head", CONFIGS)
def test_a_network_that_knows_the_law_of_tokens_makes_the_chain_of_that_law(head):
    """Its bias alone; SEDD's is learned with log V more. Each step reveals what is due, as tokens of the law."""
    law = np.arange(1.0, TOKENS + 1) / sum(range(1, TOKENS + 1))
    net, rate = ddit.from_config(CONFIGS[head]), loglinear_mask_rate(5)
    x = jnp.full((1, 1), TOKENS, jnp.int32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.float32(0.5))
    params = jax.tree.map(lambda a: jnp.zeros(a.shape), shapes)["params"]
    bias = np.append(np.log(law) + (np.log(TOKENS) if head == "sedd" else 0.0), 0.0)
    params["output_layer.linear"]["bias"] = jnp.asarray(bias, jnp.float32)
    process = rtbjax.absorbing(rate, TOKENS, head=head)

    @jax.jit
    def step(i):
        return jnp.exp(process.reverse(net.apply({"params": params}, x, process.time(i)), x, i).log_probs)[0, 0]

    for i, due in enumerate(1.0 - rate[1:] / rate[:-1]):
        np.testing.assert_allclose(step(jnp.int32(i)), np.append(due * law, 1.0 - due), atol=1e-5)


@pytest.mark.parametrize("head", CONFIGS)
def test_a_span_of_the_positions_is_that_part_of_them_all(head, key):
    net = ddit.from_config(CONFIGS[head])
    tokens = jax.random.randint(key, (3, 9), 0, TOKENS + 1)
    params = net.init(key, tokens, SHARES)
    whole, part = net.apply(params, tokens, SHARES), net.apply(params, tokens, SHARES, span=(4, 3))
    assert part.shape == (3, 3, TOKENS) and whole.std() > 0
    np.testing.assert_allclose(part, whole[:, 4:7], atol=1e-6)


@pytest.mark.parametrize(
    "head, change, message",
    [
        ("sedd", {"tokens": None}, "SEDD: the config must give tokens as a positive integer, got None"),
        ("sedd", {"graph": {"type": "uniform"}}, "SEDD: graph='uniform' is not supported, only 'absorb'"),
        ("sedd", {"model": CONFIGS["sedd"]["model"] | {"n_heads": 3}}, "must be a multiple of twice n_heads=3"),
        ("mdlm", {"time_conditioning": True}, "MDLM: time_conditioning=True is not supported"),
        ("mdlm", {"hidden_dim": "wide"}, "MDLM: the config must give hidden_dim as a positive integer, got 'wide'"),
    ],
)
def test_networks_of_another_kind_are_refused(head, change, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[head] | change))
    with pytest.raises(PretrainedError, match=message):
        ddit.load(tmp_path)
