"""Runs the steps of a plan of setup or uninstall in their order; each is repeatable, and one that
fails ends the plan unless it may be left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from standfast.errors import ours


class Outcome(StrEnum):
    """How a step ended."""

    DONE = "done"
    ALREADY = "already"
    FAILED = "failed"
    WOULD = "would"
    LEFT = "left"
    """Not done, and told: it is somebody else's, or the operator's to decide."""


@dataclass(frozen=True, slots=True)
class Step:
    """One effect, and what it says about itself."""

    do: str
    says: str
    pending: bool = True
    """False: it is done already, or there is nothing to do."""
    may_fail: bool = False
    """The steps behind it don't need it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """One line of what was done."""

    do: str
    outcome: Outcome
    text: str

    def document(self) -> dict[str, Any]:
        return {"do": self.do, "outcome": str(self.outcome), "says": self.text}


Act = Callable[[], str | None]
"""Does a step; may return what it says instead of the plan's sentence."""


def execute(plan: Sequence[Step], acts: Mapping[str, Act], tell: Callable[[Ended], None]) -> bool:
    """Runs the plan, telling each step's end; returns whether all went well."""
    well = True
    for step in plan:
        if not step.pending:
            tell(Ended(step.do, Outcome.ALREADY, step.says))
            continue
        try:
            said = acts[step.do]()
        except Exception as error:  # noqa: BLE001  # a full disk or a bug fails a step like the rest
            well = False
            tell(Ended(step.do, Outcome.FAILED, f"{step.says}: {ours(error)}"))
            if not step.may_fail:
                return False
        else:
            tell(Ended(step.do, Outcome.DONE, said or step.says))
    return well


def rehearse(plan: Sequence[Step], tell: Callable[[Ended], None]) -> None:
    """Tells what would be done."""
    for step in plan:
        outcome = Outcome.WOULD if step.pending else Outcome.ALREADY
        tell(Ended(step.do, outcome, step.says))
