"""Reading a config of diffusers or transformers: its defaults, and what is supported of it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rtbjax.nets.pretrained.folder import PretrainedError


class Reader:
    """A config over its class's defaults; anything that is not supported is refused in one sentence.

    Attributes:
      name: of the class.
    """

    def __init__(self, name: str, config: Mapping[str, Any], defaults: Mapping[str, Any], fixed: Mapping[str, Any]):
        """Checks what can be checked at once.

        Args:
          name: of the class.
          config: as read from the folder; keys that begin with ``_`` and options that are None or False do nothing.
          defaults: of the options that are read here, by name.
          fixed: the supported values of options that are not.

        Raises:
          PretrainedError: an unknown option that is set, or one with a value that is not supported.
        """
        self.name = name
        self._values = dict(defaults) | {key: config[key] for key in config if key in defaults}
        for key, value in config.items():
            if key in fixed:
                self.one_of(key, value, fixed[key])
            elif key not in defaults and not key.startswith("_") and value not in (None, False):
                self.refuse(f"option {key}={value!r} is not supported")

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def refuse(self, what: str) -> None:
        """Raises a PretrainedError that names the class."""
        raise PretrainedError(f"{self.name}: {what}.")

    def one_of(self, key: str, value: Any, allowed: Iterable[Any]) -> Any:
        """The value, if it is allowed."""
        if value not in allowed:
            self.refuse(f"{key}={value!r} is not supported, only {', '.join(map(repr, allowed))}")
        return value

    def sequence(self, key: str, length: int | None = None) -> tuple[Any, ...]:
        """A list of the config, of this length if one is given."""
        values = self[key]
        if not isinstance(values, Sequence) or isinstance(values, str) or length not in (None, len(values)):
            self.refuse(f"{key} must be a list of {length or 'some'} entries, got {values!r}")
        return tuple(values)

    def per_level(self, key: str, num_levels: int) -> tuple[int, ...]:
        """One integer per level; a config may give one for all."""
        values = (self[key],) * num_levels if isinstance(self[key], int) else self.sequence(key, num_levels)
        if not all(isinstance(value, int) for value in values):
            self.refuse(f"{key}={self[key]!r} is not supported, only an integer or one per level")
        return values

    def groups(self, channels: Sequence[int]) -> int:
        """The ``norm_num_groups``, into which all these widths divide."""
        groups = self["norm_num_groups"]
        for width in channels:
            if not isinstance(groups, int) or width % groups:
                self.refuse(f"norm_num_groups={groups!r} does not divide {width} channels")
        return groups
