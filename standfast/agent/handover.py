"""Commands that give the role up: demote, switchover, failback.

Invariant: what can refuse one is asked first, of this node and of the one that is to take over;
nothing has stopped then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from standfast.agent.command import Command, Planned
from standfast.agent.document import build
from standfast.agent.inspector import checks_in, refuse_unready
from standfast.consul.blindness import Blind
from standfast.errors import Refused, StandfastError, StepFailed, TimedOut, did_you_mean
from standfast.lease.files import others_serving
from standfast.lease.surrender import rank
from standfast.node.obstacle import Obstacle, Weight, barring, told
from standfast.node.other_server import DOORS_S, active_elsewhere, deregistered
from standfast.reasons import Reason
from standfast.role import plan as plans
from standfast.role import registration
from standfast.role.ahead import letting_go
from standfast.role.candidacy import on_hold
from standfast.role.decision import Action
from standfast.role.observation import Cluster
from standfast.role.plan import Plan, names_of
from standfast.role.steps import Effects
from standfast.system.clock import Deadline, monotonic, sleep, utc_now
from standfast.system.mountinfo import canonical

if TYPE_CHECKING:
    from standfast.agent.loop import Agent, Seen

# For a look at the disk, seconds.
LOOK_S = 3.0
# Between two attempts at what failed, and two looks at what Consul tells, seconds.
AGAIN_S = 1.0
POLL_S = 0.1
# From the registration until a heartbeat tells it: a short election of Consul's may come between.
TOLD_S = 30.0
PROMOTE = "nobody serves now: `standfast promote` on the node that is to have the role"


def demote(agent: Agent, command: Command) -> str | Planned:
    """Stops serving in order; nobody is told to take over.

    Also the way out for a node that holds the lease and can't serve.
    """
    seen = agent.look(fresh=True)
    if seen.decision.action in (Action.FINISH_PROMOTION, Action.HOLD_LEASE):
        plan = plans.surrender(names_of(agent.config))
        if command.dry_run:
            return Planned(plan)
        agent.run_plan(plan, effects_of(agent, command, None), command.progress)
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
        holder = leader.holder.node
        what_now = f"{holder} has the role: run this there, or here with `--on {holder}`"
    raise Refused(Reason.NOT_PRIMARY, f"{here}; {what_now}")


def best_standby(agent: Agent, seen: Seen) -> str:
    """Returns the standby with the newest data of the latest epoch, or the higher priority, by the
    records; one that Consul hides only where there is no other."""
    assert isinstance(seen.view, Cluster)
    ranks = {}
    for name in agent.config.standbys:
        if name in seen.view.holds:
            continue
        record = seen.view.standbys.get(name)
        if record is not None and record.time is not None:  # written by hand: as if it had none
            priority = agent.config.nodes[name].priority
            ranks[name] = rank(record.epoch, record.snapshot, priority, name)
    alive = [name for name in ranks if agent.machine.consul.node_health(name) == "passing"]
    if not alive:
        raise Refused(
            Reason.NO_STANDBY_READY,
            "no standby is alive, has a snapshot and isn't on hold: replicate to one first "
            "(`standfast replicate NODE`)",
        )
    seen_by_all = [name for name in alive if registration.hidden(agent.machine, name) is None]
    return max(seen_by_all or alive, key=lambda name: ranks[name])


def _hand_over(agent: Agent, command: Command, to: str | None) -> str | Planned:
    holds = _as_primary(agent).view
    if to is not None:
        _check_known(agent, to)
    plan = _orderly_or_not(agent, command, to)
    is_orderly = plan.no_return is not None
    if is_orderly:
        _check_can_let_go(agent, command, to)
    if to is not None:
        _check_hold(command, to, holds)
        _check_entries_here(agent, to, holds)
        _check_target(agent, command, to, orderly=is_orderly)
    if command.dry_run:
        return Planned(plan)
    started, whole = monotonic(), command.limit()
    try:
        agent.run_plan(plan, effects_of(agent, command, to), command.progress)
    except StepFailed as failure:
        assert isinstance(holds, Cluster) and holds.leader is not None
        _until_handed_over(agent, command, to, holds.leader.epoch, failure, whole)
    seconds = monotonic() - started
    if to is None:
        return f"{agent.config.node} is a standby ({seconds:.1f} s); {PROMOTE}"
    until_told(agent, to, whole)
    return f"{to} is primary ({seconds:.1f} s)"


def _until_handed_over(
    agent: Agent, command: Command, to: str | None, epoch: int, failure: StepFailed, whole: Deadline
) -> None:
    """Goes on where the role of `epoch` is given up and a step after that failed: what is left here
    is put away, and `to` serves; `failure` where that is not so, or doesn't come about in time."""
    said = False
    while not whole.expired and agent.commands.empty() and not agent.stopping.is_set():
        sleep(AGAIN_S)
        seen = agent.look(fresh=True)
        if isinstance(seen.view, Blind):
            continue
        leader, action = seen.view.leader, seen.decision.action
        is_taken = leader is not None and leader.epoch > epoch and to in (None, leader.holder.node)
        is_free = leader is not None and leader.epoch == epoch and leader.is_clean
        # Who would take over itself isn't kept from it by a wait for somebody else.
        if not (is_taken or is_free) or action is Action.PROMOTE:
            break
        if action is Action.FINISH_DEMOTION:
            if not said:
                command.progress(f"{failure}\ngoing on")
            said = True
            with contextlib.suppress(StandfastError):
                agent.carry_out(seen, progress=command.progress)
        elif is_taken or to is None:
            return
    raise failure


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


