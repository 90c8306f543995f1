"""What the agent's upkeep sees to, one thing after the other, on a primary and on a standby.

Invariant: each of them fails by itself, and none undoes what a plan did since the look that it goes
by. What depends on Consul most comes last.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from functools import partial

from standfast.agent.loop import Agent, Seen
from standfast.consul.gateway import Committed
from standfast.consul.values import Set
from standfast.errors import Refused, ours
from standfast.lease import exports
from standfast.lease.files import LeaseStatus, Vouch
from standfast.lease.surrender import TOLD_EVERY_S
from standfast.node.own_epoch import OwnEpoch
from standfast.role import isolated, readiness, registration
from standfast.role.decision import Action
from standfast.role.observation import Cluster
from standfast.system.clock import Deadline, monotonic
from standfast.system.files import keep_reserve
from standfast.system.locks import exclusive, is_locked

log = logging.getLogger(__name__)

SCHEDULE_EVERY_S = 60.0
MEND_EVERY_S = 15.0
"""While all is well; what isn't is looked after at each turn."""
MEND_S = 5.0
STUCK_S = 45.0
"""Longer than any look with Consul away; the check in Consul then expires by itself."""


def keep_up(agent: Agent) -> None:
    """Sees to what has to be true all the time, whoever undid it."""
    seen = agent.seen
    stuck = _is_stuck(agent)
    holds = is_locked(agent.config.run_dir / "lease.lock")
    sick = _ailment(agent, stuck) if holds else None
    served = None if seen is None or stuck else _serves(seen)
    unmended = None
    if holds and served is not None:
        sick, unmended = _mended(agent, served, sick)
    unheard = _failure_of(lambda: _vouch(agent, sick)) if holds else None
    if seen is None:
        return
    if stuck:
        # A look that doesn't end: a hung disk or mount. The server may answer all the same.
        log.error("the agent has not looked for %g s: not vouching for the server", STUCK_S)
        return
    own = seen.local.own
    if own is None:
        agent.sick = None  # it was said of an epoch that is over
    parts: list[Callable[[], None]] = []
    if served is not None:
        parts += _of_primary(agent, served, sick if holds else _ailment(agent, stuck))
    elif own is None and agent.busy is None:
        parts += _of_standby(agent, seen)
    if own is not None and agent.busy is None:
        parts.append(lambda: _freeze_if_due(agent, own))
    parts.append(lambda: keep_reserve(agent.config.state_dir))
    parts.append(partial(_end_pause, agent, seen))
    if served is not None:
        parts += [partial(_note_hidden, agent), partial(_keep_led_elsewhere, agent)]
    # Each has its turn: a disk without room is no reason not to vouch for the server, and
    # what Consul refuses none to leave the fence open.
    failures = [unheard, unmended, *map(_failure_of, parts)]
    unkept = next((failure for failure in failures if failure is not None), None)
    if unkept not in (None, agent.unkept):
        log.warning("upkeep: %s", unkept)
    agent.unkept = unkept


def _serves(seen: Seen) -> OwnEpoch | None:
    """Returns the epoch that this node serves; None: it does not, or something is to be done."""
    own, lease = seen.local.own, seen.local.lease
    if own is None or lease is None or seen.decision.action is not Action.NOTHING:
        return None
    return own if lease.serving and lease.epoch == own.epoch else None


def _failure_of(part: Callable[[], None]) -> str | None:
    try:
        part()
    except Exception as error:  # noqa: BLE001  # the next turn comes in a few seconds
        return str(ours(error))
    return None


def _is_stuck(agent: Agent) -> bool:
    """A look that fails is told as trouble; the server may be well all the same."""
    return agent.busy is None and monotonic() - agent.moved_at > STUCK_S


def _ailment(agent: Agent, stuck: bool) -> str | None:
    return "the agent's look doesn't end" if stuck else registration.ailment(agent.machine)


def _mended(agent: Agent, own: OwnEpoch, sick: str | None) -> tuple[str | None, str | None]:
    """Starts the daemons again that the server needs; returns what is wrong then, and why they
    can't be started. Not all of them are missed at once: they are seen to while all is well, too.
    """
    since_s = monotonic() - agent.mended_at
    if agent.busy is not None or (sick is None and since_s < MEND_EVERY_S):
        return sick, None
    agent.mended_at = monotonic()

    def mend() -> None:
        did = agent.machine.nfs.mend(Deadline.after(MEND_S))
        if did is not None:
            log.warning("serving: %s", did)

    failure = _failure_of(lambda: unless_changed(agent, own, mend))
    # Once more before anybody is told: one answer that is late is no sickness.
    left = None if sick is None else _ailment(agent, stuck=False)
    return (f"{left}; {failure}" if left and failure else left), failure


def _vouch(agent: Agent, sick: str | None) -> None:
    """Tells the lease process whether this node serves, and if not, why."""
    why = sick if sick is None or agent.trouble is None else f"{sick}; {agent.trouble}"
    Vouch(monotonic(), why).save(agent.config.run_dir)


def _of_primary(agent: Agent, own: OwnEpoch, sick: str | None) -> Sequence[Callable[[], None]]:
    """For a node that serves; `sick`: why it doesn't really."""
    return (
        partial(_keep_registered, agent, own, sick),
        partial(_keep_exported, agent, own),
        partial(_keep_scheduled, agent),
    )


def _of_standby(agent: Agent, seen: Seen) -> Sequence[Callable[[], None]]:
    """For a node without an epoch, while no plan is at work."""
    return (
        partial(_keep_shut, agent),
        partial(_keep_unexported, agent),
        partial(_keep_unregistered, agent),
        partial(_keep_unscheduled, agent),
        partial(_note_hidden, agent),
        partial(_tell_readiness, agent, seen),
    )


