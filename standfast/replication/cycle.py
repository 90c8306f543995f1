"""The sending end: one snapshot to one standby, and the cycle that a timer runs.

Invariant: Consul hears of a standby's snapshot only after the standby acknowledged it as on disk,
and only as long as the reign in which it was sent lasts (the epoch key is unchanged).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from standfast.act.ports import Snapshot
from standfast.adapters.consul_wire import CheckIndex, Conflict, Op, Set
from standfast.clock import Deadline, monotonic, sleep, utc_now
from standfast.config.model import Config
from standfast.errors import (
    CommandFailed,
    ConsulError,
    Refused,
    StandfastError,
    TimedOut,
    Unreachable,
)
from standfast.locks import exclusive
from standfast.names import SnapshotName
from standfast.reasons import Reason
from standfast.records import Leader, LeaderState, StandbyRecord, parse_epoch
from standfast.reign import OwnReign, Stage, snapshot_lock
from standfast.replication import state, wire
from standfast.replication.failures import reason_of
from standfast.replication.ports import ReplicaGateway, ReplicaStore
from standfast.replication.published import epochs_of_snapshots, note_epoch
from standfast.replication.retention import own_to_delete
from standfast.streams import Conversation, pipeline

log = logging.getLogger(__name__)

SSH_FAILED = 255
ANSWER_S = 60.0
"""For the standby's next answer: connecting, asking Consul, cleaning up after a cut."""
GOODBYE_S = 10.0
STALL_S = 300.0
CONSUL_PATIENCE_S = 20.0
SNAPSHOT_LOCK_S = 60.0


@dataclass(frozen=True, slots=True)
class CycleResult:
    """What one replication did; `parent` is the name of the common snapshot it built on."""

    snapshot: SnapshotName
    parent: str | None
    sent_bytes: int
    seconds: float
    was_full: bool


@dataclass(frozen=True, slots=True)
class _Sent:
    parent: Snapshot | None
    sent_bytes: int
    was_full: bool


