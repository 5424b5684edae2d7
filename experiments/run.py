"""The one entry point: ``python experiments/run.py --config=configs/mnist.py``.

Trains a posterior, certifies it, and leaves everything in the workdir. Running the same command again resumes.
Any field of the config is set by --config.FIELD=VALUE, such as --config.train.steps=100; configs/base.py and the
config's own file say which there are.
"""

import time

_STARTED = time.monotonic()  # Before the imports, which are part of the wait.

import dataclasses
import difflib
import importlib
import inspect
import os
import re
import shlex
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from experiments import stopping

if __name__ == "__main__":
    stopping.leave_when_asked()  # While the rest is imported, which takes seconds.

import jax
from absl import app, flags, logging
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from experiments import (
    batches,
    compare,
    evaluate,
    exact,
    hosts,
    loop,
    proposal,
    provenance,
    records,
    report,
    selection,
    settings,
    table,
)
from experiments.domains.base import Domain, on_mesh, placed
from experiments.errors import ConfigError, UserError, checking
from rtbjax.rewards import RewardError
from rtbjax.sharding import data_mesh, split_cpu

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/NAME.py, or configs/NAME.py:VARIANT; its header says more."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; runs/NAME or runs/NAME-VARIANT by default.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; only where JAX cannot find it itself.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes; as --coordinator.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0; as --coordinator.", lower_bound=0)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "pretrain", "evaluate"],
    "train also evaluates; evaluate certifies a finished run anew; pretrain makes a shipped network anew.",
)

DOMAINS = ("gmm", "images", "inverse", "control", "stories", "text_to_image")
# Of domains whose comparisons are more than runs side by side.
TABLES = {
    "control": "experiments.control.tables",
    "stories": "experiments.stories.tables",
    "text_to_image": "experiments.text_to_image.sweep",
}
# What a user can mend; anything else is a defect and keeps its traceback.
USER_ERRORS = (UserError, RewardError)
# How the types of fields are called in a message, by what their parsers say of a value of another type.
KINDS = {
    "for int()": "a whole number",
    "to float": "a number",
    "Non-boolean": "true or false",
    "as a ConfigDict": "a section, whose fields are set one by one",
}


def given_config() -> str:
    """The --config flag as it was typed; its own parser no longer knows once loading has failed."""
    for position, argument in enumerate(sys.argv[1:], start=1):
        name, has_value, value = argument.lstrip("-").partition("=")
        if name == "config":
            return value if has_value else (sys.argv[position + 1 : position + 2] or [""])[0]
    return ""


def default_workdir() -> Path:
    """From the --config flag: its file's name and its variant."""
    file, _, variant = given_config().partition(":")
    return Path("runs") / "-".join(filter(None, (Path(file).stem, variant)))


def given_workdir() -> Path:
    return Path(_WORKDIR.value) if _WORKDIR.value else default_workdir()


def typed() -> str | None:
    """The command that was typed; None where there was none, as from a notebook."""
    return shlex.join(["python", *sys.argv]) if flags.FLAGS.is_parsed() else None


def command_elsewhere(workdir: Path) -> str:
    """The command that was typed, with the first workdir of a like name that is free."""
    kept, skip = [], False
    for argument in sys.argv:
        is_workdir = argument.lstrip("-").partition("=")[0] == "workdir" and argument.startswith("-")
        if not skip and not is_workdir:
            kept.append(argument)
        skip = is_workdir and "=" not in argument
    free = next(p for n in range(2, sys.maxsize) if not (p := workdir.with_name(f"{workdir.name}-{n}")).exists())
    return shlex.join(["python", *kept, f"--workdir={free}"])


def prepare(config: ConfigDict) -> tuple[Domain, Mesh]:
    """Checks all that can be checked without computing, and builds. Nothing is written.

    Raises:
      UserError: one sentence on what cannot be.
    """
    settings.check(config)
    settings.check_mesh(config, jax.device_count())
    with checking():
        mesh = data_mesh(config.devices or None, config.fsdp)
        batches.check_devices(config, mesh.size)
        domain = domain_module(config).build(config)
        domain = dataclasses.replace(domain, patience=settings.patience(config))
        proposal.check(config, domain)
        selection.check(config, domain)
        params = loop.started(config, domain)  # Also checks that a conditional log Z, if asked for, exists.
        domain = dataclasses.replace(domain, posterior=domain.posterior.replace(params=params["policy"]))
    return placed(domain, mesh), mesh


def execute(config: ConfigDict, workdir: Path, mode: str = "train", started: float | None = None) -> compare.Finished:
    """One config in one workdir: train or restore, evaluate, summarise; ``started`` as of `loop.Clock`."""
    with loop.Clock(started) as clock:
        done = (evaluate_anew if mode == "evaluate" else train)(config, workdir, clock)
    hosts.agreed(True)  # Only then is everything on disk, for every process to read.
    return done


