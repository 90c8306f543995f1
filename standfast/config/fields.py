"""A field of the configuration's dataclasses together with its documentation."""

from __future__ import annotations

from dataclasses import field
from typing import Any

# No time in the configuration is longer, seconds: more would overflow timers further down.
MOST_S = 31 * 86400.0


def option(default: Any, help_text: str, **extra: Any) -> Any:
    """A field with its documentation: `unit`, `least`, `most`, `choices`, `form`, `example`."""
    if extra.get("unit") == "s":
        extra.setdefault("most", MOST_S)
    return field(default=default, metadata={"help": help_text, **extra})


def required(help_text: str, **extra: Any) -> Any:
    return field(metadata={"help": help_text, "required": True, **extra})
