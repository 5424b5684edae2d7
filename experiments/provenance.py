"""Where a run came from, for who wants it again: command, code, machine."""

import platform
import subprocess
from importlib import metadata
from typing import Any

import jax

from experiments.weights import REPOSITORY

PACKAGES = ("jax", "flax", "optax", "numpy")


def found(command: str | None) -> dict[str, Any]:
    """As in ``summary.json``; ``command`` is None for a run that was started from Python."""
    devices = jax.devices()
    return {
        "command": command,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }


def commit() -> str | None:
    """Of the repository, with ``-dirty`` if files differ from it; None outside of one."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
