"""After training: fresh paths, the certificate, metrics, plots, ``summary.json``."""

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import hosts, records, selection
from experiments.domains.base import Domain, rewarded
from experiments.exact import Exact
from experiments.files import replacing
from experiments.streams import stream
from rtbjax import Certificate, Policy, behaviour, certificate, score
from rtbjax.train import make_rollout

START_EXCESS_ERRORS = 3.0  # An excess of so many standard errors is taken for one.


class Paths(NamedTuple):
    """Fresh paths of every evaluated condition (one if there are none), by their ends.

    Attributes:
      x: ``[N, n, E*]``.
      log_reward: ``[N, n]``.
      gap: ``[N, n]``; of the prior's paths ``beta * log_reward``.
      seconds: per path, of the fastest batch: the first one also compiles.
    """

    x: np.ndarray
    log_reward: np.ndarray
    gap: np.ndarray
    seconds: float


def paths(
    key: jax.Array,
    domain: Domain,
    posterior: Policy | None,
    *,
    count: int,
    batch: int,
    beta: float,
    mesh: Mesh,
    label: str,
) -> Paths:
    """``count`` paths of the posterior (or of the prior) for every evaluated condition."""
    run = make_rollout(domain.process, (batch, *domain.event_shape), mesh)
    total = domain.asked * count
    parts, seconds = [], []
    for first in hosts.progress(range(0, total, batch), desc=label, unit="batch"):
        started = time.monotonic()
        # Beyond the last path, where a batch is not full, more of the last condition.
        cond = domain.evaluated(np.minimum(np.arange(first, first + batch), total - 1) // count)
        trajectory = rewarded(domain, run(jax.random.fold_in(key, first), domain.prior, posterior, cond=cond))
        log_r = hosts.whole(trajectory.log_reward)
        ratio = np.zeros(batch) if trajectory.log_ratio is None else hosts.whole(trajectory.log_ratio).sum(axis=0)
        parts.append((hosts.whole(trajectory.xs[-1]), log_r, ratio + beta * log_r))
        seconds.append((time.monotonic() - started) / batch)
    joined = (np.concatenate(column)[:total] for column in zip(*parts, strict=True))
    return Paths(*(a.reshape(domain.asked, count, *a.shape[1:]) for a in joined), seconds=min(seconds))


def exact_gaps(
    key: jax.Array, domain: Domain, posterior: Policy, count: int, beta: float, mesh: Mesh
) -> list[np.ndarray | None]:
    """For the upper bound: gaps of the accepted ones among ``count`` prior paths, of each evaluated condition.

    None where none was accepted.
    """
    if domain.log_bound is None or domain.rare:
        return [None] * domain.asked
    roll, accept = jax.random.split(key)
    index = np.resize(np.arange(domain.asked), count)
    run = make_rollout(domain.process, (count, *domain.event_shape), mesh)
    trajectory = rewarded(domain, run(roll, domain.prior, cond=domain.evaluated(index)))
    log_r = hosts.whole(trajectory.log_reward)
    keep = np.asarray(behaviour.accept(accept, log_r, domain.log_bound, beta=beta))
    if not keep.any():
        return [None] * domain.asked
    index, xs, log_r = index[keep], trajectory.xs[:, keep], log_r[keep]
    rescore = jax.jit(lambda prior, policy, xs, cond: score(domain.process, prior, xs, cond, policy).log_ratio)
    log_ratio = hosts.whole(rescore(domain.prior, posterior, xs, domain.evaluated(index)))
    gap = log_ratio.sum(axis=0) + beta * log_r
    return [gap[index == i] if (index == i).any() else None for i in range(domain.asked)]


def start_excess(key: jax.Array, domain: Domain, count: int, beta: float, mesh: Mesh) -> tuple[float, float]:
    """What sharing p_T with the prior costs (`rtbjax.certificate.start_excess`), and its standard error.

    From ``count`` pairs of prior paths, each pair from one ``xs[0]``; the mean over evaluated conditions, as many as
    get two pairs. Warns of an excess beyond its noise.
    """
    first_key, second_key = jax.random.split(key)
    run = make_rollout(domain.process, (count, *domain.event_shape), mesh)
    index = np.resize(np.arange(min(domain.asked, count // 2)), count)
    cond = domain.evaluated(index)
    first = rewarded(domain, run(first_key, domain.prior, cond=cond))
    second = rewarded(domain, run(second_key, domain.prior, cond=cond, start=first.xs[0]))
    pair = hosts.whole(first.log_reward), hosts.whole(second.log_reward)
    found = [certificate.start_excess(pair[0][index == i], pair[1][index == i], beta) for i in np.unique(index)]
    excesses, errors = np.transpose(found)
    excess, error = float(excesses.mean()), float(np.sqrt(np.sum(errors**2)) / len(errors))
    if hosts.is_first() and excess > START_EXCESS_ERRORS * error:
        logging.warning(
            "The reward depends on where a path starts (excess %.3g, standard error %.2g): training cannot remove a "
            "path-KL of about %.2g nats.",
            *(excess, error, excess / 2),
        )
    return excess, error


def resampled(key: jax.Array, found: Paths) -> np.ndarray:
    """As many samples of every condition again, drawn by their weights, ``[N, n, E*]``."""
    keys = jax.random.split(key, len(found.x))
    drawn = [
        certificate.importance_resample(one, x, gap, len(x))[0]
        for one, x, gap in zip(keys, found.x, found.gap, strict=True)
    ]
    return np.stack(drawn)


def certify(domain: Domain, gaps: np.ndarray, known: Exact, upper: list[np.ndarray | None]) -> dict[str, Any]:
    """The certificate as in ``summary.json``: of the only posterior, or the mean over conditions and each of them."""
    each = [certificate.certify(*of_one) for of_one in zip(gaps, known.log_z, upper, strict=True)]
    if domain.conditions is None:
        return each[0].to_dict()
    named = zip(domain.conditions.names, each, strict=True)
    return certificate.average(each).to_dict() | {
        "per_condition": [{"condition": name} | one.to_dict() for name, one in named]
    }


def uncertified(selected: selection.Selected, known: Exact, why: str) -> dict[str, Any]:
    """What ``summary.json`` has in place of the certificate of samples without weights: null but for log Z, and why."""
    (reference,) = known.log_z
    none: dict[str, Any] = {field.name: None for field in dataclasses.fields(Certificate)}
    if selected.log_z is not None:
        none["log_z_is"] = float(np.logaddexp.reduce(selected.log_z) - np.log(len(selected.log_z)))
        if len(selected.log_z) >= certificate.MIN_PATHS:  # Of fewer systems a 95 % interval would hold less often.
            none["log_z_is_ci"] = certificate.from_prior(selected.log_z).interval
    if reference is None:
        return none | {"reason": why}
    return none | {
        "log_z_reference": reference.log_z,
        "log_z_reference_ci": reference.interval,
        "log_z_reference_source": reference.source,
        "log_z_reference_pareto_k": reference.pareto_k,
        "reason": why,
    }


def evaluate(
    config: ConfigDict, domain: Domain, posterior: Policy, known: Exact, workdir: Path, mesh: Mesh
) -> dict[str, Any]:
    """Certificate, metrics and seconds per sample of a posterior; writes ``samples.png`` and ``samples.npz``."""
    settings, beta = config.eval, config.objective.beta
    keys = jax.random.split(stream(config.seed, "evaluate"), 4)
    arguments = dict(count=settings.num_samples, batch=settings.batch_size, beta=beta, mesh=mesh)
    if settings.sampler == "paths":
        ours = paths(keys[0], domain, posterior, label="posterior samples", **arguments)
        upper = exact_gaps(keys[2], domain, posterior, settings.batch_size, beta, mesh)
        statement = certify(domain, ours.gap, known, upper)
        kept = {"log_weight": domain.shown(ours.gap), "log_reward": domain.shown(ours.log_reward)}
        drawn = domain.shown(ours.x)
    else:
        ours = selection.draw(keys[0], config, domain, posterior, mesh)
        statement = uncertified(ours, known, selection.WHY_UNCERTIFIED[settings.sampler])
        kept, drawn = {"log_reward": ours.log_reward}, ours.x
    priors = paths(keys[1], domain, None, label="prior samples", **arguments)
    samples = {"prior": domain.shown(priors.x), "rtb": drawn}
    for name, policy in domain.baselines.items():
        # By the keys of our own paths: the same noise makes a fairer comparison.
        samples[name] = domain.shown(paths(keys[0], domain, policy, label=f"{name} samples", **arguments).x)
    if known.samples.shape[1]:
        samples |= {"exact": domain.shown(known.first()), "exact_again": domain.shown(known.second())}
    metrics = domain.evaluate(samples)
    excess, error = start_excess(keys[3], domain, settings.batch_size, beta, mesh)
    metrics |= {"start_excess": excess, "start_excess_error": error}
    metrics["prior_ess"] = float(np.mean([certificate.effective_sample_size(gap) for gap in priors.gap]))
    titles = {"prior": "prior", "rtb": "RTB posterior", "resampled": "RTB, resampled", "exact": "exact posterior"}
    titles |= {name: name.upper() for name in domain.baselines}
    pictured = dict(samples)
    if statement["verdict"] == "importance_weight":  # What it advises.
        pictured["resampled"] = domain.shown(resampled(stream(config.seed, "resample"), ours))
    with replacing(workdir / "samples.png") as partial:
        domain.plot(partial, {title: pictured[name] for name, title in titles.items() if name in pictured})
    # In full precision: a log-weight belongs to the very sample.
    with replacing(workdir / "samples.npz") as partial:
        np.savez_compressed(
            partial,
            x=drawn,
            prior=domain.shown(priors.x),
            **kept,
        )
    seconds = {"sample": ours.seconds, "prior_sample": priors.seconds}
    return {"certificate": statement, "metrics": metrics, "seconds": seconds}


def finished(workdir: Path) -> dict[str, Any] | None:
    """The summary of a finished run, or None.

    Raises:
      WorkdirError: there is one that no run has written.
    """
    summary = records.read_summary(workdir)
    try:
        if summary is not None:
            report(summary)
    except (KeyError, TypeError, ValueError) as error:
        raise records.WorkdirError(f"{workdir}/summary.json is incomplete; delete it to evaluate again.") from error
    return summary


def report(summary: dict[str, Any]) -> str:
    """The certificate as a person reads it."""
    c = summary["certificate"]
    if c["verdict"] is None:
        return f"no certificate: {c['reason']}"
    low, high = c["log_z_is_ci"]
    lines = [f"log Z  {c['log_z_is']:.3f} [{low:.3f}, {high:.3f}] by importance sampling, {c['num_paths']} paths"]
    if c["log_z_reference"] is not None:
        low, high = c["log_z_reference_ci"]
        lines.append(f"       {c['log_z_reference']:.3f} [{low:.3f}, {high:.3f}] by {c['log_z_reference_source']}")
    bounds = f"ELBO {c['elbo']:.3f}" + ("" if c["eubo"] is None else f", EUBO {c['eubo']:.3f}")
    gap = "path-KL unknown" if c["path_kl"] is None else f"path-KL {c['path_kl']:.3f}"
    lines.append(f"       {bounds}; {gap} nats; ESS {c['ess']:.1%}")
    meaning, advice = certificate.VERDICTS[c["verdict"]]
    lines.append(f"verdict: {c['verdict']}: {c['reason']}")
    lines.append(f"         which says: {meaning}; {advice}.")
    return "\n".join(lines)


def summarise(config: ConfigDict, domain: Domain, result: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """What ``summary.json`` holds; ``training``: ``seconds``, the number of steps ``skipped``, and the provenance."""
    return records.plain(
        {
            "domain": domain.name,
            "data_source": domain.data_source,
            "steps": config.train.steps,
            **training,
            "seconds": training["seconds"] | result["seconds"],
            "certificate": result["certificate"],
            "metrics": result["metrics"],
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
    )
