"""What an update of Stable Diffusion 1.5 costs, counted from its shapes: nothing is computed, no weights are needed.

    python benchmarks/text_to_image_cost.py        writes docs/results/text_to_image_cost.json

FLOPs are XLA's counts of the programs of the rollout and of the gradient, in which the body of a scan counts once,
times the steps of each scan. Beside the rollout's stands a count in closed form, of products and convolutions alone.
The bytes that a gradient keeps are those of the values its backward pass takes from the forward one.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp

import rtbjax
from configs.text_to_image import get_config
from experiments.domains.text_to_image import guided_unet
from experiments.records import write_json
from rtbjax import Policy, posterior
from rtbjax.nets import pretrained
from rtbjax.nets.pretrained.unet import UNet

# Where it says nothing, diffusers' defaults.
UNET = {"_class_name": "UNet2DConditionModel", "sample_size": 64, "cross_attention_dim": 768}
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}
TOKENS = 77


class Update(NamedTuple):
    """An update of one prompt, by shapes.

    Attributes:
      config: of the run.
      model: the U-Net, with shapes for parameters.
      prior: the parameters of the policy, likewise.
      process: the chain.
    """

    config: Any
    model: pretrained.Model
    prior: Any
    process: rtbjax.Process

    @property
    def event_shape(self) -> tuple[int, ...]:
        unet: Any = self.model.module
        return (*unet.sample_size, unet.in_channels)

    def policy(self, params: Any, remat: bool = True) -> Policy:
        return Policy(params, guided_unet(self.model, self.config.prior.guidance, remat))

    def learner(self, params: Any, remat: bool = True) -> Policy:
        settings = self.config.posterior
        prior = self.policy(params, remat)
        return posterior.lora(jax.random.key(0), prior, settings.rank, select=settings.select)

    @property
    def adapters(self) -> Any:
        return jax.eval_shape(lambda params: self.learner(params).params, self.prior)


def update(config: Any, unet: dict[str, Any] = UNET, tokens: int = TOKENS) -> Update:
    """The update of a config with the U-Net of a config of diffusers, in float32."""
    module = pretrained.unet.from_config(unet)
    weights = jax.eval_shape(lambda key: pretrained.build(key, unet).params, jax.random.key(0))
    contexts = jax.ShapeDtypeStruct((2, tokens, module.context_dim or 0), jnp.float32)
    settings = config.process
    process = rtbjax.from_scheduler(SCHEDULER, settings.num_steps, sampler="ddim", eta=1.0, min_std=settings.min_std)
    return Update(config, pretrained.Model(module, weights, unet), {"unet": weights, "contexts": contexts}, process)


def rollout_flops(of: Update) -> float:
    """Of a batch of paths, prior and posterior scored on the way."""
    shape = (of.config.train.batch_size, *of.event_shape)

    def run(params, adapters, key):
        return rtbjax.rollout(
            key, of.process, of.policy(params), of.learner(params).replace(params=adapters), shape=shape
        )

    return of.process.num_steps * counted(run, of.prior, of.adapters, jax.random.key(0))


def gradient_flops(of: Update) -> float:
    """Of the loss of such paths, whose log-ratios are known."""
    total, batch, steps = of.process.num_steps, of.config.train.batch_size, of.config.objective.grad_steps
    xs = jax.ShapeDtypeStruct((total + 1, batch, *of.event_shape), jnp.float32)
    each = jax.ShapeDtypeStruct((total, batch), jnp.float32)
    log_reward = jax.ShapeDtypeStruct((batch,), jnp.float32)

    def gradient(params, adapters, paths, key):
        return jax.grad(rtbjax.loss, has_aux=True)(
            {"policy": adapters},
            paths,
            process=of.process,
            apply_fn=of.learner(params).apply_fn,
            grad_steps=steps,
            key=key,
        )

    paths = rtbjax.Trajectory(xs=xs, cond=None, log_reward=log_reward, log_prior=each, log_ratio=each)
    return (steps or total) * counted(gradient, of.prior, of.adapters, paths, jax.random.key(0))


def counted(function: Any, *arguments: Any) -> float:
    """XLA's count of a program that is not even compiled."""
    cost: Any = jax.jit(function).lower(*arguments).cost_analysis()
    return cost["flops"]


def kept_bytes(of: Update, remat: bool) -> int:
    """What the gradient of a step keeps for each path: the difference between two paths and one."""

    def total(batch: int) -> int:
        x = jax.ShapeDtypeStruct((batch, *of.event_shape), jnp.float32)

        def pullback(params, adapters, x):
            apply_fn = of.learner(params, remat).apply_fn
            return jax.vjp(lambda adapters: apply_fn(adapters, x, jnp.float32(1.0), None), adapters)[1]

        return size_in_bytes(jax.eval_shape(pullback, of.prior, of.adapters, x))

    return total(2) - total(1)


