"""The receiving end: what the replication key may run on a standby, and nothing else.

Invariant: a snapshot becomes visible only after its sender was seen to hold the lease, its
lineage was checked, the whole stream arrived, it was verified and is on disk; and it is
acknowledged only after that again is on disk. Whatever fails before that leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from standfast.act.ports import Snapshot
from standfast.clock import Deadline, sleep, utc_now
from standfast.config.model import Config
from standfast.errors import CommandFailed, ConsulError, Refused, StandfastError, TimedOut
from standfast.lease.epochs import EpochFile
from standfast.locks import exclusive
from standfast.reasons import Reason
from standfast.records import Leader
from standfast.replication import wire
from standfast.replication.failures import reason_of
from standfast.replication.ports import ReplicaGateway, ReplicaStore
from standfast.replication.published import epochs_of_snapshots, note_epoch
from standfast.replication.retention import published_to_delete
from standfast.streams import pipeline

log = logging.getLogger(__name__)

LINE_TIMEOUT_S = 60.0
"""For the next line of the sender (it may have to take a snapshot in between)."""
STALL_S = 300.0
"""A stream that brings nothing for this long is given up."""
CONSUL_PATIENCE_S = 20.0
"""A whole stream is not thrown away because Consul elects a leader just then."""
RESERVE_BYTES = 32 * 1024 * 1024
"""Less free space than this, and nothing is taken in: btrfs needs some even to delete."""


def receive(
    config: Config,
    store: ReplicaStore,
    gateway: ReplicaGateway,
    stdin_fd: int,
    stdout: TextIO,
    *,
    environ: Mapping[str, str] = os.environ,
) -> int:
    """One conversation; the exit status. Every refusal is answered with its reason."""
    try:
        _check_original_command(config, environ)
        config.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with exclusive(config.run_dir / "receive.lock", f"another receive of {config.volume}"):
            _Receiver(config, store, gateway, stdin_fd, stdout).run()
    except (StandfastError, OSError) as error:
        refusal = wire.Refusal(reason_of(error), str(error))
        log.warning("refused: %s: %s", refusal.reason, refusal.message)
        with contextlib.suppress(OSError):
            _say(stdout, refusal)
        return 1
    return 0


def _check_original_command(config: Config, environ: Mapping[str, str]) -> None:
    asked = environ.get("SSH_ORIGINAL_COMMAND", "").strip()
    if asked not in ("", f"standfast receive {config.volume}"):
        raise Refused(
            Reason.PROTOCOL,
            f"this key may only run `standfast receive {config.volume}`, asked was {asked[:80]!r}",
        )


def _say(stdout: TextIO, message: wire.Message) -> None:
    stdout.write(wire.dump(message) + "\n")
    stdout.flush()


@dataclass(slots=True)
class _Receiver:
    config: Config
    store: ReplicaStore
    gateway: ReplicaGateway
    stdin_fd: int
    stdout: TextIO

    def run(self) -> None:
        deadline = Deadline.after(self.config.replication.timeout)
        line = _read_line(self.stdin_fd, deadline.within(LINE_TIMEOUT_S))
        if line is None:
            raise Refused(Reason.PROTOCOL, "the sender left without a word")
        self._check_peer(wire.parse_hello(line))
        staging = self.store.open_staging()
        snapshots = self.store.snapshots()
        _say(self.stdout, wire.Welcome(wire.offers(list(snapshots)), self.store.free_bytes()))
        line = _read_line(self.stdin_fd, deadline.within(LINE_TIMEOUT_S))
        if line is None:
            return  # it has seen that there is nothing to send
        begin = wire.parse_begin(line)
        self._check_peer(begin)
        self._check_lease(begin)
        self._check_lineage(begin, list(snapshots))
        self._check_space()
        _say(self.stdout, wire.Ready())
        try:
            self._take_in(staging, deadline)
            published = self._publish(begin)
        finally:
            self.store.clear_staging()
        _say(self.stdout, wire.Published(str(published.name), published.content_id))
        self._prune(begin)

    def _take_in(self, staging: Path, deadline: Deadline) -> None:
        argv = self.store.receive_argv(staging)
        try:
            pipeline([argv], deadline=deadline, op="receive", stdin=self.stdin_fd, stall_s=STALL_S)
        except CommandFailed as error:
            raise Refused(Reason.INCOMPLETE, str(error)) from error

    def _publish(self, begin: wire.Begin) -> Snapshot:
        self.store.verify_staged(begin.name, begin.content_id)
        self._check_lease(begin)  # it may have moved on while the stream came in
        known = {one.content_id for one in self.store.snapshots()}
        note_epoch(self.config, begin.content_id, begin.epoch, known)
        return self.store.publish(begin.name)

    # What is asked before anything is taken in

    def _check_peer(self, peer: wire.Hello | wire.Begin) -> None:
        config = self.config
        if peer.protocol != wire.PROTOCOL:
            raise Refused(
                Reason.PROTOCOL,
                f"{peer.sender} speaks version {peer.protocol} of the replication protocol, "
                f"{config.node} speaks {wire.PROTOCOL}: install the same Standfast on both",
            )
        if (peer.cluster, peer.volume) != (config.cluster, config.volume):
            raise Refused(
                Reason.PROTOCOL,
                f"{config.node} takes in volume {config.volume} of cluster {config.cluster}, not "
                f"{peer.volume} of {peer.cluster}: check `cluster` in both configurations",
            )
        if peer.sender not in config.standbys:
            raise Refused(
                Reason.UNKNOWN_NODE,
                f"{peer.sender} is not another storage node in {config.node}'s configuration "
                f"({', '.join(config.standbys) or 'there is none'})",
            )

    def _check_lease(self, begin: wire.Begin) -> None:
        """Refused unless Consul says now that the sender holds the lease, in this epoch."""
        epochs = EpochFile(self.config.state_dir / "epoch")
        highest = epochs.read()
        if begin.epoch < highest:
            raise Refused(
                Reason.STALE_LINEAGE,
                f"{begin.sender} sends as primary of epoch {begin.epoch}, but {self.config.node} "
                f"has seen epoch {highest}: its reign is over",
            )
        leader = self._leader(Deadline.after(CONSUL_PATIENCE_S))
        holds = leader.holder.node == begin.sender and leader.epoch == begin.epoch
        if not holds or leader.is_clean:
            raise Refused(
                Reason.NOT_THE_LEASE_HOLDER,
                f"{begin.sender} sends as primary of epoch {begin.epoch}, but the lease says: "
                f"epoch {leader.epoch}, {leader.holder.node}, {leader.state}",
            )
        epochs.raise_to(begin.epoch)

    def _leader(self, deadline: Deadline) -> Leader:
        key = self.config.key("leader")
        while True:
            try:
                entry = self.gateway.get(key, consistent=True)
                break
            except ConsulError:
                if deadline.remaining_s() < 1.0:
                    raise
                sleep(0.5)
        if entry is None:
            raise Refused(
                Reason.LEADER_MISSING, f"{key} doesn't exist in Consul: nobody holds the lease"
            )
        return Leader.parse(entry.value, key)

    def _check_lineage(self, begin: wire.Begin, snapshots: list[Snapshot]) -> None:
        name, now = begin.name, utc_now()
        if name.base != self.config.base:
            raise Refused(
                Reason.BAD_NAME,
                f"{name} is not a snapshot of {self.config.base}: `paths.live` must have the "
                f"same last part on both nodes",
            )
        if name.is_in_the_future(now):
            raise Refused(
                Reason.BAD_NAME, f"{name} lies in the future of {self.config.node}: check clocks"
            )
        by_id = {one.content_id: one for one in snapshots}
        if begin.parent_content_id is not None:
            if begin.parent_content_id not in by_id:
                raise Refused(
                    Reason.UNKNOWN_PARENT,
                    f"{self.config.node} has no snapshot {begin.parent_content_id} to build on",
                )
            self._check_newer(name, by_id[begin.parent_content_id], "its parent")
        epochs = epochs_of_snapshots(self.config)
        for one in snapshots:
            epoch = epochs.get(one.content_id, -1)
            if not one.received:
                continue
            if epoch > begin.epoch:
                raise Refused(
                    Reason.STALE_LINEAGE,
                    f"{self.config.node} has {one.name} of epoch {epoch}: nothing of epoch "
                    f"{begin.epoch} is taken in any more",
                )
            if epoch == begin.epoch:
                self._check_newer(name, one, f"published here in epoch {epoch}")

    def _check_newer(self, name: object, than: Snapshot, what: str) -> None:
        if str(name) <= str(than.name):
            raise Refused(Reason.BAD_NAME, f"{name} is not newer than {than.name}, {what}")

    def _check_space(self) -> None:
        free = self.store.free_bytes()
        if free < RESERVE_BYTES:
            raise Refused(
                Reason.NO_SPACE,
                f"{self.config.node} has {free // 2**20} MiB left for snapshots, at least "
                f"{RESERVE_BYTES // 2**20} MiB are kept free: delete old snapshots there",
            )

    def _prune(self, begin: wire.Begin) -> None:
        """What is old goes; a failure here changes nothing of what was acknowledged."""
        if begin.keep is None:
            return
        try:
            protected = {begin.content_id, *begin.keep}
            epochs = epochs_of_snapshots(self.config)
            old = published_to_delete(self.store.snapshots(), epochs, protected)
            self.store.delete(old)
        except (StandfastError, OSError) as error:
            log.warning("old snapshots were not deleted: %s", error)


def _read_line(descriptor: int, deadline: Deadline) -> str | None:
    """The next line; None at the end of input.

    Byte by byte: what follows the line belongs to the stream.
    """
    line = bytearray()
    while not line.endswith(b"\n"):
        if not select.select([descriptor], [], [], deadline.remaining_s())[0]:
            raise TimedOut("the sender said nothing in time")
        byte = os.read(descriptor, 1)
        if not byte:
            if line:
                raise Refused(Reason.PROTOCOL, "the sender left in the middle of a line")
            return None
        line += byte
        if len(line) > wire.MAX_LINE_BYTES:
            raise Refused(Reason.PROTOCOL, f"a line of more than {wire.MAX_LINE_BYTES} bytes")
    return line[:-1].decode("utf-8", "replace")
