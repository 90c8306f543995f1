"""What is done to a cluster under clients that write, and what must be true of their writes.

Invariant: whatever happens and however slow the machine is, at most one node serves. Each node has
a client of its own that never leaves it, so that two servers would be seen, and not only a client
that moved on from one to the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from types import TracebackType

from tests.labs.containers.lab import Lab
from tests.labs.containers.node import Container
from tests.labs.containers.nomad import WithNomad
from tests.labs.shared.client import EXPORT, StreamEvent, missing_records

INTERVAL_S = 0.05
SILENCE_S = 0.5


class Writers:
    """A client for each node: it goes on writing to this one, whoever serves."""

    def __init__(self, lab: Lab, path: str) -> None:
        self._lab = lab
        self._path = path
        self._names = {node.address: node.name for node in lab}
        self._streams = {
            name: lab.client.stream([address], self.path(name), INTERVAL_S, SILENCE_S)
            for address, name in self._names.items()
        }

    def path(self, name: str) -> str:
        """The file that this node's client writes, below the export."""
        return f"{self._path}-{name}"

    def acknowledged(self, *names: str) -> list[StreamEvent]:
        """The writes that these nodes (none: any) acknowledged, in their order in time."""
        per_stream = (self._streams[name].acknowledged() for name in names or self._streams)
        return sorted(chain.from_iterable(per_stream), key=lambda event: event.t_s)

    def wait_for_ack(self, *names: str, after_s: float = 0.0) -> StreamEvent:
        """The first write that one of these nodes acknowledged after a monotonic time."""

        def first_write() -> StreamEvent | None:
            return next((e for e in self.acknowledged(*names) if e.t_s > after_s), None)

        what = f"a write acknowledged by {' or '.join(names) or 'any node'}"
        event = self._lab.wait_for(first_write, 60.0, what, 0.02)
        assert event is not None
        return event

    def wait_for_successor(self, old: str) -> str:
        """The name of the node that acknowledges a write after this one did."""
        others = [name for name in self._streams if name != old]
        return self._names[self.wait_for_ack(*others).server]

    def served(self) -> list[str]:
        """Who served, one after the other; a node that is in it twice served twice."""
        return [self._names[server] for server, _ in groupby(e.server for e in self.acknowledged())]

    def longest_pause_s(self) -> float:
        """The longest time in which nobody acknowledged anything."""
        return max((b.t_s - a.t_s for a, b in pairwise(self.acknowledged())), default=0.0)

    def missing(self, on: str, by: Sequence[str], until_s: float = math.inf) -> list[int]:
        """Which writes that these nodes acknowledged until then the node that serves lacks."""
        lacking = []
        for name in by:
            content = self._lab.client.nfs_read(self._lab[on].address, self.path(name), 30.0)
            written = [e for e in self.acknowledged(name) if e.t_s <= until_s]
            lacking += missing_records(content, written)
        return lacking

    def missing_aside(self, name: str, tree: str) -> list[int]:
        """Which writes that this node acknowledged are not in a tree of its own disk."""
        content = self._lab[name].read(f"{tree}/{self.path(name)}").encode()
        return missing_records(content, self.acknowledged(name))

    def __enter__(self) -> Writers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for stream in self._streams.values():
            stream.stop()


REPLICATED = 20
"""Records at least, of which a takeover may lose none."""


@dataclass(frozen=True)
class Takeover:
    """The primary lost power under the clients; it has none yet."""

    old: str
    new: str
    epoch: int
    """The old primary's."""
    writers: Writers
    replicated_s: float
    """What was acknowledged by then is known to be on every standby."""

    def check(self, cluster: WithNomad) -> None:
        """One epoch more, one server at each moment, and nothing lost that was replicated."""
        assert cluster.primary() == self.new
        assert cluster.epoch(self.new) == self.epoch + 1
        assert cluster.status(self.new)["began_by"] == "takeover"
        assert self.writers.served() == [self.old, self.new]
        assert self.writers.missing(self.new, [self.old], self.replicated_s) == []
        assert self.writers.missing(self.new, [self.new]) == []


def power_cut(cluster: WithNomad, path: str) -> Takeover:
    """Cut the power of the primary, and wait until its successor serves."""
    old = cluster.primary()
    epoch = cluster.epoch(old)
    with Writers(cluster.lab, path) as writers:
        for _ in range(REPLICATED):
            replicated_s = writers.wait_for_ack(old, after_s=time.monotonic()).t_s
        cluster.wait_until_replicated(old)
        writers.wait_for_ack(old, after_s=time.monotonic())
        cluster.power_cut(old)
        new = writers.wait_for_successor(old)
        writers.wait_for_ack(new, after_s=time.monotonic())
    return Takeover(old, new, epoch, writers, replicated_s)


@contextmanager
def broken_server(node: Container) -> Iterator[None]:
    """The NFS server of this node stops, and no start of it succeeds."""
    dropin = "/run/systemd/system/nfs-server.service.d/zz-broken.conf"
    node.write(dropin, "[Service]\nExecStartPre=/bin/false\n")
    node.run("systemctl", "daemon-reload")
    node.run("systemctl", "stop", "nfs-server")
    try:
        yield
    finally:
        node.run("rm", dropin)
        node.run("systemctl", "daemon-reload")


def kept_aside(cluster: WithNomad, name: str, epoch: int) -> str:
    """The tree that a node set aside at the end of its epoch, as its status names it."""
    aside = cluster.status(name)["aside"]
    kept = [path for path in aside if path.startswith(f"{EXPORT}.diverged-{epoch}-")]
    assert len(kept) == 1, f"what epoch {epoch} had is not kept aside: {aside}"
    return str(kept[0])
