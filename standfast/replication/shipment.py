"""One snapshot on its way to one standby.

Invariant: `ship` returns only when the standby said that this content is verified, visible and on
its disk; at the first failure both ends are killed, and what arrived counts for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from standfast.ages import age_of
from standfast.btrfs.stream import COMPRESSED_DATA
from standfast.config.model import Config
from standfast.errors import CommandFailed, Refused, StandfastError, TimedOut
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication import parents, pins, wire
from standfast.replication.fingerprint import digest_of
from standfast.replication.ports import ReplicaStore
from standfast.replication.published import note_names, origin_of
from standfast.replication.session import ANSWER_S, GOODBYE_S, ask, greeting
from standfast.system.clock import Deadline, utc_now
from standfast.system.streams import Conversation, pipeline

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int | None], None]
"""Gets the bytes just sent, and how many the whole stream will have, about, if that is known."""
_ROOMY = 4
"""Compressed on the sender's disk and not on the standby's, data may take so many times as much."""
LOOK_UP_S = 1.0
ZSTD = ("zstd", "-q", "-1", "-c")


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be sent, and how."""

    standby: str
    snapshot: Snapshot
    epoch: int
    commons: Mapping[str, str] | None
    """By standby a content that it has; None: not known."""
    served_before: bool
    """Something was replicated to it once."""
    later: frozenset[str] = frozenset()
    """Content ids of snapshots that were taken after it, in the same epoch: a standby that has one
    of them needs it no more."""
    full: bool = False
    on_progress: OnProgress | None = None
    give_up: Callable[[], str | None] = lambda: None
    """See `ReplicaSender`."""


@dataclass(frozen=True, slots=True)
class Shipped:
    """`sent_bytes` are those on the wire; a standby that had it already was sent nothing."""

    parent: Snapshot | None
    sent_bytes: int
    was_full: bool
    overtaken: bool = False
    """Nothing was sent since the standby has a later one, as it said just now."""


def ship(
    config: Config,
    store: ReplicaStore,
    order: Order,
    conversation: Conversation,
    deadline: Deadline,
) -> Shipped:
    """Sends the snapshot, unless the standby has it, in a conversation that was begun (`hailing`);
    Refused with the standby's reason, Unreachable, CommandFailed, TimedOut."""
    fingerprint = _fingerprint(config, order, deadline)
    with greeting(conversation, config, order.standby, deadline) as welcome:
        there = {offer.content_id for offer in welcome.snapshots if offer.received}
        if order.snapshot.content_id in there:  # only its acknowledgement was lost
            return Shipped(None, 0, was_full=False)
        if order.later & there:
            return Shipped(None, 0, was_full=False, overtaken=True)
        return _Shipment(config, store, order, conversation, deadline, fingerprint).run(welcome)


def _fingerprint(config: Config, order: Order, deadline: Deadline) -> str | None:
    """Before anything is announced: it reads every inode."""
    if config.replication.verify != "metadata":
        return None
    return digest_of(order.snapshot.path, deadline)