def size_in_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def unet_flops(unet: UNet, tokens: int) -> int:
    """Of one call on one sample: twice the products of numbers in its convolutions, projections and attentions.

    As XLA counts: products with a convolution's padding do not count. Layers on the time alone are left out.
    """
    side, context = unet.sample_size[0], unet.context_dim or 0

    def conv(inputs: int, outputs: int, side: int, stride: int = 1) -> int:
        at_border = 2 if stride == 1 else 1  # Of stride 2 the last window ends within the image.
        return (3 * side - at_border) ** 2 * inputs * outputs

    def resnet(inputs: int, outputs: int, side: int) -> int:
        shortcut = side**2 * inputs * outputs if inputs != outputs else 0
        return conv(inputs, outputs, side) + conv(outputs, outputs, side) + shortcut

    def transformer(width: int, side: int, blocks: int) -> int:
        places = side**2
        to_itself = 4 * places * width**2 + 2 * places**2 * width
        to_texts = 2 * places * width**2 + 2 * tokens * context * width + 2 * places * tokens * width
        return 2 * places * width**2 + blocks * (to_itself + to_texts + 12 * places * width**2)

    def attended(kind: str, level: int, side: int) -> int:
        crossed = kind.startswith("CrossAttn")
        return transformer(unet.channels[level], side, unet.transformers[level]) if crossed else 0

    width, lowest = unet.channels[0], len(unet.channels) - 1
    products, skips = conv(unet.in_channels, width, side), [width]
    for level, kind in enumerate(unet.down):
        for _ in range(unet.layers[level]):
            products += resnet(width, unet.channels[level], side) + attended(kind, level, side)
            width = unet.channels[level]
            skips.append(width)
        if level < lowest:
            side //= 2
            products += conv(width, width, side, stride=2)
            skips.append(width)
    products += 2 * resnet(width, width, side) + transformer(width, side, unet.transformers[-1])
    for level, kind in zip(range(lowest, -1, -1), unet.up, strict=True):
        for _ in range(unet.layers[level] + 1):
            products += resnet(width + skips.pop(), unet.channels[level], side) + attended(kind, level, side)
            width = unet.channels[level]
        if level > 0:
            side *= 2
            products += conv(width, width, side)
    return 2 * (products + conv(width, unet.out_channels, side))


def measure(of: Update) -> dict[str, Any]:
    """The numbers of `main`'s table."""
    unet: Any = of.model.module
    call = unet_flops(unet, of.prior["contexts"].shape[1])
    # Of prior and posterior, each with and without text.
    calls = 2 * 2 * of.config.train.batch_size * of.process.num_steps
    return {
        "batch": of.config.train.batch_size,
        "steps": of.process.num_steps,
        "grad_steps": of.config.objective.grad_steps or of.process.num_steps,
        "parameters": {"unet": numbers(of.prior["unet"]), "adapters": numbers(of.adapters)},
        "flops": {
            "call": call,
            "rollout": rollout_flops(of),
            "rollout_closed_form": calls * call,
            "gradient": gradient_flops(of),
        },
        "bytes": {
            "unet": size_in_bytes(of.prior["unet"]),
            "paths": 4 * (of.process.num_steps + 1) * of.config.train.batch_size * math.prod(of.event_shape),
            "kept_per_path": {"recomputing": kept_bytes(of, True), "keeping": kept_bytes(of, False)},
        },
    }


def numbers(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("docs/results/text_to_image_cost.json"), help="default %(default)s"
    )
    arguments = parser.parse_args()
    found = measure(update(get_config("sd15")))
    flops, size = found["flops"], found["bytes"]
    print(f"{found['parameters']['unet']:,} parameters and {found['parameters']['adapters']:,} in adapters")
    print(f"a call on one sample: {flops['call'] / 1e12:.3f} TFLOP")
    print(f"rollout: {flops['rollout'] / 1e12:.0f} TFLOP, in closed form {flops['rollout_closed_form'] / 1e12:.0f}")
    print(f"gradient: {flops['gradient'] / 1e12:.0f} TFLOP")
    for how, kept in size["kept_per_path"].items():
        print(f"a gradient {how}: {kept / 1e9:.2f} GB a path")
    write_json(arguments.out, found | {"config": "configs/text_to_image.py:sd15", "jax": jax.__version__})


if __name__ == "__main__":
    main()