def transport_argv(config: Config, standby: str) -> list[str]:
    """The command whose stdin and stdout are `standfast receive` on the standby."""
    node, options = config.nodes[standby], config.replication
    if options.command:
        words = {"{node}": standby, "{address}": node.address, "{volume}": config.volume}
        return [_replaced(part, words) for part in options.command]
    return [
        *("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
        *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
        *("-o", "IdentitiesOnly=yes", "-i", str(options.ssh_key)),
        f"{options.ssh_user}@{node.address}",
        f"standfast receive {config.volume}",
    ]


def _replaced(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def newest_common(
    ours: tuple[Snapshot, ...] | list[Snapshot], theirs: tuple[wire.Offer, ...], snapshot: Snapshot
) -> Snapshot | None:
    """The newest snapshot before `snapshot` whose content both sides have, own or published."""
    ids = {offer.content_id for offer in theirs}
    common = [one for one in ours if one.content_id in ids and one.name < snapshot.name]
    return max(common, key=lambda one: one.name, default=None)


class Sender:
    """Sends this node's snapshots; meets `ReplicaSender`."""

    def __init__(self, config: Config, store: ReplicaStore, gateway: ReplicaGateway) -> None:
        self._config = config
        self._store = store
        self._gateway = gateway

    def replicate(self, standby: str, snapshot: Snapshot, epoch: int, deadline: Deadline) -> None:
        """Returns when the standby acknowledged it; waits for a running cycle to that standby."""
        with self._lock(standby, deadline):
            self.send(standby, snapshot, epoch, deadline)

    def cycle(self, standby: str, *, full: bool = False) -> CycleResult:
        """One whole cycle; Refused (busy) when one to this standby is at work."""
        deadline = Deadline.after(self._config.replication.timeout)
        with self._lock(standby, None):
            epoch = self._reign()
            with self._noting_failures(standby):
                snapshot = self._snapshot(standby, epoch)
            result = self.send(standby, snapshot, epoch, deadline, full=full)
            self._prune(snapshot)
        return result

    def send(
        self,
        standby: str,
        snapshot: Snapshot,
        epoch: int,
        deadline: Deadline,
        *,
        full: bool = False,
    ) -> CycleResult:
        """The caller holds the lock; the outcome is noted for status and metrics."""
        started = monotonic()
        with self._noting_failures(standby):
            epoch_index = self._epoch_index(epoch)
            sent = self._converse(standby, snapshot, epoch, deadline, full)
            self._report(standby, snapshot, epoch, epoch_index)
        seconds = monotonic() - started
        known = {one.content_id for one in self._store.snapshots()}
        note_epoch(self._config, snapshot.content_id, epoch, known)
        shared = state.Shared(str(snapshot.name), snapshot.content_id, epoch)
        state.note_success(
            self._config, standby, shared, duration_s=seconds, sent_bytes=sent.sent_bytes
        )
        parent = None if sent.parent is None else str(sent.parent.name)
        return CycleResult(snapshot.name, parent, sent.sent_bytes, seconds, sent.was_full)

    def _lock(
        self, standby: str, deadline: Deadline | None
    ) -> contextlib.AbstractContextManager[None]:
        if standby not in self._config.standbys:
            others = ", ".join(self._config.standbys) or "there is none"
            raise Refused(Reason.UNKNOWN_NODE, f"{standby} is not another storage node: {others}")
        path = self._config.run_dir / f"replicate-{standby}.lock"
        return exclusive(path, f"a replication to {standby}", deadline)

    @contextlib.contextmanager
    def _noting_failures(self, standby: str) -> Iterator[None]:
        try:
            yield
        except (StandfastError, OSError) as error:
            state.note_failure(self._config, standby, reason_of(error), str(error))
            if isinstance(error, CommandFailed) and error.returncode == SSH_FAILED:
                address = self._config.nodes[standby].address
                raise Unreachable(
                    f"{standby} can't be reached at {address}: {error}. Is it up, and is the "
                    f"replication key in its authorized_keys?"
                ) from error
            raise

    # The conversation

    def _converse(
        self, standby: str, snapshot: Snapshot, epoch: int, deadline: Deadline, full: bool
    ) -> _Sent:
        config = self._config
        op = f"replicate:{standby}"
        with Conversation(transport_argv(config, standby), op=op) as talk:
            soon = deadline.within(ANSWER_S)
            hello = wire.Hello(config.cluster, config.volume, config.node)
            with contextlib.suppress(CommandFailed):  # its refusal says more
                talk.send_line(wire.dump(hello), soon)
            welcome = wire.parse_welcome(talk.read_line(soon))
            there = {offer.content_id for offer in welcome.snapshots if offer.received}
            if snapshot.content_id in there:  # only its acknowledgement was lost
                _end(talk, deadline)
                return _Sent(None, 0, was_full=False)
            parent = self._parent(standby, snapshot, welcome, full)
            begin = wire.Begin(
                cluster=config.cluster,
                volume=config.volume,
                sender=config.node,
                epoch=epoch,
                name=snapshot.name,
                content_id=snapshot.content_id,
                parent_content_id=None if parent is None else parent.content_id,
                keep=self._commons(),
            )
            soon = deadline.within(ANSWER_S)
            talk.send_line(wire.dump(begin), soon)
            wire.parse_ready(talk.read_line(soon))
            sent_bytes = self._stream(talk, standby, self._send_argv(snapshot, parent), deadline)
            talk.close_stdin()
            published = wire.parse_published(talk.read_line(deadline))
            if published.content_id != snapshot.content_id:
                raise Refused(
                    Reason.PROTOCOL,
                    f"{standby} acknowledged {published.content_id}, sent was "
                    f"{snapshot.content_id}",
                )
            _end(talk, deadline)
            return _Sent(parent, sent_bytes, was_full=parent is None)

    def _send_argv(self, snapshot: Snapshot, parent: Snapshot | None) -> list[str]:
        return list(self._store.send_argv(snapshot, parent))

    def _stream(self, talk: Conversation, standby: str, argv: list[str], deadline: Deadline) -> int:
        op = f"send:{standby}"
        try:
            return pipeline([argv], deadline=deadline, op=op, stdout=talk.stdin_fd, stall_s=STALL_S)
        except CommandFailed as error:
            talk.close_stdin()
            try:
                wire.parse_published(talk.read_line(deadline.within(GOODBYE_S)))
            except Refused as refusal:
                raise Refused(refusal.reason, f"{error}; {standby} says: {refusal}") from error
            except (CommandFailed, TimedOut) as other:
                raise CommandFailed(
                    f"{error}; {other}", returncode=error.returncode, stderr=error.stderr
                ) from error
            raise

    def _parent(
        self, standby: str, snapshot: Snapshot, welcome: wire.Welcome, full: bool
    ) -> Snapshot | None:
        if full or not welcome.snapshots:
            return None
        parent = newest_common(tuple(self._store.snapshots()), welcome.snapshots, snapshot)
        if parent is None:
            newest = max(welcome.snapshots, key=lambda offer: offer.name)
            raise Refused(
                Reason.NEEDS_FULL,
                f"{standby} has {len(welcome.snapshots)} snapshots (newest {newest.name}), none "
                f"in common with {self._config.node}: everything has to be sent once, "
                f"`standfast replicate {standby} --full`",
            )
        return parent

    # Consul

    def _reign(self) -> int:
        """The epoch in which this node serves; Refused when it doesn't."""
        key = self._config.key("leader")
        entry = self._gateway.get(key, consistent=True)
        if entry is None:
            raise Refused(Reason.LEADER_MISSING, f"{key} doesn't exist: nobody is primary")
        leader = Leader.parse(entry.value, key)
        serving = leader.state in (LeaderState.SERVING, LeaderState.DRAINING)
        if leader.holder.node != self._config.node or not serving:
            raise Refused(
                Reason.NOT_PRIMARY,
                f"{self._config.node} is not serving (epoch {leader.epoch}: "
                f"{leader.holder.node}, {leader.state}): only a serving primary replicates",
            )
        return leader.epoch

    def _epoch_index(self, epoch: int) -> int:
        key = self._config.key("epoch")
        entry = self._gateway.get(key, consistent=True)
        current = None if entry is None else parse_epoch(entry.value, key)
        if entry is None or current != epoch:
            raise Refused(
                Reason.WRONG_EPOCH,
                f"the epoch in Consul is {current}, this is the primary of {epoch}: its reign "
                f"is over",
            )
        return entry.modify_index

    def _report(self, standby: str, snapshot: Snapshot, epoch: int, epoch_index: int) -> None:
        """Tell Consul what the standby has; the same again does no harm, so it is retried."""
        record = StandbyRecord(standby, epoch, str(snapshot.name), snapshot.content_id, utc_now())
        ops: list[Op] = [
            CheckIndex(self._config.key("epoch"), epoch_index),
            Set(self._config.key(f"standbys/{standby}"), record.dump()),
        ]
        patience = Deadline.after(CONSUL_PATIENCE_S)
        while True:
            try:
                outcome = self._gateway.txn(ops)
                break
            except ConsulError:
                if patience.remaining_s() < 1.0:
                    raise
                sleep(0.5)
        if isinstance(outcome, Conflict):
            raise Refused(
                Reason.WRONG_EPOCH,
                f"{standby} has {snapshot.name}, but the reign of epoch {epoch} ended meanwhile",
            )

    def _commons(self) -> tuple[str, ...] | None:
        """Content ids that standbys were last known to have; None when that can't be said."""
        ids = []
        try:
            for standby in self._config.standbys:
                key = self._config.key(f"standbys/{standby}")
                entry = self._gateway.get(key)
                if entry is not None:
                    ids.append(StandbyRecord.parse(entry.value, key).content_id)
        except StandfastError as error:
            log.warning("nothing is pruned, the standbys' snapshots are unknown: %s", error)
            return None
        return tuple(ids)

    # Snapshots

    def _snapshot(self, standby: str, epoch: int) -> Snapshot:
        """A snapshot of this reign: one that another cycle took just now, or a new one."""
        config = self._config
        waiting = Deadline.after(SNAPSHOT_LOCK_S)
        with snapshot_lock(config, waiting):
            self._check_not_draining()
            before = state.load(config)
            shared = self._shareable(before, standby, epoch)
            if shared is not None:
                return shared
            taken = self._store.take_snapshot(SnapshotName.at(config.base, utc_now()))
            known = {one.content_id for one in self._store.snapshots()}
            note_epoch(config, taken.content_id, epoch, known)
            state.note_shared(config, state.Shared(str(taken.name), taken.content_id, epoch))
            return taken

    def _check_not_draining(self) -> None:
        """The final snapshot of a demotion is the newest of its reign: nothing comes after it."""
        own = OwnReign.load(self._config.state_dir)
        if own is not None and own.stage in (Stage.DRAINING, Stage.RELEASED):
            raise Refused(
                Reason.NOT_PRIMARY,
                f"{self._config.node} is giving up the role (epoch {own.epoch}, {own.stage}): its "
                f"final snapshot is the last one",
            )

    def _shareable(
        self, before: state.ReplicationState, standby: str, epoch: int
    ) -> Snapshot | None:
        shared = before.shared
        # Of another reign it would be of another history, however new.
        if shared is None or shared.epoch != epoch:
            return None
        done = before.standbys.get(standby)
        if done is not None and done.epoch == epoch and (done.snapshot or "") >= shared.name:
            return None  # the standby has this one, or a newer one
        for one in self._store.snapshots():
            age_s = utc_now() - one.name.taken_at
            if one.content_id == shared.content_id and not one.received:
                return one if age_s < self._config.replication.interval / 2 else None
        return None

    def _prune(self, sent: Snapshot) -> None:
        """Own snapshots that are of no use any more; a failure here is only logged."""
        try:
            commons = self._commons()
            if commons is None:
                return
            protected = {sent.content_id, *commons}
            epochs = epochs_of_snapshots(self._config)
            self._store.delete(own_to_delete(self._store.snapshots(), epochs, protected))
        except (StandfastError, OSError) as error:
            log.warning("old snapshots were not deleted: %s", error)


def _end(talk: Conversation, deadline: Deadline) -> None:
    """The receiver has said all that matters: how it ends doesn't."""
    try:
        talk.finish(deadline.within(GOODBYE_S))
    except (CommandFailed, TimedOut) as error:
        log.warning("after the acknowledgement: %s", error)


def run_cycle(
    config: Config,
    store: ReplicaStore,
    gateway: ReplicaGateway,
    standby: str,
    *,
    full: bool = False,
) -> CycleResult:
    """Take (or share) a snapshot and replicate it to one standby."""
    return Sender(config, store, gateway).cycle(standby, full=full)
