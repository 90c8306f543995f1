"""The live subvolume through an epoch: what it is made from, and what is never touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from standfast.consul.records import LeaderState
from standfast.errors import Refused, StandfastError
from standfast.lease.files import LeaseStatus
from standfast.names import SnapshotName
from standfast.node.own_epoch import Intent, OwnEpoch, Stage, snapshot_lock
from standfast.node.ports import LiveTree, Snapshot
from standfast.role import volume
from standfast.system.clock import Deadline, monotonic
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.fakes.machine import FakeNode, fake_node

BASE = SnapshotName.at("services", 1_795_000_000.0)
BEFORE = OwnEpoch(4, Stage.READY, "fsid-4", None, in_place=False, live_uuid="tree-4")


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return fake_node(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    return stop_the_clock(monkeypatch)


def has(node: FakeNode, content_id: str, *, received: bool = True) -> Snapshot:
    """A snapshot; all that are made by this have the same name."""
    snapshot = Snapshot(BASE, node.store.parent / content_id, content_id, received)
    node.store.taken.append(snapshot)
    return snapshot


def intends(node: FakeNode, epoch: int, content_id: str | None = None, **more: bool) -> None:
    Intent(epoch, str(BASE), content_id, more.get("in_place", False)).save(node.config.state_dir)


def lives(node: FakeNode, uuid: str = "tree-4", *, writable: bool = True) -> None:
    node.store.tree = LiveTree(node.config.paths.live, uuid, writable)


# Making it


def test_it_is_made_from_what_was_decided_upon_and_not_from_a_namesake(node: FakeNode) -> None:
    has(node, "somebody else's", received=False)
    decided = has(node, "decided upon")
    intends(node, 5, "decided upon")
    volume.prepare(node.machine, 5, None)
    assert node.store.made_from == decided


def test_without_an_intent_the_word_of_the_history_counts(node: FakeNode) -> None:
    """The state directory was lost between the acquisition and this."""
    only = has(node, "c0ffee")
    volume.prepare(node.machine, 5, str(BASE))
    assert node.store.made_from == only


def test_what_it_is_to_start_from_is_gone(node: FakeNode) -> None:
    intends(node, 5, "gone")
    with pytest.raises(StandfastError, match="is not on this node any more; nothing was made"):
        volume.prepare(node.machine, 5, None)
    assert node.store.tree is None


def test_a_new_tree_has_a_new_id_so_that_old_handles_fail(node: FakeNode) -> None:
    BEFORE.save(node.config.state_dir)
    has(node, "c0ffee")
    intends(node, 5, "c0ffee")
    assert volume.prepare(node.machine, 5, None).fsid != BEFORE.fsid


def test_the_same_tree_keeps_its_id_so_that_open_files_go_on(node: FakeNode) -> None:
    BEFORE.save(node.config.state_dir)
    lives(node)
    intends(node, 5, in_place=True)
    own = volume.prepare(node.machine, 5, None)
    assert (own.epoch, own.fsid, own.live_uuid) == (5, BEFORE.fsid, "tree-4")
    assert node.store.made_from is None


@pytest.mark.parametrize("there", ["another", "nothing"])
def test_an_epoch_that_was_to_go_on_in_place_adopts_no_other_tree(
    node: FakeNode, there: str
) -> None:
    """It would be told as a beginning without loss."""
    BEFORE.save(node.config.state_dir)
    if there == "another":
        lives(node, "put there by hand")
    intends(node, 5, in_place=True)
    with pytest.raises(StandfastError, match=r"is (gone|another one).*epoch 4 had tree-4: nothing"):
        volume.prepare(node.machine, 5, None)
    assert OwnEpoch.load(node.config.state_dir) == BEFORE


def test_what_lay_there_is_set_aside_under_its_own_epoch(node: FakeNode) -> None:
    BEFORE.save(node.config.state_dir)
    lives(node)
    has(node, "c0ffee")
    intends(node, 5, "c0ffee")
    volume.prepare(node.machine, 5, None)
    [aside] = node.store.set_aside
    assert aside.name.startswith("services.diverged-4-")


def test_another_subvolume_in_its_place_is_not_served(node: FakeNode) -> None:
    BEFORE.save(node.config.state_dir)
    lives(node, "put there by hand", writable=False)
    with pytest.raises(StandfastError, match=r"another subvolume \(put there by hand\)"):
        volume.prepare(node.machine, 4, None)
    assert node.world.log == [], "it is not even made writable"


def has_lease(node: FakeNode, epoch: int, *, opened: bool) -> None:
    """In this boot, says the lease process, which has not yet seen it serve."""
    until = monotonic() + 60
    said = LeaseStatus(epoch, "boot-1", 1, LeaderState.STARTING, False, until, until, 1, until)
    replace(said, served=False, opened=opened).save(node.config.run_dir)


@pytest.mark.parametrize("lost", ["own-epoch.json", "the state"])
def test_an_epoch_whose_file_is_gone_does_not_begin_anew(node: FakeNode, lost: str) -> None:
    """A second tree from its base would lack everything that was written since."""
    has(node, "c0ffee")
    intends(node, 5, "c0ffee")
    volume.prepare(node.machine, 5, None)
    had = node.store.tree
    has_lease(node, 5, opened=lost == "the state")
    for path in node.config.state_dir.iterdir():
        if lost != "own-epoch.json" or path.name == lost:
            path.unlink()
    with pytest.raises(
        StandfastError, match=r"epoch 5, which had its tree already.*not replicated.*demote"
    ):
        volume.prepare(node.machine, 5, str(BASE))
    assert node.store.tree is had and node.store.set_aside == []


def test_what_a_cut_left_before_the_tree_was_made_is_begun_again(node: FakeNode) -> None:
    only = has(node, "c0ffee")
    has_lease(node, 5, opened=False)
    volume.prepare(node.machine, 5, str(BASE))
    assert node.store.made_from == only
    # A lease process that took the lease up says that the port may have been open: the intent
    # knows better.
    node.store.tree = None
    OwnEpoch.forget(node.config.state_dir)
    has_lease(node, 6, opened=True)
    intends(node, 6, "c0ffee")
    assert volume.prepare(node.machine, 6, None).epoch == 6


def test_a_demotion_that_is_rolled_back_makes_it_writable_again(node: FakeNode) -> None:
    BEFORE.at(Stage.DRAINING).save(node.config.state_dir)
    lives(node, writable=False)
    assert volume.prepare(node.machine, 4, None).stage is Stage.READY
    assert node.store.tree is not None and node.store.tree.writable


# Ending it


def test_the_final_snapshot_is_the_last_one_that_is_taken(
    node: FakeNode, clock: StoppedClock
) -> None:
    """A cycle that is just taking one comes first; the final one has all of this epoch."""
    BEFORE.at(Stage.DRAINING).save(node.config.state_dir)
    lives(node, writable=False)
    with (
        snapshot_lock(node.config, Deadline.after(1)),
        pytest.raises(Refused, match="another snapshot is at work"),
    ):
        volume.take_final_snapshot(node.machine, BEFORE)
    assert node.store.taken == []
    final = volume.take_final_snapshot(node.machine, BEFORE)
    own = OwnEpoch.load(node.config.state_dir)
    assert own is not None and own.final == str(final.name)
    assert volume.find_final(node.machine, own) == final


def test_a_snapshot_of_somebody_else_is_never_the_final_one(node: FakeNode) -> None:
    has(node, "received under the same name")
    ended = replace(BEFORE, final=str(BASE))
    with pytest.raises(StandfastError, match="is not there"):
        volume.find_final(node.machine, ended)
    mine = has(node, "taken here", received=False)
    assert volume.find_final(node.machine, ended) == mine


HANDED = replace(BEFORE, stage=Stage.RELEASED, final=str(BASE))


@pytest.mark.parametrize(
    ("own", "kind"),
    [
        (HANDED, "retired"),
        (replace(HANDED, final=None), "diverged"),
        # Surrendered from the middle of a handover: its final snapshot was nowhere else yet.
        (replace(HANDED, stage=Stage.DRAINING), "diverged"),
        (replace(HANDED, stage=Stage.READY), "diverged"),
    ],
)
def test_a_tree_that_nobody_else_has_is_not_called_retired(
    own: OwnEpoch, kind: str, node: FakeNode
) -> None:
    own.save(node.config.state_dir)
    lives(node, writable=False)
    volume.set_aside(node.machine, diverged=False)
    [aside] = node.store.set_aside
    assert aside.name.startswith(f"services.{kind}-4-")


@pytest.mark.parametrize("earlier", [None, HANDED])
def test_the_tree_of_an_epoch_whose_file_is_gone_is_kept_aside_as_diverged(
    node: FakeNode, earlier: OwnEpoch | None
) -> None:
    """Nobody knows what is in it; an earlier file that somebody put back is not of it."""
    has_lease(node, 5, opened=True)
    if earlier is not None:
        earlier.save(node.config.state_dir)
    lives(node, "tree-5", writable=False)
    volume.set_aside(node.machine, diverged=False)
    volume.forget(node.machine)
    volume.set_aside(node.machine, diverged=False)
    [aside] = node.store.set_aside
    assert aside.name.startswith("services.diverged-5-")
    assert OwnEpoch.load(node.config.state_dir) is None


def test_an_epoch_that_was_put_away_is_not_begun_again(node: FakeNode) -> None:
    """Consul was restored to a heartbeat of it: a tree made from its base would lack what was
    written in it."""
    has(node, "c0ffee")
    intends(node, 5, "c0ffee")
    own = volume.prepare(node.machine, 5, None)
    replace(own, stage=Stage.RELEASED, final="services@20261122T101500Z").save(
        node.config.state_dir
    )
    lives(node, str(own.live_uuid), writable=False)
    volume.set_aside(node.machine, diverged=False)
    volume.forget(node.machine)
    has_lease(node, 5, opened=True)
    with pytest.raises(StandfastError, match=r"epoch 5 was given up here before.*demote"):
        volume.prepare(node.machine, 5, str(BASE))
    assert OwnEpoch.load(node.config.state_dir) is None
    assert node.store.live() is None


def test_a_tree_that_was_there_before_any_epoch_stays(node: FakeNode) -> None:
    has_lease(node, 5, opened=False)
    lives(node, "not ours", writable=False)
    volume.set_aside(node.machine, diverged=False)
    assert node.store.set_aside == []


def test_a_tree_that_can_still_change_is_not_set_aside(node: FakeNode) -> None:
    HANDED.save(node.config.state_dir)
    lives(node, writable=True)
    with pytest.raises(StandfastError, match="still writable: not set aside"):
        volume.set_aside(node.machine, diverged=False)
    assert node.store.set_aside == []
    volume.freeze(node.machine)
    volume.set_aside(node.machine, diverged=False)
    [aside] = node.store.set_aside
    assert aside.name.startswith("services.retired-4-")
