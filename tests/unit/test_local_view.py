"""What a node says of itself: its snapshots are those of now, and those it knows the epoch of."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from standfast.agent import local_view
from standfast.agent.local_view import SNAPSHOTS_EVERY_S, LocalView, available
from standfast.ages import Origin
from standfast.consul.records import LeaderState
from standfast.errors import Refused
from standfast.lease.files import LeaseStatus
from standfast.names import SnapshotName
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import LiveTree, Snapshot
from standfast.reasons import Reason
from standfast.replication.published import published_file
from standfast.role import volume
from standfast.role.observation import Available
from standfast.system.clock import Deadline, monotonic
from standfast.system.locks import exclusive
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.fakes.machine import FakeNode, fake_node
from tests.support.origins import note_epoch

LONG_AGO_NS = 10**18


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    return stop_the_clock(monkeypatch)


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    made = fake_node(tmp_path)
    made.config.paths.standby.mkdir()
    publish(made, 1)
    return made


def publish(node: FakeNode, second: int, *, noted: bool = True) -> None:
    """A snapshot appears, and no directory's time tells it."""
    name = SnapshotName.at("services", 1_795_000_000.0 + second)
    snapshot = Snapshot(name, node.config.paths.standby / str(name), f"id-{second}", received=True)
    node.store.taken.append(snapshot)
    if noted:
        note_epoch(node.config, snapshot.content_id, 4, node.store.snapshots)
    paths = node.config.paths
    for path in (paths.snapshots, paths.standby, published_file(node.config)):
        os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))


def seen(view: LocalView, *, fresh: bool = False) -> list[str]:
    return [snapshot.snapshot.content_id for snapshot in view.look(fresh=fresh).snapshots]


def test_each_look_tells_whether_the_disk_takes_writes(node: FakeNode) -> None:
    view = LocalView(node.machine)
    assert not view.look().read_only
    node.store.read_only = True
    assert view.look().read_only


