"""What connects a sender to a standby's receiver: lines and one stream, over a network that breaks.

The shipped conversation is spoken; what is replaced are the processes between the two ends (ssh,
`btrfs send`, `btrfs receive`) and their pipes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

from standfast.config.model import Config
from standfast.errors import CommandFailed, TimedOut
from standfast.replication import receive
from standfast.system.clock import Deadline, monotonic
from standfast.system.run import Completed
from tests.sim.clockwork import Signal, SimProcess
from tests.sim.disk import SimStore

if TYPE_CHECKING:
    from tests.sim.node import SimNode
    from tests.sim.world import SimWorld

SSH_FAILED = 255
KEEPALIVE_S = 15.0
"""After so long a connection to a machine that is gone is given up."""
CONNECT_S = 5.0
LOOK_UP_S = 1.0


@dataclass(slots=True)
class SentStream:
    """What `btrfs send` writes, whole."""

    name: str
    content_id: str
    parent: str | None
    writes: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Pipe:
    """One direction of a connection."""

    source: SimNode
    sink: SimNode
    more: Signal
    items: deque[str | SentStream] = field(default_factory=deque)
    closed: bool = False
    broken_since: float | None = None

    def put(self, item: str | SentStream) -> None:
        self.items.append(item)
        self.more.set()

    def close(self) -> None:
        self.closed = True
        self.more.set()

    def take(self, deadline: Deadline) -> str | SentStream | None:
        """The next item; None at the end, or after a second without any: see `ended`."""
        world = self.sink.world
        clockwork = world.clockwork
        clockwork.door()
        if not self._ready():
            left_s = self.sink.clock.real_s(min(deadline.remaining_s(), LOOK_UP_S))
            self.more.wait(clockwork.now + max(left_s, 0.001))
        if self.items and self._connected():
            return self.items.popleft()
        return None

    def _connected(self) -> bool:
        return self.sink.world.linked(self.source.name, self.sink.name)

    def _ready(self) -> bool:
        told = self.closed and self.source.powered
        return self._connected() and bool(self.items or told)

    @property
    def ended(self) -> bool:
        """Whether nothing comes any more: closed by the other end, or given up."""
        if self._connected() and self.source.powered:
            self.broken_since = None
            return self.closed and not self.items
        now = self.sink.world.now
        if self.broken_since is None:
            self.broken_since = now
        return now - self.broken_since > KEEPALIVE_S


@dataclass(slots=True)
class Lines:
    """The receiver's standard output."""

    pipe: Pipe

    def write(self, text: str) -> int:
        for line in text.splitlines():
            self.pipe.put(line)
        return len(text)

    def flush(self) -> None:
        self.pipe.sink.world.clockwork.take(0.005)


