"""Story infilling: the middle z of a story from p(z | x) p(y | x, z)^beta, given its beginning x and ending y.

The prior p(z | x) is a masked diffusion trained on beginnings and middles alone, the reward a causal language model's
likelihood of the ending. Every story is a condition with a posterior of its own, and the posterior's network sees both
x and y. An infill fills a slot that is as long as the longest middle, padded at will.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from experiments import weights
from experiments.domains.base import Conditions, Domain, Samples, rows
from experiments.errors import ConfigError
from experiments.pretrain import fit
from experiments.settings import get, one_of
from experiments.stories import baselines, corpus, infilling_prior, language_model
from experiments.stories.corpus import Corpus, Tokens
from experiments.stories.evaluation import Evaluation
from experiments.streams import stream
from rtbjax import Policy, Process, absorbing, one_by_one, posterior, rollout
from rtbjax.nets.transformer import CausalTransformer, MaskedTransformer
from rtbjax.schedules import linear_mask_rate


def check(config: ConfigDict) -> None:
    """Raises a ConfigError on a field of this domain that is not allowed."""
    one_of(config, "posterior.kind", ("correction", "lora"))
    one_of(config, "prior.head", ("mdlm", "sedd"))
    one_of(config, "process.reveals", ("one_by_one", "independent"))
    one_of(config, "precision", ("float32",))
    if config.steer.steps:
        raise ConfigError("config.steer.steps must be 0: this domain has no value of noisy states to start from.")
    for name in (
        "data.test_stories",
        "data.stories",
        "data.conditions",
        "data.min_count",
        "eval.stories",
        "eval.best_of",
    ):
        if get(config, name) < 1:
            raise ConfigError(f"config.{name} must be at least 1, got {get(config, name)}.")
    for section in ("prior", "reward"):
        sizes = config[section]
        if sizes.heads < 1 or sizes.depth < 1 or sizes.width % (2 * sizes.heads):
            raise ConfigError(
                f"config.{section}.width must be a multiple of twice config.{section}.heads={sizes.heads}, "
                f"and depth at least 1, got {sizes.width} and {sizes.depth}."
            )
    if config.eval.stories > config.data.test_stories:
        raise ConfigError(
            f"config.eval.stories must be at most config.data.test_stories={config.data.test_stories}, "
            f"got {config.eval.stories}."
        )


def prior_network(config: ConfigDict, found: Corpus) -> MaskedTransformer:
    p = config.prior
    return MaskedTransformer(found.vocabulary.size, p.width, p.depth, p.heads)


def reward_network(config: ConfigDict, found: Corpus) -> CausalTransformer:
    r = config.reward
    return CausalTransformer(found.vocabulary.size, r.width, r.depth, r.heads)


def load(config: ConfigDict, section: str, found: Corpus, init) -> PyTree:
    """Weights of a section (``prior`` or ``reward``) of the config.

    Raises:
      WeightsError: they cannot be read, or are of other sizes, another vocabulary or another head.
    """
    path = weights.locate(config[section].weights)
    params = weights.load(path, jax.eval_shape(init, jax.random.key(0)))
    notes = weights.metadata(path)
    for name, here in notes_of(config, section, found).items():
        if notes.get(name) != here:
            raise weights.WeightsError(
                f"{path} was trained with another {name}: make it anew by --mode=pretrain "
                f"--config.pretrain.what={section}."
            )
    return jax.tree.map(jnp.asarray, params)


def notes_of(config: ConfigDict, section: str, found: Corpus) -> dict[str, str]:
    """What weights must agree with beside their shapes."""
    notes = {"vocabulary": weights.fingerprint(found.vocabulary.name)}
    return notes | ({"head": config.prior.head} if section == "prior" else {})


def pretrain(config: ConfigDict, workdir: Path) -> None:
    """Trains the prior, or by ``pretrain.what`` the reward, and writes weights to the workdir.

    Raises:
      ConfigError: a field that is not allowed.
      DataError: the stories cannot be read.
    """
    one_of(config, "pretrain.what", ("prior", "reward"))
    check(config)
    found, what = corpus.load(config.data, config.data.stories), config.pretrain.what
    train = {"prior": fit_prior, "reward": fit_reward}[what]
    params, measured = train(config, found, stream(config.seed, f"pretrain {what}"), workdir)
    count = len(found.train_tokens.middle)
    notes = {"trained_on": f"{count} stories of {found.source}", "steps": config.pretrain.steps} | measured
    path = workdir / f"stories_{what}.safetensors"
    weights.save(path, params, notes | notes_of(config, what, found))
    print(f"Held-out stories: {', '.join(f'{name} {value:.4f}' for name, value in measured.items())}.")
    print(f"{path}: use it by --config.{what}.weights={path}")


def fit_prior(config: ConfigDict, found: Corpus, key: Array, workdir: Path) -> tuple[PyTree, dict[str, float]]:
    """The prior and its bound on held-out middles. It sees sentences 1 to 4, and no ending."""
    settings, net, head = config.pretrain, prior_network(config, found), config.prior.head
    init_key, fit_key, bound_key = jax.random.split(key, 3)
    data = (jnp.asarray(found.train_tokens.before), jnp.asarray(found.train_tokens.middle))

    def loss(params, key, data):
        pick, noise = jax.random.split(key)
        rows = jax.random.randint(pick, (settings.batch_size,), 0, data[0].shape[0])
        return jnp.mean(infilling_prior.loss(net, head, params, noise, *(part[rows] for part in data)))

    params = infilling_prior.init(net, init_key)
    params = fit(loss, params, data, settings, key=fit_key, workdir=workdir, label="prior", steps_per_call=50)
    test = (jnp.asarray(found.test_tokens.before), jnp.asarray(found.test_tokens.middle))
    nats, error = infilling_prior.bound(net, head, params, bound_key, *test)
    return params, {"nats_per_middle_at_most": nats, "standard_error": error}


def fit_reward(config: ConfigDict, found: Corpus, key: Array, workdir: Path) -> tuple[PyTree, dict[str, float]]:
    """The language model of whole stories and its nats per held-out ending."""
    settings, net, pad = config.pretrain, reward_network(config, found), found.vocabulary.pad
    init_key, fit_key = jax.random.split(key)
    data = Tokens(*map(jnp.asarray, found.train_tokens))

    def loss(params, key, data):
        rows = jax.random.randint(key, (settings.batch_size,), 0, data.middle.shape[0])
        return jnp.mean(language_model.loss(net, params, tuple(part[rows] for part in data), pad))

    params = language_model.init(net, init_key)
    params = fit(loss, params, data, settings, key=fit_key, workdir=workdir, label="reward", steps_per_call=50)
    before, middle, after = map(jnp.asarray, found.test_tokens)
    nats = -language_model.log_likelihood(net, params, before, middle, after, pad)
    return params, {"nats_per_ending": float(nats.mean())}


def make_posterior(config: ConfigDict, found: Corpus, prior: Policy, key: Array) -> Policy:
    """The prior's output plus that of a copy of its network which also reads the ending, and starts at zero."""
    net = prior_network(config, found)

    def read_all(params, z, t, cond):
        return infilling_prior.denoise(net, params, z, t, cond["before"], cond["after"], context=cond["after"])

    copy = Policy(infilling_prior.correction(net, prior.params, key), read_all)
    learner = copy
    if config.posterior.kind == "lora":
        learner = posterior.lora(
            jax.random.fold_in(key, 1), copy, config.posterior.rank, select=config.posterior.select
        )
    return posterior.correction(
        learner.params,
        lambda params, z, t, cond, _: learner.apply_fn(params, z, t, cond),
        look=lambda output, z, t, cond: (),
    )


