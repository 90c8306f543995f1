"""What was seen of Nomad in one look, as frozen values; `decide` works on nothing else.

Invariant: pure but for the reading in `loop`. A node's meta is what the servers know, since jobs
are placed by that; only `local` is the own agent's word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from standfast.consul.records import NomadNote
from standfast.nomad.constraints import Meta, Tie, dicts, placement, text_of
from standfast.nomad.ports import RUN, Allocation, Node

_MOST_NS = 2**63 - 1
"""Of Nomad's durations."""


class Role(StrEnum):
    """This node's part in the storage, by its own files."""

    PRIMARY = "primary"
    STANDBY = "standby"
    CHANGING = "changing"
    """In between, or not known: Nomad is left as it is."""


@dataclass(frozen=True, slots=True)
class Noted:
    """A note as it lies in Consul."""

    note: NomadNote
    index: int
    """Its ModifyIndex: only this very note is deleted."""
    firm: bool = True
    """The node is ineligible by now, or whoever wanted that is gone."""
    ahead: bool = False
    """The role may still come."""


@dataclass(frozen=True, slots=True)
class Constrained:
    """An allocation that may run only where the meta is, and isn't over."""

    id: str
    node_id: str
    namespace: str
    job_id: str
    group: str
    kind: str
    """service, batch, system or sysbatch."""
    priority: int
    wanted: bool
    """Nomad means it to run; else it is ending already."""
    kill_timeout_s: float
    """The longest of its tasks, with their shutdown delays."""

    @property
    def job(self) -> str:
        """Returns the name that messages use."""
        name = self.job_id if self.namespace == "default" else f"{self.namespace}/{self.job_id}"
        return f"{name}.{self.group}"

    @property
    def on_every_node(self) -> bool:
        """Tells whether the job starts on each node that fits, whatever still runs elsewhere."""
        return self.kind in ("system", "sysbatch")


@dataclass(frozen=True, slots=True)
class Observed:
    """What one look at Nomad saw."""

    role: Role
    meta: Meta
    own: Node
    local: bool
    """The own agent has the meta, whatever the servers know."""
    others: tuple[Node, ...] = ()
    """The other storage nodes, and whatever has one of their names."""
    notes: Mapping[str, Noted] = field(default_factory=dict)
    """Node id -> note."""
    constrained: tuple[Constrained, ...] = ()
    """On all of these nodes, as far as they were asked for."""

    def shows(self, node: Node) -> bool:
        """Tells whether the servers show the meta on a node."""
        return node.meta.get(self.meta.key) == self.meta.value

    def on(self, node: Node) -> tuple[Constrained, ...]:
        return tuple(allocation for allocation in self.constrained if allocation.node_id == node.id)


def constrained_of(allocation: Allocation, meta: Meta, node: Node) -> Constrained | None:
    """Returns the allocation if it is constrained; None when it is over or may run elsewhere."""
    job = allocation.job
    if allocation.over or placement(job, allocation.group, meta, node).tie is not Tie.PRIMARY:
        return None
    priority = job.get("Priority")
    return Constrained(
        allocation.id,
        allocation.node_id,
        allocation.namespace,
        allocation.job_id,
        allocation.group,
        text_of(job, "Type") or "service",
        priority if isinstance(priority, int) else 50,
        allocation.desired == RUN,
        kill_timeout_s(job, allocation.group),
    )


def kill_timeout_s(job: Mapping[str, Any], group: str) -> float:
    """Returns how long a group may take to stop, seconds; Nomad's own default is 5."""
    longest = 0.0
    for candidate in dicts(job.get("TaskGroups")):
        if candidate.get("Name") != group:
            continue
        delay = _seconds(candidate.get("ShutdownDelay"), 0.0)
        for task in dicts(candidate.get("Tasks")):
            own = delay + _seconds(task.get("ShutdownDelay"), 0.0)
            longest = max(longest, own + _seconds(task.get("KillTimeout"), 5.0))
    return longest


def _seconds(nanoseconds: Any, default: float) -> float:
    return min(nanoseconds, _MOST_NS) / 1e9 if isinstance(nanoseconds, int) else default
