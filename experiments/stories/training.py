"""Trains the networks of `experiments.stories.networks` on stories."""

from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from experiments import hosts, weights
from experiments.pretrain import fit
from experiments.stories import infilling_prior, language_model, networks
from experiments.stories.corpus import Corpus, Tokens
from experiments.streams import stream


def train(config: ConfigDict, found: Corpus, what: str, workdir: Path) -> None:
    """Trains one of `networks.FIELDS` and writes its weights to the workdir."""
    fit_one = fit_masked if what in networks.MASKED else fit_causal
    params, measured = fit_one(config, found, what, stream(config.seed, f"pretrain {what}"), workdir)
    count = len(found.train_tokens.middle)
    notes = {"trained_on": f"{count} stories of {found.source}", "steps": config.pretrain.steps} | measured
    path = workdir / f"stories_{what}.safetensors"
    weights.save(path, params, notes | networks.notes_of(config, what, found))
    hosts.say(f"Held-out stories: {', '.join(f'{name} {value:.4f}' for name, value in measured.items())}.")
    hosts.say(f"{path}: use it by --config.{networks.FIELDS[what]}={path}")


def fit_masked(
    config: ConfigDict, found: Corpus, what: str, key: Array, workdir: Path
) -> tuple[PyTree, dict[str, float]]:
    """A masked model and its bound on held-out middles: the prior, which sees no ending, or ``supervised``."""
    settings, net, head = config.pretrain, networks.masked(config, found), config.prior.head
    init_key, fit_key, bound_key = jax.random.split(key, 3)

    def arrays(tokens: Tokens) -> tuple[Array, ...]:
        seen = (tokens.before, tokens.middle) + ((tokens.after,) if what == "supervised" else ())
        return tuple(map(jnp.asarray, seen))

    def loss(params, key, data):
        pick, noise = jax.random.split(key)
        rows = jax.random.randint(pick, (settings.batch_size,), 0, data[0].shape[0])
        return jnp.mean(infilling_prior.loss(net, head, params, noise, *(part[rows] for part in data)))

    params, data = infilling_prior.init(net, init_key), arrays(found.train_tokens)
    params = fit(loss, params, data, settings, key=fit_key, workdir=workdir, label=what, steps_per_call=50)
    nats, error = infilling_prior.bound(net, head, params, bound_key, *arrays(found.test_tokens))
    return params, {"nats_per_middle_at_most": nats, "standard_error": error}


def fit_causal(
    config: ConfigDict, found: Corpus, what: str, key: Array, workdir: Path
) -> tuple[PyTree, dict[str, float]]:
    """A causal model: the reward, of whole stories, or ``supervised_autoregressive``, of middles after all the rest.

    With its nats per held-out ending, or middle.
    """
    settings, net, pad = config.pretrain, networks.causal(config, found), found.vocabulary.pad
    init_key, fit_key = jax.random.split(key)
    whole_stories = what == "reward"

    def in_order(tokens: Tokens) -> tuple[Array, Array, Array]:
        before, middle, after = map(jnp.asarray, tokens)
        return (before, middle, after) if whole_stories else (before, after, middle)

    def loss(params, key, data):
        rows = jax.random.randint(key, (settings.batch_size,), 0, data[0].shape[0])
        first, second, third = (part[rows] for part in data)
        if whole_stories:
            return jnp.mean(language_model.loss(net, params, (first, second, third), pad))
        return -jnp.mean(language_model.log_likelihood(net, params, first, second, third, pad))

    params, data = language_model.init(net, init_key), in_order(found.train_tokens)
    params = fit(loss, params, data, settings, key=fit_key, workdir=workdir, label=what, steps_per_call=50)
    nats = -language_model.log_likelihood(net, params, *in_order(found.test_tokens), pad)
    return params, {"nats_per_ending" if whole_stories else "nats_per_middle": float(nats.mean())}
