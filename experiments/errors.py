"""What a user can mend, told apart from defects: the entry point prints these in one sentence and lets the rest be."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user can mend. The message is one sentence: what is wrong, and what is allowed."""


class ConfigError(UserError):
    """A field with a value that is not allowed; the message names the field and what is."""


@contextmanager
def checking(field: str | None = None) -> Iterator[None]:
    """Around what only checks and builds: there, a ValueError of the library is about what the config asked for.

    Elsewhere a bare ValueError is a defect and keeps its traceback.

    Args:
      field: the one that is to blame, where there is one, for the message to name.

    Raises:
      ConfigError: in place of any ValueError that is no `UserError` yet.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(str(error) if field is None else f"config.{field}: {error}") from error
