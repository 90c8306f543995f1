"""Runs a plan's steps in their order, under the volume's lock of the caller.

A step that fails ends the plan, whatever it raises; before the point of no return, what was done is
undone. The error says which step it was and what goes on from there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from standfast.errors import Refused, StandfastError, StepFailed, ours
from standfast.role.plan import Do, Plan, Step
from standfast.system.clock import monotonic

log = logging.getLogger(__name__)
Progress = Callable[[str], None]
Reached = Callable[[Do], None]


def execute(
    plan: Plan,
    effects: Mapping[Do, Callable[[], None]],
    progress: Progress,
    reached: Reached = lambda _: None,
) -> None:
    """Runs the plan, telling each step that was done; StepFailed names the step that failed,
    Refused keeps its reason."""
    for number, step in enumerate(plan.steps, 1):
        progress(f"{plan.name} {number}/{len(plan.steps)}: {step.says}")
        started = monotonic()
        try:
            effects[step.do]()
        except Exception as error:  # noqa: BLE001  # a full disk or a bug fails a step like the rest
            _fail(plan, step, ours(error), effects, progress, reached)
        log.info("%s: %s: %.2f s", plan.name, step.do, monotonic() - started)
        reached(step.do)


def _fail(
    plan: Plan,
    step: Step,
    error: StandfastError,
    effects: Mapping[Do, Callable[[], None]],
    progress: Progress,
    reached: Reached,
) -> None:
    if not plan.undo or step.do not in plan.undoable_at:
        if isinstance(error, Refused):
            raise error
        raise StepFailed(
            f"the {plan.name} stopped at the step {step.do}: {error}\n"
            f"It is taken up again by itself; `standfast status` shows how it stands"
        ) from error
    progress(f"{step.says}: failed ({error}). Serving again")
    for undo in plan.undo:
        try:
            effects[undo.do]()
            reached(undo.do)
        except Exception as second:
            raise StepFailed(
                f"the {plan.name} stopped at the step {step.do}: {error}\n"
                f"Serving again failed at {undo.do}: {ours(second)}. It is tried again by itself; "
                f"`standfast status` shows how it stands"
            ) from second
    message = f"the {plan.name} stopped at the step {step.do}: {error}\nThis node serves again"
    if isinstance(error, Refused):
        raise Refused(error.reason, message) from error
    raise StepFailed(message) from error
