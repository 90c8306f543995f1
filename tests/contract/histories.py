"""Three nodes, what happens to them, and what must be true after everything that happened.

The model knows every snapshot's tree from the moment in which it was taken, which snapshots the
present history is made of, and what any two nodes have in common.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from standfast.consul.records import LeaderState
from standfast.errors import Refused, StandfastError
from standfast.names import SnapshotName, diverged_name
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication.cycle import CycleResult
from standfast.replication.pruning import prune
from standfast.replication.published import epochs_of_snapshots
from standfast.system.clock import Deadline, utc_now
from tests.contract.clocks import Clocks
from tests.contract.links import LinkFault, Links
from tests.contract.peers import NODES, Peer, lead, peer
from tests.contract.trees import Mutation, Tree, differences, mutate, read_tree
from tests.support.origins import note_epoch
from tests.support.volumes import command

BETWEEN_S = 40.0
"""So much time passes from one step to the next."""
DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Ground:
    """Three mounted disks, used by one history after the other."""

    place: Path
    links: Links
    clocks: Clocks
    tally: Counter[str] = field(default_factory=Counter)
    """What came to pass in all the histories."""

    @contextlib.contextmanager
    def world(self, number: int) -> Iterator[ThreeNodes]:
        self.clocks.reset()
        nodes = {}
        for node in NODES:
            root, state = self.place / node / str(number), self.place / "state" / f"{number}-{node}"
            root.mkdir()
            keys = self.place / "state" / f"{number}.json"
            more = {"state": str(state), "run": str(state / "run"), "verify": "metadata"}
            here = peer(root, node, "btrfs", keys, keep=1, **more)
            self.links.reach(node, here.spec)
            nodes[node] = here.reaching(self.links.command("{node}"))
        try:
            yield ThreeNodes(self, nodes)
        finally:
            self.links.arm(None)
            self.links.wait_idle()
            for here in nodes.values():
                delete_all(here)


def delete_all(peer: Peer) -> None:
    store, paths = peer.store, peer.config.paths
    store.clear_staging()
    gone = [*(snapshot.path for snapshot in store.snapshots()), *store.aside(), *store.unfinished()]
    gone += [path for path in (paths.live, paths.standby) if path.exists()]
    if gone:
        command("btrfs", "subvolume", "delete", *gone)


class ThreeNodes:
    """The primary, its standbys, and all that is known of them."""

    def __init__(self, ground: Ground, nodes: dict[str, Peer]) -> None:
        self.ground = ground
        self.nodes = nodes
        self.primary = "a"
        self.epoch = 1
        self.lineage: list[str] = []
        """Content ids of the snapshots that the present history is made of, oldest first."""
        self._trees: dict[str, Tree] = {}
        self._seen: set[Path] = set()
        self._acknowledged: dict[tuple[str, str], str] = {}
        """By pair the newest snapshot of which both know that both have it."""
        self._acknowledged_by: dict[str, set[str]] = {node: set() for node in nodes}
        """Content ids that a node is known to have had, as primary or standby."""
        self._met: set[tuple[str, str]] = set()
        """Pairs of which that is known of one snapshot at the same time."""
        self._delivered: set[str] = set()
        """Standbys that have something of this primary's, whether it knows or not."""
        self.act_as("a")
        command("btrfs", "subvolume", "create", self.live)
        lead(self.at_work, 1)

    @property
    def at_work(self) -> Peer:
        return self.nodes[self.primary]

    @property
    def live(self) -> Path:
        return self.at_work.config.paths.live

    def standby(self, number: int) -> str:
        others = [node for node in NODES if node != self.primary]
        return others[number % len(others)]

    def act_as(self, node: str) -> None:
        self.ground.clocks.act_as(node)

    def pass_time(self) -> None:
        self.ground.clocks.advance(BETWEEN_S)
        self.act_as(self.primary)

    def common(self, one: str, other: str) -> Snapshot | None:
        """The newest snapshot that both have."""
        there = {snapshot.content_id for snapshot in self.nodes[other].store.snapshots()}
        shared = [s for s in self.nodes[one].store.snapshots() if s.content_id in there]
        return max(shared, key=lambda snapshot: snapshot.name, default=None)

    # What must be true

    def check(self) -> None:
        self._learn()
        for node, here in self.nodes.items():
            epochs = epochs_of_snapshots(here.config)
            for snapshot in here.store.snapshots():
                if snapshot.received:
                    assert snapshot.content_id in epochs, f"{node}: {snapshot.name} of no epoch"
                    self._check_whole(node, snapshot)
        for pair in itertools.combinations(NODES, 2):
            common = self.common(*pair)
            if self._knowingly_common(pair):
                self._met.add(pair)
            assert common is not None or pair not in self._met, f"{pair} have nothing in common now"
            known = self._acknowledged.get(pair)
            assert known is None or (common is not None and str(common.name) >= known), (
                f"{pair} had {known} in common"
            )

        for node in NODES:
            if node != self.primary and self.common(self.primary, node) is not None:
                self._delivered.add(node)

    def _knowingly_common(self, pair: tuple[str, str]) -> bool:
        known = self._acknowledged_by[pair[0]] & self._acknowledged_by[pair[1]]
        here = [{s.content_id for s in self.nodes[node].store.snapshots()} for node in pair]
        return bool(known & here[0] & here[1])

    def _learn(self) -> None:
        for snapshot in self.at_work.store.snapshots():
            if snapshot.content_id not in self._trees:
                assert not snapshot.received
                self._trees[snapshot.content_id] = read_tree(snapshot.path)
                self.lineage.append(snapshot.content_id)

    def _check_whole(self, node: str, snapshot: Snapshot) -> None:
        if snapshot.path not in self._seen:
            wrong = differences(self._trees[snapshot.content_id], read_tree(snapshot.path))
            assert wrong == [], f"{node}: {snapshot.name}"
            self._seen.add(snapshot.path)

    # What happens

    def cycle(self, standby: str) -> CycleResult:
        """A cycle that nothing disturbs: it succeeds, on top of what there is in common."""
        common = self.common(self.primary, standby)
        is_new = not self.nodes[standby].store.snapshots()
        try:
            result = self.at_work.sender.cycle(standby)
        except Refused as refusal:
            assert refusal.reason is Reason.NEEDS_FULL, str(refusal)
            assert common is None and not is_new, f"{common} is common: {refusal}"
            assert standby not in self._delivered, f"{standby} had something in common: {refusal}"
            result = self.at_work.sender.cycle(standby, full=True)
        assert result.was_full == (common is None)
        received = [
            snapshot for snapshot in self.nodes[standby].store.snapshots() if snapshot.received
        ]
        one, other = sorted((self.primary, standby))
        self._acknowledged[one, other] = str(result.snapshot)
        for snapshot in received:
            if snapshot.name == result.snapshot:
                self._acknowledged_by[self.primary].add(snapshot.content_id)
                self._acknowledged_by[standby].add(snapshot.content_id)
        # Not `<`: the standby may have it all, from a cycle of which only the end was cut off.
        if common is not None and result.parent is not None:
            assert result.parent == str(common.name)
            self.count("increments")
            if common.received:
                self.count("increments onto what was once received")
            if not self._has_received(standby, common):
                self.count("failbacks")
        assert result.snapshot in [snapshot.name for snapshot in received]
        assert self.nodes[standby].store.unfinished() == ()
        return result

    def _has_received(self, node: str, snapshot: Snapshot) -> bool:
        ids = [
            snapshot.content_id
            for snapshot in self.nodes[node].store.snapshots()
            if snapshot.received
        ]
        return snapshot.content_id in ids

    def count(self, what: str) -> None:
        self.ground.tally[what] += 1

    def attempt(self, standby: str, fault: LinkFault) -> None:
        """A cycle to which something happens."""
        links = self.ground.links
        links.arm(fault)
        try:
            self.at_work.sender.cycle(standby)
        except (StandfastError, OSError):
            self.count("cycles cut")
        links.arm(None)
        links.wait_idle()

    def base_for(self, node: str) -> Snapshot | None:
        """What this node would be promoted from: its newest of the present history."""
        here = [
            snapshot
            for snapshot in self.nodes[node].store.snapshots()
            if snapshot.content_id in self.lineage
        ]
        return max(
            here, key=lambda candidate: self.lineage.index(candidate.content_id), default=None
        )

    def promote(self, node: str) -> None:
        base = self.base_for(node)
        if base is None:
            return
        self.epoch += 1
        self.primary = node
        self._delivered.clear()
        self.count("promotions")
        self.lineage = self.lineage[: self.lineage.index(base.content_id) + 1]
        self.act_as(node)
        lead(self.at_work, self.epoch)
        store = self.at_work.store
        if store.live() is not None:
            store.keep_aside(diverged_name("services", self.epoch - 1, utc_now()))
        store.create_live_from(base)

    def hand_over(self, node: str) -> None:
        """In order: nothing of the old epoch is lost."""
        if self.common(self.primary, node) is None and self.nodes[node].store.snapshots():
            return
        primary = self.at_work
        primary.store.set_live_writable(False)
        lead(primary, self.epoch, LeaderState.DRAINING)
        final = primary.store.take_snapshot(SnapshotName.at("services", utc_now()))
        note_epoch(primary.config, final.content_id, self.epoch, primary.store.snapshots)
        primary.sender.replicate(node, final, self.epoch, Deadline.after(DEADLINE_S))
        self.check()
        self._acknowledged_by[primary.config.node].add(final.content_id)
        self._acknowledged_by[node].add(final.content_id)
        base = self.base_for(node)
        assert base is not None and base.content_id == final.content_id
        self.promote(node)

    def prune(self, node: str) -> None:
        self.act_as(node)
        pruned = prune(self.nodes[node].config, self.nodes[node].store, also=())
        assert pruned.trouble is None
        self.ground.tally["snapshots pruned"] += len(pruned.deleted)


