"""What replication relies on in a store that sends its snapshots and takes in another node's.

Run on btrfs (root), in plain directories, and on the simulation's disks, whose trees have numbers
for files and whose streams pass through its pipes. The tests' fake stands for none of them, as what
counts is in the trees. What a plan needs of them is in test_volume_store.py beside this.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from standfast.btrfs.names_and_places import Store
from standfast.btrfs.store import BtrfsStore
from standfast.demo.stand_ins import directory_stream
from standfast.demo.stand_ins.directory import DirectoryStore, initialise
from standfast.errors import CommandFailed, Refused
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication.ports import ReplicaStore
from standfast.role import volume
from standfast.system.clock import Deadline, utc_now
from tests.contract.ports.implementations import Implementation, each
from tests.fakes.machine import fake_node
from tests.sim.clockwork import Signal
from tests.sim.disk import SimStore, SimTree
from tests.sim.node import Seat
from tests.sim.one_node import make_live, on_a_node
from tests.sim.streams import Pipe, Pipeline
from tests.support.volumes import BTRFS, btrfs_on_file, command, files, paths_below
from tests.support.waiting import wait_for

PORTS = (ReplicaStore,)
NOW = 1_800_000_000.0


@dataclass
class NodeVolume:
    """One node's volume."""

    store: Store
    root: Path
    create_tree: Callable[[Path], object]
    now: float = NOW

    def name(self, offset_s: float = 0.0) -> SnapshotName:
        return SnapshotName.at("services", self.now + offset_s)

    def take(self) -> Snapshot:
        return self.store.take_snapshot(self.name())

    def write(self, name: str, text: str) -> None:
        (self.root / "services" / name).write_text(text)

    def files(self, tree: Path) -> Mapping[str, bytes]:
        return files(tree)

    def stream(self, snapshot: Snapshot, parent: Snapshot | None = None) -> Sequence[Any]:
        argv = self.store.send_argv(snapshot, parent)
        return subprocess.run(argv, capture_output=True, check=True).stdout

    def receive(self, data: Sequence[Any]) -> bool:
        """Whether the whole of it came in."""
        argv = self.store.receive_argv(self.store.open_staging())
        return subprocess.run(argv, input=bytes(data), capture_output=True).returncode == 0


@dataclass
class Simulated(NodeVolume):
    """A node's disk: a file's content is a write, known by its number."""

    seat: Seat = field(kw_only=True)
    known: list[tuple[str, bytes]] = field(kw_only=True)
    """All writes of the test, by number."""

    def write(self, name: str, text: str) -> None:
        assert self.seat.live is not None
        self.seat.live.writes.append(len(self.known))
        self.known.append((name, text.encode()))

    def files(self, tree: Path) -> Mapping[str, bytes]:
        return dict(self.known[number] for number in self.seat.node.disk.here.trees[tree].writes)

    def stream(self, snapshot: Snapshot, parent: Snapshot | None = None) -> Sequence[Any]:
        pipe = self._pipe()
        self._run(self.store.send_argv(snapshot, parent), stdout=pipe)
        return tuple(pipe.items)

    def receive(self, data: Sequence[Any]) -> bool:
        pipe = self._pipe()
        pipe.items.extend(data)
        pipe.close()
        try:
            self._run(self.store.receive_argv(self.store.open_staging()), stdin=pipe)
        except CommandFailed:
            return False
        return True

    def _pipe(self) -> Pipe:
        node = self.seat.node
        return Pipe(node, node, Signal(node.world.clockwork))

    def _run(self, argv: Sequence[str], **ends: Any) -> None:
        run = Pipeline(self.seat.node.world)
        run([argv], deadline=Deadline.after(60), op="a test", **ends)


Places = Callable[[str], NodeVolume]
"""Makes places by name, each on a file system of its own, with an empty live tree."""


def create_subvolume(path: Path) -> None:
    command("btrfs", "subvolume", "create", path)


