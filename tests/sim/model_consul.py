"""A model of Consul: keys with indexes, atomic transactions, a catalog, and every way for a reply
to get lost.

`Store` is what the Raft log decides, one thing after another. `Link` is a node's way to it: slow,
cut off, answered by a server without quorum or with an older state. `Client` is one process's
gateway over the link of its node.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from standfast.consul.gateway import Committed, Conflict, Entry, Instance
from standfast.consul.records import Leader, LeaderState
from standfast.consul.values import (
    Cas,
    Check,
    CheckIndex,
    CheckNotExists,
    Delete,
    Op,
    Registration,
    Set,
    check_key,
    is_folder,
)
from standfast.demo.consul.http import MAX_OPS
from standfast.errors import (
    ConsulError,
    ConsulGarbled,
    ConsulNoQuorum,
    ConsulTimedOut,
    ConsulUnreachable,
)
from standfast.system.clock import Deadline
from tests.sim.clockwork import Clockwork, Signal

if TYPE_CHECKING:
    from tests.sim.node import SimNode

Saved = tuple[dict[str, Entry], int, float]
"""The keys, the index, and the time that they are of."""
MEMORY_S = 60.0
"""How far back a server may answer from."""


class ConsulStore:
    """The keys. `on_commit` sees every committed transaction."""

    def __init__(self, clockwork: Clockwork) -> None:
        self._clockwork = clockwork
        self.entries: dict[str, Entry] = {}
        self.index = 10
        self.moved_at = self.index
        """When the last key changed: the index of one that doesn't exist."""
        self.restores = 0
        self._quorum = True
        self.changed = Signal(clockwork)
        self.on_commit: Callable[[Sequence[Op]], None] = lambda ops: None
        self._times: list[float] = [float("-inf")]
        self._past: list[dict[str, Entry]] = [{}]

    @property
    def quorum(self) -> bool:
        return self._quorum

    @quorum.setter
    def quorum(self, has: bool) -> None:
        self._quorum = has
        self.changed.set()

    def get(self, key: str) -> Entry | None:
        return self.entries.get(key)

    def at(self, when: float) -> Mapping[str, Entry]:
        """The keys as they were at that time."""
        return self._past[bisect_right(self._times, when) - 1]

    def since(self, when: float) -> Sequence[Mapping[str, Entry]]:
        """The same, and as they were after each change since then."""
        return self._past[bisect_right(self._times, when) - 1 :]

    def txn(self, ops: Sequence[Op]) -> Committed | Conflict:
        """Each operation sees what those before it did; a value that is there moves no index."""
        self.index += 1
        after = dict(self.entries)
        refused = []
        indexes = {}
        for number, op in enumerate(ops):
            there = after.get(op.key)
            if why := refusal(op, there):
                refused.append(f"operation {number}: {why}")
            elif isinstance(op, (Cas, Set)):
                if there is None or there.value != op.value:
                    after[op.key] = Entry(op.key, op.value, self.index)
                indexes[op.key] = after[op.key].modify_index
            elif isinstance(op, Delete):
                after.pop(op.key, None)
        if refused:
            return Conflict(tuple(refused))
        if after != self.entries:
            self._become(after)
        self.on_commit(ops)
        return Committed(indexes)

    def _become(self, entries: dict[str, Entry]) -> None:
        self.entries = entries
        self.moved_at = self.index
        now = self._clockwork.now
        self._times.append(now)
        self._past.append(entries)
        if self._times[len(self._times) // 2] < now - MEMORY_S:
            old = bisect_right(self._times, now - MEMORY_S) - 1
            del self._times[:old], self._past[:old]
        self.changed.set()

    # What operators do

    def delete(self, *keys: str) -> None:
        self.index += 1
        self._become({key: entry for key, entry in self.entries.items() if key not in keys})

    def put(self, key: str, value: bytes) -> None:
        self.txn([Set(key, value)])

    def backup(self) -> Saved:
        return dict(self.entries), self.index, self._clockwork.now

    def restore(self, saved: Saved) -> None:
        """Indexes go back with the keys, as they do in Consul, and who waits is answered."""
        self.index = saved[1]
        self.restores += 1
        self._become(dict(saved[0]))

    def import_(self, entries: Mapping[str, Entry]) -> None:
        """As `consul kv import`: key by key at a new index, where it is another value; nothing is
        deleted."""
        self.restores += 1
        after = dict(self.entries)
        for key, entry in entries.items():
            self.index += 1
            there = after.get(key)
            if there is None or there.value != entry.value:
                after[key] = Entry(key, entry.value, self.index)
        self._become(after)


def refusal(op: Op, there: Entry | None) -> str:
    """Consul's words where the condition doesn't hold, else none."""
    if isinstance(op, CheckNotExists) and there is not None:
        return f'key "{op.key}" exists'
    if isinstance(op, CheckIndex) and there is None:
        return f'failed to check index, key "{op.key}" doesn\'t exist'
    index = 0 if there is None else there.modify_index
    if isinstance(op, CheckIndex) and index != op.index:
        mismatch = f"current modify index {index} != {op.index}"
        return f'failed index check for key "{op.key}", {mismatch}'
    if isinstance(op, Cas) and index != op.index:
        return f'failed to set key "{op.key}", index is stale'
    return ""


def kind_of(ops: Sequence[Op]) -> str:
    """heartbeat, clean, acquire, repair or other: what the lease means by a transaction."""
    if any(isinstance(op, (Cas, Set)) and "/history/" in op.key for op in ops):
        return "acquire"
    for op in ops:
        if isinstance(op, (Cas, Set)) and op.key.endswith("/leader"):
            if Leader.parse(op.value).state is LeaderState.CLEAN:
                return "clean"
            return "repair" if isinstance(op, Cas) and op.index == 0 else "heartbeat"
    return "other"


@dataclass(slots=True)
class ConsulFault:
    """What happens to the next `count` transactions of a kind, or to a `read` (its reply is late).

    `lost`: it never arrives. `reply-lost`: it commits, and nobody hears of it. `late`: the caller
    times out, it arrives `delay_s` after having been sent. `freeze-before` and `freeze-after`: the
    caller is frozen between reading its clock and sending, or when the reply has come.
    """

    kind: str
    what: str
    delay_s: float = 0.0
    count: int = 1


@dataclass(slots=True)
class AgentService:
    """One entry of a node's own agent; its check expires by itself."""

    name: str
    address: str
    port: int
    meta: Mapping[str, str]
    ttl_s: float
    passing: bool = False
    fed_at: float = 0.0

    def state(self, now: float) -> str:
        return "passing" if self.passing and now - self.fed_at < self.ttl_s else "critical"


@dataclass(slots=True)
class Link:
    """One node's way to Consul, and its own agent."""

    clockwork: Clockwork
    store: ConsulStore
    latency_s: Callable[[], float] = lambda: 0.004
    cut: bool = False
    replies_cut: bool = False
    """Requests arrive, answers don't."""
    agent_down: bool = False
    """The node's Consul agent is away, and no other address is configured."""
    stale_s: float = 0.0
    """Reads that are not consistent are answered from so long ago."""
    faults: list[ConsulFault] = field(default_factory=list)
    services: dict[str, AgentService] = field(default_factory=dict)
    """Of the node's own agent: they survive its restart."""
    catalog: dict[str, tuple[AgentService, str]] = field(default_factory=dict)
    """What the servers last heard of them, with the state of the check."""
    past: list[tuple[float, Mapping[str, tuple[AgentService, str]]]] = field(default_factory=list)

    @property
    def joined(self) -> bool:
        return not (self.cut or self.replies_cut or self.agent_down)

    def tell_servers(self) -> None:
        """The agent's own synchronisation; nothing while it is cut off."""
        if self.joined:
            now = self.clockwork.now
            self.catalog = {
                key: (service, service.state(now)) for key, service in self.services.items()
            }
            if not self.past or self.past[-1][1].keys() != self.catalog.keys():
                self.past.append((now, self.catalog))

    def restore(self, when: float) -> None:
        """The catalogue goes back, too, until the node's agent tells the servers again."""
        told = [catalog for at, catalog in self.past if at <= when]
        self.catalog = dict(told[-1]) if told else {}

    def fault(self, kind: str) -> ConsulFault | None:
        for fault in self.faults:
            if fault.kind == kind:
                fault.count -= 1
                if fault.count == 0:
                    self.faults.remove(fault)
                return fault
        return None


@dataclass(slots=True)
class SimConsul:
    """One process's gateway; meets what the program needs of `ConsulGateway`."""

    node: SimNode
    timeout_s: float

    @property
    def _link(self) -> Link:
        return self.node.link

    @property
    def _clockwork(self) -> Clockwork:
        return self.node.link.clockwork

    @property
    def _store(self) -> ConsulStore:
        return self.node.link.store

    def _left_s(self, deadline: Deadline | None) -> float:
        """Real seconds until the caller gives up."""
        left_s = self.timeout_s if deadline is None else deadline.remaining_s()
        return self.node.clock.real_s(left_s)

    def _pass(self, seconds: float, until: float) -> None:
        """Time on the way; TimeoutError when the caller's patience ends before."""
        clockwork = self._clockwork
        clockwork.pause(min(clockwork.now + seconds, until))
        if clockwork.now >= until:
            raise TimeoutError

    def _there(self, what: str, deadline: Deadline | None, *, write: bool = False) -> float:
        """The way to the servers; until when (real time) the caller waits for the answer."""
        clockwork, link = self._clockwork, self._link
        until = clockwork.now + self._left_s(deadline)
        clockwork.door()
        if link.agent_down:
            clockwork.pause(clockwork.now + 0.001)
            raise ConsulUnreachable(f"{what}: connection refused")
        try:
            if link.cut:
                self._pass(float("inf"), until)
            self._pass(link.latency_s(), until)
        except TimeoutError:
            raise ConsulTimedOut(f"{what}: no answer", maybe_applied=write) from None
        if not self._store.quorum:
            clockwork.pause(min(until, clockwork.now + self.timeout_s / 4))
            raise ConsulNoQuorum(f"{what}: no cluster leader", maybe_applied=write)
        return until

    def _back(self, what: str, until: float, *, write: bool = False) -> None:
        link = self._link
        try:
            if link.replies_cut or link.cut:
                self._pass(float("inf"), until)
            self._pass(link.latency_s(), until)
        except TimeoutError:
            raise ConsulTimedOut(f"{what}: no answer", maybe_applied=write) from None

    # KV

    def _seen(self, consistent: bool) -> Mapping[str, Entry]:
        link = self._link
        if consistent or not link.stale_s:
            return link.store.entries
        return link.store.at(self._clockwork.now - link.stale_s)

    def get(
        self, key: str, *, consistent: bool = False, deadline: Deadline | None = None
    ) -> Entry | None:
        check_key(key)
        until = self._there("a read", deadline)
        entry = self._seen(consistent).get(key)
        self._back("a read", until)
        return entry

    def get_many(
        self, prefix: str, *, consistent: bool = False, deadline: Deadline | None = None
    ) -> tuple[Entry, ...]:
        check_key(prefix)
        until = self._there("a read", deadline)
        seen = self._seen(consistent)
        keys = [key for key in sorted(seen) if key.startswith(prefix) and not is_folder(key)]
        entries = tuple(seen[key] for key in keys)
        self._back("a read", until)
        return entries

    def read(
        self, keys: Sequence[str], *, folders: Sequence[str] = (), deadline: Deadline | None = None
    ) -> Mapping[str, Entry | None]:
        fault = self._link.fault("read")
        until = self._there("a read", deadline)
        inside = [key for key in sorted(self._store.entries) if key.startswith(tuple(folders))]
        names = [*keys, *(key for key in inside if not is_folder(key))]
        entries = {key: self._store.get(key) for key in names}
        self._back("a read", until)
        if fault is not None:
            self._clockwork.stall(fault.delay_s)
        return entries

    def wait(self, key: str, index: int, *, wait_s: float) -> tuple[int, Entry | None]:
        what = f"waiting for {key}"
        clockwork, store = self._clockwork, self._store
        whole = Deadline.after(wait_s * 17 / 16 + self.timeout_s)
        until = self._there(what, whole)
        answer_at = clockwork.now + self.node.clock.real_s(max(wait_s, 0.01))
        restores = store.restores
        while True:
            entry = self._seen(False).get(key)
            now_index = store.moved_at if entry is None else entry.modify_index
            if now_index > index or store.restores != restores:
                break
            if clockwork.now >= answer_at or not store.quorum:
                break
            patience = answer_at if not self._link.stale_s else min(answer_at, clockwork.now + 0.2)
            store.changed.wait(patience)
        if not store.quorum:
            clockwork.pause(clockwork.now + 0.05)
            raise ConsulNoQuorum(f"{what}: no cluster leader")
        self._back(what, until)
        return max(1, now_index), entry

    def txn(self, ops: Sequence[Op], *, deadline: Deadline | None = None) -> Committed | Conflict:
        for op in ops:
            check_key(op.key)
        if len(ops) > MAX_OPS:
            raise ConsulGarbled(f"unexpected 413 'too many operations ({len(ops)} > {MAX_OPS})'")
        fault = self._link.fault(kind_of(ops)) if self._link.faults else None
        what = fault.what if fault is not None else ""
        delay_s = fault.delay_s if fault is not None else 0.0
        clockwork = self._clockwork
        if what == "freeze-before":
            clockwork.stall(delay_s)
        if what in ("lost", "late"):
            if what == "late":
                clockwork.after(delay_s, lambda: self._arrive(ops))
            clockwork.door()
            clockwork.pause(clockwork.now + self._left_s(deadline))
            raise ConsulTimedOut("a transaction: no answer", maybe_applied=True)
        until = self._there("a transaction", deadline, write=True)
        result = self._store.txn(ops)
        if what == "reply-lost":
            clockwork.pause(max(until, clockwork.now))
            raise ConsulTimedOut("a transaction: no answer", maybe_applied=True)
        self._back("a transaction", until, write=True)
        if what == "freeze-after":
            clockwork.stall(delay_s)
        return result

    def put(self, key: str, value: bytes, *, deadline: Deadline | None = None) -> None:
        self.txn([Set(key, value)], deadline=deadline)

    def delete(self, key: str, *, deadline: Deadline | None = None) -> None:
        self.txn([Delete(key)], deadline=deadline)

    def _arrive(self, ops: Sequence[Op]) -> None:
        if self._store.quorum:
            self._store.txn(ops)

    # Nodes and services

    def self_check(self, *, deadline: Deadline | None = None) -> None:
        self.instances("consul", deadline=deadline)

    def node_health(self, node: str, *, deadline: Deadline | None = None) -> str:
        until = self._there("a read", deadline)
        health = self.node.world.health(node)
        self._back("a read", until)
        return health

    def instances(
        self, service: str, *, consistent: bool = True, deadline: Deadline | None = None
    ) -> tuple[Instance, ...]:
        until = self._there("a read", deadline)
        instances = []
        for name, node in self.node.world.nodes.items():
            if node.powered:
                node.link.tell_servers()
            for key, (known, state) in node.link.catalog.items():
                if known.name == service:
                    health = self.node.world.health(name)
                    made = (key, name, known.address, known.port, known.meta, health, state)
                    instances.append(Instance(*made, has_own_check=True))
        self._back("a read", until)
        return tuple(instances)

    def critical_on(self, node: str, *, deadline: Deadline | None = None) -> tuple[Check, ...]:
        until = self._there("a read", deadline)
        there = self.node.world.nodes.get(node)
        checks = (
            []
            if there is None
            else [
                Check(f"service:{key}", key, key)
                for key, (_, state) in sorted(there.link.catalog.items())
                if state == "critical"
            ]
        )
        self._back("a read", until)
        return tuple(checks)

    # The node's own agent

    def node_name(self, *, deadline: Deadline | None = None) -> str:
        self._local("asking the agent for its name")
        return self.node.name

    def is_leader(self, *, deadline: Deadline | None = None) -> bool:
        """Only asked where the configuration says so; no simulated one does."""
        self._local("asking the agent whether it leads")
        return True

    def transfer_leadership(self, *, deadline: Deadline | None = None) -> None:
        raise ConsulError("before 1.15 it can't transfer its leadership")

    def _local(self, what: str) -> None:
        clockwork = self._clockwork
        clockwork.take(0.002)
        if self._link.agent_down:
            raise ConsulUnreachable(f"{what}: connection refused")

    def register(self, entry: Registration, *, deadline: Deadline | None = None) -> None:
        self._local("registering")
        known = self._link.services.get(entry.service_id)
        passing = known is not None and known.state(self._clockwork.now) == "passing"
        self._link.services[entry.service_id] = AgentService(
            entry.name,
            entry.address,
            entry.port,
            dict(entry.meta),
            entry.check_ttl_s,
            passing,
            self._clockwork.now,
        )
        self._link.tell_servers()

    def deregister(self, service_id: str, *, deadline: Deadline | None = None) -> None:
        self._local("deregistering")
        self._link.services.pop(service_id, None)
        self._link.tell_servers()

    def local_services(
        self, *, deadline: Deadline | None = None
    ) -> Mapping[str, Mapping[str, str]]:
        self._local("reading the agent's services")
        return {key: service.meta for key, service in self._link.services.items()}

    def pass_check(self, check_id: str, note: str, *, deadline: Deadline | None = None) -> None:
        self._feed(check_id, True)

    def fail_check(self, check_id: str, note: str, *, deadline: Deadline | None = None) -> None:
        self._feed(check_id, False)

    def _feed(self, check_id: str, passing: bool) -> None:
        self._local("a check")
        service = self._link.services.get(check_id.removeprefix("service:"))
        if service is None:
            text = f'CheckID "{check_id}" does not have associated TTL'
            raise ConsulError(f"unexpected 500 {text!r}", maybe_applied=True)
        service.passing, service.fed_at = passing, self._clockwork.now
        self._link.tell_servers()