def _keep_registered(agent: Agent, own: OwnEpoch, sick: str | None) -> None:
    machine = agent.machine
    if not registration.is_registered(machine, own.epoch):
        if agent.busy is not None:
            return  # a plan is about to take the registration away, or has done so
        log.warning("the registration in Consul is gone: registering again")
        unless_changed(agent, own, lambda: registration.register(machine, own.epoch))
    registration.feed(machine, sick)
    if sick != agent.sick:
        log.warning("serving: %s", sick or "well again")
    agent.sick = sick


def _keep_exported(agent: Agent, own: OwnEpoch) -> None:
    fence, nfs = agent.machine.fence, agent.machine.nfs
    # Without a claim (its file was deleted) no heartbeat opens the port.
    if nfs.is_running() and not (nfs.is_exported(own.fsid) and fence.state().claimed):

        def again() -> None:
            exports.export(agent.config, fence, nfs, own.epoch, own.fsid)
            log.warning("the volume had lost its export or its claim to the port: made again")

        unless_changed(agent, own, again)


def _keep_scheduled(agent: Agent) -> None:
    if agent.busy is not None:
        return  # a plan may have stopped it
    if agent.scheduled_at is None or monotonic() - agent.scheduled_at > SCHEDULE_EVERY_S:
        agent.machine.schedule.start()
        agent.scheduled_at = monotonic()


def _keep_led_elsewhere(agent: Agent) -> None:
    if agent.config.consul.transfer_leadership and agent.busy is None:
        consul = agent.machine.consul
        agent.leadership.give_away(consul.is_leader, consul.transfer_leadership)


def _keep_shut(agent: Agent) -> None:
    fence = agent.machine.fence

    def put_up() -> None:
        before = agent.unshut
        try:
            fence.ensure_closed()
        except Exception as error:
            agent.unshut = str(ours(error))  # a promotion would fail at it, too
            if before is None:
                agent.inspector.want()
            raise
        log.warning("the fence's rules were not in place: put there, with the port shut")
        agent.unshut = None
        agent.inspector.want()  # it may have found none in place

    if not fence.state().in_place:
        unless_changed(agent, None, put_up)


def _keep_unexported(agent: Agent) -> None:
    """What a power cut left, with a state directory that was lost: nobody else takes it away, and
    the guard lets no other volume be served beside it."""
    config, fence, nfs = agent.config, agent.machine.fence, agent.machine.nfs
    if nfs.would_export():
        log.warning("a standby exports nothing: taking the leftover export away")
        limit = Deadline.after(config.nfs.start_timeout)
        unless_changed(agent, None, lambda: exports.withdraw(config, fence, nfs, limit))


def _keep_unregistered(agent: Agent) -> None:
    machine = agent.machine
    if machine.config.service_id in machine.consul.local_services():
        log.warning("a standby is no server: removing the leftover registration")
        unless_changed(agent, None, lambda: registration.deregister(machine))


def _keep_unscheduled(agent: Agent) -> None:
    def stop() -> None:
        agent.machine.schedule.stop()
        agent.scheduled_at = None

    if agent.scheduled_at is not None:
        unless_changed(agent, None, stop)


def _note_hidden(agent: Agent) -> None:
    """Nothing is done about it: maintenance is an operator's word, and the role stays where it
    is."""
    hidden = registration.hidden(agent.machine)
    if hidden != agent.hidden:
        log.warning("%s", hidden or "Consul tells of this node's service again")
    agent.hidden = hidden


def _tell_readiness(agent: Agent, seen: Seen) -> None:
    """Whether this node would take over, for a holder that can't serve."""
    if not isinstance(seen.view, Cluster) or monotonic() - seen.at.monotonic > TOLD_EVERY_S:
        return  # since then the looks fail: nothing is known any more
    obstacles = agent.inspector.known
    if obstacles is None:
        return  # what it would meet isn't known yet
    word = readiness.judge(
        seen.view, seen.local, agent.config, seen.at, obstacles, hidden=agent.hidden
    )
    if word is None or not readiness.is_due(agent.told, word, monotonic() - agent.told_at):
        return
    key = agent.config.key(f"candidates/{word.node}")
    if isinstance(agent.machine.consul.txn([Set(key, word.dump())]), Committed):
        agent.told, agent.told_at = word, monotonic()


def _end_pause(agent: Agent, seen: Seen) -> None:
    if isinstance(seen.view, Cluster):
        said = agent.pauses.look(seen.view.pause, monotonic())
        if said is not None:
            log.warning("%s", said)
            agent.woken.set()


def _freeze_if_due(agent: Agent, own: OwnEpoch) -> None:
    """Before the lock is taken, a look: a plan must not find it taken at each turn."""
    lease = LeaseStatus.load(agent.config.run_dir)
    if isolated.is_due(agent.config, own, lease, agent.since, monotonic()):
        unless_changed(agent, own, lambda: isolated.freeze_if_due(agent.machine, own, agent.since))


def unless_changed(agent: Agent, seen: OwnEpoch | None, do: Callable[[], None]) -> None:
    """What was seen may be from before a plan that has ended meanwhile: this node's own files are
    asked again, and no plan begins until it is done. One that is at work goes first.

    What `do` itself is refused is a failure like any other.
    """
    with contextlib.ExitStack() as held:
        try:
            lock = exclusive(agent.config.run_dir / "plan.lock", "a change of the role")
            held.enter_context(lock)
        except Refused:
            return
        own = OwnEpoch.load(agent.config.state_dir)
        if (own and (own.epoch, own.stage)) == (seen and (seen.epoch, seen.stage)):
            do()
