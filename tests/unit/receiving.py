"""One conversation with a standby, whose store and Consul are in memory or a directory."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from standfast.btrfs.names_and_places import TreeInfo
from standfast.config.model import Config
from standfast.demo.stand_ins.directory import DirectoryStore, save_info
from standfast.names import SnapshotName
from standfast.reasons import Reason
from standfast.replication import wire
from standfast.replication.receive import receive
from standfast.system.clock import utc_now
from tests.fakes.replication import LeaseKeys
from tests.support.pace import patient

EPOCH = 4
NAME = SnapshotName.at("services", utc_now() - 100)


class Arriving(DirectoryStore):
    """A store in whose staging directory `arrives` lies when the stream begins."""

    arrives = "content"
    free = 10**12
    name = NAME

    def free_bytes(self) -> int:
        return self.free

    def receive_argv(self, staging: Path) -> list[str]:
        tree = staging / str(self.name)
        tree.mkdir()
        save_info(tree, TreeInfo("x", self.arrives, read_only=True))
        return ["cat"]


@dataclass
class Standby:
    """`b`, to which `a` speaks as the primary of EPOCH; what it answers is kept."""

    config: Config
    store: Arriving
    keys: LeaseKeys = field(default_factory=lambda: LeaseKeys("a", EPOCH))
    begin: wire.Begin = field(
        default_factory=lambda: wire.Begin(
            "test",
            "data-services",
            "a",
            EPOCH,
            str(NAME),
            "content",
            None,
            patience_s=int(patient(60)),
        )
    )
    asked: str = ""
    """What sshd was asked for."""
    bound: str | None = None
    """The node whose key it is, by the key's line."""
    by_ssh: bool = False
    purpose: wire.Purpose = wire.Purpose.SEND
    says_hello_as: str | None = None
    """As the node that it announces a snapshot of, unless told otherwise."""
    silent: bool = False
    said: list[str] = field(default_factory=list)
    """The kinds of messages that it said last."""
    says: Callable[[str], None] = lambda _: None
    """Called with each line that it says, before the sender has it."""

    def hear(self, *, ends: bool = True) -> list[dict[str, Any]]:
        """One conversation; `ends`: the sender closes the stream, which is empty."""
        begin, sender = self.begin, self.says_hello_as or self.begin.sender
        hello = wire.Hello(begin.cluster, begin.volume, sender, self.purpose)
        read, write = os.pipe()
        if not self.silent:
            os.write(write, f"{wire.dump(hello)}\n{wire.dump(begin)}\n".encode())
        if ends:
            os.close(write)
        said = _Lines(self.says)
        environ = {"SSH_ORIGINAL_COMMAND": self.asked}
        if self.by_ssh:
            environ["SSH_CONNECTION"] = "192.168.1.9 40000 192.168.1.3 22"
        how: dict[str, Any] = {"bound": self.bound, "environ": environ}
        try:
            receive(self.config, self.store, self.keys, read, said, **how)
        finally:
            os.close(read)
            if not ends:
                os.close(write)
        messages = [json.loads(line) for line in said.getvalue().splitlines()]
        self.said = [message["message_type"] for message in messages]
        return messages

    def refusal(self, **how: bool) -> Reason:
        """Why nothing was taken in; nothing may be left of it."""
        last = self.hear(**how)[-1]
        assert last["message_type"] == "refusal", last
        assert self.published == []
        staging = self.config.paths.standby / ".staging"
        assert not staging.exists() or not list(staging.iterdir())
        return Reason(last["reason"])

    @property
    def published(self) -> list[str]:
        return [str(snapshot.name) for snapshot in self.store.snapshots() if snapshot.received]


class _Lines(io.StringIO):
    def __init__(self, says: Callable[[str], None]) -> None:
        super().__init__()
        self._says = says

    def write(self, text: str) -> int:
        self._says(text)
        return super().write(text)
