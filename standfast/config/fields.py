"""A field of the configuration's structs together with its documentation."""

from __future__ import annotations

from typing import Any

from msgspec import NODEFAULT, Struct, field

# No time in the configuration is longer, seconds: more would overflow timers further down.
MOST_S = 31 * 86400.0
TLS_FILES = ("ca_cert", "client_cert", "client_key")
"""Keys of [consul] and of [nomad]."""


class Key(Struct, frozen=True, kw_only=True):
    """A key's default and documentation. It is the field's factory: msgspec keeps that one."""

    default: Any
    """NODEFAULT: the file has to give a value."""
    help: str
    unit: str = ""
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    form: str = ""
    """One of those in `parse`, which every text has to have."""
    example: Any = None

    def __call__(self) -> Any:
        if self.default is NODEFAULT:
            raise TypeError(f"a value without a default is missing: {self.help}")
        return self.default


def option(default: Any, help_text: str, **extra: Any) -> Any:
    """A field with its documentation: `unit`, `least`, `most`, `choices`, `form`, `example`."""
    if extra.get("unit") == "s":
        extra.setdefault("most", MOST_S)
    return field(default_factory=Key(default=default, help=help_text, **extra))


def required(help_text: str, **extra: Any) -> Any:
    return field(default_factory=Key(default=NODEFAULT, help=help_text, **extra))
