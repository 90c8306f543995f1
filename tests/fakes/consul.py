"""Consul in memory: the gateway's calls on the state of the embedded servers, without a network.

What a call does is the embedded cluster's own (standfast.demo), which is held against a real one;
here are only the way in and out, and what a test does to it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from standfast.consul.gateway import ConsulBlind
from standfast.consul.values import (
    Check,
    Committed,
    Conflict,
    Entry,
    Instance,
    Op,
    Registration,
    dump_op,
    is_folder,
    parse_committed,
    parse_conflict,
    parse_critical,
    parse_instance,
    parse_node_health,
)
from standfast.demo.consul.agents import Agent, UnknownCheck
from standfast.demo.consul.http import MAX_OPS
from standfast.demo.consul.shapes import check_shape, health_shape
from standfast.demo.consul.state import CheckRow, ClusterState, KeyRow
from standfast.errors import ConsulError, ConsulGarbled
from standfast.system.clock import Deadline, monotonic


class MemoryConsul:
    """One node's way to the cluster of these nodes; `at` gives another's. Thread-safe."""

    def __init__(self, node: str = "n1", *others: str) -> None:
        self.node = node
        self.state = ClusterState()
        self.agents: dict[str, Agent] = {}
        self.changed = threading.Condition(threading.RLock())
        self.effect: Callable[[str], object] = lambda name: None
        """Told of every write before it is done; what it raises keeps it from being done."""
        self.error: Exception | None = None
        """What every call ends with."""
        self.sees_all = True
        """Whether the token sees enough for an empty answer to prove something."""
        for name in (node, *others):
            self.join(name)

    def join(self, node: str) -> None:
        """A node becomes a member, with an agent."""
        self.agents[node] = Agent(node, "127.0.0.1")
        self.agents[node].publish_health(self.state)

    def gossip(self, node: str, health: str) -> None:
        """passing, critical, or absent: what the others say of a node."""
        with self.changed:
            self.agents[node].health = health
            self.agents[node].publish_health(self.state)

    def maintain(self, node: str, status: str = "critical") -> None:
        """A check of the node, as `consul maint -enable` makes one; it ends with another status."""
        with self.changed:
            row = CheckRow(node, "_node_maintenance", "Node Maintenance Mode", status)
            self.state.put_check(self.state.next_index(), row)

    def at(self, node: str) -> MemoryConsul:
        """The same cluster by another node's agent: what is done there, nobody is told of."""
        other = MemoryConsul.__new__(MemoryConsul)
        other.__dict__ = {**self.__dict__, "node": node, "effect": lambda name: None}
        return other

    @contextmanager
    def _call(self, effect: str = "") -> Iterator[ClusterState]:
        with self.changed:
            if self.error is not None:
                raise self.error
            for agent in self.agents.values():
                if agent.expire(monotonic()):
                    agent.sync(self.state)
            if effect:
                self.effect(effect)
            yield self.state
            if effect:
                self.changed.notify_all()

    # Keys

    def get(
        self, key: str, *, consistent: bool = False, deadline: Deadline | None = None
    ) -> Entry | None:
        with self._call() as state:
            return _entry(state.key(_checked(key))[1])

    def get_many(
        self, prefix: str, *, consistent: bool = False, deadline: Deadline | None = None
    ) -> tuple[Entry, ...]:
        with self._call() as state:
            rows = state.keys_under(_checked(prefix))[1]
            return tuple(
                Entry(row.key, row.value, row.modify_index)
                for row in rows
                if not is_folder(row.key)
            )

    def read(
        self, keys: Sequence[str], *, folders: Sequence[str] = (), deadline: Deadline | None = None
    ) -> Mapping[str, Entry | None]:
        with self._call() as state:
            inside = [
                row.key for folder in folders for row in state.keys_under(_checked(folder))[1]
            ]
            names = [*keys, *(key for key in inside if not is_folder(key))]
            return {key: _entry(state.key(_checked(key))[1]) for key in names}

    def wait(self, key: str, index: int, *, wait_s: float) -> tuple[int, Entry | None]:
        with self._call() as state:
            restores = state.generation
            self.changed.wait_for(
                lambda: state.key(_checked(key))[0] > index or state.generation != restores, wait_s
            )
            now, row = state.key(key)
            return now, _entry(row)

    def txn(self, ops: Sequence[Op], *, deadline: Deadline | None = None) -> Committed | Conflict:
        for op in ops:
            _checked(op.key)
        if len(ops) > MAX_OPS:
            raise ConsulGarbled(f"unexpected 413 'too many operations ({len(ops)} > {MAX_OPS})'")
        with self._call(f"txn {ops[-1]}") as state:
            results, errors = state.transact([dump_op(op) for op in ops])
            if errors:
                return parse_conflict({"Errors": errors})
            return parse_committed({"Results": results, "Errors": None}, ops)

    def put(self, key: str, value: bytes, *, deadline: Deadline | None = None) -> None:
        with self._call(f"put {key}") as state:
            state.set_key(state.next_index(), _checked(key), value)

    def delete(self, key: str, *, deadline: Deadline | None = None) -> None:
        with self._call(f"delete {key}") as state:
            state.delete_key(state.next_index(), _checked(key))

    # Services and nodes

    def instances(
        self, service: str, *, consistent: bool = True, deadline: Deadline | None = None
    ) -> tuple[Instance, ...]:
        with self._call() as state:
            rows = state.services(service)[1]
            return tuple(parse_instance(health_shape(state, row)) for row in rows)

    def self_check(self, *, deadline: Deadline | None = None) -> None:
        with self._call():
            if not self.sees_all:
                raise ConsulBlind("The Consul token sees 0 instances of the service `consul`")

    def node_health(self, node: str, *, deadline: Deadline | None = None) -> str:
        with self._call() as state:
            rows = state.checks(lambda row: row.node == node)[1]
            return parse_node_health([check_shape(row) for row in rows])

    def critical_on(self, node: str, *, deadline: Deadline | None = None) -> tuple[Check, ...]:
        with self._call() as state:
            rows = state.checks(lambda row: row.node == node)[1]
            return parse_critical([check_shape(row) for row in rows])

    # The node's own agent

    def node_name(self, *, deadline: Deadline | None = None) -> str:
        with self._call():
            return self._agent.node

    def is_leader(self, *, deadline: Deadline | None = None) -> bool:
        with self._call():
            return self.node == next(iter(self.agents))

    def transfer_leadership(self, *, deadline: Deadline | None = None) -> None:
        with self._call():
            raise ConsulError("before 1.15 it can't transfer its leadership")

    def register(self, entry: Registration, *, deadline: Deadline | None = None) -> None:
        document = {
            "ID": entry.service_id,
            "Name": entry.name,
            "Address": entry.address,
            "Port": entry.port,
            "Meta": dict(entry.meta),
            "Check": {"Name": entry.check_name, "TTL": f"{entry.check_ttl_s:.3f}s"},
        }
        with self._call("register") as state:
            self._agent.register(document, monotonic())
            self._agent.sync(state)

    def deregister(self, service_id: str, *, deadline: Deadline | None = None) -> None:
        with self._call("deregister") as state:
            self._agent.deregister(service_id)
            self._agent.sync(state)

    def local_services(
        self, *, deadline: Deadline | None = None
    ) -> Mapping[str, Mapping[str, str]]:
        with self._call():
            return {key: dict(row.meta) for key, row in self._agent.services().items()}

    def pass_check(self, check_id: str, note: str, *, deadline: Deadline | None = None) -> None:
        self._update("pass-check", check_id, "passing", note)

    def fail_check(self, check_id: str, note: str, *, deadline: Deadline | None = None) -> None:
        self._update("fail-check", check_id, "critical", note)

    def _update(self, effect: str, check_id: str, status: str, note: str) -> None:
        with self._call(effect) as state:
            try:
                self._agent.update_check(check_id, status, note, monotonic())
            except UnknownCheck as error:
                raise ConsulError(f"unexpected 500 {str(error)!r}", maybe_applied=True) from error
            self._agent.sync(state)

    @property
    def _agent(self) -> Agent:
        return self.agents[self.node]


def _entry(row: KeyRow | None) -> Entry | None:
    return None if row is None else Entry(row.key, row.value, row.modify_index)


def _checked(key: str) -> str:
    if not key or key.startswith("/"):
        raise ValueError(f"{key!r} is not a key or prefix")
    return key