@contextlib.contextmanager
def on_btrfs(root: Path) -> Iterator[NodeVolume]:
    with btrfs_on_file(root.with_suffix(".img"), root):
        create_subvolume(root / "services")
        yield NodeVolume(BtrfsStore(paths_below(root)), root, create_subvolume)


@contextlib.contextmanager
def in_directories(root: Path) -> Iterator[NodeVolume]:
    initialise(root / "services")
    yield NodeVolume(DirectoryStore(paths_below(root)), root, initialise)


@contextlib.contextmanager
def simulated(directory: Path) -> Iterator[Places]:
    known: list[tuple[str, bytes]] = []
    with on_a_node(directory, names=("a", "b", "here")) as node:

        def place(name: str) -> NodeVolume:
            seat = node.world[name].seat
            disk = seat.node.disk

            def create_tree(path: Path) -> None:
                path.mkdir()
                disk.data.put(path, SimTree(disk.new_uuid(), []))

            make_live(seat)
            return Simulated(seat.store(), disk.root, create_tree, seat=seat, known=known)

        yield place


def each_alone(
    make: Callable[[Path], AbstractContextManager[NodeVolume]],
) -> Callable[[Path], AbstractContextManager[Places]]:
    @contextlib.contextmanager
    def places(directory: Path) -> Iterator[Places]:
        with contextlib.ExitStack() as stack:
            yield lambda name: stack.enter_context(make(directory / name))

    return places


IMPLEMENTATIONS = (
    Implementation((BtrfsStore,), each_alone(on_btrfs), (BTRFS,), name="btrfs"),
    Implementation((DirectoryStore,), each_alone(in_directories), name="directory"),
    Implementation((SimStore,), simulated, name="simulated"),
)
ON_BTRFS = each(IMPLEMENTATIONS[:1])
LIKE_BTRFS = each((IMPLEMENTATIONS[0], IMPLEMENTATIONS[2]))
"""Plain directories send the whole tree always."""


@pytest.fixture(params=each(IMPLEMENTATIONS))
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Places]:
    with request.param.make(tmp_path) as made:
        yield made


@pytest.fixture
def place(places: Places) -> NodeVolume:
    return places("here")


def transfer(
    source: NodeVolume, target: NodeVolume, snapshot: Snapshot, parent: Snapshot | None = None
) -> Snapshot:
    assert target.receive(source.stream(snapshot, parent))
    above = None if parent is None else parent.content_id
    target.store.verify_staged(snapshot.name, snapshot.content_id, above)
    published = target.store.publish(snapshot.name)
    target.store.clear_staging()
    return published


def test_a_new_volume_is_live_and_writable_and_has_no_snapshots(place: NodeVolume) -> None:
    live = place.store.live()
    assert live is not None and live.writable and live.path == place.root / "services"
    assert place.store.snapshots() == ()
    assert place.store.aside() == ()
    assert place.store.unfinished() == ()
    assert place.store.free_bytes() > 0


def test_nothing_at_the_live_path_is_none(place: NodeVolume) -> None:
    place.store.keep_aside("services.retired-1-20270115T080000Z")
    assert place.store.live() is None
    with pytest.raises(Refused, match="does not exist") as refusal:
        place.take()
    assert refusal.value.reason is Reason.VOLUME_MISSING


def test_a_plain_directory_at_the_live_path_is_refused(place: NodeVolume) -> None:
    place.store.keep_aside("services.retired-1-20270115T080000Z")
    (place.root / "services").mkdir()
    with pytest.raises(Refused, match="move it away") as refusal:
        place.store.live()
    assert refusal.value.reason is Reason.VOLUME_MISSING


def test_a_snapshot_keeps_what_was_written_before_it(place: NodeVolume) -> None:
    place.write("f", "one")
    snapshot = place.take()
    place.write("f", "two")
    assert str(snapshot.name) == "services@20270115T080000Z"
    assert place.files(snapshot.path)["f"] == b"one"
    assert not snapshot.received
    assert place.store.snapshots() == (snapshot,)


