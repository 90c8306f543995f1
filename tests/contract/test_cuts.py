"""A replication cut anywhere: the next cycle succeeds by itself, and nothing partial ever counts.

The stages are data: each message of the conversation, before and after it passed, some numbers of
bytes of the stream, and each effect of either process, counted until one run has no more of them.
`make test` tries some of them, from the first to the last; `make torture` tries every one.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from standfast.consul.records import StandbyRecord
from standfast.errors import CommandFailed, Refused, StandfastError
from standfast.reasons import Reason
from standfast.replication import receive_checks, reporting
from standfast.replication.cycle import CycleResult
from standfast.replication.published import epochs_of_snapshots
from standfast.system.clock import Deadline
from tests.contract.effects import EFFECTS_AT_LEAST, at_effect, effects, some_or_every_effect
from tests.contract.images import copy_image
from tests.contract.links import DOWN, UP, LinkFault, Links, fork
from tests.contract.peers import Peer, lead, peer
from tests.contract.trees import Tree, differences, read_tree
from tests.support.pace import patient
from tests.support.volumes import btrfs_on_file, command, mount_image, require_btrfs, unmount
from tests.support.waiting import wait_for

NODES = ("a", "b")
STREAM = 400_000
"""Bytes of incompressible data in every snapshot that is cut."""
MESSAGE_STAGES = [
    LinkFault("", message=name, passed=passed) for name in (*UP, *DOWN) for passed in (False, True)
]
LAST = MESSAGE_STAGES[-1]
STREAM_STAGES = [
    LinkFault("", stream_bytes=count) for count in (0, 1, 17, 200, 5_000, STREAM // 2, STREAM)
]
HALF = LinkFault("", stream_bytes=STREAM // 2)
SOME_STAGES = [
    LinkFault("", message="hello"),
    LinkFault("", message="begin", passed=True),
    LinkFault("", message="ready"),
    HALF,
    LinkFault("", message="published"),
    LAST,
]
stages = pytest.mark.parametrize(
    "stages",
    [
        pytest.param(SOME_STAGES, id="some"),
        pytest.param([*MESSAGE_STAGES, *STREAM_STAGES], id="every", marks=pytest.mark.torture),
    ],
)


@pytest.fixture
def disks(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disks]:
    require_btrfs()
    # Before the links: what answers there is forked from this process.
    monkeypatch.setattr(reporting, "PATIENCE_S", 0.0)
    with ExitStack() as stack:
        for node in NODES:
            stack.enter_context(btrfs_on_file(place / f"{node}.img", place / node))
        yield Disks(place, stack.enter_context(Links(place / "links").serve()))


class Disks:
    """The two nodes' disks and the links between them; each case begins with the same contents."""

    def __init__(self, place: Path, links: Links) -> None:
        self.place = place
        self.links = links
        self._known: dict[Path, dict[str, Tree]] = {}
        """By what was kept for the cases, the trees of the snapshots in it."""

    def image(self, node: str) -> Path:
        return self.place / f"{node}.img"

    def copy(self, node: str) -> Path:
        return self.place / f"{node}.copy"

    def back_from_power_cut(self, node: str) -> None:
        """The node's disk is what it was when it was copied."""
        unmount(self.place / node)
        self.copy(node).replace(self.image(node))
        mount_image(self.image(node), self.place / node)

    def pair(self, *, seeded: bool, state: Path | None = None) -> Pair:
        """The nodes as they were before; their state is on their disks, or else in `state`."""
        self.links.arm(None)
        self.links.wait_idle()
        kept = self.place / ("kept seeded" if seeded else "kept")
        files = [Path("keys.json"), *(self.image(node).relative_to(self.place) for node in NODES)]
        if kept.exists():
            for node in NODES:
                unmount(self.place / node)
            for file in files:
                copy_image(kept / file, self.place / file)
            for node in NODES:
                mount_image(self.image(node), self.place / node)
            return self._nodes(state, self._known[kept])
        pair = self._nodes(state, {})
        pair.begin(seeded=seeded)
        for node in NODES:
            command("btrfs", "filesystem", "sync", self.place / node)
        kept.mkdir()
        for file in files:
            copy_image(self.place / file, kept / file)
        self._known[kept] = pair.trees.copy()
        return pair

    def _nodes(self, state: Path | None, trees: dict[str, Tree]) -> Pair:
        nodes = []
        for node in NODES:
            root = self.place / node
            place = str((state or root) / f"{node}-state")
            more = {"keep": 1, "state": place, "run": f"{place}/run"}
            nodes.append(peer(root, node, "btrfs", self.place / "keys.json", **more))
        a, b = nodes
        self.links.reach("b", b.spec)
        return Pair(a.reaching(self.links.command("b")), b, self.links, trees.copy())


