"""Clocks that are set at any moment, machines that start with wrong ones: what was taken last stays
the newest, and nothing is ever told as younger than it is.

Names, notes, both stores and the choice are the program's own; only the stream is left out.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest
from hypothesis import example, given, note
from hypothesis import strategies as st

from standfast.agent.local_view import LocalView
from standfast.ages import Origin, age_of
from standfast.btrfs.names_and_places import TreeInfo
from standfast.consul.records import HistoryEntry
from standfast.demo.stand_ins.directory import DirectoryStore, save_info
from standfast.node.node import Machine
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import Snapshot
from standfast.replication import published, wire
from standfast.replication.published import CLOCK_EVERY_S, note_origin, origins_of_snapshots, take
from standfast.replication.receive import _Announced
from standfast.role.observation import Available, Cluster, LastHeartbeat, newest
from standfast.system import clock
from tests.fakes.clock import at_the_kernels_start
from tests.fakes.replication import storage_node
from tests.support.examples import examples

START_S = 1_795_342_500.0
LOOK_EVERY_S = 15.0
UNSEEN_S = CLOCK_EVERY_S + LOOK_EVERY_S
"""What may pass before a start without being noted."""
EXACT_S = 1.0
HOUR_S = 3600.0


@dataclass
class ClockedNode:
    """One machine with its disk and its clock."""

    name: str
    root: Path
    set_by: float = 0.0
    boots: int = 1
    started: float = -1e5
    """True seconds."""
    unknown_s: dict[str, float] = field(default_factory=dict)
    """By content id for how long this machine was off since it was noted, at most."""
    boot_of: dict[str, int] = field(default_factory=dict)
    """By content id the start in which it was noted."""
    stood_s: float = 0.0
    """For how long the machine stood still since its start: its uptime knows nothing of it."""
    stood_later_s: dict[str, float] = field(default_factory=dict)
    """By content id for how long it stood still in later starts than that in which it was noted."""
    reached_by: dict[str, float] = field(default_factory=dict)
    """By content id how far ahead the clock was at most when the machine went off, since then."""
    moved: dict[str, set[str]] = field(default_factory=dict)
    """By content id which ways the clock moved against the uptime, or against the time, since."""

    def __post_init__(self) -> None:
        self.config = storage_node(self.root, self.name)
        self.store = DirectoryStore(self.config.paths)
        me = SimpleNamespace(instance="boot")
        parts: Any = SimpleNamespace(config=self.config, store=self.store, me=me, nfs=None)
        parts.nfs = SimpleNamespace(is_running=lambda: False)
        self.view = LocalView(cast("Machine", parts))

    def noted(self, content_id: str) -> None:
        self.unknown_s[content_id], self.boot_of[content_id] = 0.0, self.boots
        self.stood_later_s[content_id], self.reached_by[content_id] = 0.0, -math.inf
        self.moved[content_id] = set()

    def flattery_s(self, content_id: str) -> float:
        """By so much an age may be told too small: for how long the machine was off, and what
        nobody on it can know beside that. A clock that is behind what it was before the start looks
        like one that was set right when the machine stands still for as long; so does one that is
        set back by that."""
        behind_s = max(0.0, self.reached_by[content_id] - self.set_by)
        return self.unknown_s[content_id] + min(behind_s, self.stood_later_s[content_id])

    def moves(self, seconds: float) -> None:
        """The clock does, by so much."""
        if seconds:
            for ways in self.moved.values():
                ways.add("forward" if seconds > 0 else "back")


class TwoMachines:
    """True time, two nodes, and what the history is made of."""

    CLOCK_BOOTTIME = 7

    def __init__(self, root: Path) -> None:
        self.true_s = 0.0
        self.nodes = [ClockedNode(name, root / name) for name in "ab"]
        self.primary = 0
        self.at_work = self.nodes[0]
        self.epoch = 1
        self.bases: dict[int, str] = {}
        self.lineage: list[str] = []
        """Content ids in the order in which they were taken."""
        self.taken: dict[str, float] = {}
        """... and when really."""

    # The module `time`, and the kernel's word on its start

    def time(self) -> float:
        return START_S + self.true_s + self.at_work.set_by

    def monotonic(self) -> float:
        return 1e6 + self.true_s

    def clock_gettime(self, _: int) -> float:
        return self.true_s - self.at_work.started - self.at_work.stood_s

    def sleep(self, seconds: float) -> None:
        self.true_s += seconds

    def boot(self) -> str:
        return f"{self.at_work.name}{self.at_work.boots}"

    # What happens

    def wait(self, seconds: float) -> None:
        """The agents look as they do, or often enough for the same notes."""
        end = self.true_s + seconds
        while self.true_s < end:
            self.true_s = min(end, self.true_s + max(LOOK_EVERY_S, seconds / 20))
            self.look_everywhere()
        if seconds > 20 * LOOK_EVERY_S:  # it looked more seldom than it does: once more
            self.true_s += CLOCK_EVERY_S + 1
            self.look_everywhere()

    def look_everywhere(self) -> None:
        for node in self.nodes:
            self.look(node)

    def look(self, node: ClockedNode) -> Available | None:
        self.at_work = node
        history = {
            epoch: HistoryEntry(epoch, "x", base, "operator", None, None, 0.0)
            for epoch, base in self.bases.items()
        }
        view = Cluster(self.epoch, None, LastHeartbeat(None, 1, 0.0), history=history)
        return newest(node.view.look(), view)

    def set_clock(self, which: int, seconds: float) -> None:
        node = self.nodes[which]
        # No year of a negative number, none beyond those that can be printed.
        node.set_by = max(-START_S / 2, min(5e9, node.set_by + seconds))
        node.moves(seconds)

    def pause(self, which: int, seconds: float) -> None:
        """A virtual machine is saved, and goes on; its clock is set right then."""
        node = self.nodes[which]
        self.true_s += seconds
        node.stood_s += seconds
        for content_id, boot in node.boot_of.items():
            node.stood_later_s[content_id] += seconds if boot != node.boots else 0.0
        node.moves(seconds)
        self.look(node)

    def restart(self, which: int, off_s: float, seconds: float) -> None:
        """Off for a while, and its clock is another one then."""
        node = self.nodes[which]
        node.unknown_s = {
            content_id: s + off_s + UNSEEN_S for content_id, s in node.unknown_s.items()
        }
        node.reached_by = {
            content_id: max(by, node.set_by) for content_id, by in node.reached_by.items()
        }
        self.true_s += off_s
        node.started, node.boots, node.stood_s = self.true_s, node.boots + 1, 0.0
        self.set_clock(which, seconds)
        self.look(node)

    def take(self) -> tuple[Snapshot, Origin]:
        """As a cycle does it."""
        node = self.at_work = self.nodes[self.primary]
        snapshot = take(node.config, node.store, self.epoch)
        self.lineage.append(snapshot.content_id)
        self.taken[snapshot.content_id] = self.true_s
        node.noted(snapshot.content_id)
        return snapshot, origins_of_snapshots(node.config, clock.instant())[snapshot.content_id]

    def replicate(self, slow_s: float = 0.0) -> None:
        """The header, what it is noted as on the other side, and its place there."""
        snapshot, origin = self.take()
        self.true_s += slow_s
        origin = origins_of_snapshots(self.at_work.config, clock.instant())[snapshot.content_id]
        age_s = age_of(origin.time(snapshot.name), clock.utc_now())
        header = wire.Begin(
            "test", "v", "a", self.epoch, str(snapshot.name), snapshot.content_id, None, age_s=age_s
        )
        begin = wire.parse(wire.dump(header), wire.Begin)
        node = self.at_work = self.nodes[1 - self.primary]
        announced = _Announced(begin, clock.monotonic())
        self.true_s += slow_s
        tree = node.config.paths.standby / str(snapshot.name)
        tree.mkdir(parents=True)
        save_info(tree, TreeInfo("x", snapshot.content_id, read_only=True))
        note_origin(node.config, begin, announced.origin(), node.store.snapshots)
        node.noted(snapshot.content_id)

    def fail_over(self) -> None:
        """The other node goes on from what it has; what it has not is no history any more."""
        node = self.nodes[1 - self.primary]
        base = self.look(node)
        if base is None:
            return
        self.primary = 1 - self.primary
        self.epoch += 1
        name, content_id = str(base.snapshot.name), base.snapshot.content_id
        self.bases[self.epoch] = name
        self.lineage = self.lineage[: self.lineage.index(content_id) + 1]
        history_entry = OwnEpoch(self.epoch, Stage.READY, "fsid", name, in_place=False)
        history_entry.save(node.config.state_dir)

    def delete_by_hand(self, which: int) -> None:
        """All but the newest."""
        node = self.nodes[which]
        node.store.delete(node.store.snapshots()[:-1])

    # What must be true

    def check(self) -> None:
        for node in self.nodes:
            available = self.look(node)
            here = [snapshot.content_id for snapshot in node.store.snapshots()]
            last = next(
                (candidate for candidate in reversed(self.lineage) if candidate in here), None
            )
            if available is None:
                assert last is None, f"{node.name} has {last}, and knows of nothing"
                continue
            content_id = available.snapshot.content_id
            assert content_id == last, f"{node.name} starts from {available.snapshot.name}"
            self.check_age(node, available, content_id)

    def check_age(self, node: ClockedNode, available: Available, content_id: str) -> None:
        told_s = available.age_s(clock.utc_now())
        true_s = self.true_s - self.taken[content_id]
        moved, this_start = node.moved[content_id], node.boot_of[content_id] == node.boots
        if told_s is None:
            assert moved and not this_start, "there is no reason not to know it"
            return
        assert told_s >= true_s - node.flattery_s(content_id) - EXACT_S, (
            f"{available.snapshot.name} on {node.name} is {true_s:.0f} s old, told is {told_s:.0f}"
        )
        # Over starts, too: what a clock said before this was noted has no say in it.
        # A name may be older, by the clock of the one that took it, and counts over a start.
        named_s = clock.utc_now() - available.snapshot.name.stamp
        most_s = true_s if this_start else max(true_s, named_s)
        if not moved or (this_start and moved == {"back"}):
            assert true_s - EXACT_S <= told_s <= most_s + EXACT_S, "a clock has a say in it"


@contextmanager
def world() -> Iterator[TwoMachines]:
    # Notes are synced to the disk, which a busy one takes its time for.
    quick = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=quick) as place:
        made = TwoMachines(Path(place))
        with (
            patch.object(clock, "time", made),
            patch.object(clock, "started_at", at_the_kernels_start),
            patch.object(published, "boot_instance", lambda _: made.boot()),
        ):
            yield made


Step = tuple[str, Any]
_by = st.sampled_from([-3e7, -2 * HOUR_S, -HOUR_S, -90.0, -2.0, 2.0, 90.0, HOUR_S, 3e7])
_at_start = st.sampled_from([0.0, 0.0, -2 * HOUR_S, -HOUR_S, -90.0, 90.0, HOUR_S, 3e7])
_which = st.integers(0, 1)
_steps: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("wait"), st.tuples(st.sampled_from([1.0, 30.0, 300.0, HOUR_S, 86400.0]))),
    st.tuples(st.just("replicate"), st.tuples(st.sampled_from([0.0, 0.0, 20.0]))),
    st.tuples(st.just("take"), st.just(())),
    st.tuples(st.just("set_clock"), st.tuples(_which, _by)),
    st.tuples(
        st.just("restart"), st.tuples(_which, st.sampled_from([5.0, 600.0, 2 * HOUR_S]), _at_start)
    ),
    st.tuples(st.just("pause"), st.tuples(_which, st.sampled_from([90.0, 2 * HOUR_S]))),
    st.tuples(st.just("fail_over"), st.just(())),
    st.tuples(st.just("delete_by_hand"), st.tuples(_which)),
)


@examples(60)
@example(
    steps=[
        ("set_clock", (0, HOUR_S)),
        ("set_clock", (1, HOUR_S)),
        ("replicate", (0.0,)),
        ("wait", (300.0,)),
        ("set_clock", (0, -HOUR_S)),
        ("set_clock", (1, -HOUR_S)),
        ("replicate", (0.0,)),
        ("wait", (1200.0,)),
        ("replicate", (0.0,)),
        ("fail_over", ()),
        ("replicate", (0.0,)),
    ]
)
@example(steps=[("replicate", (0.0,)), ("restart", (1, 5.0, -2 * HOUR_S)), ("wait", (HOUR_S,))])
@example(
    steps=[
        ("replicate", (0.0,)),
        ("set_clock", (1, -HOUR_S)),
        ("fail_over", ()),
        ("replicate", (0.0,)),
        ("fail_over", ()),
    ]
)
@example(
    steps=[
        ("restart", (1, 5.0, HOUR_S)),
        ("restart", (1, 5.0, -HOUR_S)),
        ("wait", (86400.0,)),
        ("replicate", (0.0,)),
        ("restart", (1, 5.0, 0.0)),
    ]
)
@example(steps=[("replicate", (0.0,)), ("pause", (1, 2 * HOUR_S))])
@example(
    steps=[("replicate", (0.0,)), ("set_clock", (1, -HOUR_S)), ("pause", (1, 2 * HOUR_S))],
)
@example(steps=[("restart", (1, 5.0, -2 * HOUR_S)), ("pause", (1, 2 * HOUR_S))])
@example(
    steps=[
        ("restart", (1, 5.0, 0.0)),
        ("pause", (1, 2 * HOUR_S)),
        ("set_clock", (1, -2 * HOUR_S)),
    ]
)
@given(steps=st.lists(_steps, min_size=3, max_size=14))
def test_whatever_the_clocks_do_the_newest_is_what_was_taken_last(steps: list[Step]) -> None:
    with world() as made:
        for what, how in [("replicate", (0.0,)), *steps]:
            note(f"{made.true_s:.0f} s, epoch {made.epoch}: {what} {how}")
            getattr(made, what)(*how)
            made.check()


def test_it_sees_a_clock_that_makes_data_younger() -> None:
    """The comparison can fail: as if the time that was noted were believed."""
    with world() as made:
        for which in (0, 1):
            made.set_clock(which, HOUR_S)
        made.replicate()
        for which in (0, 1):
            made.set_clock(which, -HOUR_S)
        made.wait(HOUR_S)
        node = made.nodes[1]
        available = made.look(node)
        assert available is not None
        made.check_age(node, available, available.snapshot.content_id)
        believed = replace(available, taken_at=START_S + HOUR_S)
        with pytest.raises(AssertionError, match="told is 61"):
            made.check_age(node, believed, available.snapshot.content_id)