def test_snapshots_of_one_second_get_rising_names_and_different_contents(place: NodeVolume) -> None:
    taken = [place.take() for _ in range(3)]
    assert [snapshot.name.stamp - NOW for snapshot in taken] == [0, 1, 2]
    assert len({snapshot.content_id for snapshot in taken}) == 3
    assert list(place.store.snapshots()) == taken


@pytest.mark.parametrize("back_s", [1.0, 30.0, 3600.0, 3e7])
def test_a_snapshot_after_the_clock_went_back_is_still_the_newest(
    place: NodeVolume, back_s: float
) -> None:
    first = place.take()
    place.now -= back_s
    second = place.take()
    assert second.name > first.name
    assert place.store.snapshots() == (first, second)


def test_a_name_made_by_hand_far_ahead_is_passed_over(place: NodeVolume) -> None:
    (place.root / "services@99991231T235958Z").mkdir()
    assert place.take().name.stamp == place.now


def test_when_no_name_is_left_that_is_refused(place: NodeVolume) -> None:
    place.now = SnapshotName.parse("services@99991231T235959Z").stamp
    place.take()
    with pytest.raises(Refused, match="year 10000") as refusal:
        place.take()
    assert refusal.value.reason is Reason.BAD_NAME


def test_foreign_and_writable_trees_are_no_snapshots(place: NodeVolume) -> None:
    kept = place.take()
    for name in (
        "services@20990101T000000Z",
        "services@yesterday",
        "other@20270115T070000Z",
        "services@20270115T070000Z",  # writable: an interrupted receive by hand
    ):
        place.create_tree(place.root / name)
    (place.root / "services@20270115T060000Z").mkdir()
    assert place.store.snapshots() == (kept,)


def test_a_snapshot_from_the_future_is_a_snapshot(place: NodeVolume) -> None:
    """Its clock was ahead when it was taken: that says nothing of what is in it."""
    place.now += 3600
    early = place.take()
    place.now -= 3600
    assert place.store.snapshots() == (early,)


def test_a_live_tree_is_made_from_a_snapshot_only_where_nothing_is(place: NodeVolume) -> None:
    place.write("f", "one")
    snapshot = place.take()
    place.write("f", "two")
    with pytest.raises(Refused, match="keep it aside first"):
        place.store.create_live_from(snapshot)
    aside = place.store.keep_aside("services.diverged-7-20270115T080000Z")
    live = place.store.create_live_from(snapshot)
    assert live.writable and place.files(live.path)["f"] == b"one"
    assert place.store.aside() == (aside,) and place.files(aside)["f"] == b"two"
    place.write("f", "three")
    assert place.files(snapshot.path)["f"] == b"one"


def test_a_published_snapshot_has_the_senders_content_id(places: Places) -> None:
    a, b = places("a"), places("b")
    a.write("f", "one")
    sent = a.take()
    published = transfer(a, b, sent)
    assert published.received and published.content_id == sent.content_id
    assert published.name == sent.name
    assert b.files(published.path) == {"f": b"one"}
    assert b.store.snapshots() == (published,)
    assert b.store.unfinished() == ()


def test_an_increment_arrives_and_each_snapshot_keeps_its_content(
    places: Places,
) -> None:
    a, b = places("a"), places("b")
    a.write("f", "one")
    first = a.take()
    transfer(a, b, first)
    a.write("f", "two")
    a.write("g", "new")
    second = a.take()
    transfer(a, b, second, parent=first)
    old, new = b.store.snapshots()
    assert b.files(old.path) == {"f": b"one"}
    assert b.files(new.path) == {"f": b"two", "g": b"new"}


@pytest.mark.parametrize("places", LIKE_BTRFS, indirect=True)
def test_an_increment_does_not_arrive_where_its_parent_is_not(places: Places) -> None:
    a, b = places("a"), places("b")
    first = a.take()
    a.write("f", "two")
    assert not b.receive(a.stream(a.take(), parent=first))
    assert b.store.snapshots() == ()


