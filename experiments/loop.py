"""One flat loop: resume, propose, update, log, save."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from optax.contrib import muon
from tqdm.auto import tqdm

from experiments import objectives, proposal, records, warm_start, weights
from experiments.checkpoint import CheckpointError, Checkpoints
from experiments.domains.base import Domain
from rtbjax import Policy, Trajectory, certificate, train

OPTIMIZERS = {"adam": optax.adam, "muon": muon}


class CompileClock:
    """Seconds spent tracing and compiling so far, as JAX reports them."""

    def __init__(self):
        self.seconds = 0.0
        self._started = time.monotonic()
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def since_start(self) -> float:
        """Seconds since this clock was made."""
        return time.monotonic() - self._started

    def _listen(self, event: str, duration: float, **_) -> None:
        if event.startswith("/jax/core/compile/"):
            self.seconds += duration


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Linear warm-up, then cosine to 0."""
    settings = config.train
    return optax.warmup_cosine_decay_schedule(
        0.0 if settings.warmup_steps else settings.learning_rate,
        settings.learning_rate,
        settings.warmup_steps,
        max(settings.steps, settings.warmup_steps + 1),
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Of a config's ``train``."""
    settings = config.train
    return train.optimizer(
        learning_rate(config),
        settings.log_z_learning_rate,
        clip_norm=settings.clip_norm,
        rule=OPTIMIZERS[settings.optimizer],
    )


def run(config: ConfigDict, domain: Domain, workdir: Path, mesh: Mesh, clock: CompileClock) -> tuple[Policy, float]:
    """Trains, or goes on training, and returns the posterior and the seconds spent over all its sittings."""
    settings = config.train
    # Order matters: whatever a resumed run repeats must come after the restore, and the step's own key is folded from
    # the seed and the step, so that a resumed run draws what an uninterrupted one would.
    optimizer = make_optimizer(config)
    update = train.make_update(objectives.make(config, domain), optimizer, mesh)
    source = proposal.make(config, domain, mesh)
    state = train.init_state(objectives.initial_params(config, domain), optimizer)
    key = jax.random.key(config.seed)
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
    started = time.monotonic()

    blank = {"state": state, "buffers": source.blank(), "seconds": np.float64(0.0)}
    found = checkpoints.restore(blank)
    if found is None:
        first, before = 0, 0.0
        with tqdm(total=config.behaviour.warm_accepted, desc="gathering exact paths", unit="path") as bar:
            seen = warm_start.Seen()
            keep = seen.keep if domain.value is not None else lambda trajectory: None
            buffers = source.init(jax.random.fold_in(key, 0xACCE), bar, keep)
        if domain.value is not None and config.steer.steps:
            accepted = source.accepted_paths(buffers)
            policy = warm_start.run(config, domain, seen, accepted, jax.random.fold_in(key, 0xA1), workdir)
            state = train.init_state(state.params | {"policy": policy}, optimizer)
    else:
        first, saved = found
        state, buffers, before = saved["state"], saved["buffers"], float(saved["seconds"])
        print(f"Resuming {workdir} at step {first} of {settings.steps}.")

    def spent() -> float:
        return before + time.monotonic() - started

    on_policy = proposal.counts(config)["on_policy"]
    metrics = records.Metrics(workdir / "metrics.jsonl", first)
    with tqdm(total=settings.steps, initial=first, desc=domain.name, unit="step") as bar:
        for step in range(first, settings.steps):
            propose_key, update_key = jax.random.split(jax.random.fold_in(key, step))
            trajectory, buffers = source.propose(propose_key, step, state.params["policy"], buffers)
            state, info = update(state, trajectory, update_key)
            done = step + 1
            if step == first:
                jax.block_until_ready(state)
                tqdm.write(f"First step after {spent() - before:.1f} s, {clock.seconds:.1f} s of them compiling.")
            if done % config.log.every == 0 or done == settings.steps:
                values = summarise(info, trajectory, on_policy)
                metrics.write(done, values | {"seconds": round(spent(), 3)})
                shown = {"loss": "loss", "log Z": "log_z", "ELBO": "elbo", "ESS": "ess"}
                bar.set_postfix({k: f"{values[v]:.3g}" for k, v in shown.items() if v in values}, refresh=False)
                if not np.isfinite(values["loss"]):
                    raise FloatingPointError(
                        f"The loss is {values['loss']} at step {done}; the last good state is in {workdir}/checkpoints."
                    )
            bar.update()
            if done % config.checkpoint.every == 0 or done == settings.steps:
                checkpoints.save(done, {"state": state, "buffers": buffers, "seconds": np.float64(spent())})
    metrics.close()
    checkpoints.close()
    weights.save(workdir / "final_params.safetensors", state.params, {"domain": domain.name, "steps": settings.steps})
    return domain.posterior.replace(params=state.params["policy"]), spent()


def summarise(info: train.StepInfo, trajectory: Trajectory, on_policy: int) -> dict[str, float]:
    """A step in numbers. ELBO, ESS and log r are of its on-policy paths, which come first in a batch."""
    gap = np.asarray(info.gap)[:on_policy]
    values = {name: float(getattr(info, name)) for name in ("loss", "log_z", "residual", "grad_norm")}
    if on_policy:
        values["elbo"] = float(gap.mean())
        values["ess"] = certificate.effective_sample_size(gap)
        values["log_reward"] = float(np.mean(np.asarray(trajectory.log_reward)[:on_policy]))
    return values


def restore(config: ConfigDict, domain: Domain, workdir: Path) -> tuple[Policy, float]:
    """The posterior a finished run left behind.

    Raises:
      CheckpointError: the run has not finished.
      experiments.weights.WeightsError: its parameters cannot be read.
    """
    path = workdir / "final_params.safetensors"
    if not path.exists():
        raise CheckpointError(f"{workdir} has no final_params.safetensors: train it first (--mode=train).")
    params: Any = weights.load(path, objectives.initial_params(config, domain))
    return domain.posterior.replace(params=params["policy"]), float("nan")