def test_a_disk_that_can_not_be_read_keeps_only_a_holder_from_nothing(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has to be able to give the role up; any other node does nothing, and says why."""

    def fails() -> list[Snapshot]:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/persist")

    view = LocalView(node.machine)
    monkeypatch.setattr(node.store, "snapshots", fails)
    with pytest.raises(OSError, match="Input/output error"):
        view.look()
    own = OwnEpoch(4, Stage.READY, "fsid", None, in_place=True)
    own.save(node.config.state_dir)
    with pytest.raises(OSError, match="Input/output error"):
        view.look()
    with exclusive(node.config.run_dir / "lease.lock", "the lease", Deadline.after(1)):
        local = view.look()
        OwnEpoch.forget(node.config.state_dir)
        unborn = view.look()
    assert (unborn.own, unborn.unread) == (None, local.unread), "its tree was never made"
    assert (local.own, local.lease_alive) == (own, True)
    assert (local.snapshots, local.has_live) == ((), False)
    assert local.unread == "/persist: Input/output error (EIO)"


def test_an_epoch_whose_file_is_gone_is_seen_until_its_tree_is_put_away(node: FakeNode) -> None:
    """Once the lease is over: to step down it takes an epoch. Its holder must not go on with it."""
    view, path, run_dir = LocalView(node.machine), node.config.paths.live, node.config.run_dir
    until = monotonic() + 60
    LeaseStatus(5, "boot-1", 1, LeaderState.SERVING, True, until, until, 1, until).save(run_dir)
    assert view.look().own is None, "there is no tree"
    node.store.tree = LiveTree(path, "tree-5", writable=False)
    with exclusive(run_dir / "lease.lock", "the lease", Deadline.after(1)):
        assert view.look().own is None
    own = view.look().own
    assert own is not None and (own.epoch, own.stage) == (5, Stage.CREATING)
    volume.set_aside(node.machine, diverged=True)
    volume.forget(node.machine)
    node.store.tree = LiveTree(path, "put there by hand", writable=True)
    assert view.look().own is None


def test_before_any_epoch_it_is_seen_which_trees_with_files_lie_here(node: FakeNode) -> None:
    """Also those that nobody noted; an empty one, as of a promotion that failed, is no copy."""
    view, paths = LocalView(node.machine), node.config.paths
    paths.live.mkdir()
    noted, unnoted = paths.standby / "services@20261118T102641Z", paths.standby / "by-hand"
    for tree in (noted, unnoted, paths.standby / ".staging" / "half"):
        tree.mkdir(parents=True)
        (tree / "file").touch()
    (paths.standby / "services@20261118T102650Z").mkdir()
    publish(node, 2, noted=False)
    local = view.look()
    assert (local.live_is_empty, local.copies) == (True, (unnoted, noted))
    (paths.live / "file").touch()
    assert not view.look().live_is_empty and view.look().has_live
    view.note_epoch(1)
    assert view.look().copies == (), "and later nobody asks"


@pytest.mark.parametrize(
    ("make", "is_empty"),
    [
        (lambda at: None, True),
        (lambda at: (at / "deeper").mkdir(), True),
        (lambda at: (at / "file").touch(), False),
        (lambda at: (at / "link").symlink_to("/nonexistent"), False),
        (lambda at: (at / "link").symlink_to(at.parent / "app2"), False),
        (lambda at: os.mkfifo(at / "pipe"), False),
        (lambda at: [(at / str(number)).mkdir() for number in range(6)], False),
    ],
    ids=["a directory", "two", "a file", "a link to nothing", "a link", "a pipe", "too many"],
)
def test_directories_alone_are_no_data(
    node: FakeNode,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], object],
    is_empty: bool,
) -> None:
    """A unit makes `app` in a tree that was made by hand, before the first promotion."""
    monkeypatch.setattr(local_view, "MOST_DIRECTORIES", 6)
    paths = node.config.paths
    for tree in (paths.live, paths.standby / "copy"):
        for name in ("app", "app2"):
            (tree / name).mkdir(parents=True)
        make(tree / "app")
    local = LocalView(node.machine).look()
    assert local.live_is_empty is is_empty
    assert local.copies == (() if is_empty else (paths.standby / "copy",))


def test_only_the_tree_of_its_own_epoch_can_be_gone_on_with(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, path = LocalView(node.machine), node.config.paths.live
    assert not view.look().has_live
    path.mkdir()
    assert view.look().has_live, "the first primary's"
    own = OwnEpoch(4, Stage.READY, "fsid", None, in_place=False, live_uuid="mine")
    own.save(node.config.state_dir)
    node.store.tree = LiveTree(path, "put there by hand", writable=True)
    assert not view.look().has_live
    node.store.tree = LiveTree(path, "mine", writable=True)
    assert view.look().has_live

    def refuses() -> LiveTree:
        raise Refused(Reason.VOLUME_MISSING, f"{path} exists but is no subvolume")

    monkeypatch.setattr(node.store, "live", refuses)
    assert not view.look().has_live, "and what ends serving is done all the same"
    replace(own, live_uuid=None).save(node.config.state_dir)
    assert view.look().has_live, "an older version's, which noted none"


def test_what_else_a_holder_can_not_read_is_no_fault_of_its_disk(node: FakeNode) -> None:
    OwnEpoch(4, Stage.READY, "fsid", None, in_place=True).save(node.config.state_dir)
    published_file(node.config).parent.mkdir(parents=True, exist_ok=True)
    published_file(node.config).write_text("{")
    view = LocalView(node.machine)
    with exclusive(node.config.run_dir / "lease.lock", "the lease", Deadline.after(1)):
        local = view.look()
    assert not local.read_only
    assert str(published_file(node.config)) in str(local.unread)


def test_only_what_an_older_version_noted_is_doubted_for_its_name_from_the_future() -> None:
    now = 1_795_000_000.0
    name = SnapshotName.at("services", now + 60)
    snapshot = Snapshot(name, Path("/x"), "id", received=True)
    assert available(snapshot, Origin(4), now) == Available(snapshot, 4, ahead=True)
    assert available(snapshot, Origin(4), now + 60) == Available(snapshot, 4)
    noted = available(snapshot, Origin(4, now - 60), now)
    assert noted == Available(snapshot, 4, taken_at=now - 60)


def test_a_fresh_look_lists_the_snapshots_again(node: FakeNode, clock: StoppedClock) -> None:
    view = LocalView(node.machine)
    assert seen(view) == ["id-1"]
    publish(node, 2)
    assert seen(view) == ["id-1"], "the listing is kept for a moment"
    assert seen(view, fresh=True) == ["id-1", "id-2"]


def test_a_listing_is_kept_only_so_long(node: FakeNode, clock: StoppedClock) -> None:
    view = LocalView(node.machine)
    seen(view)
    publish(node, 2)
    clock.now += SNAPSHOTS_EVERY_S
    assert seen(view) == ["id-1", "id-2"]


def test_a_directory_that_changed_is_listed_again(node: FakeNode, clock: StoppedClock) -> None:
    view = LocalView(node.machine)
    seen(view)
    publish(node, 2)
    os.utime(node.config.paths.standby, ns=(LONG_AGO_NS + 1, LONG_AGO_NS + 1))
    assert seen(view) == ["id-1", "id-2"]


def test_a_snapshot_of_an_unknown_epoch_is_no_candidate(node: FakeNode) -> None:
    publish(node, 2, noted=False)
    assert seen(LocalView(node.machine), fresh=True) == ["id-1"]


def test_a_glance_sees_the_lease_of_this_moment(node: FakeNode) -> None:
    view = LocalView(node.machine)
    before = view.look()
    assert before.lease is None and not before.lease_alive
    until = monotonic() + 60
    lease = LeaseStatus(4, "boot-1", 1, LeaderState.SERVING, True, until, until, 1, until)
    lease.save(node.config.run_dir)
    with exclusive(node.config.run_dir / "lease.lock", "the lease", Deadline.after(1)):
        now = view.glance(before)
    assert now.lease == lease and now.lease_alive
    assert now.snapshots == before.snapshots