class SimConversation:
    """Stands in for `streams.Conversation`: ssh, and `standfast receive` at its other end."""

    def __init__(self, sender: SimNode, receiver: SimNode, volume: str) -> None:
        world = sender.world
        self._sender = sender
        self._receiver = receiver
        self._volume = volume
        self.there = Pipe(sender, receiver, Signal(world.clockwork))
        self.back = Pipe(receiver, sender, Signal(world.clockwork))
        self._process: SimProcess | None = None

    def __enter__(self) -> Self:
        sender, receiver = self._sender, self._receiver
        world = sender.world
        world.clockwork.take(0.05)
        if world.linked(sender.name, receiver.name) and receiver.runs:
            self._process = receiver.receive(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.there.close()

    @property
    def stdin_fd(self) -> int:
        return cast(int, self.there)

    def send_line(self, line: str, deadline: Deadline) -> None:
        self._check_alive()
        self.there.put(line)

    def read_line(self, deadline: Deadline) -> str:
        self._check_alive()
        while True:
            item = self.back.take(deadline)
            if isinstance(item, str):
                return item
            if self.back.ended:
                raise CommandFailed("replicate: ssh ended", returncode=SSH_FAILED)
            if deadline.expired:
                raise TimedOut("replicate: no answer before the deadline")

    def _check_alive(self) -> None:
        if self._process is None:
            world = self._sender.world
            world.clockwork.take(CONNECT_S)
            raise CommandFailed("replicate: ssh: no route to host", returncode=SSH_FAILED)

    def close_stdin(self) -> None:
        self.there.close()

    def finish(self, deadline: Deadline) -> Completed:
        self.close_stdin()
        while not self.back.ended:
            self.back.take(deadline)
            if deadline.expired:
                raise TimedOut("replicate: ssh did not end before its deadline")
        return Completed("", "", 0)


def read_line(
    descriptor: int, deadline: Deadline, give_up: Callable[[float], str | None] | None = None
) -> str | None:
    """`receive._read_line` on a Pipe."""
    pipe = cast(Pipe, descriptor)
    since = monotonic()
    while True:
        item = pipe.take(deadline)
        if isinstance(item, str):
            return item
        if pipe.ended:
            return None
        deadline.check("the sender said nothing in time")
        if give_up is not None and (why := give_up(monotonic() - since)):
            raise TimedOut(why)


@dataclass(slots=True)
class Pipeline:
    """`streams.pipeline` for the two commands that a simulated store names."""

    world: SimWorld

    def __call__(
        self,
        stages: Sequence[Sequence[str]],
        *,
        deadline: Deadline,
        op: str,
        stdin: int | None = None,
        stdout: int | None = None,
        stall_s: float | None = None,
        limit_bytes_s: float | None = None,
        on_bytes: Callable[[int], None] | None = None,
        give_up: Callable[[float], str | None] | None = None,
    ) -> int:
        ((kind, *arguments),) = stages
        if kind == "send":
            return self._send(arguments, cast(Pipe, stdout), give_up)
        return self._receive(arguments, cast(Pipe, stdin), deadline, give_up)

    def _send(
        self,
        arguments: Sequence[str],
        pipe: Pipe,
        give_up: Callable[[float], str | None] | None,
    ) -> int:
        name, text, *parent = arguments
        node, path = self.world.nodes[name], Path(text)
        node.disk.check("", write=False)
        tree = node.disk.here.trees.get(path)
        if tree is None:
            raise CommandFailed(f"send: {path} is gone", returncode=1)
        content_id = tree.received_uuid or tree.uuid
        writes = tuple(tree.writes)
        self.world.clockwork.door()
        self.world.clockwork.pause(self.world.now + self.world.copy_s)
        while self.world.copies_held:
            self.world.clockwork.take(LOOK_UP_S)
            if give_up is not None and (why := give_up(0.0)):
                raise TimedOut(f"send: {why}")
        if pipe.ended:
            raise CommandFailed("send: the connection broke", returncode=1)
        pipe.put(SentStream(path.name, content_id, parent[0] if parent else None, writes))
        return len(writes)

    def _receive(
        self,
        arguments: Sequence[str],
        pipe: Pipe,
        deadline: Deadline,
        give_up: Callable[[float], str | None] | None,
    ) -> int:
        name, volume, staging = arguments
        since = monotonic()
        while True:
            item = pipe.take(deadline)
            if isinstance(item, SentStream):
                break
            if pipe.ended:
                raise CommandFailed("receive: unexpected end of the stream", returncode=1)
            if deadline.expired:
                raise TimedOut("receive: too late")
            if give_up is not None and (why := give_up(monotonic() - since)):
                raise TimedOut(f"receive: {why}")
        node = self.world.nodes[name]
        here = {tree.info.content_id for tree in node.disk.here.trees.values()}
        if item.parent is not None and item.parent not in here:
            raise CommandFailed("receive: cannot find parent subvolume", returncode=1)
        store = SimStore(node.seats[volume].config.paths, node, volume)
        store.stage(Path(staging) / item.name, item.content_id, item.writes)
        self.world.clockwork.take(0.01)
        return len(item.writes)


def reach(world: SimWorld) -> Callable[[Config, str], SimConversation]:
    """Stands in for `conversation.reach`."""

    def connect(config: Config, standby: str) -> SimConversation:
        return SimConversation(
            world.node_named(config.node), world.node_named(standby), config.volume
        )

    return connect


def serve_receiver(node: SimNode, volume: str, conversation: SimConversation) -> int:
    """`standfast receive` on its node, as sshd starts it."""
    seat = node.seats[volume]
    try:
        return receive.receive(
            seat.config,
            seat.store(),
            seat.client(seat.config.lease.request_timeout),
            cast(int, conversation.there),
            cast("object", Lines(conversation.back)),  # type: ignore[arg-type]
            environ={},
        )
    finally:
        conversation.back.close()
