"""The same step in eager PyTorch: the same networks and weights, the prior without gradient, one step after the other.

Once with autograd through the log-probabilities of the whole path, once in two passes as the paper's reference code
does it. The reward is asked of the domain itself. All of it is where JAX is, and as exact as JAX is there by default.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import PyTree
from ml_collections import ConfigDict
from torch import Tensor, nn

from benchmarks.steps.networks import MaskedTransformer, PISNet, UNet, load, weights_of
from benchmarks.steps.shapes import CONFIGS, condition
from experiments.control import networks
from experiments.control.behaviour_prior import MAX_LATENT, TRAIN_STEPS
from experiments.domains.base import Domain
from experiments.images.posteriors import SCORE_SCALE

# In single precision they agree to 1e-6, and control's, whose first step divides by the little signal that there is, to
# 3e-5 of 75 steps and 3e-4 of 15; GELU by its other formula alone is 7e-4 or more off.
AGREEMENT = dict.fromkeys(CONFIGS, 1e-4) | {"control_cpu": 5e-4}


def device() -> torch.device:
    """Where JAX computes.

    Raises:
      RuntimeError: this PyTorch cannot compute there.
    """
    if jax.default_backend() == "cpu":
        return torch.device("cpu")
    if jax.default_backend() != "gpu" or not torch.cuda.is_available():
        raise RuntimeError(f"JAX computes on {jax.default_backend()}, and PyTorch cannot")
    return torch.device("cuda")


def blocking(step: Callable[[], None]) -> Callable[[], None]:
    """The step, over when it is done."""
    if device().type == "cpu":
        return step

    def run():
        step()
        torch.cuda.synchronize()

    return run


@contextlib.contextmanager
def float32() -> Iterator[None]:
    """Products and convolutions of both are in float32, also where TF32 is the rule."""
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with jax.default_matmul_precision("highest"), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = before


class Normal(NamedTuple):
    """A step of a Gaussian chain."""

    mean: Tensor
    std: float

    def widen(self, amount: float) -> "Normal":
        return self._replace(std=(self.std**2 + amount**2) ** 0.5)

    def sample(self) -> Tensor:
        return self.mean + self.std * torch.randn_like(self.mean)

    def log_prob(self, x: Tensor) -> Tensor:
        """Up to what cancels: prior and posterior have the same std."""
        return ((x - self.mean) ** 2).flatten(1).sum(1) / (-2.0 * self.std**2)


class Reveal(NamedTuple):
    """A step of `rtbjax.one_by_one`."""

    log_probs: Tensor
    x: Tensor

    def widen(self, amount: float) -> "Reveal":
        return self._replace(log_probs=(self.log_probs / (1.0 + amount)).log_softmax(-1))

    def sample(self) -> Tensor:
        place = torch.multinomial((self.x == self.log_probs.shape[-1]).float(), 1)
        law = self.log_probs.gather(1, place[..., None].expand(-1, 1, self.log_probs.shape[-1]))[:, 0]
        return self.x.scatter(1, place, torch.multinomial(law.exp(), 1))

    def log_prob(self, x: Tensor) -> Tensor:
        """Up to what cancels: prior and posterior choose places alike."""
        new = x != self.x
        found = self.log_probs.gather(-1, torch.where(new, x, 0)[..., None])[..., 0]
        return torch.where(new, found, 0.0).sum(-1)


Law = Normal | Reveal


class Gaussian:
    """A Gaussian process of ours in plain numbers, read off the process itself.

    The mean of a step is linear in x and in the estimate of x_0, which is linear in x and in the network's output.
    """

    def __init__(self, process, event_shape, clip: float = np.inf):
        self.clip, little, none = clip, jnp.full((1, *event_shape), 2.0**-10), jnp.zeros((1, *event_shape))
        small = float(little.ravel()[0])  # Or the estimate would be clipped.

        def table(value):
            return [float(value(i).ravel()[0]) / small for i in jnp.arange(process.num_steps)]

        self.x0_of_x = table(lambda i: process.denoise(none, little, i))
        self.x0_of_output = table(lambda i: process.denoise(little, none, i))
        self.mean_of_x0 = table(lambda i: process.target(little, none, i).mean)
        self.mean_of_x = table(lambda i: process.target(none, little, i).mean)
        self.stds = [float(process.target(none, none, i).std) for i in jnp.arange(process.num_steps)]

    def denoise(self, output: Tensor, x: Tensor, i: int) -> Tensor:
        x0 = self.x0_of_x[i] * x + self.x0_of_output[i] * output
        return x0 if self.clip == np.inf else x0.clamp(-self.clip, self.clip)

    def law(self, output: Tensor, x: Tensor, i: int) -> Normal:
        return Normal(self.mean_of_x0[i] * self.denoise(output, x, i) + self.mean_of_x[i] * x, self.stds[i])


class Problem(NamedTuple):
    """A domain in PyTorch.

    Attributes:
      prior: ``(x, i) -> output``.
      law: ``(output, x, i) -> Law`` of the prior.
      posterior: ``(x, i, prior's output) -> Law``.
      networks: those of the prior and the posterior.
      start: ``() -> xs[0]``.
      log_reward: ``x -> f32[B]``.
      log_z: what is learned, or None with VarGrad.
    """

    prior: Callable[[Tensor, int], Tensor]
    law: Callable[[Tensor, Tensor, int], Law]
    posterior: Callable[[Tensor, int, Tensor], Law]
    networks: tuple[nn.Module, nn.Module]
    start: Callable[[], Tensor]
    log_reward: Callable[[Tensor], Tensor]
    log_z: nn.Parameter | None


def problem(config: ConfigDict, domain: Domain) -> Problem:
    """The domain of a config with the weights of its prior and its posterior."""
    make = {"gmm": _gmm, "images": _images, "control": _control, "stories": _stories}[config.domain]
    shape, cond, where = (config.train.batch_size, *domain.event_shape), condition(config, domain), device()
    prior, posterior, *functions = (a.to(where) if isinstance(a, nn.Module) else a for a in make(config, domain))
    load(prior, domain.prior.params).requires_grad_(False)
    load(posterior, domain.posterior.params)
    keys = jax.random.split(jax.random.key(0), shape[0])
    first = domain.process.init(keys, shape, cond)
    first = torch.tensor(np.asarray(first, np.int64 if domain.dtype == np.int32 else None), device=where)
    same = bool((first == first.flatten()[0]).all())  # Of tokens, and of the bridge.

    def start():
        return first if same else torch.randn(shape, device=where)

    def log_reward(x):
        found = domain.log_reward(x.cpu().numpy().astype(domain.dtype), cond)
        return torch.tensor(np.asarray(found), device=where)

    log_z = nn.Parameter(torch.zeros((), device=where)) if config.objective.log_z == "learned" else None
    return Problem(*functions, (prior, posterior), start, log_reward, log_z)


def _times(domain: Domain, scale: float = 1.0) -> list[float]:
    return [float(domain.process.time(i)) / scale for i in jnp.arange(domain.process.num_steps)]


def _gmm(config, domain):
    prior, posterior = (PISNet(2, 4, config.prior.width) for _ in range(2))
    chain, times = Gaussian(domain.process, domain.event_shape), _times(domain)
    return (
        prior,
        posterior,
        lambda x, i: prior(x, times[i])[:, :2],
        chain.law,
        lambda x, i, output: chain.law(posterior(x, times[i])[:, :2], x, i),
    )


def _images(config, domain):
    channels = domain.event_shape[-1]
    prior = UNet(channels, channels, **config.prior.network)
    posterior = UNet(2 * channels, channels, **config.posterior.network)
    chain, times = Gaussian(domain.process, domain.event_shape), _times(domain)

    def steered(x, i, output):
        law = chain.law(output, x, i)
        seen = torch.cat([x, chain.denoise(output, x, i)], dim=-1)
        return law._replace(mean=law.mean + SCORE_SCALE * law.std * posterior(seen, times[i]))

    return prior, posterior, lambda x, i: prior(x, times[i]), chain.law, steered


def _control(config, domain):
    _, norm = networks.load_prior(config)
    states = torch.tensor(np.asarray(norm(condition(config, domain))), device=device())
    actions, observed = *domain.event_shape, states.shape[1]
    prior = PISNet(actions + observed, actions, config.prior.width)
    posterior = PISNet(2 * actions + observed, actions, config.posterior.width)
    chain, times = Gaussian(domain.process, domain.event_shape, MAX_LATENT), _times(domain, TRAIN_STEPS)

    def corrected(x, i, output):
        return chain.law(output + posterior(torch.cat([x, output, states], dim=-1), times[i]), x, i)

    return prior, posterior, lambda x, i: prior(torch.cat([x, states], dim=-1), times[i]), chain.law, corrected


def _stories(config, domain):
    cond, p, times = condition(config, domain), config.prior, _times(domain)
    before, after = (torch.tensor(np.asarray(cond[name]), device=device()).long() for name in ("before", "after"))
    words, sizes = domain.prior.params["head"]["bias"].shape[0], (p.width, p.depth, p.heads)
    prior = MaskedTransformer(words, *sizes, sees_context=False)
    posterior = MaskedTransformer(words, *sizes, sees_context=True)
    span = slice(before.shape[1], before.shape[1] + domain.event_shape[0])

    def law(output, x, i):
        return Reveal(output.log_softmax(-1), x)

    def corrected(x, i, output):
        text = torch.cat([before, x, after], dim=1)
        return law(output + posterior(text, times[i], span, after), x, i)

    return prior, posterior, lambda x, i: prior(torch.cat([before, x], dim=1), times[i], span), law, corrected


def _residual(config: ConfigDict, found: Problem, gap: Tensor) -> Tensor:
    """Of the learned log Z, or VarGrad's within groups."""
    if found.log_z is not None:
        return found.log_z - gap
    mean = gap.detach().unflatten(0, (-1, config.objective.group or len(gap))).mean(dim=1, keepdim=True)
    return (mean - gap.unflatten(0, (len(mean), -1))).flatten()


def _optimizer(config: ConfigDict, found: Problem) -> Callable[[], None]:
    params = list(found.networks[1].parameters())
    adam = torch.optim.Adam(params, lr=config.train.learning_rate)
    if found.log_z is not None:
        adam.add_param_group({"params": [found.log_z], "lr": config.train.log_z_learning_rate})

    def step():
        nn.utils.clip_grad_norm_(params, config.train.clip_norm)
        adam.step()
        adam.zero_grad()

    return step


def autograd(config: ConfigDict, found: Problem) -> Callable[..., None]:
    """A step whose graph holds the posterior's calls of all steps; it may explore, by widening every step's law."""
    learn = _optimizer(config, found)

    def step(width: float = 0.0):
        x, log_ratio = found.start(), 0.0
        for i in range(config.process.num_steps):
            with torch.no_grad():
                output = found.prior(x, i)
            law = found.posterior(x, i, output)
            new = (law.widen(width) if width else law).sample().detach()
            log_ratio = log_ratio + found.law(output, x, i).log_prob(new) - law.log_prob(new)
            x = new
        gap = log_ratio + config.objective.beta * found.log_reward(x)
        (0.5 * (_residual(config, found, gap) ** 2).mean()).backward()
        learn()

    return step


def two_pass(config: ConfigDict, found: Problem) -> Callable[[], None]:
    """A step that samples without gradient, then gives every step its own forward and backward pass."""
    learn = _optimizer(config, found)

    def step():
        with torch.no_grad():
            xs, prior_outputs, log_ratio = [found.start()], [], 0.0
            for i in range(config.process.num_steps):
                x, output = xs[-1], found.prior(xs[-1], i)
                law = found.posterior(x, i, output)
                new = law.sample()
                log_ratio = log_ratio + found.law(output, x, i).log_prob(new) - law.log_prob(new)
                xs.append(new)
                prior_outputs.append(output)
            residual = _residual(config, found, log_ratio + config.objective.beta * found.log_reward(xs[-1]))
        if found.log_z is not None:
            (residual.mean() * found.log_z).backward()
        for i, output in enumerate(prior_outputs):
            log_post = found.posterior(xs[i], i, output).log_prob(xs[i + 1])
            (residual * log_post).mean().backward()
        learn()

    return step


def exploration(step: int) -> float:
    """The paper's width at a step of its 5,000, as its code has it: held, then on the line that it would have left."""
    return 0.5 if step < 500 else 0.5 * max(0.0, 1.0 - step / 4500)


def training(config: ConfigDict, domain: Domain) -> Iterator[PyTree]:
    """The posterior's parameters, as Flax has them, after each step of a run that explores as the paper's does."""
    torch.manual_seed(config.seed)
    found = problem(config, domain)
    step = autograd(config, found)
    for number in range(config.train.steps):
        step(exploration(number))
        yield weights_of(found.networks[1], domain.posterior.params)


@float32()
def disagreement(config: ConfigDict, domain: Domain, key) -> float:
    """The largest difference between laws of the two, relative to their size, at the first, a middle and the last step.

    Of means, or of log-probabilities of tokens, in float32; at weights moved away from where last layers are zero.
    """

    def moved(policy, key):
        leaves, structure = jax.tree.flatten(policy.params)
        keys = jax.random.split(key, len(leaves))
        leaves = [a + 0.05 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
        return policy.replace(params=jax.tree.unflatten(structure, leaves))

    prior_key, posterior_key, data_key, noise_key = jax.random.split(key, 4)
    prior, posterior = moved(domain.prior, prior_key), moved(domain.posterior, posterior_key)
    process, batch, cond = domain.process, config.train.batch_size, condition(config, domain)
    found = problem(config, domain)
    for net, policy in zip(found.networks, (prior, posterior), strict=True):
        load(net, policy.params)
    shape = (batch, *domain.event_shape)
    tokens = domain.dtype == np.int32
    x0 = jax.random.randint(data_key, shape, 0, 50) if tokens else jax.random.normal(data_key, shape)

    @jax.jit
    def laws(prior, posterior, x, i):
        output = prior(x, process.time(i), cond)
        features = None if posterior.look is None else posterior.look(output, x, process.time(i), cond)
        new = posterior(x, process.time(i), cond, features)
        return process.reverse(output, x, i)[0], process.reverse(new, x, i)[0]  # What `Normal` and `Reveal` begin with.

    worst = 0.0
    for i in (0, process.num_steps // 2, process.num_steps - 1):
        x = process.marginal(jax.random.split(noise_key, batch), x0, jnp.int32(i), cond)
        tensor = torch.tensor(np.asarray(x, np.int64 if tokens else None), device=device())
        with torch.no_grad():
            output = found.prior(tensor, i)
            theirs = found.law(output, tensor, i)[0], found.posterior(tensor, i, output)[0]
        for ours, other in zip(laws(prior, posterior, x, jnp.int32(i)), theirs, strict=True):
            worst = max(worst, float(np.abs(ours - other.cpu().numpy()).max() / np.abs(ours).max()))
    return worst
