"""What following the role needs of Nomad: one narrow protocol, met by `nomad.gateway`.

Every call raises NomadError, whose `outcome` says why, and gives up by the gateway's timeout where
nothing answers. An answer is what the servers know, but for `local_meta` and `set_meta`, which
speak of the node's own agent: the servers hear of a new meta 5-10 s later.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Protocol

from msgspec import Meta, Struct, field

from standfast.system.clock import Deadline

Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=0)]
RUN = "run"
READY = "ready"
_OVER = frozenset({"complete", "failed", "lost"})


class Node(Struct, frozen=True, kw_only=True):
    """A client node, as the servers know it."""

    id: Text = field(name="ID")
    name: Text = field(name="Name")
    status: Text = field(name="Status")
    """initializing, ready, down or disconnected."""
    eligible: bool
    draining: bool = field(name="Drain", default=False)
    meta: Mapping[str, str] = field(name="Meta", default_factory=dict)
    """Static and dynamic meta together."""
    host_volumes: Mapping[str, Text]
    """Name -> path on the node."""
    attributes: Mapping[str, str] = field(name="Attributes", default_factory=dict)
    datacenter: Text = field(name="Datacenter")
    node_class: str = field(name="NodeClass", default="")
    pool: str = field(name="NodePool", default="")


class LocalMeta(Struct, frozen=True, kw_only=True):
    """The meta of the own node, as its agent has it."""

    dynamic: Mapping[str, str | None] = field(name="Dynamic")
    """Set while running, kept across restarts; None: a static one that was unset."""
    static: Mapping[str, str] = field(name="Static", default_factory=dict)
    """From the agent's configuration file."""
    meta: Mapping[str, str] = field(name="Meta")
    """What comes of both."""


class TaskState(Struct, frozen=True, kw_only=True):
    """One task of an allocation."""

    name: str
    state: Text = field(name="State")
    """pending, running or dead."""
    failed: bool = field(name="Failed", default=False)
    restarts: Count = field(name="Restarts")
    started_at: str = field(name="StartedAt", default="")
    """As Nomad writes it (RFC 3339); empty: never."""
    finished_at: str = field(name="FinishedAt", default="")


class Allocation(Struct, frozen=True, kw_only=True):
    """One allocation with the job's document of its time."""

    id: Text = field(name="ID")
    name: Text = field(name="Name")
    namespace: Text = field(name="Namespace")
    job_id: Text = field(name="JobID")
    group: Text = field(name="TaskGroup")
    node_id: Text = field(name="NodeID")
    desired: Text = field(name="DesiredStatus")
    """run, stop or evict."""
    client_status: Text = field(name="ClientStatus")
    """pending, running, complete, failed, lost or unknown (the node is disconnected)."""
    job: Mapping[str, Any] = field(name="Job", default_factory=dict)
    """As Nomad's HTTP API has it; empty where the answer holds none (`job_allocations`)."""
    tasks: tuple[TaskState, ...]
    modify_index: Count = field(name="ModifyIndex")
    next_id: str = field(name="NextAllocation", default="")
    """The allocation that replaced this one; empty: none."""

    @property
    def over(self) -> bool:
        """Tells whether it has ended, as its node (or, for `lost`, the servers) said."""
        return self.client_status in _OVER


class Job(Struct, frozen=True, kw_only=True):
    """One line of the list of jobs."""

    namespace: str = field(name="Namespace", default="default")
    id: Text = field(name="ID")
    type: Text = field(name="Type")
    """service, batch, system or sysbatch."""
    status: Text = field(name="Status")
    """pending, running or dead."""
    stopped: bool = field(name="Stop", default=False)


class CsiVolume(Struct, frozen=True, kw_only=True):
    """A volume that a CSI plugin mounts; what the plugin makes of the two tables is its own."""

    id: Text = field(name="ID")
    context: Mapping[str, str] = field(name="Context", default_factory=dict)
    """What the plugin is told at each mount."""
    parameters: Mapping[str, str] = field(name="Parameters", default_factory=dict)
    """What it was told when it made the volume."""


class Evaluation(Struct, frozen=True, kw_only=True):
    """What the scheduler made of something."""

    id: Text = field(name="ID")
    namespace: Text = field(name="Namespace")
    job_id: Text = field(name="JobID")
    status: Text = field(name="Status")
    """pending, blocked, complete, failed or canceled."""
    blocked_id: str = field(name="BlockedEval", default="")
    """The evaluation that waits for room for what could not be placed; empty: all was placed."""
    unplaced: Mapping[str, str]
    """Group -> why it found no node, in one sentence."""


class Agent(Struct, frozen=True):
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

    def csi_volume(self, namespace: str, volume_id: str) -> CsiVolume:
        """Reads a CSI volume; DENIED where the token may not read jobs of the namespace."""

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
