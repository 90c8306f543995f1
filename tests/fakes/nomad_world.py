"""A Nomad in memory for many rounds of following: its rules as measured, and a scheduler that puts
a job back where it was whenever it may.

Kept: meta that the servers see late and that survives a death, eligibility that survives
everything, allocations that no change of meta moves.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from standfast.config.model import Config
from standfast.consul.records import dump_epoch
from standfast.errors import NomadError, NomadOutcome
from standfast.nomad.loop import Follower
from standfast.nomad.ports import Agent, Allocation, CsiVolume, Evaluation, Job, LocalMeta, Node
from standfast.system.clock import Deadline
from tests.fakes.consul import MemoryConsul

KEY, VALUE = "storage_role", "primary"
BOUND = [{"LTarget": "${meta.storage_role}", "Operand": "=", "RTarget": "primary"}]


class FollowerCut(BaseException):
    """The follower's process dies between two effects."""


def job(name: str, kind: str = "service", *, bound: bool = True) -> dict[str, Any]:
    return {
        "ID": name,
        "Type": kind,
        "Priority": 50,
        "Constraints": BOUND if bound else None,
        "TaskGroups": [{"Name": "g", "Tasks": [{"Name": "t", "KillTimeout": 1_000_000_000}]}],
    }


@dataclass
class NomadClient:
    """A node of the cluster."""

    name: str
    alive: bool = True
    local: bool = False
    visible: bool = False
    eligible: bool = True
    draining: bool = False


@dataclass
class Placed:
    id: str
    job: dict[str, Any]
    node: str
    desired: str = "run"
    status: str = "running"
    after: Placed | None = None
    """It begins when this one is over."""

    @property
    def begun(self) -> bool:
        return self.after is None or self.after.over

    @property
    def over(self) -> bool:
        return self.status in ("complete", "lost")


@dataclass
class NomadWorld:
    clients: dict[str, NomadClient]
    jobs: list[dict[str, Any]]
    placed: list[Placed] = field(default_factory=list)
    consul: MemoryConsul = field(default_factory=MemoryConsul)
    now_s: float = 0.0
    budget: int | None = None
    """So many more effects happen before the cut; None: no cut."""
    lingering: bool = False
    """What is stopped goes on running until `end` is called."""
    by_operator: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)
    broken: dict[str, NomadOutcome] = field(default_factory=dict)
    """Method -> how it fails."""
    _ids: Any = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.consul.effect = self.effect

    @property
    def notes(self) -> list[str]:
        """Keys in Consul of nodes that were made ineligible."""
        return [entry.key for entry in self.consul.get_many("standfast/") if "/nomad/" in entry.key]

    def effect(self, text: str) -> None:
        if self.budget is not None:
            if self.budget <= 0:
                raise FollowerCut
            self.budget -= 1
        self.log.append(text)

    # The cluster's own life

    def propagate(self) -> None:
        """The servers hear of every living node's meta."""
        for client in self.clients.values():
            if client.alive:
                client.visible = client.local
        self.schedule()

    def schedule(self, first: str | None = None) -> None:
        """Place what has no place; on `first` if that may be."""
        names = sorted(self.clients, key=lambda name: name != first)
        for document in self.jobs:
            for name in names:
                client = self.clients[name]
                fits = client.alive and client.eligible and not client.draining
                if not fits or (document["Constraints"] and not client.visible):
                    continue
                mine = [p for p in self.placed if p.job is document and p.desired == "run"]
                mine = [p for p in mine if not p.over]
                if document["Type"] == "system":
                    mine = [p for p in mine if p.node == name]
                if not mine:
                    self.placed.append(Placed(f"alloc-{next(self._ids)}", document, name))

    def end(self) -> None:
        """What was told to stop has stopped."""
        for alloc in self.placed:
            if alloc.desired == "stop" and not alloc.over:
                alloc.status = "complete"

    def kill(self, name: str) -> None:
        """The node is down, by the servers' word, too."""
        self.clients[name].alive = False
        for alloc in self.placed:
            if alloc.node == name and not alloc.over:
                alloc.desired, alloc.status = "stop", "lost"
        self.schedule()

    def revive(self, name: str) -> None:
        self.clients[name].alive = True
        self.schedule()

    def disable(self, name: str) -> None:
        """An operator's word; it counts as theirs where no note of ours is on the node."""
        if not any(key.endswith(f"/nomad/id-{name}") for key in self.notes):
            self.by_operator.add(name)
        self.clients[name].eligible = False

    def enable(self, name: str) -> None:
        self.by_operator.discard(name)
        self.clients[name].eligible = True
        self.schedule()

    def where(self, name: str) -> list[str]:
        """Nodes on which a job runs now."""
        mine = [p for p in self.placed if p.job["ID"] == name]
        return sorted(p.node for p in mine if p.begun and not p.over)

    def set_epoch(self, config: Config, epoch: int) -> None:
        self.consul.at("n1").put(config.key("epoch"), dump_epoch(epoch))

    def follower(self, config: Config) -> Follower:
        return Follower(config, FakeNomad(self, config.node), self.consul)


