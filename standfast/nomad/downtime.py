"""Jobs on their way from one node to another: how long each was down, and what keeps it.

Measured on one clock: from the stop that was asked for here, or from the takeover of a dead node's
storage, until the servers were first seen to have it running elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from msgspec import Struct, structs

from standfast.errors import NomadError
from standfast.nomad.observation import Constrained
from standfast.nomad.ports import Allocation, Node, NomadGateway
from standfast.system.clock import monotonic

# What isn't running elsewhere by then is the scheduler's, and its operator's.
PATIENCE_S = 600.0
RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Stopped:
    """A job that was told to end here."""

    allocation: Constrained
    at: float
    """Monotonic seconds."""
    evaluation: str


class Downtime(Struct, frozen=True):
    """The downtime of one group of one job."""

    job: str
    source: str
    """Name of the node that it left."""
    target: str = ""
    """Name of the node where it runs; empty: nowhere yet."""
    down_s: float | None = None
    why: str = ""
    """What the scheduler says of a job that it could not place."""


@dataclass(slots=True)
class Downtimes:
    """Measures the downtimes since the last change of the role."""

    known: dict[str, Downtime] = field(default_factory=dict)
    _stopped: dict[str, Stopped] = field(default_factory=dict)

    def begin(self, stopped: Stopped, source: Node) -> None:
        """Counts from the stop, or, without an evaluation, from when it was in the wrong place.

        A second stop of the same job doesn't begin its time anew.
        """
        name = stopped.allocation.job
        before = self._stopped.get(name)
        if before is None:
            self.known[name] = Downtime(name, source.name)
            self._stopped[name] = stopped
        elif stopped.evaluation:
            self._stopped[name] = replace(stopped, at=before.at)

    def forget(self) -> None:
        """Drops all of them: another change of the role begins."""
        self.known.clear()
        self._stopped.clear()

    @property
    def pending(self) -> bool:
        now = monotonic()
        return any(now - stopped.at < PATIENCE_S for stopped in self._stopped.values())

    def look(self, running: Mapping[str, tuple[Node, Allocation]]) -> list[Downtime]:
        """`running`: job -> where it runs by its constraint; returns what has just arrived."""
        arrived = []
        for name in [name for name in self._stopped if name in running]:
            node, allocation = running[name]
            if allocation.id == self._stopped[name].allocation.id:
                continue
            down_s = round(monotonic() - self._stopped.pop(name).at, 1)
            self.known[name] = structs.replace(
                self.known[name], target=node.name, down_s=down_s, why=""
            )
            arrived.append(self.known[name])
        return arrived

    def ask_why(self, nomad: NomadGateway) -> None:
        """Asks the scheduler why some run nowhere yet."""
        for name, stopped in self._stopped.items():
            if not stopped.evaluation:
                continue
            try:
                namespace = stopped.allocation.namespace
                told = nomad.evaluation(stopped.evaluation, namespace=namespace).unplaced
            except NomadError:
                return
            why = told.get(stopped.allocation.group, "")
            self.known[name] = structs.replace(self.known[name], why=why)


def by_job(
    nodes: Mapping[str, Node],
    allocations: Mapping[str, tuple[Allocation, ...]],
    fits: Callable[[Node], bool],
) -> Mapping[str, tuple[Node, Allocation]]:
    """Returns job -> where it runs, among the nodes that fit."""
    running = {}
    for node_id, those in allocations.items():
        node = nodes[node_id]
        for allocation in those:
            if allocation.client_status == RUNNING and fits(node):
                prefix = "" if allocation.namespace == "default" else f"{allocation.namespace}/"
                running[f"{prefix}{allocation.job_id}.{allocation.group}"] = (node, allocation)
    return running
