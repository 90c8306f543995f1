"""What is asked before anything is taken in; every doubt is a refusal with its reason.

Invariant: a stream is accepted only from the node that Consul names as holder of the lease at that
moment, in an epoch not below the highest seen here, and on top of a history that it continues; and
a key whose line names a node speaks for that one alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from standfast.config.model import Config
from standfast.consul.records import Leader, StandbyRecord
from standfast.errors import Refused
from standfast.lease.epochs import EpochFile
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication import wire
from standfast.replication.ports import ReplicaGateway
from standfast.replication.published import epochs_of_snapshots
from standfast.replication.reporting import leader_of, patiently

RESERVE_BYTES = 32 * 1024 * 1024
"""Less free space than this, and nothing is taken in: btrfs needs some even to delete."""


def check_original_command(config: Config, environ: Mapping[str, str] = os.environ) -> None:
    """Refuses what the key's owner asked sshd for, where that isn't the forced command."""
    asked = environ.get("SSH_ORIGINAL_COMMAND", "").strip()
    if asked not in ("", f"standfast receive {config.volume}"):
        raise Refused(
            Reason.PROTOCOL,
            f"this key may only run `standfast receive {config.volume}`, asked was {asked[:80]!r}",
        )


def check_bound(config: Config, bound: str | None) -> None:
    """Refuses a key whose line names no other storage node: what it sent would be nobody's."""
    if bound is not None and bound not in config.standbys:
        others = ", ".join(config.standbys) or "there is none"
        raise Refused(
            Reason.UNKNOWN_NODE,
            f"the key's line in authorized_keys says --from {bound}, which is not another storage "
            f"node in {config.node}'s configuration ({others}): correct that line, or [nodes]",
        )


def check_sender(config: Config, bound: str | None, peer: wire.Hello | wire.Begin) -> None:
    """Refuses who says to be another node than the one whose key it is."""
    if bound is not None and peer.sender != bound:
        raise Refused(
            Reason.UNKNOWN_NODE,
            f"{peer.sender!r} speaks with the key of {bound}, by that key's line in "
            f"authorized_keys on {config.node}: somebody has the key, or a node was renamed",
        )


def check_peer(config: Config, peer: wire.Hello | wire.Begin) -> None:
    """Raises Refused for another protocol, volume or cluster, and for a foreign node."""
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


@dataclass(frozen=True, slots=True)
class Lease:
    """Asks Consul, and what was seen here, who holds the lease."""

    config: Config
    gateway: ReplicaGateway

    def check_holder(self, hello: wire.Hello) -> None:
        """Raises Refused unless the sender holds the lease, in whatever epoch: nobody else gets a
        turn, nor hears what is here."""
        leader = self._leader()
        if leader.holder.node != hello.sender or leader.is_clean:
            raise _not_the_holder(f"{hello.sender} wants to send", leader)

    def check(self, begin: wire.Begin) -> None:
        """Raises Refused unless Consul says now that the sender holds the lease, in this epoch."""
        epochs = EpochFile(self.config.state_dir / "epoch")
        highest = epochs.read()
        if begin.epoch < highest:
            raise Refused(
                Reason.STALE_LINEAGE,
                f"{begin.sender} sends as primary of epoch {begin.epoch}, but {self.config.node} "
                f"has seen epoch {highest}: epoch {begin.epoch} is over",
            )
        leader = self._leader()
        holds = leader.holder.node == begin.sender and leader.epoch == begin.epoch
        if not holds or leader.is_clean:
            raise _not_the_holder(f"{begin.sender} sends as primary of epoch {begin.epoch}", leader)
        epochs.raise_to(begin.epoch)

    def _leader(self) -> Leader:
        leader = patiently(lambda: leader_of(self.config, self.gateway))
        if leader is None:
            key = self.config.key("leader")
            raise Refused(
                Reason.LEADER_MISSING, f"{key} doesn't exist in Consul: nobody holds the lease"
            )
        return leader

    def vouched_for(self) -> Mapping[str, StandbyRecord]:
        """Returns by node what it had last by the primary's own word in Consul, for which the
        replication key isn't enough; ConsulError, ForeignValue."""
        keys = [self.config.key(f"standbys/{node}") for node in self.config.nodes]
        entries = [self.gateway.get(key, consistent=True) for key in keys]
        records = (StandbyRecord.parse(entry.value, entry.key) for entry in entries if entry)
        return {record.node: record for record in records}


