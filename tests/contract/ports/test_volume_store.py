"""What a plan relies on in the store of the volume.

Run on btrfs, on plain directories, on the tests' fake, in which trees have no content, and on the
simulation's disk. What is
in the trees, and sending and taking in, is in test_replica_store.py beside this; who writes into a
subvolume that is read-only is in tests/contract/test_writers.py.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec import structs

from standfast.btrfs import info as btrfs_info
from standfast.btrfs.store import BtrfsStore
from standfast.demo.stand_ins.directory import DirectoryStore
from standfast.errors import Refused, StandfastError
from standfast.names import SnapshotName
from standfast.node.ports import LiveTree, Snapshot, VolumeStore
from standfast.node.space import MIB, shortages
from standfast.reasons import Reason
from tests.contract.ports.implementations import Implementation, each
from tests.fakes.machine import FakeStore, World
from tests.sim.disk import SimStore
from tests.sim.one_node import make_live as make_simulated
from tests.sim.one_node import on_a_node
from tests.support.volumes import (
    BTRFS,
    btrfs_on_file,
    command,
    make_live,
    mount_image,
    paths_below,
    unmount,
)
from tests.support.waiting import soon

PORTS = (VolumeStore,)
NOW = 1_700_000_000.0
KEPT = "services.retired-7-20270115T080000Z"


@dataclass
class Scene:
    """A new volume `services`: an empty live tree."""

    store: VolumeStore
    without_disk: Callable[[], AbstractContextManager[object]] | None = None
    """The file system is not mounted meanwhile; None: it is the system's own."""

    def take(self, offset_s: float = 0.0) -> Snapshot:
        return self.store.take_snapshot(SnapshotName.at("services", NOW + offset_s))


@contextlib.contextmanager
def on_btrfs(directory: Path) -> Iterator[Scene]:
    root = directory / "disk"
    with btrfs_on_file(directory / "image", root):
        make_live(root / "services", "btrfs")

        @contextlib.contextmanager
        def without_disk() -> Iterator[None]:
            unmount(root)
            yield
            mount_image(directory / "image", root)

        yield Scene(BtrfsStore(paths_below(root)), without_disk)


@contextlib.contextmanager
def in_directories(directory: Path) -> Iterator[Scene]:
    root = directory / "disk"
    root.mkdir()
    make_live(root / "services", "directory")
    yield Scene(DirectoryStore(paths_below(root)))


@contextlib.contextmanager
def fake(directory: Path) -> Iterator[Scene]:
    store = FakeStore(World(), "services", directory)
    store.tree = LiveTree(directory / "services", "uuid", writable=True)

    @contextlib.contextmanager
    def without_disk() -> Iterator[None]:
        store.mounted = False
        yield
        store.mounted = True

    yield Scene(store, without_disk)


@contextlib.contextmanager
def simulated(directory: Path) -> Iterator[Scene]:
    with on_a_node(directory) as node:
        make_simulated(node.seat)

        @contextlib.contextmanager
        def without_disk() -> Iterator[None]:
            node.disk.unmount()
            yield
            node.disk.mount()

        yield Scene(node.seat.store(), without_disk)


IMPLEMENTATIONS = (
    Implementation((BtrfsStore,), on_btrfs, (BTRFS,)),
    Implementation((DirectoryStore,), in_directories),
    Implementation((FakeStore,), fake),
    Implementation((SimStore,), simulated),
)


@pytest.fixture(params=each(IMPLEMENTATIONS))
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with request.param.make(tmp_path) as made:
        yield made


@pytest.fixture
def store(scene: Scene) -> VolumeStore:
    return scene.store


def test_a_new_volume_is_live_and_writable_and_has_no_snapshots(store: VolumeStore) -> None:
    live = store.live()
    assert live is not None
    assert (live.path.name, live.writable) == ("services", True)
    assert store.live() == live
    assert (list(store.snapshots()), list(store.aside())) == ([], [])
    assert list(store.writers(soon(10))) == []
    assert store.free_bytes() > 0