class Pair:
    """A primary and its standby, and what is known of every snapshot that was taken."""

    def __init__(self, a: Peer, b: Peer, links: Links, trees: dict[str, Tree]) -> None:
        self.a = a
        self.b = b
        self.links = links
        self.trees = trees
        self._sound: set[str] = set()

    def begin(self, *, seeded: bool) -> None:
        """`a` is primary, with a change that is to be sent; seeded: on top of what both have."""
        command("btrfs", "subvolume", "create", self.a.config.paths.live)
        lead(self.a, 1)
        if seeded:
            self.change(1_000)
            for _ in range(2):
                self.succeed()
        self.change(STREAM)

    def change(self, size: int) -> None:
        live = self.a.config.paths.live
        for number in range(8):
            (live / f"file{number}").write_bytes(os.urandom(size // 8))
        (live / "file0").rename(live / "renamed")

    def commons(self) -> list[str]:
        """Names of what both have, oldest first."""
        there = {snapshot.content_id for snapshot in self.b.store.snapshots()}
        return [
            str(snapshot.name)
            for snapshot in self.a.store.snapshots()
            if snapshot.content_id in there
        ]

    def attempt(self, before: Callable[[], None] = lambda: None) -> int:
        """A cycle in a process of its own, with something that happens to it; its status."""

        def cycle() -> int:
            before()
            try:
                self.a.sender.cycle("b")
            except (StandfastError, OSError) as error:
                print(f"cut: {error}")
                return 1
            return 0

        child = fork(cycle)
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            wait_for(lambda: os.waitid(os.P_PID, child, how), 60, "the cycle ends", 0.005)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)

    def check(self) -> None:
        """Whatever is visible on the standby is whole, and of a known epoch."""
        self.links.wait_idle()  # after its acknowledgement a receiver deletes what is old
        for snapshot in self.a.store.snapshots():
            if snapshot.content_id not in self.trees:
                self.trees[snapshot.content_id] = read_tree(snapshot.path)
        epochs = epochs_of_snapshots(self.b.config)
        for snapshot in self.b.store.snapshots():
            assert epochs.get(snapshot.content_id) == 1, (
                f"{snapshot.name}: nobody knows of which epoch"
            )
            assert snapshot.content_id in self.trees, (
                f"{snapshot.name} is not on the primary's disk"
            )
            if snapshot.content_id not in self._sound:
                assert differences(self.trees[snapshot.content_id], read_tree(snapshot.path)) == []
                self._sound.add(snapshot.content_id)

    def succeed(self) -> CycleResult:
        """The next cycle, as the timer starts it: once more when another is still cleaning up."""
        common = self.commons()[-1:]
        result = self._cycle(Deadline.after(patient(60)))
        self.check()
        newest = self.b.store.snapshots()[-1]
        assert newest.received and newest.name == result.snapshot
        live = read_tree(self.a.config.paths.live)
        assert differences(live, read_tree(newest.path)) == []
        assert self.b.store.unfinished() == ()
        entry = self.a.gateway.get(self.a.config.key("standbys/b"))
        assert entry is not None
        assert StandbyRecord.parse(entry.value).content_id == newest.content_id
        assert not (result.was_full and common), f"everything was sent, common was {common}"
        assert self.commons()[-1] == str(result.snapshot)
        return result

    def _cycle(self, deadline: Deadline) -> CycleResult:
        while True:
            try:
                return self.a.sender.cycle("b")
            except Refused as refusal:
                if refusal.reason is not Reason.BUSY or deadline.expired:
                    raise
                time.sleep(0.02)

    def recover(self, common_before: list[str]) -> CycleResult:
        """After whatever happened: nothing partial, nothing needed lost, and it goes on."""
        self.check()
        assert self.commons()[-1:] >= common_before[-1:], "the newest common snapshot is gone"
        return self.succeed()


# Killed or cut in the conversation


@stages
@pytest.mark.parametrize("seeded", [False, True], ids=["full", "increment"])
@pytest.mark.parametrize("how", ["cut", "kill-receiver", "kill-sender"])
def test_cut_at_each_message_and_in_the_stream(
    disks: Disks, how: str, seeded: bool, stages: list[LinkFault]
) -> None:
    for stage in stages:
        pair = disks.pair(seeded=seeded)
        common = pair.commons()
        disks.links.arm(replace(stage, do=how))
        status = pair.attempt()
        assert disks.links.happened.exists(), f"never came to {stage}"
        disks.links.arm(None)
        assert status != 0 or stage == LAST, f"succeeded though cut at {stage}"
        pair.recover(common)


@some_or_every_effect
@pytest.mark.parametrize("seeded", [False, True], ids=["full", "increment"])
def test_the_receiver_killed_before_each_of_its_effects(
    disks: Disks, seeded: bool, stride: int
) -> None:
    for number in effects(stride):
        pair = disks.pair(seeded=seeded)
        common = pair.commons()
        disks.links.arm(LinkFault("kill-receiver", effect=number))
        pair.attempt()
        if not disks.links.happened.exists():
            break
        disks.links.arm(None)
        pair.recover(common)
    assert number >= EFFECTS_AT_LEAST


@some_or_every_effect
@pytest.mark.parametrize("seeded", [False, True], ids=["full", "increment"])
def test_the_sender_killed_before_each_of_its_effects(
    disks: Disks, seeded: bool, stride: int
) -> None:
    for number in effects(stride):
        pair = disks.pair(seeded=seeded)
        common = pair.commons()
        if pair.attempt(partial(at_effect, number, die)) == 0:
            break
        pair.recover(common)
    assert number >= EFFECTS_AT_LEAST


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# Power cuts


@some_or_every_effect
def test_a_power_cut_of_the_standby_before_each_of_its_effects(disks: Disks, stride: int) -> None:
    for number in effects(stride):
        pair = disks.pair(seeded=True)
        common = pair.commons()
        image, copy = str(disks.image("b")), str(disks.copy("b"))
        disks.links.arm(LinkFault("kill-receiver", effect=number, image=image, copy=copy))
        pair.attempt()
        if not disks.links.happened.exists():
            break
        disks.links.arm(None)
        disks.back_from_power_cut("b")
        pair.recover(common)
    assert number >= EFFECTS_AT_LEAST


@some_or_every_effect
def test_a_power_cut_of_the_primary_before_each_of_its_effects(disks: Disks, stride: int) -> None:
    def lose_power() -> None:
        copy_image(disks.image("a"), disks.copy("a"))
        die()

    for number in effects(stride):
        pair = disks.pair(seeded=True)
        common = pair.commons()
        if pair.attempt(partial(at_effect, number, lose_power)) == 0:
            break
        disks.links.wait_idle()
        disks.back_from_power_cut("a")
        pair.recover(common)
    assert number >= EFFECTS_AT_LEAST


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param([HALF], id="some"),
        pytest.param(STREAM_STAGES, id="every", marks=pytest.mark.torture),
    ],
)
def test_a_power_cut_of_the_standby_in_the_stream(disks: Disks, stages: list[LinkFault]) -> None:
    for stage in stages:
        pair = disks.pair(seeded=True)
        common = pair.commons()
        image, copy = str(disks.image("b")), str(disks.copy("b"))
        disks.links.arm(replace(stage, do="kill-receiver", image=image, copy=copy))
        assert pair.attempt() == 1
        disks.links.arm(None)
        disks.back_from_power_cut("b")
        pair.recover(common)


