"""A replication cut anywhere: the next cycle succeeds by itself, and nothing partial ever counts.

The stages are data: each message of the conversation, before and after it passed, some numbers of
bytes of the stream, and each effect of either process, counted until one run has no more of them.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from standfast.clock import Deadline
from standfast.errors import CommandFailed, Refused, StandfastError
from standfast.reasons import Reason
from standfast.records import StandbyRecord
from standfast.replication import intake, reporting
from standfast.replication.cycle import CycleResult
from standfast.replication.published import epochs_of_snapshots
from tests.contract.effects import at_effect
from tests.contract.images import copy_image, quick_directory
from tests.contract.links import DOWN, UP, Fault, Links, fork
from tests.contract.peers import Peer, lead, peer
from tests.contract.trees import Tree, differences, read_tree
from tests.contract.volumes import SIZE, command, require_btrfs

NEEDED_BYTES = 2 * 2**30
STREAM = 400_000
"""Bytes of incompressible data in every snapshot that is cut."""
PATIENCE_S = 30.0
EFFECTS_AT_LEAST = 12
"""Fewer, and the counting itself is broken."""

MESSAGE_STAGES = [
    Fault("", message=name, passed=passed) for name in (*UP, *DOWN) for passed in (False, True)
]
LAST = MESSAGE_STAGES[-1]
STREAM_STAGES = [
    Fault("", stream_bytes=count) for count in (0, 1, 17, 200, 5_000, STREAM // 2, STREAM)
]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    require_btrfs()
    with quick_directory(tmp_path, NEEDED_BYTES) as directory:
        yield directory


@pytest.fixture
def disks(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disks]:
    # Before the links: what answers there is forked from this process.
    monkeypatch.setattr(intake, "CONSUL_PATIENCE_S", 0.0)
    monkeypatch.setattr(reporting, "PATIENCE_S", 0.0)
    with Links(place / "links").serve() as links:
        mounted: list[Path] = []
        try:
            for node in ("a", "b"):
                image, where = place / f"{node}.img", place / node
                where.mkdir()
                command("truncate", "-s", SIZE, image)
                command("mkfs.btrfs", "-q", "-f", "-m", "single", image)
                mount(image, where)
                mounted.append(where)
            yield Disks(place, links)
        finally:
            links.wait_idle()
            for where in mounted:
                unmount(where)


class Disks:
    """The two nodes' disks, the links between them, and a new pair of nodes for each case."""

    def __init__(self, place: Path, links: Links) -> None:
        self.place = place
        self.links = links
        self._cases = itertools.count()

    def image(self, node: str) -> Path:
        return self.place / f"{node}.img"

    def copy(self, node: str) -> Path:
        return self.place / f"{node}.copy"

    def back_from_power_cut(self, node: str) -> None:
        """The node's disk is what it was when it was copied."""
        unmount(self.place / node)
        self.copy(node).replace(self.image(node))
        mount(self.image(node), self.place / node)

    def pair(self, *, seeded: bool, state: Path | None = None) -> Pair:
        """New nodes on the same disks; their state is there, too, or else in `state`."""
        number = next(self._cases)
        keys = self.place / f"keys{number}.json"
        nodes = []
        for node in ("a", "b"):
            root = self.place / node / str(number)
            root.mkdir()
            place = str((state or root) / f"{node}-state")
            nodes.append(peer(root, node, "btrfs", keys, keep=1, state=place, run=f"{place}/run"))
        a, b = nodes
        command("btrfs", "subvolume", "create", a.config.paths.live)
        lead(a, 1)
        self.links.arm(None)
        self.links.reach("b", b.spec)
        pair = Pair(a.reaching(self.links.command("b")), b)
        if seeded:
            pair.change(1_000)
            for _ in range(2):
                pair.succeed()
        pair.change(STREAM)
        for node in ("a", "b"):
            command("btrfs", "filesystem", "sync", self.place / node)
        return pair


class Pair:
    """A primary and its standby, and what is known of every snapshot that was taken."""

    def __init__(self, a: Peer, b: Peer) -> None:
        self.a = a
        self.b = b
        self._trees: dict[str, Tree] = {}
        self._sound: set[str] = set()

    def change(self, size: int) -> None:
        live = self.a.config.paths.live
        for number in range(8):
            (live / f"file{number}").write_bytes(os.urandom(size // 8))
        (live / "file0").rename(live / "renamed")

    def commons(self) -> list[str]:
        """Names of what both have, oldest first."""
        there = {one.content_id for one in self.b.store.snapshots()}
        return [str(one.name) for one in self.a.store.snapshots() if one.content_id in there]

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
        try:
            wait_until(lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT))
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)

    def check(self) -> None:
        """Whatever is visible on the standby is whole, and of a known reign."""
        for one in self.a.store.snapshots():
            if one.content_id not in self._trees:
                self._trees[one.content_id] = read_tree(one.path)
        epochs = epochs_of_snapshots(self.b.config)
        for one in self.b.store.snapshots():
            assert epochs.get(one.content_id) == 1, f"{one.name}: nobody knows of which reign"
            assert one.content_id in self._trees, f"{one.name} is not on the primary's disk"
            if one.content_id not in self._sound:
                assert differences(self._trees[one.content_id], read_tree(one.path)) == []
                self._sound.add(one.content_id)

    def succeed(self) -> CycleResult:
        """The next cycle, as the timer starts it: once more when another is still cleaning up."""
        common = self.commons()[-1:]
        result = self._cycle(Deadline.after(PATIENCE_S))
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