def test_data_takes_room_from_what_is_left(store: VolumeStore) -> None:
    space, live = store.space(), store.live()
    assert live is not None
    assert 0 < space.data <= space.size
    if not isinstance(store, BtrfsStore):
        pytest.skip("others write to its disk, too, or its trees have no content")
    assert list(shortages(space)) == []
    (live.path / "big").write_bytes(os.urandom(32 * MIB))
    os.sync()
    assert store.space().data < space.data
    assert store.space().size == space.size


def test_without_its_disk_the_volume_is_not_there_and_that_is_told(
    scene: Scene, store: VolumeStore
) -> None:
    snapshot, disk = scene.take(), store.file_system()
    assert store.file_system() == disk
    if scene.without_disk is None:
        assert disk == ""
        pytest.skip("its trees lie in plain directories of the system's own disk")
    assert disk
    with scene.without_disk():
        assert found_there(store) != disk
        assert store.live() is None
        assert (list(store.snapshots()), list(store.aside())) == ([], [])
    assert store.file_system() == disk
    assert list(store.snapshots()) == [snapshot]


def found_there(store: VolumeStore) -> str | None:
    """None where there is nothing that could have the volume: the system's own disk may."""
    try:
        return store.file_system()
    except StandfastError as error:
        assert "not mounted" in str(error)
        return None


def test_where_no_live_tree_is_there_is_nothing_to_do(scene: Scene, store: VolumeStore) -> None:
    store.keep_aside(KEPT)
    assert store.live() is None
    for attempt in (scene.take, lambda: store.set_live_writable(True)):
        with pytest.raises(Refused) as refused:
            attempt()
        assert refused.value.reason is Reason.VOLUME_MISSING
    assert list(store.snapshots()) == []


def test_names_rise_and_contents_differ_whatever_the_clock_says(
    scene: Scene, store: VolumeStore
) -> None:
    taken = [scene.take(), scene.take(), scene.take(10.0), scene.take(5.0)]
    assert [snapshot.name for snapshot in taken] == sorted({snapshot.name for snapshot in taken})
    assert len({snapshot.content_id for snapshot in taken}) == len(taken)
    assert not any(snapshot.received for snapshot in taken)
    assert list(store.snapshots()) == taken


def test_what_no_live_tree_could_be_made_or_put_away_for_is_told_ahead(store: VolumeStore) -> None:
    assert store.obstacle() is None
    live = store.keep_aside(KEPT).with_name("services")
    assert store.obstacle() is None
    if not isinstance(store, BtrfsStore | DirectoryStore):
        pytest.skip("its trees have no places")
    live.mkdir()
    assert f"{live} exists but is no " in str(store.obstacle())
    live.rmdir()
    away = live.parent.with_name("away")
    other = type(store)(structs.replace(paths_below(live.parent), live=away / "services"))
    assert f"there is no directory {away}, in which" in str(other.obstacle())


def test_a_snapshot_that_would_be_refused_is_told_ahead(scene: Scene, store: VolumeStore) -> None:
    assert store.snapshot_obstacle() is None
    assert list(store.snapshots()) == [], "nothing was taken"
    scene.take()
    assert store.snapshot_obstacle() is None
    store.keep_aside(KEPT)
    foreseen = store.snapshot_obstacle()
    with pytest.raises(Refused) as refused:
        scene.take()
    assert foreseen == str(refused.value)


@BTRFS
@pytest.mark.parametrize("what", ["nested", "received"])
def test_a_tree_of_which_no_snapshot_is_whole_is_told_ahead(tmp_path: Path, what: str) -> None:
    with on_btrfs(tmp_path) as scene:
        live = tmp_path / "disk" / "services"
        if what == "nested":
            command("btrfs", "subvolume", "create", live / "db")
        else:
            received_uuid(live)
        foreseen = scene.store.snapshot_obstacle()
        assert foreseen is not None and what in foreseen.replace("contains other", "nested")
        with pytest.raises(Refused) as refused:
            scene.take()
        assert foreseen == str(refused.value)
        assert scene.store.obstacle() is None, "it could be put away"


