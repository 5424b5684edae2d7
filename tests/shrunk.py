"""Experiments small enough for a test."""

from pathlib import Path

from ml_collections import ConfigDict

from configs.gmm import get_config
from experiments.domains.base import Domain
from rtbjax import Policy


def changed(config: ConfigDict, **changes) -> ConfigDict:
    """A copy with other fields, ``__`` standing for the dot in a name."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def gmm(folder: Path) -> ConfigDict:
    """Four steps of every behaviour."""
    return changed(
        get_config("smoke"),
        devices=1,
        process__num_steps=10,
        train__steps=4,
        train__batch_size=32,
        log__every=1,
        checkpoint__every=2,
        behaviour__accepted=0.25,
        behaviour__noised=0.25,
        behaviour__replay=0.25,
        behaviour__capacity=16,
        behaviour__warm_accepted=8,
        behaviour__widen=0.0,
        eval__num_samples=64,
        eval__batch_size=64,
        eval__exact_samples=16,
        eval__exact_cache=str(folder / "exact"),
    )


def bare_domain(chain, posterior: Policy, event_shape: tuple[int, ...], **fields) -> Domain:
    """A chain of `oracles` as a domain that measures and plots nothing."""
    return Domain(
        name="oracle",
        data_source="none",
        process=chain.process,
        event_shape=event_shape,
        prior=chain.prior,
        posterior=posterior,
        log_reward=lambda x, cond: chain.log_reward(x),
        log_bound=None,
        fingerprint="",
        evaluate=lambda samples: {},
        plot=lambda path, panels: path.touch(),
        **fields,
    )
