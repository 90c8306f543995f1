"""What a standby acknowledged survives a power cut right after a cycle: three times in `make test`,
thirty times in `make torture`.

The standby's disk is copied at the moment of the acknowledgement, state directory and all, and the
copy is mounted in its place. The same on a bare pipe, to see that this sees damage where there is.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from standfast.lease.epochs import EpochFile
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.replication.published import epochs_of_snapshots
from standfast.system import run
from standfast.system.clock import utc_now
from tests.contract import images
from tests.contract.images import copy_image
from tests.contract.links import LinkFault, Links
from tests.contract.peers import Peer, lead, peer
from tests.contract.trees import Tree, differences, read_tree
from tests.support.volumes import btrfs_on_file, command, require_btrfs

FILES = 300
CHANGED = 60
ORDER = (
    *("receive", "sync"),
    *("published", "data-services"),  # the file that says of which epoch it is, its directory
    *("snapshot", "sync"),
    *("pins", "data-services"),
    "published",  # the message
)


@pytest.fixture
def primary(place: Path) -> Iterator[Peer]:
    require_btrfs()
    with btrfs_on_file(place / "a.img", place / "a"):
        a = peer(place / "a", "a", "btrfs", place / "keys.json")
        command("btrfs", "subvolume", "create", a.config.paths.live)
        lead(a, 1)
        write_files(a, range(FILES))
        yield a


@pytest.fixture
def links(place: Path) -> Iterator[Links]:
    with Links(place / "links").serve() as links:
        yield links


def test_a_copy_shows_one_moment_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    image.write_bytes(bytes(1 << 20))
    copied = images.copy_data

    def copy_while_it_commits(source: Path, target: Path) -> None:
        copied(source, target)
        if image.read_bytes()[-3:] != b"new":
            with image.open("r+b") as stream:
                for place in (images.SUPERBLOCK[1], (1 << 20) - 3):
                    stream.seek(place)
                    stream.write(b"new")

    monkeypatch.setattr(images, "copy_data", copy_while_it_commits)
    copy_image(image, copy)
    assert copy.read_bytes() == image.read_bytes() != bytes(1 << 20)


def write_files(a: Peer, numbers: range) -> None:
    for number in numbers:
        path = a.live(f"d{number % 7}/file{number}")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(500 + number * 97 % 30_000))


def change(a: Peer, round_number: int) -> None:
    """Files that are new, changed, replaced, renamed and gone."""
    first = round_number * 37 % FILES
    write_files(a, range(first, first + CHANGED))
    for number in range(first, first + CHANGED, 5):
        old = a.live(f"d{number % 7}/file{number}")
        old.rename(old.with_name(f"renamed{number}"))
    a.live("appended").open("a").write(f"{round_number}\n" * 500)


class Copies:
    """The standby's disk after each acknowledgement, and what has to be on each."""

    def __init__(self, place: Path, a: Peer) -> None:
        self._place = place
        self._a = a
        self._taken: list[tuple[Path, list[str]]] = []
        self._trees: dict[str, Tree] = {}

    def take(self, acknowledged: list[str]) -> None:
        copy = self._place / f"copy{len(self._taken)}.img"
        copy_image(self._place / "b.img", copy)
        self._taken.append((copy, list(acknowledged)))

    def look(self, standby: Peer) -> list[list[str]]:
        """For each copy what is wrong on it; the original must not be mounted any more."""
        faults = []
        for copy, acknowledged in self._taken:
            with btrfs_on_file(copy, self._place / "b", make=False):
                faults.append(self._wrong(standby, acknowledged))
            copy.unlink()
        self._taken.clear()
        return faults

    def _wrong(self, standby: Peer, acknowledged: list[str]) -> list[str]:
        wrong = []
        there = {
            str(snapshot.name): snapshot
            for snapshot in standby.store.snapshots()
            if snapshot.received
        }
        for name in acknowledged:
            if name not in there:
                wrong.append(f"{name} is gone")
                continue
            wrong += [
                f"{name}: {line}"
                for line in differences(self._expected(name), read_tree(there[name].path))
            ]
        return wrong

    def _expected(self, name: str) -> Tree:
        if name not in self._trees:
            self._trees[name] = read_tree(self._a.config.paths.snapshots / name)
        return self._trees[name]