@dataclass
class FakeNomad:
    """Meets NomadGateway, as far as following asks."""

    world: NomadWorld
    name: str

    def _check(self, method: str) -> None:
        outcome = self.world.broken.get(method) or self.world.broken.get("*")
        if not self.world.clients[self.name].alive:
            outcome = NomadOutcome.UNREACHABLE
        if outcome is not None:
            raise NomadError(f"{method}: {outcome}", outcome)

    def agent(self) -> Agent:
        raise AssertionError("not asked by following")

    def own_node(self) -> Node:
        self._check("own_node")
        return self._node(self.name)

    def local_meta(self) -> LocalMeta:
        self._check("local_meta")
        meta = {KEY: VALUE} if self.world.clients[self.name].local else {}
        return LocalMeta(dynamic=dict(meta), meta=meta)

    def set_meta(self, key: str, value: str | None, *, node_id: str = "") -> LocalMeta:
        self._check("set_meta")
        name = node_id.removeprefix("id-") or self.name
        client = self.world.clients[name]
        if not client.alive:
            raise NomadError("No path to node", NomadOutcome.NOT_FOUND)
        whose = "" if name == self.name else f"{name}'s "
        self.world.effect(f"{self.name}: {whose}meta {value}")
        client.local = value is not None
        meta = {KEY: VALUE} if client.local else {}
        return LocalMeta(dynamic=dict(meta), meta=meta)

    def leader(self) -> str:
        return ""

    def _node(self, name: str) -> Node:
        client = self.world.clients[name]
        return Node(
            id=f"id-{name}",
            name=name,
            status="ready" if client.alive else "down",
            eligible=client.eligible and not client.draining,
            draining=client.draining,
            meta={KEY: VALUE} if client.visible else {},
            host_volumes={},
            attributes={},
            datacenter="dc1",
            node_class="",
            pool="default",
        )

    def node(self, node_id: str) -> Node:
        return self._node(node_id.removeprefix("id-"))

    def nodes(self, names: Collection[str] | None = None) -> Sequence[Node]:
        self._check("nodes")
        return [self._node(name) for name in self.world.clients if names is None or name in names]

    def allocations(self, node_id: str) -> Sequence[Allocation]:
        self._check("allocations")
        if not self.world.lingering:
            self.world.end()
        return [self._allocation(p) for p in self.world.placed if f"id-{p.node}" == node_id]

    @staticmethod
    def _allocation(placed: Placed) -> Allocation:
        return Allocation(
            id=placed.id,
            name=f"{placed.job['ID']}.g[0]",
            namespace="default",
            job_id=placed.job["ID"],
            group="g",
            node_id=f"id-{placed.node}",
            desired=placed.desired,
            client_status=placed.status,
            job=placed.job,
            tasks=(),
            modify_index=1,
            next_id="",
        )

    def allocation(self, alloc_id: str) -> Allocation:
        return next(self._allocation(p) for p in self.world.placed if p.id == alloc_id)

    def jobs(self) -> Sequence[Job]:
        return ()

    def job(self, namespace: str, job_id: str) -> Mapping[str, Any]:
        return next(job for job in self.world.jobs if job["ID"] == job_id)

    def job_allocations(self, namespace: str, job_id: str) -> Sequence[Allocation]:
        return [self._allocation(p) for p in self.world.placed if p.job["ID"] == job_id]

    def evaluation(self, eval_id: str, *, namespace: str = "default") -> Evaluation:
        return Evaluation(
            id=eval_id, namespace=namespace, job_id="", status="complete", unplaced={}
        )

    def csi_volume(self, namespace: str, volume_id: str) -> CsiVolume:
        raise NomadError(f"there is no volume {volume_id}", NomadOutcome.NOT_FOUND)

    def set_eligible(self, node_id: str, eligible: bool) -> None:
        self._check("set_eligible")
        name = node_id.removeprefix("id-")
        self.world.effect(f"{self.name}: {name} eligible {eligible}")
        assert not (eligible and name in self.world.by_operator), (
            f"an operator's word is undone: {self.world.log}"
        )
        self.world.clients[name].eligible = eligible
        if eligible:
            self.world.schedule()

    def stop(self, alloc_id: str) -> str:
        self._check("stop")
        stopped = next(p for p in self.world.placed if p.id == alloc_id)
        self.world.effect(f"{self.name}: stop {stopped.job['ID']} on {stopped.node}")
        stopped.desired = "stop"
        if not self.world.lingering:
            stopped.status = "complete"
        before = len(self.world.placed)
        self.world.schedule(first=stopped.node)
        new = [p for p in self.world.placed[before:] if p.job is stopped.job]
        for successor in new:
            # Of what finds no node at once, Nomad forgets whom it succeeds.
            successor.after = stopped
        back = [p for p in new if p.node == stopped.node]
        assert not back, f"it came back to {stopped.node}: {self.world.log}"
        return "eval-1"

    def restart(self, alloc_id: str, *, deadline: Deadline | None = None) -> None:
        raise AssertionError("not asked by following")

    def signal(
        self, alloc_id: str, task: str | None, signal: str, *, deadline: Deadline | None = None
    ) -> None:
        raise AssertionError("not asked by following")