def train(config: ConfigDict, workdir: Path, clock: loop.Clock) -> compare.Finished:
    """Trains, or goes on, and evaluates; a finished run is only read."""
    domain, mesh = prepare(config)
    # Before the claim: a finished run may lie where nothing can be written.
    if records.confirm(workdir, config.to_dict()) and (summary := evaluate.finished(workdir)) is not None:
        hosts.say(f"{workdir} is already finished; --mode=evaluate evaluates it anew.")
        return compare.Finished(domain, summary, lambda: exact.posterior(config, domain, mesh))
    with records.claimed(workdir, config.to_dict()):
        hosts.say(plan(config))
        # Read before training, so that a damaged file is known at once; drawn after, so that training starts early.
        known = exact.cached(config, domain, config.eval.recompute_exact)
        trained = loop.run(config, domain, workdir, mesh, clock)
        known = known or exact.draw(config, domain, mesh)
        result = evaluate.evaluate(config, domain, trained.policy, known, workdir, mesh)
        origin = provenance.found(typed())
        training = {"seconds": clock.summary(trained), "skipped": trained.skipped, "provenance": origin}
        return compare.Finished(domain, finish(config, domain, result, training, workdir), lambda: known)


def plan(config: ConfigDict) -> str:
    """What is about to be done for one posterior."""
    training = (
        f"{config.train.steps:,} steps of {config.train.batch_size:,} paths" if config.train.steps else "no training"
    )
    return f"To do: {training}, then {config.eval.num_samples:,} fresh paths for each certificate."


def header(given: str) -> str | None:
    """What a config's docstring says beside the command with just this ``--config``, mostly how long it takes."""
    name, colon, variant = given.partition(":")
    file = Path(name).resolve()
    text = file.read_text() if file.is_file() else ""
    written = re.escape(f"{os.path.relpath(file, REPOSITORY)}{colon}{variant}")  # Wherever it was typed.
    beside = re.search(rf"^ +python experiments/run\.py --config={written} {{2,}}(.*)$", text, re.MULTILINE)
    return beside and beside[1]


def evaluate_anew(config: ConfigDict, workdir: Path, clock: loop.Clock) -> compare.Finished:
    """Evaluates what a run left behind; the times it took are carried over."""
    records.confirm(workdir, config.to_dict(), ignore=records.EVALUATION)
    loop.final_params(workdir)
    domain, mesh = prepare(config)
    before = records.read_summary(workdir) or {}
    training = {
        "seconds": before.get("seconds") or clock.summary(None),
        "skipped": before.get("skipped"),
        "provenance": {**(before.get("provenance") or {}), "evaluated_by": typed()},
    }
    with records.locked(workdir):
        policy = on_mesh(loop.restore(config, domain, workdir), mesh)
        known = exact.posterior(config, domain, mesh, config.eval.recompute_exact)
        result = evaluate.evaluate(config, domain, policy, known, workdir, mesh)
        return compare.Finished(domain, finish(config, domain, result, training, workdir), lambda: known)


def finish(config: ConfigDict, domain: Domain, result: dict, training: dict, workdir: Path) -> dict:
    """Writes ``report.html`` and, last of all because it says that the run has finished, ``summary.json``."""
    summary = evaluate.summarise(config, domain, result, training)
    report.write(workdir, records.plain(config.to_dict()), summary, inspect.getdoc(domain_module(config)) or "")
    records.write_json(workdir / "summary.json", summary)
    return summary


def pretrain(config: ConfigDict, workdir: Path) -> None:
    """Makes what a domain trains itself, each in a folder of its own, so that it meets no other run's checkpoints."""
    settings.check(config)
    if not hasattr(domain_module(config), "pretrain"):
        raise ConfigError(
            f"{config.domain} has nothing of its own to train beforehand: its prior is that of "
            f"configs/{config.data.set}.py, which --mode=pretrain makes there."
        )
    # In full: the hint that is printed at the end must hold from wherever it is pasted.
    folder = (workdir / "pretrain" / config.pretrain.get("what", "prior")).resolve()
    with records.claimed(folder, config.to_dict()):
        domain_module(config).pretrain(config, folder)


def domain_module(config: ConfigDict):
    return importlib.import_module(f"experiments.domains.{config.domain}")


def start_distributed() -> None:
    """Joins the processes of a run; what they are JAX finds out on a TPU pod and under SLURM, or the flags say.

    Raises:
      ConfigError: neither says it.
    """
    try:
        jax.distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    except ValueError as error:
        needed = "a TPU pod, SLURM, or --coordinator, --num_processes and --process_id"
        raise ConfigError(f"config.distributed=True needs {needed}: {error}") from error


