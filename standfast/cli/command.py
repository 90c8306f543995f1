"""A command and its arguments, as the table of all commands (`commands.py`) has them."""

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


VOLUME = Argument("--volume", "the volume (default: the only configured one)", "VOLUME")
VOLUMES = Argument("--volume", "the volume (default: each configured one)", "VOLUME")
JSON = Argument("--json", "print JSON")
DRY_RUN = Argument("--dry-run", "print what the command would do, and change nothing")
REASON = Argument("--reason", "why; recorded for other operators", "TEXT")
ON = Argument(
    "--on",
    "have another storage node do it, through Consul (default: this one, or the primary)",
    "NODE",
)
ON_HERE = Argument(
    "--on", "have another storage node do it, through Consul (default: this one)", "NODE"
)
QUIET = Argument("--quiet", "no progress output")
TIMEOUT = Argument(
    "--timeout",
    "stop waiting for the agent after this many seconds; it finishes what it began",
    "SECONDS",
    kind="seconds",
    default=900.0,
)
_KNOWN = "go on though these checks of the next primary (`standfast doctor`) fail: X,Y"
DESPITE = Argument("--despite", _KNOWN, "CHECKS")
SERVICE_VOLUME = Argument("volume", "the volume", "VOLUME")
