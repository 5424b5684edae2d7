"""Python functions that a config names as ``module:function``."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import weights
from experiments.errors import ConfigError


def load(field: str, function: str) -> Callable[..., Any]:
    """The function.

    Args:
      field: of the config, for messages.
      function: as ``module:function``; the module is imported from the repository, PYTHONPATH or what is installed.

    Raises:
      ConfigError: there is no such function, or its module cannot be imported.
    """
    module, _, name = function.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # A module is a program and fails like one.
        raise ConfigError(
            f"config.{field} must be 'module:function' that can be imported from the repository or a folder in "
            f"PYTHONPATH, got {function!r} ({type(error).__name__}: {error})."
        ) from error
    if not callable(found):
        raise ConfigError(f"config.{field}={function!r} is a {type(found).__name__}, not a function.")
    return found


def fingerprint(function: str) -> str:
    """Changes with the name and with the file of its module; "" for none. What the module reads it cannot see."""
    if not function:
        return ""
    file = getattr(importlib.import_module(function.partition(":")[0]), "__file__", None)  # None: built in.
    return weights.fingerprint(function, Path(file).read_bytes() if file else b"")
