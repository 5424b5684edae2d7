"""Plays what finished runs of configs/d4rl.py left behind, beside prior, IDQL and the baselines they pretrained.

    python -m experiments.control.play runs/d4rl runs/d4rl-2 --episodes=10

Runs that differ in nothing but their seed are one policy trained several times. Prints D4RL-normalised scores and
writes ``scores.json`` into the first workdir.
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import loop, records
from experiments.control import baselines, networks, rollouts
from experiments.control.tasks import Task
from experiments.domains import control
from experiments.errors import UserError

LATENCY_CALLS = 20


def same_but_seed(configs: list[ConfigDict]) -> None:
    """Raises a UserError unless the configs differ in their seeds alone."""
    plain = [{name: v for name, v in records.flatten(c.to_dict()).items() if name != "seed"} for c in configs]
    other = next((p for p in plain if p != plain[0]), None)
    if other is not None:
        names = sorted(name for name in plain[0].keys() | other.keys() if plain[0].get(name) != other.get(name))
        raise UserError(f"The runs must differ in config.seed alone, and they differ in config.{names[0]}.")


def actors(config: ConfigDict, runs: dict[str, Path], pretrained: Path, candidates: int) -> dict[str, rollouts.Actor]:
    """The policies there are, by name: behaviour cloning, IDQL, pretrained baselines, final parameters of runs.

    Args:
      config: of the prior and the values that all share.
      runs: workdirs of RTB by the name of each.
      pretrained: a folder of baselines (`baselines.actors`).
      candidates: actions that IDQL chooses from.
    """
    domain, dim = control.build(config), networks.task_of(config).action_dim
    cloned = rollouts.diffusion_actor(domain.process, domain.prior, None, dim)
    found = {"bc": cloned, "idql": rollouts.best_of(cloned, domain.log_reward, candidates)}
    found |= baselines.actors(config, pretrained)
    for name, workdir in runs.items():
        one = records.config_of(workdir, "control", "configs/d4rl.py")
        built = control.build(one)
        trained = loop.restore(one, built, workdir)
        found[name] = rollouts.diffusion_actor(built.process, built.prior, trained, dim)
    return found


def latency(actor: rollouts.Actor, observation_dim: int) -> float:
    """Milliseconds for the action in one state, compiled."""
    key, state = jax.random.key(0), jnp.zeros((1, observation_dim))
    jax.block_until_ready(actor(key, state))
    started = time.perf_counter()
    for _ in range(LATENCY_CALLS):
        jax.block_until_ready(actor(key, state))
    return 1e3 * (time.perf_counter() - started) / LATENCY_CALLS


def episodes_of(actor: rollouts.Actor, task: Task, episodes: int, seed: int) -> dict:
    """What an actor earned: normalised ``scores`` of its episodes, and ``latency_ms``."""
    returns = rollouts.play(actor, task, episodes=episodes, seed=1000 * seed)
    return {"scores": task.score(returns), "latency_ms": latency(actor, task.observation_dim)}


def summary(played: list[dict]) -> dict:
    """Of one policy trained and played with several seeds (`episodes_of` each): mean, interval, latency."""
    scores = np.stack([np.asarray(one["scores"]) for one in played])
    return {
        "score": float(scores.mean()),
        "interval": rollouts.interval(scores),
        "latency_ms": float(np.median([one["latency_ms"] for one in played])),
        "scores": scores,
    }


def scores(workdirs: list[Path], episodes: int, candidates: int) -> dict:
    """Scores of each policy: per run and episode, mean, interval, latency.

    A policy counts if all the runs have it.

    Raises:
      UserError: a run is not finished, of another domain, or not like the first.
    """
    configs = [records.config_of(workdir, "control", "configs/d4rl.py") for workdir in workdirs]
    same_but_seed(configs)
    task = networks.task_of(configs[0])
    there = [
        actors(config, {"rtb": workdir}, workdir / "pretrain", candidates)
        for config, workdir in zip(configs, workdirs, strict=True)
    ]
    policies = {}
    for name in there[0]:
        if all(name in found for found in there):
            each = zip(configs, there, strict=True)
            policies[name] = summary([episodes_of(found[name], task, episodes, c.seed) for c, found in each])
    return {"environment": task.environment, "seeds": [c.seed for c in configs], "policies": policies}


def spread(interval: tuple[float, float] | None) -> str:
    """For a table."""
    return "" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"


def report(found: dict) -> str:
    """A Markdown table."""
    lines = [f"{found['environment']}, seeds {found['seeds']}", "", "| policy | score | 95 % | ms an action |"]
    lines.append("|---|---|---|---|")
    for name, p in found["policies"].items():
        lines.append(f"| {name} | {p['score']:.1f} | {spread(p['interval'])} | {p['latency_ms']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", type=Path, nargs="+", help="of finished runs that differ in their seed")
    parser.add_argument("--episodes", type=int, default=10, help="for each run and policy")
    parser.add_argument("--candidates", type=int, default=32, help="actions that IDQL chooses from")
    arguments = parser.parse_args()
    try:
        found = scores(arguments.workdirs, arguments.episodes, arguments.candidates)
    except UserError as error:
        sys.exit(f"rtbjax: {error}")
    records.write_json(arguments.workdirs[0] / "scores.json", found)
    print(report(found))


if __name__ == "__main__":
    main()
