"""What an operator may ask of the agent: promote, demote, switchover, failback.

Each answers with progress lines and one last line; with `dry_run` the plan is told, not run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from standfast.agent.command import Command, Planned
from standfast.agent.handover import (
    AGAIN_S,
    demote,
    despite_of,
    failback,
    switchover,
    tell_others,
    until_told,
)
from standfast.consul.blindness import Blind
from standfast.errors import (
    Refused,
    StandfastError,
    StepFailed,
    TimedOut,
    UsageError,
    ours,
)
from standfast.reasons import Reason
from standfast.role.decision import Action, Request
from standfast.role.plan import plan_for
from standfast.system.clock import Deadline, monotonic, sleep
from standfast.system.local_socket import send

if TYPE_CHECKING:
    from standfast.agent.loop import Agent, Seen

PASSING = frozenset(
    (
        Reason.CONSUL_UNREACHABLE,
        Reason.CONSUL_TIMEOUT,
        Reason.CONSUL_NO_QUORUM,
        Reason.CONSUL_LIMITED,
        Reason.DEADLINE,
        Reason.BUSY,
        Reason.LEASE_NOT_HELD,
        Reason.LEASE_TOO_SHORT,
        Reason.FENCE_NOT_ARMED,
    )
)
"""What a step or the guard may refuse, and not the next time, though nobody does anything."""
# Beyond W, for the wait of `promote`: Consul's own election after a death, seconds.
PROMOTE_SLACK_S = 30.0


def answer(agent: Agent, command: Command) -> None:
    """Carries a command out and sends its last line; the connection is closed."""
    if not command.may_begin():
        return
    handlers: dict[str, Callable[[Agent, Command], str | Planned]] = {
        "promote": promote,
        "demote": demote,
        "switchover": switchover,
        "failback": failback,
    }
    with command.connection:
        try:
            name = command.request.get("command")
            handler = handlers.get(name) if isinstance(name, str) else None
            if handler is None:
                raise UsageError(f"the agent knows no command {name!r}")
            said = handler(agent, command)
            last: dict[str, Any] = {"done": True, "text": str(said)}
            if isinstance(said, Planned):
                last["steps"] = [{"do": step.do, "says": step.says} for step in said.plan.steps]
        except Exception as failure:  # noqa: BLE001  # told to whoever asked, and the agent goes on
            error = ours(failure)
            reason = str(error.reason) if isinstance(error, Refused) else None
            last = {"error": str(error), "reason": reason, "exit_code": error.exit_code}
        with contextlib.suppress(OSError):
            send(command.connection, last)


def promote(agent: Agent, command: Command) -> str | Planned:
    """Takes the role on this node; waits until the last lease is over for certain, and, where a
    step failed for a reason that may pass, until a later attempt serves."""
    started = monotonic()
    request = Request(
        promote=True,
        accept_data_loss=command.argument("accept_data_loss") is True,
        despite=despite_of(command),
    )
    whole = command.limit()
    seen = _decided(agent, command, request)
    if command.dry_run:
        plan = plan_for(seen.decision, agent.config)
        if plan is None:
            return f"{seen.decision.sentence}; then it would be promoted"
        return Planned(plan, seen.decision.sentence)
    while True:
        try:
            agent.carry_out(
                seen,
                operator=command.text("operator"),
                note=command.text("reason"),
                progress=command.progress,
            )
            break
        except (StepFailed, Refused) as failure:
            if isinstance(failure, Refused) and failure.reason not in PASSING:
                raise
            seen = _once_more(agent, request, failure, whole)
            command.progress(f"{failure}\ntrying again")
    until_told(agent, agent.config.node, whole)
    return f"{agent.config.node} is primary ({monotonic() - started:.1f} s)"


def _decided(agent: Agent, command: Command, request: Request) -> Seen:
    """Returns the look that a promotion may begin from; a dry run doesn't wait for one."""
    limit = Deadline.after(agent.config.lease.wait + PROMOTE_SLACK_S)
    said, fresh = "", True
    asked_at: float | None = None
    inspected = False
    while True:
        # A fresh one lists the snapshots again: where that takes long it would be all that is done.
        seen = agent.look(0.0 if fresh else 0.2, fresh=fresh, request=request)
        decision = seen.decision
        if not inspected and (
            decision.action is Action.PROMOTE or decision.reason is Reason.NOT_READY
        ):
            # For real, and before anything is taken; what bars a promotion is in the next decision.
            # Not by this thread: who doesn't look at Consul meanwhile knows nothing of a silence.
            if asked_at is None:
                if not fresh:
                    fresh = True
                    continue
                asked_at = agent.inspector.want()
            inspection = agent.inspector.since(asked_at)
            if inspection is not None:
                tell_others(command, inspection.obstacles)
                inspected = True
            limit.check("what is in the way of a promotion: the look at it doesn't end")
            fresh = inspected
            continue
        if decision.action is Action.PROMOTE:
            if fresh:
                return seen
            fresh = True
            continue
        if decision.action is not Action.WAIT:
            refusal = _not_promoted(agent, seen)
            if not command.dry_run:
                agent.announcer.refused(refusal.reason, str(refusal))
            raise refusal
        if command.dry_run:
            return seen
        if limit.expired:
            raise TimedOut(f"not promoted: {decision.sentence}")
        if decision.reason != said:
            command.progress(decision.sentence)
            said = decision.reason
        fresh = False


def _once_more(agent: Agent, request: Request, failure: StandfastError, whole: Deadline) -> Seen:
    """Returns the look that the promotion goes on from; `failure` where it doesn't in time."""
    # Whoever asks for something else meanwhile (`demote` is the way out) isn't kept waiting.
    while not whole.expired and agent.commands.empty() and not agent.stopping.is_set():
        sleep(AGAIN_S)
        seen = agent.look(fresh=True, request=request)
        action = seen.decision.action
        if action in (Action.PROMOTE, Action.FINISH_PROMOTION, Action.HOLD_LEASE):
            return seen
        if action is not Action.WAIT and not isinstance(seen.view, Blind):
            break
    raise failure


def _not_promoted(agent: Agent, seen: Seen) -> Refused:
    decision = seen.decision
    if decision.reason is Reason.PRIMARY_ALIVE:
        return Refused(
            decision.reason,
            f"{decision.sentence} and alive: `standfast switchover --to {agent.config.node}` "
            f"there moves the role without loss",
        )
    if decision.action in (Action.NOTHING, Action.FINISH_PROMOTION, Action.HOLD_LEASE):
        return Refused(Reason.ALREADY_PRIMARY, decision.sentence)
    return Refused(decision.reason, decision.sentence)