def make_process(config: ConfigDict, found: Corpus) -> Process:
    """The chain of a config.

    Raises:
      ConfigError: one reveal per step, and not as many steps as the slot has places.
    """
    steps, size, length = config.process.num_steps, found.vocabulary.size, found.train_tokens.middle.shape[1]
    if config.process.reveals == "independent":
        return absorbing(linear_mask_rate(steps), size, head=config.prior.head)
    if steps != length:
        raise ConfigError(
            f"config.process.num_steps must be {length}, the places of an infill, for config.process.reveals="
            f"one_by_one, got {steps}."
        )
    return one_by_one(length, size)


def load_prior(config: ConfigDict, found: Corpus) -> Policy:
    """The prior; of its ``cond`` it sees the beginning."""
    net, head = prior_network(config, found), config.prior.head
    params = load(config, "prior", found, partial(infilling_prior.init, net))

    def apply_fn(params, z, t, cond):
        return infilling_prior.output(head, infilling_prior.denoise(net, params, z, t, cond["before"]), t)

    return Policy(params, apply_fn)


def make_log_reward(config: ConfigDict, found: Corpus, params: PyTree):
    """log p(y | x, z), ``(z[B, L], cond) -> f32[B]``."""
    net, pad = reward_network(config, found), found.vocabulary.pad

    def log_reward(z, cond):
        return language_model.log_likelihood(net, params, cond["before"], z, cond["after"], pad)

    return log_reward