# Nothing dies


@pytest.mark.parametrize("seeded", [False, True], ids=["full", "increment"])
def test_a_full_disk_in_the_stream_and_room_again(disks: Disks, seeded: bool) -> None:
    pair = disks.pair(seeded=seeded, state=disks.place / "state")
    common = pair.commons()
    pair.a.live("big").write_bytes(os.urandom(60_000_000))
    make_room_for_metadata(disks.place / "b")
    ballast = disks.place / "b" / "ballast"
    room = receive_checks.RESERVE_BYTES + 15_000_000
    ballast.write_bytes(bytes(pair.b.store.free_bytes() - room))
    command("btrfs", "filesystem", "sync", disks.place / "b")
    with pytest.raises((Refused, CommandFailed), match=r"(?i)space|MiB left") as failure:
        pair.a.sender.cycle("b")
    assert ("writing to big" in str(failure.value)) == seeded, "not in the middle of the stream"
    disks.links.wait_idle()
    assert list(pair.b.store.unfinished()) == []
    ballast.unlink()
    command("btrfs", "filesystem", "sync", disks.place / "b")
    pair.recover(common)


def make_room_for_metadata(disk: Path) -> None:
    """So that it is the data for which there is no room."""
    small = disk / "small"
    small.mkdir()
    for number in range(5_000):
        (small / str(number)).write_bytes(bytes(1_800))
    command("btrfs", "filesystem", "sync", disk)
    shutil.rmtree(small)
    command("btrfs", "filesystem", "sync", disk)


@pytest.mark.parametrize("seeded", [False, True], ids=["full", "increment"])
@pytest.mark.parametrize("message", ["ready", "published"])
def test_consul_away_before_publishing_or_before_the_report(
    disks: Disks, seeded: bool, message: str
) -> None:
    pair = disks.pair(seeded=seeded)
    common, published = pair.commons(), pair.b.published()
    away = pair.a.gateway.away
    disks.links.arm(LinkFault("lose-consul", message=message, touch=str(away)))
    assert pair.attempt() == 1
    disks.links.arm(None)
    arrived = [snapshot for snapshot in pair.b.published() if snapshot not in published]
    assert len(arrived) == (1 if message == "published" else 0)
    away.unlink()
    sent_again = pair.recover(common).sent_bytes > STREAM
    assert sent_again == (message == "ready")
