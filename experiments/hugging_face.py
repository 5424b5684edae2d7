"""Models of Hugging Face that are asked on the host, by torch and transformers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments import weights
from experiments.data import DataError
from experiments.errors import UserError
from rtbjax.nets.pretrained import folder as folders


def packages(field: str) -> tuple[Any, Any]:
    """torch and transformers, which the config's ``field`` asks for.

    Raises:
      UserError: one of them is missing.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f'config.{field} needs the packages torch and transformers: pip install -e ".[lm]" '
            f"({error.name} is missing)."
        ) from error
    return torch, transformers


@contextmanager
def reading(field: str, model: str, what: str) -> Iterator[Path]:
    """The folder of a model, around all that reads it.

    Args:
      field: of the config, for messages.
      model: a folder, or a hub id, which is fetched.
      what: what the folder holds if it cannot be read, such as "no CLIP model".

    Raises:
      DataError: there is no such folder or hub id, or what is in it cannot be read.
    """
    try:
        folder = folders.locate(weights.locate_model(model))
    except folders.PretrainedError as error:
        raise DataError(f"config.{field}: {error}") from error
    try:
        yield folder
    except Exception as error:  # Of many kinds, and none of them is about anything but the folder.
        text = f"there is no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        reason = text.strip().partition("\n")[0]
        raise DataError(f"config.{field}: {folder} holds {what} ({reason}).") from error


def ready(network: Any, torch: Any) -> tuple[Any, str]:
    """A network of torch where it is to compute, and the fingerprint of its weights."""
    fingerprint = weights.fingerprint({name: p.numpy() for name, p in network.state_dict().items()})
    return network.eval().to("cuda" if torch.cuda.is_available() else "cpu"), fingerprint
