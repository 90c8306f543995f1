"""A model of Consul: keys with indexes, atomic transactions, and every way for a reply to get lost.

`Store` is what the Raft log decides, one thing after another. `Client` is one process's way to it:
slow, cut off, answered by a server without quorum, its replies lost or its requests late.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from standfast.adapters.consul import Committed, Conflict, Entry
from standfast.adapters.consul_wire import Cas, CheckIndex, CheckNotExists, Delete, Op, Set
from standfast.clock import Deadline
from standfast.errors import ConsulNoQuorum, ConsulTimedOut, ConsulUnreachable
from standfast.records import Leader, LeaderState
from tests.sim.clockwork import Clockwork

Saved = tuple[dict[str, Entry], int]


class Store:
    """The keys. `watchers` see every committed transaction."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.index = 10
        self.quorum = True
        self.on_commit: Callable[[Sequence[Op]], None] = lambda ops: None

    def get(self, key: str) -> Entry | None:
        return self.entries.get(key)

    def txn(self, ops: Sequence[Op]) -> Committed | Conflict:
        for number, op in enumerate(ops):
            if not self._holds(op):
                return Conflict((f"operation {number}: the condition on {op.key} does not hold",))
        self.index += 1
        for op in ops:
            if isinstance(op, (Cas, Set)):
                self.entries[op.key] = Entry(op.key, op.value, self.index)
            elif isinstance(op, Delete):
                self.entries.pop(op.key, None)
        self.on_commit(ops)
        return Committed({op.key: self.index for op in ops if isinstance(op, (Cas, Set))})

    def _holds(self, op: Op) -> bool:
        entry = self.entries.get(op.key)
        if isinstance(op, CheckNotExists):
            return entry is None
        if isinstance(op, CheckIndex):
            return entry is not None and entry.modify_index == op.index
        if isinstance(op, Cas):
            return (0 if entry is None else entry.modify_index) == op.index
        return True

    # What operators do

    def delete(self, *keys: str) -> None:
        self.index += 1
        for key in keys:
            self.entries.pop(key, None)

    def put(self, key: str, value: bytes) -> None:
        self.txn([Set(key, value)])

    def backup(self) -> Saved:
        return dict(self.entries), self.index

    def restore(self, saved: Saved) -> None:
        """Indexes go back with the keys, as they do in Consul."""
        self.entries, self.index = dict(saved[0]), saved[1]


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
class Fault:
    """What happens to the next `count` transactions of a kind, or to a `read` (its reply is late).

    `lost`: it never arrives. `reply-lost`: it commits, and nobody hears of it. `late`: the caller
    times out, it arrives `delay_s` after having been sent. `freeze-before` and `freeze-after`: the
    caller is frozen between reading its clock and sending, or between the commit and the reply.
    """

    kind: str
    what: str
    delay_s: float = 0.0
    count: int = 1


@dataclass(slots=True)
class Client:
    """One process's gateway. All that takes time lets the clockwork run on."""

    clockwork: Clockwork
    store: Store
    timeout_s: float
    latency_s: float = 0.004
    cut: bool = False
    replies_cut: bool = False
    """Requests arrive, answers don't."""
    agent_down: bool = False
    """The node's Consul agent is away, and no other address is configured."""
    health: Callable[[str], str] = lambda node: "passing"
    faults: list[Fault] = field(default_factory=list)

    def _way(self, what: str, *, write: bool) -> None:
        """The way to the servers; raises what a client of an unreachable Consul gets."""
        if self.agent_down:
            self.clockwork.pass_time(0.001)
            raise ConsulUnreachable(f"{what}: connection refused")
        if self.cut:
            self.clockwork.pass_time(self.timeout_s)
            raise ConsulTimedOut(f"{what}: no answer", maybe_applied=write)
        self.clockwork.pass_time(self.latency_s)
        if not self.store.quorum:
            self.clockwork.pass_time(self.timeout_s / 4)
            raise ConsulNoQuorum(f"{what}: no cluster leader", maybe_applied=write)

    def _way_back(self, what: str, *, write: bool) -> None:
        if self.replies_cut or self.cut:
            self.clockwork.pass_time(self.timeout_s)
            raise ConsulTimedOut(f"{what}: no answer", maybe_applied=write)
        self.clockwork.pass_time(self.latency_s)

    def read(
        self, keys: Sequence[str], *, deadline: Deadline | None = None
    ) -> Mapping[str, Entry | None]:
        fault = self._fault("read")
        self._way("a read", write=False)
        found = {key: self.store.get(key) for key in keys}
        if fault is not None:
            self.clockwork.pass_time(fault.delay_s)
        self._way_back("a read", write=False)
        return found

    def get_many(
        self, prefix: str, *, consistent: bool = False, deadline: Deadline | None = None
    ) -> tuple[Entry, ...]:
        self._way("a read", write=False)
        found = [
            entry for key, entry in sorted(self.store.entries.items()) if key.startswith(prefix)
        ]
        self._way_back("a read", write=False)
        return tuple(found)

    def wait(self, key: str, index: int, *, wait_s: float) -> tuple[int, Entry | None]:
        self._way("a blocking query", write=False)
        entry = self.store.get(key)
        now_index = self.store.index if entry is None else entry.modify_index
        self._way_back("a blocking query", write=False)
        return now_index, entry

    def node_health(self, node: str, *, deadline: Deadline | None = None) -> str:
        self._way("a read", write=False)
        return self.health(node)

    def txn(self, ops: Sequence[Op], *, deadline: Deadline | None = None) -> Committed | Conflict:
        fault = self._fault(kind_of(ops))
        what = fault.what if fault is not None else ""
        delay_s = fault.delay_s if fault is not None else 0.0
        if what == "freeze-before":
            self.clockwork.pass_time(delay_s)
        if what in ("lost", "late"):
            if what == "late":
                self.clockwork.after(delay_s, lambda: self._arrive(ops))
            self.clockwork.pass_time(self.timeout_s)
            raise ConsulTimedOut("a transaction: no answer", maybe_applied=True)
        self._way("a transaction", write=True)
        result = self.store.txn(ops)
        if what == "freeze-after":
            self.clockwork.pass_time(delay_s)
        if what == "reply-lost":
            self.clockwork.pass_time(self.timeout_s)
            raise ConsulTimedOut("a transaction: no answer", maybe_applied=True)
        self._way_back("a transaction", write=True)
        return result

    def _arrive(self, ops: Sequence[Op]) -> None:
        if self.store.quorum:
            self.store.txn(ops)

    def _fault(self, kind: str) -> Fault | None:
        for fault in self.faults:
            if fault.kind == kind:
                fault.count -= 1
                if fault.count == 0:
                    self.faults.remove(fault)
                return fault
        return None
