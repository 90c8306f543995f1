"""What a command of several steps says: a line for each as it ends, and its fix below."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from standfast.errors import UsageError
from standfast.replication.standby_step import Mark, Step
from standfast.text import clean

_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")


@dataclass
class Report:
    """Prints and keeps the steps so far."""

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
        """Returns the step that ended it, if any did."""
        return next((step for step in self.steps if step.mark is Mark.BAD), None)

    def documents(self) -> list[dict[str, Any]]:
        return [step.document() for step in self.steps]


def node_name(text: str) -> str:
    """Returns the text; UsageError unless units and keys can be named after it."""
    if not _NODE.match(text):
        raise UsageError(f"{text[:80]!r} is not a node's name: letters, digits, . _ and -")
    return text
