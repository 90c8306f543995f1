"""What a command of the table is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Argument:
    """An option (its name begins with --) or a positional argument."""

    name: str
    help: str
    metavar: str = ""
    """Empty for an option without a value."""
    choices: tuple[str, ...] = ()
    kind: str = "text"
    """text, seconds (a positive number), maybe seconds (the default without one), time (with a
    unit: 90m) or words (any number of them)."""
    default: float | None = None
    required: bool = True
    """Of a positional only."""

    @property
    def is_option(self) -> bool:
        return self.name.startswith("--")

    @property
    def dest(self) -> str:
        return self.name.lstrip("-").replace("-", "_")


@dataclass(frozen=True, slots=True)
class Command:
    """`entry` is MODULE:FUNCTION, imported only when the command runs; it takes the namespace."""

    name: str
    help: str
    entry: str
    arguments: tuple[Argument, ...] = ()
    more: str = ""
    hidden: bool = False
    """Run by units and handlers, not by people."""


SERVICE_VOLUME = Argument("volume", "the volume", "VOLUME")
