"""What a command of several steps says: a line for each as it ends, and its fix below."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from standfast.cli.output import clean
from standfast.errors import UsageError

_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")


class Mark(StrEnum):
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


@dataclass
class Report:
    """The steps so far."""

    quiet: bool
    """With --json all is told at the end."""
    steps: list[Step] = field(default_factory=list)

    def add(self, step: Step) -> None:
        self.steps.append(step)
        if self.quiet:
            return
        print(f"{step.mark:<3}  {step.name:<9} {clean(step.evidence)}", flush=True)
        for number, line in enumerate(step.fix):
            print(f"               {'->' if number == 0 else '  '} {clean(line)}", flush=True)

    @property
    def bad(self) -> Step | None:
        """The step that ended it."""
        return next((one for one in self.steps if one.mark is Mark.BAD), None)

    def documents(self) -> list[dict[str, Any]]:
        return [one.document() for one in self.steps]


def node_name(text: str) -> str:
    """The text; UsageError unless units and keys can be named after it."""
    if not _NODE.match(text):
        raise UsageError(f"{text[:80]!r} is not a node's name: letters, digits, . _ and -")
    return text
