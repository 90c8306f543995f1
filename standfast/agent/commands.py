"""What an operator may ask of the agent: promote, demote, switchover, failback.

Each answers with progress lines and one last line; with `dry_run` the plan is told, not run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from standfast.agent.command import Command
from standfast.agent.document import build
from standfast.agent.inspector import checks_in, refuse_unready
from standfast.consul.blindness import Blind
from standfast.errors import Refused, StepFailed, TimedOut, UsageError, did_you_mean, ours
from standfast.lease.surrender import rank
from standfast.node.obstacle import Obstacle, Weight
from standfast.reasons import Reason
from standfast.role import plan as plans
from standfast.role import registration
from standfast.role.decision import Action, Request
from standfast.role.observation import Cluster
from standfast.role.plan import Plan, names_of, plan_for
from standfast.role.steps import Effects
from standfast.system.clock import Deadline, monotonic, sleep, utc_now
from standfast.system.local_socket import send

if TYPE_CHECKING:
    from standfast.agent.loop import Agent, Seen

# For a look at the disk, seconds.
LOOK_S = 3.0
# Beyond W, for the wait of `promote`: Consul's own election after a death, seconds.
PROMOTE_SLACK_S = 30.0
# Between two attempts at a promotion, and two looks at what Consul tells, seconds.
AGAIN_S = 1.0
POLL_S = 0.1
# From the registration until a heartbeat tells it: a short election of Consul's may come between.
TOLD_S = 30.0
PROMOTE = "nobody serves now: `standfast promote` on the node that is to have the role"


def answer(agent: Agent, command: Command) -> None:
    """Carries a command out and sends its last line; the connection is closed."""
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


@dataclass(frozen=True, slots=True)
class Planned:
    """What `--dry-run` tells of a plan; as a text it is what people are shown."""

    plan: Plan
    why: str = ""

    def __str__(self) -> str:
        lines = [f"{number}. {step.says}" for number, step in enumerate(self.plan.steps, 1)]
        why = [self.why] if self.why else []
        return "\n".join([*why, f"{self.plan.name}, nothing is done now:", *lines])


def promote(agent: Agent, command: Command) -> str | Planned:
    """Takes the role on this node; waits until the last lease is over for certain, and, where a
    step failed for a reason that may pass, until a later attempt serves."""
    started = monotonic()
    request = Request(
        promote=True,
        accept_data_loss=command.argument("accept_data_loss") is True,
        despite=_despite(command),
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
        except StepFailed as failure:
            seen = _once_more(agent, request, failure, whole)
            command.progress(f"{failure}\ntrying again")
    _until_told(agent, agent.config.node, whole)
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
                _tell_others(command, inspection.obstacles)
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


def _once_more(agent: Agent, request: Request, failure: StepFailed, whole: Deadline) -> Seen:
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


def _until_told(agent: Agent, node: str, whole: Deadline) -> None:
    """Waits until Consul tells everybody that `node` serves: then `status` says so, too."""
    limit = whole.within(TOLD_S)
    while build(agent.look(fresh=True).view, None, agent.config, utc_now()).serving != node:
        if limit.expired:
            raise TimedOut(
                f"{node} has the role, and Consul doesn't tell yet that it serves: see "
                f"`standfast status`"
            )
        sleep(POLL_S)


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


def demote(agent: Agent, command: Command) -> str | Planned:
    """Stops serving in order; nobody is told to take over.

    Also the way out for a node that holds the lease and can't serve.
    """
    seen = agent.look(fresh=True)
    if seen.decision.action in (Action.FINISH_PROMOTION, Action.HOLD_LEASE):
        plan = plans.surrender(names_of(agent.config))
        if command.dry_run:
            return Planned(plan)
        agent.run_plan(plan, _effects(agent, command, None), command.progress)
        return f"{agent.config.node} gave up a role that it could not carry out; {PROMOTE}"
    return _hand_over(agent, command, None)


def switchover(agent: Agent, command: Command) -> str | Planned:
    """Moves the role to a standby without losing anything."""
    seen = _as_primary(agent)
    return _hand_over(agent, command, command.text("to") or best_standby(agent, seen))


def failback(agent: Agent, command: Command) -> str | Planned:
    """Moves the role to the preferred node."""
    preferred = agent.config.preferred
    if not preferred:
        raise Refused(
            Reason.UNKNOWN_NODE,
            f'no preferred node: set preferred = "NODE" in {agent.config.source}, '
            f"or use `standfast switchover --to NODE`",
        )
    _as_primary(agent)
    if preferred == agent.config.node:
        raise Refused(Reason.ALREADY_PRIMARY, f"{preferred} is the preferred node and primary")
    return _hand_over(agent, command, preferred)


def _as_primary(agent: Agent) -> Seen:
    seen = agent.look(fresh=True)
    if seen.decision.reason is Reason.SERVING:
        return seen
    here = f"{agent.config.node} is not serving ({seen.decision.sentence})"
    if not isinstance(seen.view, Cluster):
        raise Refused(Reason.NOT_PRIMARY, f"{here}, and can't see who has the role")
    leader = seen.view.leader
    if leader is None or leader.is_clean:
        what_now = "nobody has the role: `standfast promote` on the node that is to have it"
    elif leader.holder.node == agent.config.node:
        what_now = (
            "it has the role and can't move it in order: `standfast demote` here gives it up, "
            "then `standfast promote` on the node that is to have it"
        )
    else:
        what_now = f"{leader.holder.node} has the role: run this there"
    raise Refused(Reason.NOT_PRIMARY, f"{here}; {what_now}")


def best_standby(agent: Agent, seen: Seen) -> str:
    """Returns the standby with the newest data of the latest epoch, or the higher priority, by the
    records; one that Consul hides only where there is no other."""
    assert isinstance(seen.view, Cluster)
    ranks = {}
    for name in agent.config.standbys:
        record = seen.view.standbys.get(name)
        if record is not None and record.time is not None:  # written by hand: as if it had none
            priority = agent.config.nodes[name].priority
            ranks[name] = rank(record.epoch, record.snapshot, priority, name)
    alive = [name for name in ranks if agent.machine.consul.node_health(name) == "passing"]
    if not alive:
        raise Refused(
            Reason.NO_STANDBY_READY,
            "no standby is alive and has a snapshot: replicate to one first "
            "(`standfast replicate NODE`)",
        )
    seen_by_all = [name for name in alive if registration.hidden(agent.machine, name) is None]
    return max(seen_by_all or alive, key=lambda name: ranks[name])


def _hand_over(agent: Agent, command: Command, to: str | None) -> str | Planned:
    _as_primary(agent)
    if to is not None:
        _check_known(agent, to)
    plan = _orderly_or_not(agent, command, to)
    if to is not None:
        _check_target(agent, command, to, orderly=plan.no_return is not None)
    if command.dry_run:
        return Planned(plan)
    started = monotonic()
    agent.run_plan(plan, _effects(agent, command, to), command.progress)
    seconds = monotonic() - started
    if to is None:
        return f"{agent.config.node} is a standby ({seconds:.1f} s); {PROMOTE}"
    _until_told(agent, to, command.limit())
    return f"{to} is primary ({seconds:.1f} s)"


def _orderly_or_not(agent: Agent, command: Command, to: str | None) -> Plan:
    """Without loss, where a final snapshot can be written; Refused where it can't, unless told."""
    names = names_of(agent.config)
    live = agent.config.paths.live
    sick = agent.machine.store.ailment(Deadline.after(LOOK_S))
    if sick is None:
        return plans.demotion(names, to)
    if command.argument("accept_data_loss") is not True:
        what = f"`standfast {command.request.get('command')} --accept-data-loss`"
        if sick.reason is Reason.VOLUME_MISSING:
            raise Refused(
                sick.reason,
                f"{sick}: there is nothing to take the final snapshot of. Put it back (`standfast "
                f"snapshots` shows what there is), or {what} gives the role up without it: what "
                f"was written to it after the last replication would be missing "
                f"{to or 'elsewhere'} (`standfast status`: how old the standbys are)",
            )
        hangs = sick.reason is Reason.VOLUME_HANGS
        whether = "may not come about: try again in a moment" if hangs else "can't be written"
        raise Refused(
            sick.reason,
            f"{sick}: the final snapshot {whether}. What was written to {live} after the "
            f"last replication stays on this node's disk and would be missing {to or 'elsewhere'} "
            f"(`standfast status`: how old the standbys are). {what} gives the role up all the "
            f"same; or repair the file system and mount it writable",
        )
    if to is not None:
        _check_understands(agent, to)
    return plans.hand_over_as_it_is(names, to)


