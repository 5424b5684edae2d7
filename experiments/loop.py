"""One flat loop: resume, propose, update, log, save."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from experiments import batches, hosts, objectives, optimizers, parity, records, stopping, warm_start, weights
from experiments.checkpoint import CheckpointError, Checkpoints
from experiments.domains.base import Domain
from experiments.finite import Diverged, blame, finite
from experiments.proposal import Proposal, widening
from experiments.streams import stream
from rtbjax import Policy, Trajectory, certificate, train
from rtbjax.rewards import RewardError


class Clock:
    """Seconds since a command started, and those of them spent tracing and compiling, as JAX reports them.

    It listens to JAX where it is entered, ``with Clock() as clock``.

    Attributes:
      compiling: so far.
      first_step: when the first training step of this sitting was done, or None.
    """

    def __init__(self, started: float | None = None):
        """Counts from ``started``, a time of `time.monotonic`; from now if None."""
        self.compiling = 0.0
        self.first_step: float | None = None
        self._started = time.monotonic() if started is None else started

    def __enter__(self) -> "Clock":
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def now(self) -> float:
        return time.monotonic() - self._started

    def step_done(self, state: PyTree) -> None:
        """Tells once when the first training step is through; ``state`` is what the step returned."""
        if self.first_step is None:
            jax.block_until_ready(state)
            self.first_step = self.now()
            hosts.say(
                f"First step {self.first_step:.1f} s after the start of the command; "
                f"tracing and compiling took {self.compiling:.1f} s of them."
            )

    def summary(self, trained: "Trained | None") -> dict[str, float | None]:
        """As written to ``summary.json``, at the end of a sitting; earlier ones count in ``train`` and ``total``."""
        return {
            "compile": self.compiling,
            "first_step": self.first_step,
            "train": trained and trained.seconds,
            "total": self.now() + (trained.earlier if trained else 0.0),
        }

    def _listen(self, event: str, duration: float, **_) -> None:
        if event.startswith("/jax/core/compile/"):
            self.compiling += duration


class Trained(NamedTuple):
    """Attributes:
    policy: the posterior.
    seconds: in the loop and what comes before its first step, over all sittings, each up to its last checkpoint.
    earlier: of these, in sittings before this one.
    skipped: steps that taught nothing (see `rtbjax.make_update`).
    """

    policy: Policy
    seconds: float
    earlier: float
    skipped: int


def run(config: ConfigDict, domain: Domain, workdir: Path, mesh: Mesh, clock: Clock) -> Trained:
    """Trains, or goes on training.

    Raises:
      Diverged: too many steps in a row were skipped, or parameters are not finite, which are never saved.
      RewardError: see `rtbjax.rewards.evaluate`; what was done before is saved.
      CheckpointError: there are checkpoints and none can be read, or there ought to be; or one cannot be written.
      WriteError: see `experiments.files.replacing`.
      Terminated: it was asked to stop (see `experiments.stopping`); what is done is saved.
    """
    steps = config.train.steps
    # A posterior that was trained before is not led back to the value.
    steers = domain.value is not None and config.steer.steps > 0 and not config.posterior.start
    # Order matters: whatever a resumed run repeats must come after the restore, and the step's own key is folded from
    # the seed and the step, so that a resumed run draws what an uninterrupted one would.
    optimizer = optimizers.make(config)
    update = train.make_update(objectives.make(config, domain), optimizer, mesh, log_z_limit=config.train.log_z_limit)
    parity_of = parity.checker(domain)
    source = Proposal(config, domain, mesh)
    state = train.init_state(started(config, domain), optimizer, mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
    began = time.monotonic()

    blank = {"state": state, "buffers": source.blank(), "seconds": np.float64(0.0)}
    found = checkpoints.restore(blank)
    if found is None:
        first, earlier = 0, 0.0
        check_nothing_lost(workdir, config.checkpoint.every)
        if steers:
            policy = warm_start.run(
                domain, config.steer, stream(config.seed, "warm start"), workdir / "steer", clock.step_done
            )
            state = train.init_state(state.params | {"policy": policy}, optimizer, mesh)
        buffers = source.init(stream(config.seed, "gather"))
        if steers:  # What took long is not done, and its time not forgotten, twice.
            checkpoints.save(0, {"state": state, "buffers": buffers, "seconds": np.float64(time.monotonic() - began)})
    else:
        first, saved = found
        state, buffers, earlier = saved["state"], saved["buffers"], float(saved["seconds"])
        hosts.say(f"Resuming {workdir} at step {first} of {steps}.")

    def spent() -> float:
        return earlier + time.monotonic() - began

    def save(done: int) -> None:
        if checkpoints.latest() == done:
            return
        if not finite(state.params):
            raise Diverged(f"The parameters are not finite at step {done}; {last_good(checkpoints, workdir)}.")
        checkpoints.save(done, {"state": state, "buffers": buffers, "seconds": np.float64(spent())})

    def check_taught(done: int, trajectory: Trajectory, info: train.StepInfo) -> None:
        # Only now and then: it waits for the step.
        if (in_row := int(state.skipped_in_row)) < min(config.train.max_skipped, steps):
            return
        objective = config.objective
        own = np.tile(np.arange(config.train.batch_size // groups) < on_policy, groups)
        balanced = objectives.warmed_up(config, trajectory, done - 1)
        blamed = blame(balanced, info, own=own, beta=objective.beta, learned=objective.log_z == "learned")
        raise Diverged(
            f"{in_row} steps in a row, up to step {done}, were skipped: loss or gradient were not finite, or log Z was "
            f"beyond config.train.log_z_limit. To blame is {blamed}; {last_good(checkpoints, workdir)}, and a "
            "smaller config.train.learning_rate or config.train.clip_norm in another --workdir may help."
        )

    key = stream(config.seed, "train")
    on_policy, groups, width = batches.path_counts(config)["on_policy"], batches.groups(config), widening(config)
    metrics = records.Metrics(workdir / "metrics.jsonl", first)
    with (
        hosts.progress(total=steps, initial=first, desc=domain.name, unit="step") as bar,
        stopping.deferred() as asked_to_stop,
    ):
        for step in range(first, steps):
            propose_key, update_key = jax.random.split(jax.random.fold_in(key, step))
            try:
                trajectory, buffers = source.propose(propose_key, step, state.params["policy"], buffers)
            except RewardError as error:
                save(step)
                raise RewardError(
                    f"{error} What was done is saved: the same command goes on at step {step}."
                ) from error
            done = step + 1
            to_log, to_save = (
                done % every == 0 or done == steps for every in (config.log.every, config.checkpoint.every)
            )
            difference = parity_of(state.params["policy"], trajectory) if to_log else None  # The update donates them.
            state, info = update(state, objectives.warmed_up(config, trajectory, step), update_key)
            clock.step_done(state)
            if difference is not None:
                values = summarise(info, trajectory, 0 if float(width(step)) else on_policy, groups)
                values["parity"] = float(difference)
                parity.warn(done, values["parity"])
                values["skipped"] = int(state.skipped)
                metrics.write(done, values | {"seconds": round(spent(), 3)})
                shown = {"loss": "loss", "log Z": "log_z", "ELBO": "elbo", "ESS": "ess"}
                bar.set_postfix({k: f"{values[v]:.3g}" for k, v in shown.items() if v in values}, refresh=False)
            bar.update()
            if to_log or to_save:
                check_taught(done, trajectory, info)
            stop = hosts.any_of(asked_to_stop())
            if to_save or stop:
                save(done)
            if stop and done < steps:
                raise stopping.Terminated(f"stopped as asked; the same command goes on at step {done}.")
    metrics.close()
    checkpoints.close()
    if skipped := int(state.skipped):
        logging.warning(
            "%d of %d steps were skipped: loss or gradient were not finite, or log Z too large.", skipped, steps
        )
    weights.save(workdir / "final_params.safetensors", state.params, {"domain": domain.name, "steps": steps})
    return Trained(domain.posterior.replace(params=state.params["policy"]), spent(), earlier, skipped)


def last_good(checkpoints: Checkpoints, workdir: Path) -> str:
    step = checkpoints.latest()
    return "there is no checkpoint yet" if step is None else f"the last good checkpoint is {workdir}/checkpoints/{step}"


def check_nothing_lost(workdir: Path, every: int) -> None:
    """Refuses to start over, and so to overwrite, where checkpoints must have been.

    Raises:
      CheckpointError: ``metrics.jsonl`` reaches beyond the first checkpoint.
    """
    logged = records.last_logged_step(workdir / "metrics.jsonl")
    if logged > every:
        raise CheckpointError(
            f"{workdir}/metrics.jsonl reaches step {logged}, but {workdir}/checkpoints holds no checkpoint: put them "
            "back, or move metrics.jsonl away to start over."
        )


def summarise(info: train.StepInfo, trajectory: Trajectory, on_policy: int, groups: int = 1) -> dict[str, float]:
    """A step in numbers.

    Args:
      info: of the step.
      trajectory: its batch.
      on_policy: how many paths, the first of each condition's, are the posterior's own. ELBO, ESS and log r are of
        these; widened paths are not its own, so there are none while exploration lasts.
      groups: conditions in the batch; ESS is the mean over them.
    """
    values = {name: float(getattr(info, name)) for name in ("loss", "log_z", "residual", "grad_norm")}
    if on_policy:
        gap, log_r = (hosts.whole(a).reshape(groups, -1)[:, :on_policy] for a in (info.gap, trajectory.log_reward))
        values["elbo"] = float(gap.mean())
        even = [certificate.effective_sample_size(one) if np.isfinite(one).all() else np.nan for one in gap]
        values["ess"] = float(np.mean(even))
        values["log_reward"] = float(log_r.mean())
    return values


def final_params(workdir: Path) -> Path:
    """Where a finished run left its posterior.

    Raises:
      CheckpointError: the run has not finished.
    """
    path = workdir / "final_params.safetensors"
    if not path.exists():
        finished = (workdir / "summary.json").exists()
        hint = (
            "move its summary.json away, and --mode=train makes it anew"
            if finished
            else "train it first (--mode=train)"
        )
        raise CheckpointError(f"{workdir} has no final_params.safetensors: {hint}.")
    return path


def restore(config: ConfigDict, domain: Domain, workdir: Path) -> Policy:
    """The posterior a finished run left behind, its parameters arrays of JAX, which any function of them can index.

    Raises:
      CheckpointError: the run has not finished.
      experiments.weights.WeightsError: its parameters cannot be read.
    """
    params: Any = weights.load(final_params(workdir), objectives.initial_params(config, domain))
    return domain.posterior.replace(params=jax.tree.map(jnp.asarray, params["policy"]))


def started(config: ConfigDict, domain: Domain) -> PyTree:
    """What a run trains, at its start: the parameters of ``posterior.start`` where there is one, log Z included.

    A log Z that only the other run learned is left out; one that only this run learns starts as it would without.

    Raises:
      experiments.weights.WeightsError: they cannot be read.
    """
    params = objectives.initial_params(config, domain)
    if not config.posterior.start:
        return params
    return weights.load(weights.locate(config.posterior.start), params, optional="log_z")