def _check_known(agent: Agent, to: str) -> None:
    if to not in agent.config.standbys:
        raise Refused(
            Reason.UNKNOWN_NODE,
            f"{to} is not another storage node of {agent.config.volume}: "
            f"{', '.join(agent.config.standbys) or 'there is none'}"
            f"{did_you_mean(to, agent.config.standbys)}",
        )


def _check_hold(command: Command, to: str, seen: Cluster | Blind) -> None:
    """The target may not have read yet that it is on hold."""
    hold = None if isinstance(seen, Blind) else seen.holds.get(to)
    if hold is not None and "hold" not in despite_of(command):
        raise Refused(Reason.ON_HOLD, f"{on_hold(hold)}. In spite of it: `--despite hold`")


def _check_target(agent: Agent, command: Command, to: str, *, orderly: bool) -> None:
    """Raises Refused where the target could not take over, or says that it isn't ready; from a disk
    that takes no writes nothing has to be replicated back soon."""
    health = agent.machine.consul.node_health(to)
    if health != "passing":
        raise Refused(
            Reason.NO_STANDBY_READY, f"{to} is {health} in Consul: it could not take over"
        )
    with _busy(agent, f"ask {to} what is in its way"):
        despite = despite_of(command) | (frozenset() if orderly else {"way-back"})
        obstacles = refuse_unready(agent.machine.sender, to, despite)
    tell_others(command, obstacles)


@contextlib.contextmanager
def _busy(agent: Agent, text: str) -> Iterator[None]:
    """The loop stands still meanwhile, and that is no sign of anything."""
    agent.busy = text
    try:
        yield
    finally:
        agent.busy, agent.moved_at = None, monotonic()


def _check_can_let_go(agent: Agent, command: Command, to: str | None) -> None:
    """Raises Refused where a step of an orderly plan would fail on this node, after its clients
    have begun to wait."""
    with _busy(agent, "look for what keeps this node from giving the role up"):
        obstacles = letting_go.in_the_way(agent.machine)
    despite = despite_of(command)
    lighter = [
        seen for seen in obstacles if seen.weight is Weight.REFUSES and seen.check not in despite
    ]
    bars = barring(obstacles)
    if bars or lighter:
        names = ",".join(sorted({*despite, *(obstacle.check for obstacle in lighter)}))
        # `demote` knows no such word.
        way = "" if bars or to is None else f"\nIn spite of it: `--despite {names}`"
        raise Refused(
            Reason.NOT_READY,
            f"{agent.config.node} can't let go of the role in order; nothing was stopped:\n"
            f"{told([*bars, *lighter])}{way}",
        )
    tell_others(command, obstacles)


def _check_entries_here(agent: Agent, to: str, view: Cluster | Blind) -> None:
    """Raises Refused where this node's server goes on for other volumes, and the target's guard
    would find it active by another's entry in Consul; ConsulError. The target can't foresee that:
    as far as it knows the server here ends with the role.
    """
    config = agent.config
    others = others_serving(config)
    if not others:
        return  # it ends
    assert isinstance(view, Cluster)
    own, epoch = (config.node, config.service_id), (view.epoch or 0) + 1
    here = canonical(config.me.address)
    entries = [
        entry
        for entry in agent.machine.consul.instances(config.service)
        if entry.node == config.node or canonical(entry.address) == here
        if (entry.node, entry.service_id) != own
    ]
    limit = Deadline.after(DOORS_S)
    obstacles = []
    for entry in active_elsewhere(entries, config, to, epoch, agent.answering, limit):
        evidence = (
            f"another entry of {config.service} in Consul is at {entry.address}:{entry.port}, "
            f"where this node's server goes on for {', '.join(others)}: the guard of {to} "
            f"would find it active"
        )
        obstacles.append(Obstacle("service", evidence, deregistered(entry)))
    if obstacles:
        raise Refused(
            Reason.NOT_READY,
            f"{to} could not take over; nothing was stopped:\n{told(obstacles)}",
        )


def until_told(agent: Agent, node: str, whole: Deadline) -> None:
    """Waits until Consul tells everybody that `node` serves: then `status` says so, too."""
    limit = whole.within(TOLD_S)
    while build(agent.look(fresh=True).view, None, agent.config, utc_now()).serving != node:
        if limit.expired:
            raise TimedOut(
                f"{node} has the role, and Consul doesn't tell yet that it serves: see "
                f"`standfast status`"
            )
        sleep(POLL_S)


def effects_of(agent: Agent, command: Command, to: str | None) -> Effects:
    return Effects(
        agent.machine,
        operator=command.text("operator"),
        note=command.text("reason"),
        to=to,
        deadline=Deadline.after(agent.config.replication.timeout),
    )


def tell_others(command: Command, obstacles: Sequence[Obstacle]) -> None:
    """Tells what refuses nothing."""
    for obstacle in obstacles:
        if obstacle.weight is Weight.BARS and obstacle.check not in despite_of(command):
            continue
        command.progress(f"in spite of {obstacle} ({obstacle.fix})")


def despite_of(command: Command) -> frozenset[str]:
    return checks_in(command.text("despite"))
