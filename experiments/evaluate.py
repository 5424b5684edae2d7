"""After training: fresh paths, the certificate, metrics, plots, ``summary.json``."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from experiments import records
from experiments.domains.base import Domain, rewarded
from experiments.exact import Exact
from experiments.files import replacing
from experiments.streams import stream
from rtbjax import Policy, behaviour, certificate, score
from rtbjax.train import make_rollout

START_EXCESS_ERRORS = 3.0  # An excess of so many standard errors is taken for one.


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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fresh paths of the posterior (or of the prior): samples, log r, and gap (zeros for the prior's)."""
    run = make_rollout(domain.process, (batch, *domain.event_shape), mesh)
    samples, log_rewards, gaps = [], [], []
    for first in tqdm(range(0, count, batch), desc=label, unit="batch"):
        trajectory = rewarded(domain, run(jax.random.fold_in(key, first), domain.prior, posterior))
        log_r = np.asarray(trajectory.log_reward)
        samples.append(np.asarray(trajectory.xs[-1]))
        log_rewards.append(log_r)
        ratio = np.zeros(batch) if trajectory.log_ratio is None else np.asarray(trajectory.log_ratio).sum(axis=0)
        gaps.append(ratio + beta * log_r)
    x, log_r, gap = (np.concatenate(parts)[:count] for parts in (samples, log_rewards, gaps))
    return x, log_r, gap


def exact_gap(
    key: jax.Array, domain: Domain, posterior: Policy, count: int, beta: float, mesh: Mesh
) -> np.ndarray | None:
    """Gaps of accepted prior paths among ``count`` prior paths, for the upper bound; None if none was accepted."""
    if domain.log_bound is None:
        return None
    roll, accept = jax.random.split(key)
    trajectory = rewarded(domain, make_rollout(domain.process, (count, *domain.event_shape), mesh)(roll, domain.prior))
    log_r = np.asarray(trajectory.log_reward)
    keep = np.asarray(behaviour.accept(accept, log_r, domain.log_bound, beta=beta))
    if not keep.any():
        return None
    rescore = jax.jit(lambda policy, xs: score(domain.process, domain.prior, xs, None, policy).log_ratio)
    return np.asarray(rescore(posterior, trajectory.xs[:, keep])).sum(axis=0) + beta * log_r[keep]


def start_excess(key: jax.Array, domain: Domain, count: int, beta: float, mesh: Mesh) -> tuple[float, float]:
    """What sharing p_T with the prior costs (`rtbjax.certificate.start_excess`), and its standard error.

    From ``count`` pairs of prior paths, each pair from one ``xs[0]``. Warns of an excess beyond its noise.
    """
    first_key, second_key = jax.random.split(key)
    run = make_rollout(domain.process, (count, *domain.event_shape), mesh)
    first = rewarded(domain, run(first_key, domain.prior))
    second = rewarded(domain, run(second_key, domain.prior, start=first.xs[0]))
    excess, error = certificate.start_excess(np.asarray(first.log_reward), np.asarray(second.log_reward), beta)
    if excess > START_EXCESS_ERRORS * error:
        logging.warning(
            "The reward depends on where a path starts (excess %.3g, standard error %.2g): training cannot remove a "
            "path-KL of about %.2g nats.",
            *(excess, error, excess / 2),
        )
    return excess, error


def evaluate(
    config: ConfigDict, domain: Domain, posterior: Policy, known: Exact, workdir: Path, mesh: Mesh
) -> dict[str, Any]:
    """Certificate and metrics of a trained posterior; writes ``samples.png`` and ``samples.npz``."""
    settings, beta = config.eval, config.objective.beta
    keys = jax.random.split(stream(config.seed, "evaluate"), 4)
    arguments = dict(count=settings.num_samples, batch=settings.batch_size, beta=beta, mesh=mesh)
    x, log_r, gap = paths(keys[0], domain, posterior, label="posterior samples", **arguments)
    x_prior, log_r_prior, _ = paths(keys[1], domain, None, label="prior samples", **arguments)
    upper = exact_gap(keys[2], domain, posterior, settings.batch_size, beta, mesh)
    found = certificate.certify(gap, known.log_z, upper)
    half = len(known.samples) // 2
    samples = {"prior": x_prior, "rtb": x}
    if half:
        samples |= {"exact": known.samples[:half], "exact_again": known.samples[half:]}
    metrics = domain.evaluate(samples)
    excess, error = start_excess(keys[3], domain, settings.batch_size, beta, mesh)
    metrics |= {"start_excess": excess, "start_excess_error": error}
    metrics["prior_ess"] = certificate.effective_sample_size(beta * log_r_prior)
    titles = {"prior": "prior", "rtb": "RTB posterior", "exact": "exact posterior"}
    with replacing(workdir / "samples.png") as partial:
        domain.plot(partial, {title: samples[name] for name, title in titles.items() if name in samples})
    # In full precision: a log-weight belongs to the very sample.
    with replacing(workdir / "samples.npz") as partial:
        np.savez_compressed(partial, x=x, log_weight=gap, log_reward=log_r, prior=x_prior)
    return {"certificate": found.to_dict(), "metrics": metrics}


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
    low, high = c["log_z_is_ci"]
    lines = [f"log Z  {c['log_z_is']:.3f} [{low:.3f}, {high:.3f}] by importance sampling, {c['num_paths']} paths"]
    if c["log_z_reference"] is not None:
        low, high = c["log_z_reference_ci"]
        lines.append(f"       {c['log_z_reference']:.3f} [{low:.3f}, {high:.3f}] by {c['log_z_reference_source']}")
    bounds = f"ELBO {c['elbo']:.3f}" + ("" if c["eubo"] is None else f", EUBO {c['eubo']:.3f}")
    gap = "path-KL unknown" if c["path_kl"] is None else f"path-KL {c['path_kl']:.3f}"
    lines.append(f"       {bounds}; {gap} nats; ESS {c['ess']:.1%}")
    lines.append(f"verdict: {c['verdict']}. {certificate.VERDICTS[c['verdict']]}")
    return "\n".join(lines)


def summarise(config: ConfigDict, domain: Domain, result: dict[str, Any], training: dict[str, Any], workdir: Path):
    """Writes ``summary.json``; ``training`` holds ``seconds`` and the number of steps ``skipped``."""
    summary = {
        "domain": domain.name,
        "data_source": domain.data_source,
        "steps": config.train.steps,
        **training,
        "certificate": result["certificate"],
        "metrics": result["metrics"],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    records.write_json(workdir / "summary.json", summary)
    return summary