def make_baselines(
    config: ConfigDict, found: Corpus, process: Process, prior: Policy, reward: PyTree, log_reward, evaluated: Any
):
    """Sets of infills of the evaluated stories without fine-tuning: ``count -> {name: i32[N, count, L]}``.

    ``clamped`` is the prior with the ending laid behind the infill, where it has never seen one; ``autoregressive`` is
    the language model's continuation of the beginning; ``best_of`` the best of ``eval.best_of`` draws of the prior.
    """
    net, head = prior_network(config, found), config.prior.head
    writer, vocabulary = reward_network(config, found), found.vocabulary
    marks = dict(pad=vocabulary.pad, closing=baselines.closing_tokens(vocabulary))
    length = found.train_tokens.middle.shape[1]

    def read_both(params, z, t, cond):
        return infilling_prior.output(
            head, infilling_prior.denoise(net, params, z, t, cond["before"], cond["after"]), t
        )

    def drawn(key, policy, cond):
        return rollout(key, process, policy, shape=(len(cond["before"]), length), cond=cond).xs[-1]

    def clamped(key, cond):
        return drawn(key, prior.replace(apply_fn=read_both), cond)

    def autoregressive(key, cond):
        return baselines.autoregressive(key, writer, reward, (cond["before"],), length, **marks)

    def best_of(key, cond):
        count = config.eval.best_of
        repeated = jax.tree.map(lambda a: jnp.repeat(a, count, axis=0), cond)
        x = drawn(key, prior, repeated)
        return baselines.best_of(count, x, log_reward(x, repeated))

    def draw(count: int) -> Samples:
        key, stories = stream(config.seed, "baselines"), range(config.eval.stories)
        conds = [rows(evaluated, np.full(count, story)) for story in stories]
        runs = {"clamped": clamped, "autoregressive": autoregressive, "best_of": best_of}
        jitted = {name: jax.jit(run) for name, run in runs.items()}
        return {
            name: np.stack([run(jax.random.fold_in(key, story), conds[story]) for story in stories])
            for name, run in jitted.items()
        }

    return draw


def condition(tokens: Tokens, count: int) -> dict[str, Array]:
    """Beginning and ending of the first stories."""
    return {"before": jnp.asarray(tokens.before[:count]), "after": jnp.asarray(tokens.after[:count])}


def build(config: ConfigDict) -> Domain:
    """The domain of a config.

    Raises:
      ConfigError: an unknown parametrisation or head, or a number that is not allowed.
      DataError: the stories cannot be read.
      WeightsError: the weights of prior or reward cannot be read, or are of another vocabulary.
    """
    check(config)
    found = corpus.load(config.data, config.data.conditions)
    prior = load_prior(config, found)
    reward = load(config, "reward", found, partial(language_model.init, reward_network(config, found)))
    log_reward = jax.jit(make_log_reward(config, found, reward))
    shown = config.eval.stories
    conditions = Conditions(
        values=condition(found.train_tokens, config.data.conditions),
        evaluated=condition(found.test_tokens, shown),
        names=tuple(f"story {number}" for number in range(shown)),
        examples=jnp.asarray(found.train_tokens.middle),
    )

    def log_reward_of(z, number):
        cond = rows(conditions.evaluated, np.full(len(z), number))
        return np.asarray(log_reward(jnp.asarray(z), cond), np.float64)

    process = make_process(config, found)
    evaluation = Evaluation(
        found.test[:shown],
        found.vocabulary,
        log_reward_of,
        make_baselines(config, found, process, prior, reward, log_reward, conditions.evaluated),
        grammar=not config.data.path,
        seed=config.seed,
    )
    return Domain(
        name="stories",
        data_source=f"{len(found.train_tokens.middle)} stories of {found.source}",
        process=process,
        event_shape=found.train_tokens.middle.shape[1:],
        prior=prior,
        posterior=make_posterior(config, found, prior, stream(config.seed, "posterior")),
        log_reward=log_reward,
        # A probability; of the long endings of real stories it is too small for rejection.
        log_bound=None if config.data.path else 0.0,
        fingerprint=weights.fingerprint(
            prior.params, reward, config.process.to_dict(), config.prior.head, conditions.evaluated
        ),
        evaluate=evaluation.metrics,
        plot=evaluation.plot,
        conditions=conditions,
    )
