"""The one entry point: ``python experiments/run.py --config=configs/mnist.py``.

Trains a posterior, certifies it, and leaves everything in the workdir. Running the same command again resumes.
"""

import importlib
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments import compare, evaluate, exact, loop, records, settings
from rtbjax.rewards import RewardError
from rtbjax.sharding import data_mesh

_CONFIG = config_flags.DEFINE_config_file("config", None, "configs/DOMAIN.py, or configs/DOMAIN.py:VARIANT.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; runs/DOMAIN or runs/DOMAIN-VARIANT by default.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "pretrain", "evaluate"], "What to do.")

DOMAINS = ("gmm", "images")
# What a user can mend; anything else is a defect and keeps its traceback.
USER_ERRORS = (ValueError, RewardError, FloatingPointError, FileNotFoundError, PermissionError)


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


def execute(config: ConfigDict, workdir: Path, mode: str = "train") -> compare.Finished:
    """One config in one workdir: train or restore, evaluate, summarise."""
    settings.check(config)
    clock = loop.CompileClock()
    records.claim(workdir, config.to_dict(), ignore=("eval", "log") if mode == "evaluate" else ())
    mesh = data_mesh(config.devices or None)
    domain = domain_module(config).build(config)
    summary = records.read_summary(workdir)
    if summary is not None and mode == "train":
        print(f"{workdir} is already finished; --mode=evaluate evaluates it anew.")
        return compare.Finished(domain, summary, exact.posterior(config, domain, mesh))
    if mode == "evaluate":
        posterior, train_seconds = loop.restore(config, domain, workdir)
    else:
        posterior, train_seconds = loop.run(config, domain, workdir, mesh, clock)
    known = exact.posterior(config, domain, mesh)
    result = evaluate.evaluate(config, domain, posterior, known, workdir, mesh)
    seconds = {"compile": clock.seconds, "train": train_seconds, "total": clock.since_start()}
    summary = evaluate.summarise(config, domain, result, seconds, workdir)
    return compare.Finished(domain, summary, known)


def domain_module(config: ConfigDict):
    return importlib.import_module(f"experiments.domains.{config.domain}")


def run(_argv) -> None:
    config = _CONFIG.value
    settings.one_of(config, "domain", DOMAINS)
    workdir = Path(_WORKDIR.value) if _WORKDIR.value else default_workdir()
    if config.distributed:
        jax.distributed.initialize()
    if _MODE.value == "pretrain":
        settings.check(config)
        domain_module(config).pretrain(config, workdir)
    elif config.compare:
        print(compare.run(config, workdir, execute))
        print(f"{workdir}: figure.png, comparison.md, comparison.json")
    else:
        done = execute(config, workdir, _MODE.value)
        print(evaluate.report(done.summary))
        print(f"{workdir}: samples.png, samples.npz, summary.json, metrics.jsonl, final_params.safetensors")


def main(argv) -> None:
    logging.set_verbosity(logging.WARNING)  # Checkpointing narrates itself at INFO.
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/rtbjax/xla").expanduser()))
    try:
        run(argv)
    except USER_ERRORS as error:
        logging.debug("", exc_info=True)
        sys.exit(f"rtbjax: {error}")


def parse(argv: list[str]) -> list[str]:
    """Parses flags; a bad one is one sentence on stderr."""
    try:
        args = flags.FLAGS(argv)
        if _CONFIG.value is None:
            raise flags.Error("--config is required: --config=configs/gmm.py or --config=configs/mnist.py.")
        _ = _CONFIG.value["domain"]  # A config that failed to load says so only when it is read.
        return args
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(f"rtbjax: {explain(str(error))}")


def explain(message: str) -> str:
    """One sentence out of what ml_collections says about a config, which may hold a whole traceback."""
    lines = [line.strip() for line in message.strip().splitlines()]
    misspelt = re.search(r'Did you mean "(.*)" instead of "(.*)"', message)
    if misspelt:
        return f"the config has no field {misspelt[2]!r}; did you mean {misspelt[1]!r}?"
    if "Traceback" in message or "failure to load" in message:
        return f"{given_config()} cannot be loaded: {lines[-1]}"
    if re.fullmatch(r"\W*\w+\W*", message):
        return f"the config has no field {re.sub(r'[^0-9A-Za-z_]', '', message)!r}."
    return " ".join(lines)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