def believed(
    commons: Mapping[str, str],
    vouched: Mapping[str, StandbyRecord],
    snapshots: Sequence[Snapshot],
    epochs: Mapping[str, int],
) -> Mapping[str, str]:
    """Returns by node the content that it has in common with this one, empty where that is the
    sender's word alone. Pure.

    When something becomes common it is the newest of one of the two, which Consul says then, and
    the other's newest isn't older. So who has only the key can't have the pins moved to what
    nobody else has, and what they were on deleted.
    """
    ranks = {own.content_id: (epochs.get(own.content_id, -1), str(own.name)) for own in snapshots}
    newest = {record.content_id for record in vouched.values()}
    told = {}
    for node, content_id in commons.items():
        record = vouched.get(node)
        told[node] = ""
        if record is not None and content_id in newest & ranks.keys():
            not_after = ranks[content_id] <= (record.epoch, record.snapshot)
            told[node] = content_id if not_after else ""
    return told


def _not_the_holder(who: str, leader: Leader) -> Refused:
    return Refused(
        Reason.NOT_THE_LEASE_HOLDER,
        f"{who}, but the lease says: epoch {leader.epoch}, {leader.holder.node}, {leader.state}",
    )


def check_lineage(config: Config, begin: wire.Begin, snapshots: Sequence[Snapshot]) -> None:
    """Raises Refused unless the snapshot goes on from what is here, and is newer."""
    name = begin.name
    if name.base != config.base:
        raise Refused(
            Reason.BAD_NAME,
            f"{name} is not a snapshot of {config.base}: `paths.live` must have the "
            f"same last part on both nodes",
        )
    by_id = {snapshot.content_id: snapshot for snapshot in snapshots}
    if begin.parent_content_id is not None:
        if begin.parent_content_id not in by_id:
            raise Refused(
                Reason.UNKNOWN_PARENT,
                f"{config.node} has no snapshot {begin.parent_content_id} to build on",
            )
        _check_newer(name, by_id[begin.parent_content_id], "its parent")
    epochs = epochs_of_snapshots(config)
    for snapshot in snapshots:
        epoch = epochs.get(snapshot.content_id, -1)
        if not snapshot.received:
            continue
        if epoch > begin.epoch:
            raise Refused(
                Reason.STALE_LINEAGE,
                f"{config.node} has {snapshot.name} of epoch {epoch}: nothing of epoch "
                f"{begin.epoch} is taken in any more",
            )
        if epoch == begin.epoch:
            _check_newer(name, snapshot, f"published here in epoch {epoch}")


def _check_newer(name: object, than: Snapshot, what: str) -> None:
    if str(name) <= str(than.name):
        raise Refused(Reason.BAD_NAME, f"{name} is not newer than {than.name}, {what}")


def check_space(config: Config, free: int, begin: wire.Begin) -> None:
    """Raises Refused (no-space) unless it fits, with RESERVE_BYTES left."""
    needed = RESERVE_BYTES + (begin.size_bytes or 0)
    if free < needed:
        raise Refused(
            Reason.NO_SPACE,
            f"{config.node} has {free // 2**20} MiB left for snapshots, {begin.name} needs "
            f"{needed // 2**20} MiB ({RESERVE_BYTES // 2**20} of them are kept free): "
            f"`standfast prune` there, or make the file system larger",
        )


def check_decompressor(config: Config, begin: wire.Begin) -> None:
    """Raises Refused (protocol) for a compressed stream that nobody here can unpack."""
    if begin.compression is wire.Compression.ZSTD and shutil.which("zstd") is None:
        raise Refused(
            Reason.PROTOCOL,
            f"{begin.sender} sends compressed by zstd, which {config.node} doesn't have: install "
            f'it, or set replication.compression = "none" on {begin.sender}',
        )