def received_uuid(live: Path) -> None:
    """As of a received tree that was made writable by force."""
    snapshot = live.with_name("sent")
    command("btrfs", "subvolume", "snapshot", "-r", live, snapshot)
    btrfs_info.stand_in(live, str(uuid.uuid4()), snapshot)


@BTRFS
@pytest.mark.parametrize("letter", ["i", "a"])
@pytest.mark.parametrize("place", ["services", "."])
def test_a_tree_that_chattr_pins_could_not_be_put_away(
    tmp_path: Path, letter: str, place: str
) -> None:
    with on_btrfs(tmp_path) as scene:
        pinned = tmp_path / "disk" / place
        command("chattr", f"+{letter}", pinned)
        try:
            foreseen = str(scene.store.obstacle())
            assert f"{pinned} is immutable or append-only" in foreseen
            assert f"chattr -i -a {pinned}" in foreseen
            with pytest.raises(PermissionError):
                scene.store.keep_aside(KEPT)
        finally:
            command("chattr", f"-{letter}", pinned)
        assert scene.store.obstacle() is None


@BTRFS
def test_a_mount_point_could_not_be_put_away(tmp_path: Path) -> None:
    """As of a line of fstab with `subvol=services`; of a mere subvolume `ismount` says so, too."""
    with on_btrfs(tmp_path) as scene:
        live = tmp_path / "disk" / "services"
        device = command("findmnt", "-no", "SOURCE", live.parent).strip()
        command("mount", "-o", "subvol=services", device, live)
        try:
            assert f"{live} is a mount point" in str(scene.store.obstacle())
            with pytest.raises(OSError, match="Device or resource busy"):
                scene.store.keep_aside(KEPT)
        finally:
            command("umount", live)
        assert scene.store.obstacle() is None


def test_the_directory_of_its_own_snapshots_is_made_where_it_is_missing(
    store: VolumeStore,
) -> None:
    live = store.live()
    if live is None or not isinstance(store, BtrfsStore | DirectoryStore):
        pytest.skip("its trees have no places")
    own = live.path.with_name("own")
    elsewhere = type(store)(structs.replace(paths_below(live.path.parent), snapshots=own))
    taken = elsewhere.take_snapshot(SnapshotName.at("services", NOW))
    assert taken.path.parent == own
    assert list(elsewhere.snapshots()) == [taken] and list(store.snapshots()) == []


def test_the_live_tree_goes_read_only_and_back(store: VolumeStore) -> None:
    before = store.live()
    assert before is not None
    for writable in (False, False, True, True):
        store.set_live_writable(writable)
        live = store.live()
        assert live is not None
        assert (live.writable, live.uuid) == (writable, before.uuid)


def test_a_live_tree_is_made_only_where_nothing_is(scene: Scene, store: VolumeStore) -> None:
    first, base = store.live(), scene.take()
    with pytest.raises(Refused, match="keep it aside first"):
        store.create_live_from(base)
    assert store.live() == first
    kept = store.keep_aside(KEPT)
    assert (kept.name, list(store.aside())) == (KEPT, [kept])
    made = store.create_live_from(base)
    assert store.live() == made
    assert made.writable and first is not None and made.uuid != first.uuid
    assert list(store.snapshots()) == [base], "a tree of it is no reason for it to go"


def test_a_name_is_kept_aside_once(scene: Scene, store: VolumeStore) -> None:
    base = scene.take()
    store.set_live_writable(False)
    kept = store.keep_aside(KEPT)
    store.create_live_from(base)
    with pytest.raises(Refused, match="already"):
        store.keep_aside(KEPT)
    assert store.live() is not None
    later = store.keep_aside("services.diverged-8-20270115T080000Z")
    assert list(store.aside()) == sorted([kept, later])
