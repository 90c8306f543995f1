"""What following the role needs of Nomad: one narrow protocol, met by `nomad.gateway`.

Every call raises NomadError, whose `outcome` says why, and gives up by the gateway's timeout where
nothing answers. An answer is what the servers know, but for `local_meta` and `set_meta`, which
speak of the node's own agent: the servers hear of a new meta 5-10 s later.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from standfast.system.clock import Deadline

RUN = "run"
READY = "ready"
DOWN = "down"
_OVER = frozenset({"complete", "failed", "lost"})


@dataclass(frozen=True, slots=True)
class Node:
    """A client node, as the servers know it."""

    id: str
    name: str
    status: str
    """initializing, ready, down or disconnected."""
    eligible: bool
    draining: bool
    meta: Mapping[str, str]
    """Static and dynamic meta together."""
    host_volumes: Mapping[str, str]
    """Name -> path on the node."""
    attributes: Mapping[str, str]
    datacenter: str
    node_class: str
    pool: str


@dataclass(frozen=True, slots=True)
class LocalMeta:
    """The meta of the own node, as its agent has it."""

    dynamic: Mapping[str, str | None]
    """Set while running, kept across restarts; None: a static one that was unset."""
    static: Mapping[str, str]
    """From the agent's configuration file."""
    meta: Mapping[str, str]
    """What comes of both."""


@dataclass(frozen=True, slots=True)
class TaskState:
    """One task of an allocation."""

    name: str
    state: str
    """pending, running or dead."""
    failed: bool
    restarts: int
    started_at: str
    """As Nomad writes it (RFC 3339); empty: never."""
    finished_at: str


@dataclass(frozen=True, slots=True)
class Allocation:
    """One allocation with the job's document of its time."""

    id: str
    name: str
    namespace: str
    job_id: str
    group: str
    node_id: str
    desired: str
    """run, stop or evict."""
    client_status: str
    """pending, running, complete, failed, lost or unknown (the node is disconnected)."""
    job: Mapping[str, Any]
    """As Nomad's HTTP API has it; empty where the answer holds none (`job_allocations`)."""
    tasks: tuple[TaskState, ...]
    modify_index: int
    next_id: str
    """The allocation that replaced this one; empty: none."""

    @property
    def over(self) -> bool:
        """Tells whether it has ended, as its node (or, for `lost`, the servers) said."""
        return self.client_status in _OVER


@dataclass(frozen=True, slots=True)
class Job:
    """One line of the list of jobs."""

    namespace: str
    id: str
    type: str
    """service, batch, system or sysbatch."""
    status: str
    """pending, running or dead."""
    stopped: bool


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the scheduler made of something."""

    id: str
    namespace: str
    job_id: str
    status: str
    """pending, blocked, complete, failed or canceled."""
    blocked_id: str
    """The evaluation that waits for room for what could not be placed; empty: all was placed."""
    unplaced: Mapping[str, str]
    """Group -> why it found no node, in one sentence."""


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent that is asked: the node's own."""

    name: str
    region: str
    version: str
    node_id: str
    """Empty: it runs no client."""
    server: bool
    rpc_address: str
    """HOST:PORT of its server part, to be compared with `leader`; empty: it is no server."""
    failover_heartbeat_ttl_s: float | None
    """For how long a dead node may look alive after a change of leader; None: it is no server."""


class NomadGateway(Protocol):
    """Nomad through the node's own agent."""

    # The own node and its agent

    def agent(self) -> Agent: ...

    def own_node(self) -> Node:
        """Reads the own node. NOT_FOUND: the agent runs no client, or the servers don't know it."""

    def local_meta(self) -> LocalMeta: ...

    def set_meta(self, key: str, value: str | None, *, node_id: str = "") -> LocalMeta:
        """Sets, or with None unsets, a dynamic meta of the own node, for good.

        With `node_id` of that node, through the servers: SERVER_ERROR, NOT_FOUND where it is dead.
        """

    # What the servers know

    def leader(self) -> str:
        """Returns HOST:PORT of the leader; empty when there is none."""

    def node(self, node_id: str) -> Node: ...

    def nodes(self, names: Collection[str] | None = None) -> Sequence[Node]:
        """Reads the nodes with these names, or all: one call each. A name may have none, or several
        (one left from before a reinstallation is down)."""

    def allocations(self, node_id: str) -> Sequence[Allocation]:
        """Reads all of a node, those that are over, too. `()` proves nothing: namespaces that the
        token can't read are left out silently."""

    def allocation(self, alloc_id: str) -> Allocation: ...

    def jobs(self) -> Sequence[Job]: ...

    def job(self, namespace: str, job_id: str) -> Mapping[str, Any]:
        """Reads the job's document, as Nomad's HTTP API has it."""

    def job_allocations(self, namespace: str, job_id: str) -> Sequence[Allocation]:
        """Reads where a job runs and ran; without the job's document."""

    def evaluation(self, eval_id: str, *, namespace: str = "default") -> Evaluation:
        """Reads an evaluation of the job's `namespace`; DENIED if the token may not read that."""

    # What changes them

    def set_eligible(self, node_id: str, eligible: bool) -> None:
        """Changes it at once, for a dead node, too; it survives the node's return."""

    def stop(self, alloc_id: str) -> str:
        """Stops it and places it anew if a node is eligible; returns the evaluation's id."""

    def restart(self, alloc_id: str, *, deadline: Deadline | None = None) -> None:
        """Restarts all its tasks in place. Two calls within milliseconds restart once.

        It ends when the old tasks have, so a caller may give it longer than the timeout.
        """

    def signal(
        self, alloc_id: str, task: str | None, signal: str, *, deadline: Deadline | None = None
    ) -> None:
        """Sends a signal (`SIGHUP`) to a task, or with None to all."""
