"""What a replication meets, in memory: Consul's two keys of the lease, and a standby that answers.

The volume itself is a directory store in a temporary directory: only the streams are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from standfast.config.model import Config, Replication
from standfast.consul.records import Holder, Leader, LeaderState, dump_epoch
from standfast.consul.values import Entry
from standfast.demo.stand_ins.directory import initialise
from standfast.system.clock import Deadline
from tests.fakes.consul import MemoryConsul
from tests.support.configs import config_in

PREFIX = "standfast/data-services/"


def storage_node(root: Path, node: str, **replication: object) -> Config:
    """`a`, `b` or `c`, whose volume is there."""
    made = replace(
        config_in(root, "a", "b", "c"),
        node=node,
        replication=replace(Replication(), **replication),
    )
    initialise(made.paths.live)
    return made


class LeaseKeys(MemoryConsul):
    """`holder` serves `epoch`, until `lead` says something else."""

    def __init__(
        self, holder: str = "a", epoch: int = 2, state: LeaderState = LeaderState.SERVING
    ) -> None:
        super().__init__(holder)
        self.leads = (holder, epoch, state)
        self.lead()

    def lead(
        self,
        holder: str | None = None,
        epoch: int | None = None,
        state: LeaderState | None = None,
    ) -> None:
        """What is not given stays."""
        before = self.leads
        self.leads = (holder or before[0], epoch or before[1], state or before[2])
        leader = Leader(self.leads[1], Holder(self.leads[0], "boot"), 5, self.leads[2], ())
        self.put(f"{PREFIX}epoch", dump_epoch(leader.epoch))
        self.put(f"{PREFIX}leader", leader.dump())

    def get(
        self, key: str, *, consistent: bool = False, deadline: Deadline | None = None
    ) -> Entry | None:
        assert consistent, "an old answer may name a primary of before"
        return super().get(key, consistent=consistent, deadline=deadline)

    @property
    def written(self) -> dict[str, bytes]:
        """All but the lease."""
        lease = (f"{PREFIX}epoch", f"{PREFIX}leader")
        return {entry.key: entry.value for entry in self.get_many(PREFIX) if entry.key not in lease}


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
