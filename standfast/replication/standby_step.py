"""One step of setting up a standby, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Mark(StrEnum):
    """How a step ended."""

    OK = "ok"
    BAD = "BAD"
    WORD = "!"
    """Worth knowing; it goes on."""
    LEFT = "-"
    """Not done, and nothing is wrong with that."""


@dataclass(frozen=True, slots=True)
class Step:
    """How one step ended; `fix` is for BAD ones, `error` what the command ends with."""

    name: str
    mark: Mark
    evidence: str
    fix: tuple[str, ...] = ()
    error: Exception | None = None

    def document(self) -> dict[str, Any]:
        return {
            "step": self.name,
            "mark": str(self.mark),
            "evidence": self.evidence,
            "fix": list(self.fix),
        }