def test_a_promoted_tree_goes_back_as_an_increment_of_the_common_snapshot(
    places: Places,
) -> None:
    a, b = places("a"), places("b")
    a.write("f", "one")
    first = a.take()
    published = transfer(a, b, first)
    b.store.keep_aside("services.retired-0-20270115T080000Z")
    b.store.create_live_from(published)
    b.write("f", "two")
    b.now += 60
    a.now += 60
    second = b.take()
    assert second.content_id != published.content_id
    back = transfer(b, a, second, parent=published)
    assert a.files(back.path) == {"f": b"two"} and back.content_id == second.content_id
    assert [snapshot.content_id for snapshot in a.store.snapshots()] == [
        first.content_id,
        second.content_id,
    ]


def test_staged_trees_never_count_and_are_reported(places: Places) -> None:
    a, b = places("a"), places("b")
    sent = a.take()
    b.receive(a.stream(sent))
    assert b.store.snapshots() == ()
    assert [path.name for path in b.store.unfinished()] == [str(sent.name)]
    b.store.open_staging()
    assert b.store.unfinished() == ()


@pytest.mark.parametrize("left_out", [1, 40, 200])
def test_a_stream_without_its_end_is_not_published(places: Places, left_out: int) -> None:
    a, b = places("a"), places("b")
    a.write("f", "x" * 5000)
    sent = a.take()
    assert not b.receive(a.stream(sent)[:-left_out])
    with pytest.raises(Refused) as refusal:
        b.store.verify_staged(sent.name, sent.content_id)
    assert refusal.value.reason is Reason.INCOMPLETE
    assert b.store.snapshots() == ()


def test_a_stream_of_another_name_or_content_is_not_published(
    places: Places,
) -> None:
    a, b = places("a"), places("b")
    sent = a.take()
    b.receive(a.stream(sent))
    with pytest.raises(Refused, match="announced was services@20270115T080001Z"):
        b.store.verify_staged(SnapshotName.at("services", NOW + 1), sent.content_id)
    with pytest.raises(Refused, match="announced was 1234"):
        b.store.verify_staged(sent.name, "1234")


def test_publishing_under_a_name_in_use_is_refused(places: Places) -> None:
    a, b = places("a"), places("b")
    sent = a.take()
    b.receive(a.stream(sent))
    b.create_tree(b.root / "services-standby" / str(sent.name))
    with pytest.raises(Refused, match="exists already") as refusal:
        b.store.publish(sent.name)
    assert refusal.value.reason is Reason.BAD_NAME
    assert b.store.snapshots() == ()


def test_writable_trees_in_the_standby_directory_never_count(
    places: Places,
) -> None:
    a, b = places("a"), places("b")
    published = transfer(a, b, a.take())
    junk = b.root / "services-standby" / "services@20270115T080500Z"
    b.create_tree(junk)
    b.now += 3600
    assert b.store.snapshots() == (published,)
    assert b.store.unfinished() == (junk,)


def test_deleted_snapshots_are_gone_and_others_stay(place: NodeVolume) -> None:
    first, second = place.take(), place.take()
    place.store.delete([first])
    assert place.store.snapshots() == (second,)
    assert not first.path.exists()


@pytest.mark.parametrize("places", ON_BTRFS, indirect=True)
def test_btrfs_refuses_to_leave_nested_subvolumes_out(place: NodeVolume) -> None:
    (place.root / "services" / "sub dir").mkdir()
    create_subvolume(place.root / "services" / "sub dir" / "nested one")
    with pytest.raises(Refused, match="services/sub dir/nested one") as refusal:
        place.take()
    assert refusal.value.reason is Reason.INCOMPLETE
    assert place.store.snapshots() == ()