def _check_understands(agent: Agent, to: str) -> None:
    """An older version takes what is given up without a final snapshot for a clean handover: it
    would lose what this node wrote, and say that nothing was lost. It tells no word on itself."""
    key = agent.config.key(f"candidates/{to}")
    if agent.machine.consul.read([key])[key] is None:
        raise Refused(
            Reason.NO_STANDBY_READY,
            f"{to} has told nothing of itself in Consul, as an older version of Standfast does: it "
            f"would call the loss a clean handover. Upgrade it, restart its agent, and try again "
            f"after some seconds; or name another node with `--to`",
        )


def _effects(agent: Agent, command: Command, to: str | None) -> Effects:
    return Effects(
        agent.machine,
        operator=command.text("operator"),
        note=command.text("reason"),
        to=to,
        deadline=Deadline.after(agent.config.replication.timeout),
    )


def _check_known(agent: Agent, to: str) -> None:
    if to not in agent.config.standbys:
        raise Refused(
            Reason.UNKNOWN_NODE,
            f"{to} is not another storage node of {agent.config.volume}: "
            f"{', '.join(agent.config.standbys) or 'there is none'}"
            f"{did_you_mean(to, agent.config.standbys)}",
        )


def _check_target(agent: Agent, command: Command, to: str, *, orderly: bool) -> None:
    """Raises Refused where the target could not take over, or says that it isn't ready; from a disk
    that takes no writes nothing has to be replicated back soon."""
    health = agent.machine.consul.node_health(to)
    if health != "passing":
        raise Refused(
            Reason.NO_STANDBY_READY, f"{to} is {health} in Consul: it could not take over"
        )
    agent.busy = f"ask {to} what is in its way"
    try:
        despite = _despite(command) | (frozenset() if orderly else {"way-back"})
        obstacles = refuse_unready(agent.machine.sender, to, despite)
    finally:
        agent.busy, agent.moved_at = None, monotonic()
    _tell_others(command, obstacles)


def _tell_others(command: Command, obstacles: Sequence[Obstacle]) -> None:
    """Tells what refuses nothing."""
    for obstacle in obstacles:
        if obstacle.weight is Weight.BARS and obstacle.check not in _despite(command):
            continue
        command.progress(f"in spite of {obstacle} ({obstacle.fix})")


def _despite(command: Command) -> frozenset[str]:
    return checks_in(command.text("despite"))
