"""Nodes that replicate to each other in tests: each is made from a spec, which can be written
down, so that a process of its own can be told which node it is.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from msgspec import structs

from standfast.btrfs.store import BtrfsStore
from standfast.config.model import Config, KeepOwn, KeepPublished
from standfast.consul.records import Holder, Leader, LeaderState, dump_epoch
from standfast.consul.values import Entry, Set
from standfast.demo.consul.state import ClusterState
from standfast.demo.stand_ins.directory import DirectoryStore
from standfast.errors import ConsulNoQuorum
from standfast.replication import receive
from standfast.replication.cycle import Sender
from standfast.replication.ports import ReplicaStore
from standfast.system.clock import Deadline
from standfast.system.locks import exclusive
from tests.fakes.consul import MemoryConsul
from tests.support.volumes import config_for

if TYPE_CHECKING:
    from tests.contract.links import Links

NODES = ("a", "b", "c")


class FileGateway(MemoryConsul):
    """Consul's keys in a file, shared by processes."""

    def __init__(self, path: Path, *, later: dict[str, str] | None = None) -> None:
        super().__init__()
        self._path = path
        self._later = later or {}
        self.failing = 0
        """So many calls fail first."""

    @contextmanager
    def _call(self, effect: str = "") -> Iterator[ClusterState]:
        self._fail()
        with exclusive(self._path.with_suffix(".lock"), "another test", Deadline.after(5)):
            if self._path.exists():
                self.state.restore(pickle.loads(self._path.read_bytes()))
            with super()._call(effect) as state:
                yield state
            if effect:
                new = self._path.with_suffix(".new")
                new.write_bytes(pickle.dumps(state.snapshot()))
                new.replace(self._path)

    def get(
        self, key: str, *, consistent: bool = False, deadline: Deadline | None = None
    ) -> Entry | None:
        entry = super().get(key, consistent=consistent, deadline=deadline)
        if key in self._later:  # what the next reader sees
            self.put(key, base64.b64decode(self._later.pop(key)))
        return entry

    def wait(self, key: str, index: int, *, wait_s: float) -> tuple[int, Entry | None]:
        raise AssertionError("no change of another process wakes anybody here")

    @property
    def away(self) -> Path:
        """As long as this file exists, nobody reaches Consul."""
        return self._path.with_suffix(".away")

    def _fail(self) -> None:
        if self.away.exists():
            raise ConsulNoQuorum("no leader, a test says")
        if self.failing:
            self.failing -= 1
            raise ConsulNoQuorum("no leader, a test says")


def leader_value(node: str, epoch: int, state: LeaderState) -> bytes:
    return Leader(epoch, Holder(node, "boot-1"), 1, state, NODES).dump()


@dataclass
class Peer:
    """One node: its configuration, its store, and the shared Consul."""

    config: Config
    store: ReplicaStore
    gateway: FileGateway
    spec: dict[str, Any]
    links: Links | None = None
    """How it reaches others."""

    @property
    def sender(self) -> Sender:
        return Sender(self.config, self.store, self.gateway)

    def live(self, name: str) -> Path:
        return self.config.paths.live / name

    def published(self) -> list[str]:
        return [str(snapshot.name) for snapshot in self.store.snapshots() if snapshot.received]

    def talk_to(self, other: Peer, **spec: Any) -> Peer:
        """This node, with a way to `other`, which may be odd in some way."""
        assert self.links is not None
        return replace_transport(self, self.links.way_to({**other.spec, **spec}))

    def reaching(self, command: Sequence[str]) -> Peer:
        """This node, with that transport."""
        return replace_transport(self, command)


def replace_transport(peer: Peer, command: Sequence[str]) -> Peer:
    options = structs.replace(peer.config.replication, command=tuple(command), timeout=60.0)
    config = structs.replace(peer.config, replication=options)
    spec = {**peer.spec, "command": list(command)}
    return replace(peer, config=config, spec=spec)


def peer(root: Path, node: str, store: str, keys: Path, **more: Any) -> Peer:
    return from_spec({"root": str(root), "node": node, "store": store, "keys": str(keys), **more})


def from_spec(spec: dict[str, Any]) -> Peer:
    state = Path(spec["state"]) if "state" in spec else None
    config = config_for(Path(spec["root"]), spec["node"], nodes=NODES, state=state)
    if "run" in spec:
        config = structs.replace(config, paths=structs.replace(config.paths, run=Path(spec["run"])))
    if "cluster" in spec:
        config = structs.replace(config, cluster=spec["cluster"])
    if "verify" in spec:
        config = structs.replace(
            config, replication=structs.replace(config.replication, verify=spec["verify"])
        )
    if "keep" in spec:
        config = keeping(config, spec["keep"])
    gateway = FileGateway(Path(spec["keys"]), later=spec.get("later"))
    made = Peer(config, store_of(config, spec["store"]), gateway, spec)
    return replace_transport(made, spec["command"]) if "command" in spec else made


def store_of(config: Config, kind: str) -> ReplicaStore:
    return DirectoryStore(config.paths) if kind == "directory" else BtrfsStore(config.paths)


def keeping(config: Config, last: int) -> Config:
    """Only so many snapshots, and what has to stay anyway."""
    published = KeepPublished(keep_last=last, hourly=0, daily=0, weekly=0, monthly=0)
    own = KeepOwn(keep_last=last)
    return structs.replace(config, retention_own=own, retention_published=published)


def lead(peer: Peer, epoch: int, state: LeaderState = LeaderState.SERVING) -> None:
    """Consul says that this node is primary."""
    config = peer.config
    peer.gateway.txn(
        [
            Set(config.key("epoch"), dump_epoch(epoch)),
            Set(config.key("leader"), leader_value(config.node, epoch, state)),
        ]
    )


def answer(spec: dict[str, Any], stdin: int, stdout: TextIO) -> int:
    """What a standby's forced command does, in a process of its own."""
    node = from_spec(spec)
    if spec.get("untidy"):
        _leave_untidy(node.store)
    if "late_s" in spec:
        _start_late(node.store, spec["late_s"])
    receive.TURN_S = spec.get("turn_s", receive.TURN_S)
    return receive.receive(node.config, node.store, node.gateway, stdin, stdout)


def _leave_untidy(store: ReplicaStore) -> None:
    """What was staged can't be deleted."""

    def clear_staging() -> None:
        if store.unfinished():
            raise OSError("can't be deleted, a test says")

    setattr(store, "clear_staging", clear_staging)  # noqa: B010  # for a type it isn't a variable


def _start_late(store: ReplicaStore, late_s: float) -> None:
    """The program that takes the stream in needs so long until it looks at it."""
    argv = store.receive_argv

    def receive_argv(staging: Path) -> Sequence[str]:
        return ("sh", "-c", 'sleep "$0"; exec "$@"', str(late_s), *argv(staging))

    setattr(store, "receive_argv", receive_argv)  # noqa: B010