def mount(image: Path, where: Path) -> None:
    command("mount", "-o", "loop,nodiscard", image, where)


def unmount(where: Path) -> None:
    """When the last process of a cut replication has let go of it."""
    wait_until(lambda: subprocess.run(["umount", where], capture_output=True).returncode == 0)


def wait_until(true: Callable[[], object]) -> None:
    deadline = Deadline.after(PATIENCE_S)
    while not true():
        assert not deadline.expired, "waited in vain"
        time.sleep(0.005)


# Killed or cut in the conversation


@pytest.mark.parametrize("seeded", [False, True], ids=["full", "increment"])
@pytest.mark.parametrize("how", ["cut", "kill-receiver", "kill-sender"])
def test_cut_at_each_message_and_in_the_stream(disks: Disks, how: str, seeded: bool) -> None:
    for stage in (*MESSAGE_STAGES, *STREAM_STAGES):
        pair = disks.pair(seeded=seeded)
        common = pair.commons()
        disks.links.arm(replace(stage, do=how))
        status = pair.attempt()
        assert disks.links.happened.exists(), f"never came to {stage}"
        disks.links.arm(None)
        assert status != 0 or stage == LAST, f"succeeded though cut at {stage}"
        pair.recover(common)


@pytest.mark.parametrize("seeded", [False, True], ids=["full", "increment"])
def test_the_receiver_killed_before_each_of_its_effects(disks: Disks, seeded: bool) -> None:
    for number in itertools.count():
        pair = disks.pair(seeded=seeded)
        common = pair.commons()
        disks.links.arm(Fault("kill-receiver", effect=number))
        pair.attempt()
        if not disks.links.happened.exists():
            break
        disks.links.arm(None)
        pair.recover(common)
    print(f"{number} effects")
    assert number >= EFFECTS_AT_LEAST


@pytest.mark.parametrize("seeded", [False, True], ids=["full", "increment"])
def test_the_sender_killed_before_each_of_its_effects(disks: Disks, seeded: bool) -> None:
    for number in itertools.count():
        pair = disks.pair(seeded=seeded)
        common = pair.commons()
        if pair.attempt(partial(at_effect, number, die)) == 0:
            break
        pair.recover(common)
    print(f"{number} effects")
    assert number >= EFFECTS_AT_LEAST


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# Power cuts


def test_a_power_cut_of_the_standby_before_each_of_its_effects(disks: Disks) -> None:
    for number in itertools.count():
        pair = disks.pair(seeded=True)
        common = pair.commons()
        image, copy = str(disks.image("b")), str(disks.copy("b"))
        disks.links.arm(Fault("kill-receiver", effect=number, image=image, copy=copy))
        pair.attempt()
        if not disks.links.happened.exists():
            break
        disks.links.arm(None)
        disks.back_from_power_cut("b")
        pair.recover(common)
    print(f"{number} effects")
    assert number >= EFFECTS_AT_LEAST


def test_a_power_cut_of_the_primary_before_each_of_its_effects(disks: Disks) -> None:
    def lose_power() -> None:
        copy_image(disks.image("a"), disks.copy("a"))
        die()

    for number in itertools.count():
        pair = disks.pair(seeded=True)
        common = pair.commons()
        if pair.attempt(partial(at_effect, number, lose_power)) == 0:
            break
        disks.links.wait_idle()
        disks.back_from_power_cut("a")
        pair.recover(common)
    print(f"{number} effects")
    assert number >= EFFECTS_AT_LEAST


@pytest.mark.parametrize("stage", STREAM_STAGES, ids=str)
def test_a_power_cut_of_the_standby_in_the_stream(disks: Disks, stage: Fault) -> None:
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
    room = intake.RESERVE_BYTES + 15_000_000
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
    disks.links.arm(Fault("lose-consul", message=message, touch=str(away)))
    assert pair.attempt() == 1
    disks.links.arm(None)
    arrived = [one for one in pair.b.published() if one not in published]
    assert len(arrived) == (1 if message == "published" else 0)
    away.unlink()
    sent_again = pair.recover(common).sent_bytes > STREAM
    assert sent_again == (message == "ready")