def run(_argv) -> None:
    config, workdir, mode = _CONFIG.value, given_workdir(), _MODE.value
    settings.one_of(config, "domain", DOMAINS)
    split_cpu(config.cpu_devices)
    if config.distributed:
        start_distributed()
    if mode == "train" and (said := header(given_config())) and evaluate.finished(workdir) is None:
        hosts.say(f"{given_config()}, without other options: {said}.")
    if mode == "pretrain":
        pretrain(config, workdir)
    elif config.table:
        hosts.say(table.run(config, workdir, execute, mode, prepare))
        hosts.say(f"{workdir}: table.md, table.json, and a folder per method with its label and seed")
    elif config.compare:
        own = importlib.import_module(TABLES[config.domain]).collect if config.domain in TABLES else None
        # A table of a domain's own has cells on other data sets, whose weights may yet be made: it checks them itself.
        check = settings.check if own else prepare
        hosts.say(compare.run(config, workdir, execute, mode, check, own))
        hosts.say(f"{workdir}: comparison.md, comparison.json")
    else:
        done = execute(config, workdir, mode, _STARTED)
        hosts.say(evaluate.report(done.summary))
        if (workdir / "report.html").exists():
            hosts.say(
                f"{workdir}/report.html shows it all; beside it: samples.npz, summary.json, final_params.safetensors"
            )


def main(argv) -> None:
    logging.set_verbosity(logging.WARNING)  # Checkpointing narrates itself at INFO.
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/rtbjax/xla").expanduser()))
    stopping.listen()
    try:
        run(argv)
    except stopping.Terminated as terminated:
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()  # The others must not take it for a crash.
        stopping.leave(str(terminated))
    except records.OtherRun as error:
        sys.exit(f"rtbjax: {str(error).rstrip('.')}, for example: {command_elsewhere(given_workdir())}")
    except USER_ERRORS as error:
        sys.exit(f"rtbjax: {error}")


def parse(argv: list[str]) -> list[str]:
    """Parses flags; a bad one is one sentence on stderr."""
    try:
        args = flags.FLAGS(argv)
        if args[1:]:
            raise flags.Error(f"{args[1]!r} is no flag; fields of the config are set by --config.FIELD=VALUE.")
        if _CONFIG.value is None:
            raise flags.Error(config_required())
        _ = _CONFIG.value["domain"]  # A config that failed to load says so only when it is read.
        return args
    except SystemExit:  # The help was asked for and printed, which absl takes for a failure.
        sys.exit(0)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(f"rtbjax: {explain(str(error))}")
    except Exception as error:  # A config is a program and fails like one.
        sys.exit(f"rtbjax: {given_config()} cannot be loaded: {type(error).__name__}: {error}")


def configs_like(name: str = "") -> list[str]:
    """The configs of the repository; the ones of a like name come first."""
    folder = REPOSITORY / "configs"
    found = [f"configs/{path.name}" for path in sorted(folder.glob("*.py")) if "def get_config(" in path.read_text()]
    near = difflib.get_close_matches(name, found, n=len(found))
    return near + [name for name in found if name not in near]


def config_required() -> str:
    return f"--config is required, one of {', '.join(configs_like())}."


def explain(message: str) -> str:
    """One sentence out of what ml_collections says about a config, which may hold a whole traceback."""
    lines = [line.strip() for line in message.strip().splitlines()]
    file = given_config().partition(":")[0]
    if file and not Path(file).is_file():
        if (there := REPOSITORY / file).is_file():
            return f"there is no config {file} in this folder; the repository's is {there}."
        return f"there is no config {file}; there are {', '.join(configs_like(file))}."
    misspelt = re.search(r'Did you mean "(.*)" instead of "(.*)"', message)
    if misspelt:
        return f"the config has no field {misspelt[2]!r}; did you mean {misspelt[1]!r}?"
    if "Path to config file is an empty string" in message:
        return config_required()
    if "Traceback" in message or "failure to load" in message:
        return f"{given_config()} cannot be loaded: {lines[-1].removeprefix('ValueError: ')}"
    ill_typed = re.fullmatch(r"flag --(config\.[\w.]+)=(.*?): (.*)", message.strip(), re.DOTALL)
    if ill_typed:
        name, value, reason = ill_typed.groups()
        kind = next((kind for word, kind in KINDS.items() if word in reason), None)
        return f"{name} must be {kind}, got {value!r}." if kind else f"{name}={value}: {reason}"
    if re.fullmatch(r"\W*\w+\W*", message):
        return f"the config has no field {re.sub(r'[^0-9A-Za-z_]', '', message)!r}."
    return " ".join(lines)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