# Steps


@dataclass(frozen=True, slots=True)
class Change:
    mutations: tuple[Mutation, ...]

    def happen(self, world: ThreeNodes) -> None:
        for mutation in self.mutations:
            mutate(world.live, mutation)


@dataclass(frozen=True, slots=True)
class WholeCycle:
    to: int

    def happen(self, world: ThreeNodes) -> None:
        world.cycle(world.standby(self.to))


@dataclass(frozen=True, slots=True)
class CutCycle:
    """A cycle that is cut: the link or the receiver, after some bytes or before an effect."""

    to: int
    fault: LinkFault

    def happen(self, world: ThreeNodes) -> None:
        world.attempt(world.standby(self.to), self.fault)


@dataclass(frozen=True, slots=True)
class Failover:
    """The primary is gone with all that it didn't send."""

    to: int

    def happen(self, world: ThreeNodes) -> None:
        world.promote(world.standby(self.to))


@dataclass(frozen=True, slots=True)
class HandOver:
    to: int

    def happen(self, world: ThreeNodes) -> None:
        world.hand_over(world.standby(self.to))


@dataclass(frozen=True, slots=True)
class WayBack:
    """Another primary changes something, and the old one takes it in."""

    to: int
    in_order: bool
    change: Change

    def happen(self, world: ThreeNodes) -> None:
        old, new = world.primary, world.standby(self.to)
        if self.in_order:
            world.hand_over(new)
        else:
            world.promote(new)
        self.change.happen(world)
        world.check()
        if world.primary != old:
            world.cycle(old)


@dataclass(frozen=True, slots=True)
class Prune:
    node: str

    def happen(self, world: ThreeNodes) -> None:
        world.prune(self.node)


@dataclass(frozen=True, slots=True)
class StepClock:
    node: str
    seconds: float

    def happen(self, world: ThreeNodes) -> None:
        world.ground.clocks.step(self.node, self.seconds)


Step = Change | WholeCycle | CutCycle | Failover | HandOver | WayBack | Prune | StepClock