@pytest.mark.parametrize("places", ON_BTRFS, indirect=True)
def test_btrfs_never_makes_a_received_subvolume_writable(places: Places) -> None:
    a, b = places("a"), places("b")
    published = transfer(a, b, a.take())
    b.store.keep_aside("services.retired-0-20270115T080000Z")
    command("btrfs", "subvolume", "snapshot", "-r", published.path, b.root / "services")
    with pytest.raises(CommandFailed):
        b.store.set_live_writable(True)


def test_a_directory_stream_that_leaves_the_tree_is_refused(tmp_path: Path) -> None:
    def hostile(*members: tarfile.TarInfo) -> io.BytesIO:
        out = io.BytesIO()
        out.write(b'{"format": "standfast-tree", "name": "t", "content_id": "c"}\n')
        frames = directory_stream.Frames(out)
        with tarfile.open(fileobj=frames, mode="w|") as archive:
            for member in members:
                archive.addfile(member, io.BytesIO(b"x" * member.size))
        frames.end()
        return io.BytesIO(out.getvalue())

    def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        return info

    link = member("link", tarfile.SYMTYPE, str(tmp_path))
    for number, members in enumerate(
        [
            [member("../out")],
            [member(str(tmp_path / "out"))],
            [link, member("link/out")],
            [link, member("link")],
            [member("hard", tarfile.LNKTYPE, "../../out")],
            [member("device", tarfile.CHRTYPE)],
        ]
    ):
        staging = tmp_path / str(number)
        staging.mkdir()
        with pytest.raises(ValueError):
            directory_stream.receive(staging, hostile(*members))
    assert not (tmp_path / "out").exists()


# What is wrong with the disk


@BTRFS
def test_a_file_system_that_takes_no_writes_is_an_ailment(tmp_path: Path) -> None:
    with btrfs_on_file(tmp_path / "disk.img", tmp_path / "disk") as root:
        create_subvolume(root / "services")
        store = BtrfsStore(paths_below(root))
        assert store.ailment(Deadline.after(10)) is None and not store.is_read_only()
        store.set_live_writable(False)
        assert store.ailment(Deadline.after(10)) is None, "a demoted volume is no broken disk"
        store.set_live_writable(True)
        command("mount", "-o", "remount,ro", root)
        assert "read-only" in str(store.ailment(Deadline.after(10)))
        assert store.is_read_only()
        # As a switchover meets it: the flag can't be set, and needn't be.
        node = fake_node(tmp_path / "node")
        volume.freeze(replace(node.machine, store=store))
        with pytest.raises(CommandFailed, match="Read-only"):
            store.take_snapshot(SnapshotName.at("services", utc_now()))
        command("mount", "-o", "remount,rw", root)
        assert store.ailment(Deadline.after(10)) is None


def test_a_disk_that_hangs_is_an_ailment_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = paths_below(tmp_path)
    initialise(paths.live)
    store = DirectoryStore(paths)
    mended = threading.Event()
    real = os.scandir

    def hang(path: Path) -> object:
        mended.wait(60)
        return real(path)

    monkeypatch.setattr(os, "scandir", hang)
    before = threading.active_count()
    for _ in range(3):
        assert "can't be looked at" in str(store.ailment(Deadline.after(0.05)))
    assert threading.active_count() <= before + 1, "looks at a dead disk don't pile up"
    mended.set()
    wait_for(lambda: store.ailment(Deadline.after(5)) is None, 10, "the disk is well again")


def test_a_disk_that_can_not_be_read_is_an_ailment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = paths_below(tmp_path)
    initialise(paths.live)

    def broken(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(os, "scandir", broken)
    assert "(EIO)" in str(DirectoryStore(paths).ailment(Deadline.after(5)))


def test_a_disk_that_can_not_be_asked_takes_no_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = paths_below(tmp_path)
    initialise(paths.live)
    store = DirectoryStore(paths)
    assert not store.is_read_only()

    def broken(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(os, "statvfs", broken)
    assert store.is_read_only()
    ailment = store.ailment(Deadline.after(5))
    assert ailment is not None and ailment.reason is Reason.VOLUME_READ_ONLY
