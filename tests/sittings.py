"""Runs in processes of their own, forked from one that has imported everything: killed often, they must start fast."""

import multiprocessing
import os
import sys
from pathlib import Path

import jax
from absl import app
from machine import environment

import experiments.domains.gmm
import experiments.domains.images  # noqa: F401
from experiments import run

ROOT = Path(__file__).resolve().parents[1]


def sit(arguments: list[str], cache: str) -> None:
    """``experiments/run.py`` with these arguments."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.chdir(ROOT)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    sys.argv = ["experiments/run.py", *arguments]
    app.run(run.main, flags_parser=run.parse)


def server(monkeypatch) -> multiprocessing.context.ForkServerContext:
    """Its processes start as from a shell, not with the eight devices of the other tests."""
    monkeypatch.setenv("XLA_FLAGS", environment()["XLA_FLAGS"])
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sittings"])
    return context