@dataclass(frozen=True, slots=True)
class _Shipment:
    config: Config
    store: ReplicaStore
    order: Order
    conversation: Conversation
    deadline: Deadline
    fingerprint: str | None

    def run(self, welcome: wire.Welcome) -> Shipped:
        snapshot = self.order.snapshot
        parent = self._parent(welcome)
        begin = self._begin(parent, welcome)
        try:
            wire.parse(ask(self.conversation, begin, self.deadline.within(ANSWER_S)), wire.Ready)
        except Refused as refusal:
            if refusal.reason is Reason.BAD_NAME:  # it has a later one: the next time all is well
                note_names(self.config, (offer.name for offer in welcome.snapshots))
            raise
        if parent is None:
            self._expect(welcome)
        sent_bytes = self._stream(parent, begin, welcome)
        self.conversation.close_stdin()
        published = wire.parse(self._acknowledgement(), wire.Published)
        if published.content_id != snapshot.content_id:
            raise Refused(
                Reason.PROTOCOL,
                f"{self.order.standby} acknowledged {published.content_id}, sent was "
                f"{snapshot.content_id}",
            )
        return Shipped(parent, sent_bytes, was_full=parent is None)

    def _acknowledgement(self) -> str:
        """It may take a while: the standby looks at everything, or its disk is slow."""
        while True:
            try:
                return self.conversation.read_line(self.deadline.within(LOOK_UP_S))
            except TimedOut:
                self.deadline.check(f"send:{self.order.standby}: nothing was acknowledged")
                if (why := self.order.give_up()) is not None:
                    raise TimedOut(f"send:{self.order.standby}: {why}") from None

    def _expect(self, welcome: wire.Welcome) -> None:
        """Unreadable pins don't end the replication: they only keep everything from deletion."""
        order, theirs = self.order, {offer.content_id for offer in welcome.snapshots}
        snapshot = order.snapshot
        try:
            pins.expect(self.config, order.standby, pins.Pin.of(snapshot, order.epoch), theirs)
        except (StandfastError, OSError) as error:
            log.warning("%s is not pinned for %s yet: %s", snapshot.name, order.standby, error)

    def _parent(self, welcome: wire.Welcome) -> Snapshot | None:
        if self.order.full:
            return None
        ours = self.store.snapshots()
        return parents.choose(
            self.order.standby,
            parents.newest_common(ours, welcome.snapshots, self.order.snapshot),
            welcome.snapshots,
            may_be_full=self.config.replication.allow_full,
            served_before=self.order.served_before,
        )

    def _size(self, parent: Snapshot | None, welcome: wire.Welcome) -> int | None:
        """An estimate reads all the metadata that is sent: only where somebody watches, or where
        it may not fit."""
        is_tight = parent is None and _ROOMY * self.store.used_bytes() > welcome.free_bytes
        if not is_tight and self.order.on_progress is None:
            return None
        return self.store.estimate(self.order.snapshot, parent)

    def _begin(self, parent: Snapshot | None, welcome: wire.Welcome) -> wire.Begin:
        config, order = self.config, self.order
        return wire.Begin(
            cluster=config.cluster,
            volume=config.volume,
            sender=config.node,
            epoch=order.epoch,
            snapshot=str(order.snapshot.name),
            content_id=order.snapshot.content_id,
            parent_content_id=None if parent is None else parent.content_id,
            commons=order.commons,
            size_bytes=self._size(parent, welcome),
            compression=wire.Compression(config.replication.compression),
            fingerprint=self.fingerprint,
            patience_s=int(self.deadline.remaining_s()),
            age_s=age_of(origin_of(config, order.snapshot, order.epoch).taken_at, utc_now()),
        )

    def _stream(self, parent: Snapshot | None, begin: wire.Begin, welcome: wire.Welcome) -> int:
        options = self.config.replication
        compressed = options.compressed_data and COMPRESSED_DATA in welcome.abilities
        argv = self.store.send_argv(self.order.snapshot, parent, compressed_data=compressed)
        squeeze = [ZSTD] if begin.compression is wire.Compression.ZSTD else []
        on_progress = self.order.on_progress
        total = begin.size_bytes if not squeeze else None
        try:
            return pipeline(
                [argv, *squeeze],
                deadline=self.deadline,
                op=f"send:{self.order.standby}",
                stdout=self.conversation.stdin_fd,
                stall_s=options.stall_timeout,
                limit_bytes_s=options.bandwidth_limit or None,
                give_up=lambda _standstill_s: self.order.give_up(),
                on_bytes=None if on_progress is None else lambda moved: on_progress(moved, total),
            )
        except CommandFailed as error:
            raise self._told_by_the_standby(error) from error

    def _told_by_the_standby(self, error: CommandFailed) -> CommandFailed | Refused:
        """Mostly the stream broke because the other end gave up: it knows why."""
        self.conversation.close_stdin()
        try:
            wire.parse(self.conversation.read_line(self.deadline.within(GOODBYE_S)), wire.Published)
        except Refused as refusal:
            return Refused(refusal.reason, f"{error}; {self.order.standby} says: {refusal}")
        except (CommandFailed, TimedOut) as other:
            code = other.returncode if isinstance(other, CommandFailed) else error.returncode
            return CommandFailed(f"{error}; {other}", returncode=code, stderr=error.stderr)
        return error
