"""What is done to Nomad: one step of a decision, a switchover's preparation, a demotion's release.

Invariants: a node is ineligible before the first job on it is stopped, so that none is placed there
again. The next primary shows the meta before the role goes to it, since the servers hear of a meta
5-10 s late; it takes no jobs until it is primary (`decide` gives that back), so neither a system
job nor a waiting one starts there early. When the role doesn't come, that node itself takes the
meta away again (`notes.AHEAD_S`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from standfast.errors import NomadError, NomadOutcome, Refused, TimedOut
from standfast.nomad.constraints import Meta
from standfast.nomad.decide import Do, Step
from standfast.nomad.downtime import Downtimes, Stopped
from standfast.nomad.notes import Notes
from standfast.nomad.observation import Constrained, Noted, constrained_of
from standfast.nomad.ports import READY, Node, NomadGateway
from standfast.system.clock import Deadline, monotonic, sleep

log = logging.getLogger(__name__)

POLL_S = 0.25
# From a task's end until the servers know of it.
REPORT_S = 3.0
# Servers hear of a new meta 5-10 s later (measured on 2.0.6); past this the storage goes anyway.
SHOWN_S = 15.0
# After these there is no sense in asking for the next one.
AWAY = (NomadOutcome.UNREACHABLE, NomadOutcome.TIMEOUT)


@dataclass(slots=True)
class Released:
    """The result on `node`; `failed` are whole sentences."""

    node: Node
    stopped: list[Stopped] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Steps:
    """Executes what `decide` decided, and what a switchover or a demotion asks for."""

    nomad: NomadGateway
    notes: Notes
    meta: Meta
    downtimes: Downtimes

    def execute(self, step: Step, epoch: int) -> None:
        """Executes one step; NomadError, ConsulError, or Refused when the primary's epoch is over
        (`epoch` 0: this node is a standby)."""
        self._table(epoch)[step.do](step)

    def _table(self, epoch: int) -> Mapping[Do, Callable[[Step], None]]:
        meta = self.meta
        return {
            Do.QUARANTINE: lambda step: self._quarantine(_node(step), epoch),
            Do.LIFT: self._lift,
            Do.DROP_NOTE: self._drop_note,
            Do.SET_META: lambda _: _ignore(self.nomad.set_meta(meta.key, meta.value)),
            Do.UNSET_META: lambda _: _ignore(self.nomad.set_meta(meta.key, None)),
            Do.STOP: self._stop,
        }

    def _quarantine(self, node: Node, epoch: int) -> None:
        self.notes.write(node, epoch, firm=not epoch)
        self.nomad.set_eligible(node.id, False)
        if epoch:
            self.notes.write(node, epoch)

    def _lift(self, step: Step) -> None:
        noted = self._still_noted(step)
        if noted is not None:
            self.nomad.set_eligible(_node(step).id, True)
            self.notes.delete(_node(step).id, noted)

    def _drop_note(self, step: Step) -> None:
        noted = self._still_noted(step)
        if noted is not None:
            self.notes.delete(_node(step).id, noted)

    def _still_noted(self, step: Step) -> Noted | None:
        """Returns the very note that was decided on, if it is still there."""
        noted = self.notes.load().get(_node(step).id)
        same = noted is not None and step.noted is not None and noted.index == step.noted.index
        return noted if same else None

    def _stop(self, step: Step) -> None:
        assert step.allocation is not None
        evaluation = self.nomad.stop(step.allocation.id)
        self.downtimes.begin(Stopped(step.allocation, monotonic(), evaluation), _node(step))

    # A switchover

    def prepare(self, name: str, epoch: int, deadline: Deadline) -> str:
        """Makes node `name` show the meta, for the primary of `epoch`; returns the result in a
        sentence.

        NomadError, ConsulError, or Refused when the epoch is over; a part may be done then, which
        the node undoes by itself.
        """
        nomad, notes, meta = self.nomad, self.notes, self.meta
        if not self.constrained_on(nomad.own_node()):
            return "no job here is constrained to the primary"
        node = self._named(name)
        if node.status != READY:
            return f"{name} is {node.status} in Nomad"
        noted = notes.load().get(node.id)
        again = noted is not None and noted.note.ahead and not node.draining
        if not node.eligible and not again:
            if noted is None:
                return f"{name} takes no jobs by an operator's choice"
            return f"{name} takes no jobs yet: it was made ineligible before"
        notes.write(node, epoch, firm=False, ahead=True)
        nomad.set_eligible(node.id, False)
        try:
            notes.write(node, epoch, ahead=True)
        except Refused:
            if node.eligible and node.id not in notes.load():
                nomad.set_eligible(node.id, True)  # the epoch is over, and its note is gone already
            raise
        nomad.set_meta(meta.key, meta.value, node_id=node.id)
        pair = f"{meta.key}={meta.value}"
        limit = deadline.within(SHOWN_S)
        while not limit.expired:
            if nomad.node(node.id).meta.get(meta.key) == meta.value:
                return f"{name} shows {pair}, and takes no jobs until it is primary"
            sleep(POLL_S)
        return f"the servers don't show {pair} on {name} yet"

    def _named(self, name: str) -> Node:
        """Returns the node that is ready; others of its name are from before a reinstallation."""
        nodes = self.nomad.nodes([name])
        for node in nodes:
            if node.status == READY:
                return node
        if nodes:
            return nodes[0]
        raise NomadError(f"Nomad knows no node {name}", NomadOutcome.NOT_FOUND)

    # A demotion

    def release(self, limit_s: float, deadline: Deadline) -> Released:
        """Stops what is constrained here; NomadError or ConsulError if it fails before the first
        stop.

        A Nomad that goes away afterwards is waited for no longer: what was stopped until then is
        told. Each call has the gateway's own timeout, which is a fraction of the deadline.
        """
        own = self.nomad.own_node()
        noted = self.notes.load().get(own.id)
        if own.eligible or (noted is not None and noted.note.ahead):
            self.notes.write(own, 0)  # of one that was prepared, too: the role has come, and goes
        if own.eligible:
            self.nomad.set_eligible(own.id, False)
        outcome = Released(own)
        constrained = self.constrained_on(own)
        try:
            self._stop_all(in_order(constrained), outcome, deadline)
            if constrained:
                longest_s = min(max(job.kill_timeout_s for job in constrained), limit_s)
                self._wait(outcome, deadline.within(longest_s + REPORT_S))
            self.nomad.set_meta(self.meta.key, None)
        except (NomadError, TimedOut) as error:
            outcome.failed.append(f"the release of the jobs was not finished: {error}")
        return outcome

    def constrained_on(self, node: Node) -> tuple[Constrained, ...]:
        """Returns what may run only on the primary, and runs on this node."""
        those = (
            constrained_of(allocation, self.meta, node)
            for allocation in self.nomad.allocations(node.id)
        )
        return tuple(allocation for allocation in those if allocation is not None)

    def _stop_all(
        self, constrained: Iterable[Constrained], outcome: Released, deadline: Deadline
    ) -> None:
        """Stops each that is not ending already; a refused one doesn't keep the others."""
        for allocation in constrained:
            if not allocation.wanted:
                continue
            deadline.check(f"stopping {allocation.job}")
            try:
                evaluation = self.nomad.stop(allocation.id)
            except NomadError as error:
                if error.outcome in AWAY:
                    raise
                outcome.failed.append(f"{allocation.job} was not stopped: {error}")
                continue
            log.info("stopped %s (%s)", allocation.job, allocation.id)
            outcome.stopped.append(Stopped(allocation, monotonic(), evaluation))

    def _wait(self, outcome: Released, deadline: Deadline) -> None:
        """Waits until all of them are over, or have had their time."""
        while True:
            blind = None
            try:
                left = self.constrained_on(outcome.node)
            except NomadError as error:  # an election, say: they are ending all the same
                left, blind = (), error
            if not left and blind is None:
                return
            if deadline.expired:
                names = ", ".join(sorted({allocation.job for allocation in left}))
                still = f"still running on {outcome.node.name}: {names}"
                outcome.failed.append(still if blind is None else f"what still runs: {blind}")
                return
            sleep(POLL_S)


def _node(step: Step) -> Node:
    assert step.node is not None
    return step.node


def _ignore(_: object) -> None:
    """Drops the own agent's answer, which proves nothing: the next look asks the servers."""


def in_order(constrained: Iterable[Constrained]) -> list[Constrained]:
    """Sorts by priority, the least important first: a job that others need is rarely that."""
    return sorted(constrained, key=lambda each: (each.priority, each.job, each.id))