def standby_at(place: Path) -> Peer:
    """Its state lies on the disk that is cut off, as on a node with one disk."""
    return peer(place / "b", "b", "btrfs", place / "keys.json", state=str(place / "b" / "state"))


@pytest.mark.parametrize(
    ("fulls", "increments"),
    [
        pytest.param(1, 2, id="three"),
        pytest.param(6, 4, id="thirty", marks=[pytest.mark.torture, pytest.mark.timeout(600)]),
    ],
)
def test_power_cuts_cost_nothing_that_was_acknowledged(
    place: Path, primary: Peer, links: Links, fulls: int, increments: int
) -> None:
    standby = standby_at(place)
    links.reach("b", standby.spec)
    a = primary.reaching(links.command("b"))
    copies, seen = Copies(place, a), []
    for full in range(fulls):
        with btrfs_on_file(place / "b.img", place / "b"):
            acknowledged: list[str] = []
            for increment in range(1 + increments):
                change(a, full * (1 + increments) + increment)
                result = a.sender.cycle("b", full=increment == 0)
                assert result.was_full == (increment == 0)
                acknowledged.append(str(result.snapshot))
                copies.take(acknowledged)
                assert knows_the_epochs(standby)
        seen += copies.look(standby)
    assert seen == [[]] * fulls * (1 + increments)


def knows_the_epochs(standby: Peer) -> bool:
    epochs = epochs_of_snapshots(standby.config)
    published = [snapshot.content_id for snapshot in standby.store.snapshots() if snapshot.received]
    highest = EpochFile(standby.config.state_dir / "epoch").read()
    return highest == 1 and all(epochs.get(snapshot) == 1 for snapshot in published)


def test_each_step_is_on_disk_before_the_next(
    place: Path, primary: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it makes no difference today: that a snapshot takes all its data to the disk with
    it is what btrfs does, not what it promises.
    """
    links = Links(place / "links")
    here, fsync = os.getpid(), os.fsync

    def note(line: str) -> None:
        if os.getpid() != here:  # a receiver
            links.note(line)

    def noted_fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        fsync(descriptor)
        note(name.lstrip(".").partition(".json")[0])

    monkeypatch.setattr(run, "hook", note)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    standby = standby_at(place)
    with btrfs_on_file(place / "b.img", place / "b"), links.serve():
        links.reach("b", standby.spec)
        a = primary.reaching(links.command("b"))
        a.sender.cycle("b")
        change(primary, 1)
        links.log.unlink()
        links.arm(LinkFault("watch", message="published"))
        a.sender.cycle("b")
        links.wait_idle()
    steps = iter(links.log.read_text().splitlines())
    for step in ORDER:
        assert step in steps, f"{step} is missing, or comes too early: {links.log.read_text()}"


def bare_pipe(primary: Peer, snapshot: Snapshot, parent: Snapshot | None, into: Path) -> None:
    base = [] if parent is None else ["-p", str(parent.path)]
    with subprocess.Popen(
        ["btrfs", "-q", "send", *base, str(snapshot.path)], stdout=subprocess.PIPE
    ) as send:
        receive = subprocess.run(["btrfs", "-q", "receive", str(into)], stdin=send.stdout)
    assert (send.returncode, receive.returncode) == (0, 0)


def test_on_a_bare_pipe_a_power_cut_shows(place: Path, primary: Peer) -> None:
    a, standby = primary, standby_at(place)
    copies, seen = Copies(place, a), []
    with btrfs_on_file(place / "b.img", place / "b"):
        standby.config.paths.standby.mkdir()
        command("btrfs", "filesystem", "sync", place / "b")
        parent, received = None, []
        for round_number in range(3):
            change(a, round_number)
            snapshot = a.store.take_snapshot(SnapshotName.at("services", utc_now()))
            bare_pipe(a, snapshot, parent, standby.config.paths.standby)
            received.append(str(snapshot.name))
            copies.take(received)
            parent = snapshot
    seen = copies.look(standby)
    assert any(seen), "no damage seen where nothing was synced: this harness sees nothing"
