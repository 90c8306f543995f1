"""What a replication meets, in memory: Consul's two keys of the lease, and a standby that answers.

The volume itself is a directory store in a temporary directory: only the streams are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from standfast.adapters.consul_wire import CheckIndex, Committed, Conflict, Entry, Op, Set
from standfast.adapters.directory import initialise
from standfast.clock import Deadline
from standfast.config.model import Config, Replication
from standfast.records import Holder, Leader, LeaderState, dump_epoch
from tests.fakes.machine import config_in


def storage_node(root: Path, node: str, **replication: object) -> Config:
    """`a`, `b` or `c`, whose volume is there."""
    made = replace(
        config_in(root, "a", "b", "c"),
        node=node,
        store="directory",
        replication=replace(Replication(), **replication),  # type: ignore[arg-type]
    )
    initialise(made.paths.live)
    return made


@dataclass
class LeaseKeys:
    """`holder` serves `epoch`; a transaction is carried out as Consul does it."""

    holder: str = "a"
    epoch: int = 2
    state: LeaderState = LeaderState.SERVING
    written: dict[str, bytes] = field(default_factory=dict)
    before_txn: Callable[[], None] = lambda: None

    def get(
        self, key: str, *, consistent: bool = False, deadline: Deadline | None = None
    ) -> Entry | None:
        assert consistent, "an old answer may name a primary of before"
        if key.endswith("/leader"):
            leader = Leader(self.epoch, Holder(self.holder, "boot"), 5, self.state)
            return Entry(key, leader.dump(), 900 + self.epoch)
        return Entry(key, dump_epoch(self.epoch), self.epoch) if key.endswith("/epoch") else None

    def txn(self, ops: Sequence[Op], *, deadline: Deadline | None = None) -> Committed | Conflict:
        self.before_txn()
        for op in ops:
            if isinstance(op, CheckIndex) and op.index != self.epoch:
                return Conflict((f"{op.key}: its index is {self.epoch}",))
        self.written |= {op.key: op.value for op in ops if isinstance(op, Set)}
        return Committed({})


@dataclass
class Talk:
    """The standby's side of a conversation: the lines that it says, one after the other."""

    says: list[str]
    stdin_fd: int = -1
    heard: list[str] = field(default_factory=list)

    def send_line(self, line: str, deadline: Deadline) -> None:
        self.heard.append(line)

    def read_line(self, deadline: Deadline) -> str:
        return self.says.pop(0)

    def close_stdin(self) -> None:
        """The stream has ended."""
