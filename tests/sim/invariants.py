"""What must hold at every moment: looked at after each event, each commit and each preparation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from standfast.btrfs.names_and_places import STAGING
from standfast.consul.records import HistoryEntry, Leader, parse_epoch
from standfast.consul.values import Cas, Op, Set
from standfast.lease.epochs import EpochFile
from standfast.lease.process import RETRY_S
from standfast.node.own_epoch import OwnEpoch
from standfast.reasons import Reason
from standfast.replication.published import epochs_of_snapshots
from tests.sim.clockwork import Violation
from tests.sim.disk import SimTree

if TYPE_CHECKING:
    from tests.sim.node import Seat
    from tests.sim.world import SimWorld

FLATTERY_S = 4.0
"""Of a loss that is told: names have whole seconds, clients write twice a second, and a heartbeat
may be seen late."""

SEEN_S = 2.0
"""So long a snapshot may be there before the node's own look has it."""


@dataclass(slots=True)
class Prepared:
    """An epoch whose subvolume was made."""

    node: str
    tree: SimTree


class Invariants:
    def __init__(self, world: SimWorld) -> None:
        self._world = world
        self.written: dict[str, list[float]] = {}
        """By volume, when each write was done; a write is its number from 1."""
        self.unanswered: dict[str, set[int]] = defaultdict(set)
        """By volume, those that no client knows to be done."""
        self.history_entries: dict[tuple[str, int], Prepared] = {}
        self.owners: dict[tuple[str, int], str] = {}
        self._forgotten: dict[tuple[str, int], tuple[str, Prepared]] = {}
        """Owner and tree of each epoch that a restored Consul knows nothing of."""
        self._serving: dict[str, str] = {}
        self._unfenced: set[tuple[str, int]] = set()
        self._unwatched: dict[str, float] = {}
        """By node, until when nobody could have noticed that its rules are gone."""
        self.allowed_two_s = 0.0
        """For a scenario beyond what S3 promises: so long may two serve in all."""
        self._two_since: float | None = None
        self.two_s = 0.0

    def asked(self, volume: str) -> int:
        """The number of a write that is in the tree from now on."""
        times = self.written.setdefault(volume, [])
        times.append(self._world.now)
        self.unanswered[volume].add(len(times))
        return len(times)

    def acknowledged(self, volume: str, number: int, by: str, *, fenced: bool) -> None:
        """`fenced`: by a server whose rules are in place; others may go on without a lease."""
        self.unanswered[volume].discard(number)
        serves = self._serving.get(volume, by)
        followed = (
            prepared.tree.writes
            for (name, _), prepared in self.history_entries.items()
            if name == volume and prepared.node != by
        )
        if serves != by and not any(number in writes for writes in followed):
            self._two(volume, by, serves)
        if not fenced:
            self._unfenced.add((volume, number))

    def all_acknowledged(self, volume: str) -> range:
        return range(1, len(self.written.get(volume, ())) + 1)

    # At most one node serves

    def look(self) -> None:
        serving: dict[str, str] = {}
        for node in self._world.nodes.values():
            if not (node.rules.asks and node.rules.answers) and node.everybody_frozen():
                self._unwatched[node.name] = self._world.now
            nfsd = node.nfsd
            if not nfsd.running or not nfsd.table or not node.answers:
                continue
            for volume in nfsd.table:
                if not node.seats[volume].serves:
                    continue
                if volume in serving:
                    self._two(volume, serving[volume], node.name)
                    continue
                serving[volume] = node.name
        if serving != self._serving:
            self._changed(serving)
            self._serving = serving
            self._two_since = None

    def _two(self, volume: str, one: str, other: str) -> None:
        world = self._world
        if self._just_flushed(volume, one) or self._just_flushed(volume, other):
            return
        if self.allowed_two_s:
            if self._two_since is not None:
                self.two_s += world.now - self._two_since
            self._two_since = world.now
            if self.two_s <= self.allowed_two_s:
                return
        raise Violation(f"{one} and {other} serve {volume} at {world.now:.3f}\n{world.story()}")

    def _just_flushed(self, volume: str, name: str) -> bool:
        """Its port is open for want of rules, until the next look: this is documented. The lease
        process may be waiting for Consul just then, and the agent stand still; while both do, it
        stays open."""
        node = self._world.nodes[name]
        rules, lease, now = node.rules, node.seats[volume].config.lease, self._world.now
        look_s = lease.heartbeat + lease.request_timeout + RETRY_S + 0.3
        since = max(rules.flushed_at, self._unwatched.get(name, rules.flushed_at))
        return not (rules.asks and rules.answers) and now - since <= look_s

    def _changed(self, serving: dict[str, str]) -> None:
        world = self._world
        for volume in world.volumes:
            now, before = serving.get(volume), self._serving.get(volume)
            if now == before:
                continue
            world.log(f"{volume}: {f'{now} serves' if now else f'{before} serves no more'}")
            if now is not None:
                self._check_served(world.nodes[now].seats[volume])

    def _check_served(self, seat: Seat) -> None:
        own = OwnEpoch.load(seat.config.state_dir)
        known = None if own is None else self.history_entries.get((seat.volume, own.epoch))
        if known is None and own is not None and own.epoch > self._world.epoch(seat.volume):
            return  # Consul was restored and forgot that epoch; it has the rest of its lease
        if known is None or known.tree is not seat.live:
            raise Violation(
                f"{seat.node.name} serves a tree of {seat.volume} that was prepared for no epoch "
                f"({own})\n{self._world.story()}"
            )

    # One owner for each epoch

    def committed(self, ops: Sequence[Op]) -> None:
        for op in ops:
            if isinstance(op, (Cas, Set)) and op.key.endswith("/epoch"):
                written = {write.key: write.value for write in ops if isinstance(write, (Cas, Set))}
                volume = op.key.split("/")[-2]
                raw = written.get(op.key.removesuffix("epoch") + "leader")
                self._epoch(volume, parse_epoch(op.value), raw)

    def _epoch(self, volume: str, epoch: int, raw: bytes | None) -> None:
        world = self._world
        highest = max((number for name, number in self.owners if name == volume), default=0)
        if epoch < highest:
            raise Violation(f"epoch {epoch} after {highest}\n{world.story()}")
        if raw is None:
            world.log(f"{volume}: epoch {epoch} is written, by nobody's claim")
            return
        leader = Leader.parse(raw)
        owner = f"{leader.holder.node}/{leader.holder.instance}"
        known = self.owners.setdefault((volume, epoch), owner)
        before, prepared = self._forgotten.pop((volume, epoch), (None, None))
        if prepared is not None and before == owner:  # its lease is valid: it writes the keys again
            self.history_entries.setdefault((volume, epoch), prepared)
        if known != owner:
            raise Violation(
                f"{volume}: epoch {epoch} has two owners: {known} and {owner}\n{world.story()}"
            )
        world.log(f"{volume}: epoch {epoch} is {owner}'s")

    def restored(self, volume: str, epoch: int) -> None:
        """Consul forgot what came after: its numbers may be used again (documented), by somebody
        who never heard of them."""
        for key in [key for key in self.owners if key[0] == volume and key[1] > epoch]:
            owner, prepared = self.owners.pop(key), self.history_entries.pop(key, None)
            if prepared is not None:
                self._forgotten[key] = owner, prepared

    # What a standby takes in

    def before_publishing(self, seat: Seat) -> tuple[int, int | None]:
        """What a receiver has to find out: the highest epoch seen here, and whose lease it is."""
        leader = self._world.leader(seat.volume)
        held = None if leader is None or leader.is_clean else leader.epoch
        return EpochFile(seat.config.state_dir / "epoch").read(), held

    def published(self, seat: Seat, content_id: str, before: tuple[int, int | None]) -> None:
        """A snapshot became visible; `before` was true when it had come in whole."""
        seen, held = before
        epoch = epochs_of_snapshots(seat.config)[content_id]
        _, holds = self.before_publishing(seat)
        why = None
        if epoch < seen:
            why = f"which had seen epoch {seen}"
        elif epoch not in (held, holds):
            why = f"though the lease was that of epoch {holds}"
        if why is not None:
            raise Violation(
                f"{seat.volume}: {seat.node.name} took in a snapshot of epoch {epoch}, {why}\n"
                f"{self._world.story()}"
            )

    # Where the data of an epoch comes from

    def prepared(self, seat: Seat) -> None:
        """A live subvolume is ready for the epoch that this node's file names."""
        own, tree, world = OwnEpoch.load(seat.config.state_dir), seat.live, self._world
        assert own is not None and tree is not None
        volume, epoch = seat.volume, own.epoch
        known = self.history_entries.get((volume, epoch))
        if known is not None:
            if known.tree is not tree:
                raise Violation(f"{volume}: epoch {epoch} has two trees\n{world.story()}")
            return
        going_on = [
            e
            for (v, e), (_, prepared) in self._forgotten.items()
            if v == volume and prepared.tree is tree
        ]
        if epoch in going_on:
            return
        self.history_entries[volume, epoch] = Prepared(seat.node.name, tree)
        if going_on:
            return  # with all that it had before Consul was restored
        # One that never served is no part of the past, unless it is what the next goes on from.
        entry = world.store.get(world.key(f"history/{epoch}", volume))
        follows = epoch - 1 if entry is None else HistoryEntry.parse(entry.value).before
        past = (n for name, n in self.history_entries if name == volume and n <= follows)
        before = max(past, default=None)
        if before is None:
            return
        old, new = self.history_entries[volume, before].tree.writes, tree.writes
        if old[: len(new)] != new:
            raise Violation(
                f"{volume}: epoch {epoch} on {seat.node.name} starts from data outside the lineage "
                f"of {before}: {sorted(set(new) - set(old))[:10]}\n{world.story()}"
            )
        self._check_newest(seat, epoch, old, new)
        self._check_loss(volume, range(before + 1, epoch + 1), old[len(new) :])

    def _check_newest(self, seat: Seat, epoch: int, old: Sequence[int], new: Sequence[int]) -> None:
        """Of what this node had when its promotion began, the one that lost least."""
        known = epochs_of_snapshots(seat.config)
        base = f"{seat.config.base}@"
        for path, tree in seat.node.disk.here.trees.items():
            fits = path.name.startswith(base) and STAGING not in path.parts and tree.read_only
            if not fits or tree.info.content_id not in known:
                continue
            there = tree.made_at < seat.claimed_at - SEEN_S
            if there and len(tree.writes) > len(new) and old[: len(tree.writes)] == tree.writes:
                raise Violation(
                    f"{seat.volume}: epoch {epoch} on {seat.node.name} starts from "
                    f"{len(new)} writes, and {path.name} has {len(tree.writes)} of them\n"
                    f"{self._world.story()}"
                )

    def _check_loss(self, volume: str, epochs: range, lost: Sequence[int]) -> None:
        """A clean handover loses nothing; another tells no less than what it loses.

        `epochs`: those since the last one that had a tree; each tells of its own.
        """
        world = self._world
        lost = [number for number in lost if number not in self.unanswered[volume]]
        entries = [world.store.get(world.key(f"history/{epoch}", volume)) for epoch in epochs]
        history_entries = [
            HistoryEntry.parse(entry.value) for entry in entries if entry is not None
        ]
        if len(history_entries) < len(epochs) or not lost:
            return
        epoch, reason = epochs[-1], history_entries[0].reason
        if len(history_entries) == 1 and reason.partition(":")[0] == Reason.CLEAN_HANDOVER:
            raise Violation(
                f"{volume}: the handover to epoch {epoch} lost {len(lost)} acknowledged writes\n"
                f"{world.story()}"
            )
        lost = [number for number in lost if (volume, number) not in self._unfenced]
        if not lost or any(history_entry.lost_s is None for history_entry in history_entries):
            return
        times = self.written[volume]
        span_s = times[lost[-1] - 1] - times[lost[0] - 1]
        told_s = sum(history_entry.lost_s or 0.0 for history_entry in history_entries)
        nothing = told_s == 0.0 and len(lost) > 1
        if nothing or told_s < span_s - FLATTERY_S:
            raise Violation(
                f"{volume}: epoch {epoch} lost {span_s:.1f} s of writes and tells "
                f"{told_s:.1f} s\n{world.story()}"
            )
