"""The ordered part of a demotion: nothing that is bound to the primary runs here any more.

Invariant: the node is ineligible before the first job is stopped, so that none is placed here
again; it stays so until the servers don't show the meta any more (`decide` gives it back).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from standfast.errors import NomadError, NomadOutcome, TimedOut
from standfast.nomad.constraints import Meta
from standfast.nomad.notes import Notes
from standfast.nomad.observation import Bound, bound_of
from standfast.nomad.ports import Node, NomadGateway
from standfast.system.clock import Deadline, monotonic, sleep

log = logging.getLogger(__name__)

POLL_S = 0.25
# From a task's end until the servers know of it.
REPORT_S = 3.0
# After these there is no sense in asking for the next one.
AWAY = (NomadOutcome.UNREACHABLE, NomadOutcome.TIMEOUT)


@dataclass(frozen=True, slots=True)
class Stopped:
    """A job that was told to end here."""

    bound: Bound
    at: float
    """Monotonic seconds."""
    evaluation: str


@dataclass(slots=True)
class Released:
    """What came of it on `node`; `failed` are whole sentences."""

    node: Node
    stopped: list[Stopped] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def in_order(bound: Iterable[Bound]) -> list[Bound]:
    """The least important first: what depends on others is rarely the most important one."""
    return sorted(bound, key=lambda one: (one.priority, one.job, one.id))


def release(
    nomad: NomadGateway, notes: Notes, meta: Meta, limit_s: float, deadline: Deadline
) -> Released:
    """NomadError or ConsulError when it ended before anything was stopped.

    A Nomad that goes away afterwards is waited for no longer: what was stopped until then is told.
    Each call has the gateway's own deadline, which is a fraction of this one.
    """
    own = nomad.own_node()
    noted = notes.load().get(own.id)
    if own.eligible or (noted is not None and noted.note.ahead):
        notes.write(own, 0)  # of one that was prepared, too: the role has come, and goes
    if own.eligible:
        nomad.set_eligible(own.id, False)
    outcome = Released(own)
    bound = bound_on(nomad, own, meta)
    try:
        stop(nomad, in_order(bound), outcome, deadline)
        if bound:
            longest_s = min(max(one.kill_timeout_s for one in bound), limit_s)
            _wait(nomad, own, meta, outcome, deadline.within(longest_s + REPORT_S))
        nomad.set_meta(meta.key, None)
    except (NomadError, TimedOut) as error:
        outcome.failed.append(f"the release of the jobs was not finished: {error}")
    return outcome


def bound_on(nomad: NomadGateway, node: Node, meta: Meta) -> tuple[Bound, ...]:
    """What may run only on the primary, and runs on this node."""
    found = (bound_of(one, meta, node) for one in nomad.allocations(node.id))
    return tuple(one for one in found if one is not None)


def stop(
    nomad: NomadGateway, bound: Iterable[Bound], outcome: Released, deadline: Deadline
) -> None:
    """Each that is not ending already; one that is refused doesn't keep the others."""
    for one in bound:
        if not one.wanted:
            continue
        deadline.check(f"stopping {one.job}")
        try:
            evaluation = nomad.stop(one.id)
        except NomadError as error:
            if error.outcome in AWAY:
                raise
            outcome.failed.append(f"{one.job} was not stopped: {error}")
            continue
        log.info("stopped %s (%s)", one.job, one.id)
        outcome.stopped.append(Stopped(one, monotonic(), evaluation))


def _wait(
    nomad: NomadGateway, own: Node, meta: Meta, outcome: Released, deadline: Deadline
) -> None:
    """Until all of them are over, or have had their time."""
    while True:
        blind = None
        try:
            left = bound_on(nomad, own, meta)
        except NomadError as error:  # an election, say: they are ending all the same
            left, blind = (), error
        if not left and blind is None:
            return
        if deadline.expired:
            names = ", ".join(sorted({one.job for one in left}))
            still = f"still running on {own.name}: {names}"
            outcome.failed.append(still if blind is None else f"what still runs: {blind}")
            return
        sleep(POLL_S)
