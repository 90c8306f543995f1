"""Deleting old snapshots: on plain directories, and what only btrfs does on btrfs."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from msgspec import structs

from standfast.btrfs.names_and_places import TreeInfo
from standfast.btrfs.store import BtrfsStore
from standfast.config.model import Config, KeepOwn, KeepPublished, Paths, Replication
from standfast.consul.records import LeaderState
from standfast.demo.stand_ins.directory import DirectoryStore, initialise, save_info
from standfast.errors import StandfastError
from standfast.lease.files import LeaseStatus
from standfast.names import SnapshotName
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import Snapshot
from standfast.replication import pins, pruning, published, state
from standfast.replication.pins import Pin
from standfast.replication.pruning import MOST_AT_ONCE, Pruned, prune
from standfast.system import clock
from standfast.system.clock import Instant, monotonic, utc_now
from tests.support.configs import config_of
from tests.support.origins import note_epoch
from tests.support.volumes import btrfs_on_file, command, paths_below, require_btrfs

DAY_S = 86400.0
T0 = 1_700_000_000.0


@dataclasses.dataclass
class Node1:
    """A node with snapshots one to so many, each a minute after the one before."""

    config: Config
    store: DirectoryStore

    def add(
        self, *numbers: int, received: bool = False, epoch: int = 1, base: str = "services"
    ) -> None:
        paths = self.config.paths
        for number in numbers:
            name = SnapshotName.at(base, T0 + 60 * number)
            path = (paths.standby if received else paths.snapshots) / str(name)
            path.mkdir(parents=True)
            own, there = (f"own-{number}", None) if not received else ("x", f"got-{number}")
            save_info(path, TreeInfo(own, there, read_only=True))
            note_epoch(self.config, there or own, epoch, self.store.snapshots)

    def ids(self) -> list[str]:
        return sorted(snapshot.content_id for snapshot in self.store.snapshots())

    def pin(self, node: str, content_id: str, *, days: float = 0.0, epoch: int = 1) -> None:
        number = int(content_id.partition("-")[2])
        name = str(SnapshotName.at("services", T0 + 60 * number))
        pins.note(self.config, node, Pin(name, content_id, epoch, utc_now() - days * DAY_S))

    def serve(self, *, days: float = 30.0, left_s: float = 60.0, serving: bool = True) -> None:
        now = monotonic()
        LeaseStatus(
            epoch=1, instance="i", pid=1, state=LeaderState.SERVING, serving=serving,
            valid_until=now + left_s, armed_until=now + left_s, seq=1, since=now - days * DAY_S,
        ).save(self.config.run_dir)  # fmt: skip

    def prune(self, *also: str, dry_run: bool = False) -> Pruned:
        return prune(self.config, self.store, also=also, dry_run=dry_run)


@pytest.fixture
def node(tmp_path: Path) -> Node1:
    config = config_of(
        *"abc",
        paths=paths_below(tmp_path / "disk"),
        retention_own=KeepOwn(keep_last=2),
        retention_published=KeepPublished(keep_last=2, hourly=0, daily=0, weekly=0, monthly=0),
    )
    initialise(config.paths.live)
    return Node1(config, DirectoryStore(config.paths))


def ids(snapshots: Sequence[Snapshot]) -> list[str]:
    return [snapshot.content_id for snapshot in snapshots]


def reasons(pruned: Pruned) -> dict[str, tuple[str, ...]]:
    return {kept.snapshot.content_id: kept.reasons for kept in pruned.kept}


# What goes


def test_both_kinds_go_by_their_own_policy(node: Node1) -> None:
    node.add(*range(1, 6))
    node.add(*range(1, 6), received=True, epoch=2)
    policy = KeepPublished(keep_last=1, hourly=0, daily=0, weekly=0, monthly=0)
    node.config = structs.replace(node.config, retention_published=policy)
    pruned = node.prune()
    assert len(pruned.deleted) == 7
    assert node.ids() == ["got-5", "own-4", "own-5"]
    assert pruned.trouble is None and pruned.left == 0
    assert node.prune().deleted == ()


def test_a_dry_run_deletes_nothing_and_says_why_each_one_stays(node: Node1) -> None:
    node.add(*range(1, 6))
    node.pin("b", "own-1")
    pruned = node.prune("own-2", dry_run=True)
    assert ids(pruned.deleted) == ["own-3"]
    assert reasons(pruned) == {
        "own-1": ("pinned for b",),
        "own-2": ("still needed",),
        "own-4": ("among the newest 2",),
        "own-5": ("newest of epoch 1", "among the newest 2"),
    }
    assert len(node.ids()) == 5


def test_what_is_in_use_stays(node: Node1) -> None:
    node.add(*range(1, 6))
    with pins.in_use(node.config, ["own-1"]):
        assert ids(node.prune().deleted) == ["own-2", "own-3"]
    assert ids(node.prune().deleted) == ["own-1"]


def test_what_a_promotion_starts_from_stays_until_it_is_made(node: Node1) -> None:
    node.add(*range(1, 6), received=True)
    history_entry = OwnEpoch(
        epoch=2, stage=Stage.CREATING, fsid="x", base="b", in_place=False, base_content_id="got-1"
    )
    history_entry.save(node.config.state_dir)
    assert ids(node.prune().deleted) == ["got-2", "got-3"]
    history_entry.at(Stage.READY).save(node.config.state_dir)
    assert ids(node.prune().deleted) == ["got-1"]


def test_a_pinned_one_that_was_deleted_by_hand_is_replaced_by_the_one_before(node: Node1) -> None:
    node.add(1, 2, 4, 5, 6, 7)
    node.pin("b", "own-3")
    pruned = node.prune()
    assert ids(pruned.deleted) == ["own-1", "own-4", "own-5"]
    assert reasons(pruned)["own-2"] == (
        "next to services@20231114T221620Z, pinned for b and gone",
    )  # fmt: skip
    assert node.prune().deleted == ()


def test_without_pins_what_was_last_sent_counts(node: Node1) -> None:
    node.add(*range(1, 6))
    name = str(SnapshotName.at("services", T0 + 60))
    sent = state.Shared(name, "own-1", 1)
    state.note_success(node.config, "b", sent, duration_s=1, sent_bytes=1)
    pruned = node.prune()
    assert ids(pruned.deleted) == ["own-2", "own-3"]
    assert reasons(pruned)["own-1"] == ("pinned for b",)
    state.note_needs_full(node.config, "b", "for a test")
    assert ids(node.prune().deleted) == ["own-1"]


def test_many_go_in_batches_the_oldest_first(node: Node1) -> None:
    node.add(*range(1, MOST_AT_ONCE + 13))
    first = node.prune()
    assert ids(first.deleted) == [f"own-{number}" for number in range(1, MOST_AT_ONCE + 1)]
    assert first.left == 10
    second = node.prune()
    assert (len(second.deleted), second.left) == (10, 0)


# When nothing goes


@pytest.mark.parametrize("file", ["pins.json", "published.json", "own-epoch.json"])
def test_what_can_not_be_read_protects_everything(
    node: Node1, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    node.add(*range(1, 6))
    (node.config.state_dir / file).write_text("{")
    pruned = node.prune()
    assert (pruned.deleted, pruned.kept) == ((), ())
    assert pruned.trouble is not None and file in pruned.trouble
    assert "were not deleted" in caplog.text and len(node.ids()) == 5


def test_a_replication_that_can_not_say_what_it_needs_protects_everything(node: Node1) -> None:
    node.add(*range(1, 6))
    with pins.in_use(node.config, ["own-1"]):
        (path,) = (node.config.run_dir / "in-use").iterdir()
        path.write_text("{")
        assert node.prune().trouble is not None
    assert len(node.ids()) == 5


def test_a_lock_that_another_one_holds_is_no_failure(
    node: Node1, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "LOCK_WAIT_S", 0.1)
    node.add(*range(1, 6))
    with pins.locked(node.config):
        pruned = node.prune()
    assert pruned.deleted == () and "is at work" in (pruned.trouble or "")


def test_a_deletion_that_fails_says_what_is_gone(
    node: Node1, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.add(*range(1, 6))

    def only_the_first(self: DirectoryStore, snapshots: Sequence[Snapshot]) -> None:
        delete(self, snapshots[:1])
        raise StandfastError("own-2 is held")

    delete = DirectoryStore.delete
    monkeypatch.setattr(DirectoryStore, "delete", only_the_first)
    pruned = node.prune()
    assert ids(pruned.deleted) == ["own-1"]
    assert (pruned.left, pruned.trouble) == (2, "own-2 is held")


# Pins that are dropped


def test_the_pin_of_a_dead_standby_is_dropped_said_and_marked(
    node: Node1, caplog: pytest.LogCaptureFixture
) -> None:
    node.add(*range(1, 6))
    node.pin("b", "own-1", days=15)
    node.pin("c", "own-5")
    node.serve()
    pruned = node.prune()
    assert pruned.dropped_pins == ("b",)
    assert ids(pruned.deleted) == ["own-1", "own-2", "own-3"]
    assert set(pins.load(node.config)) == {"c"}
    b = state.load(node.config).standbys["b"]
    assert b.needs_full and "replicate b --full" in (b.last_failure or "")
    (record,) = [
        record for record in caplog.records if "took no snapshot in since" in record.getMessage()
    ]
    assert record.levelno == logging.WARNING
    assert node.prune().dropped_pins == ()


def test_a_dry_run_drops_no_pin(node: Node1) -> None:
    node.add(*range(1, 6))
    node.pin("b", "own-1", days=15)
    node.pin("c", "own-5")
    node.serve()
    assert node.prune(dry_run=True).dropped_pins == ("b",)
    assert set(pins.load(node.config)) == {"b", "c"}
    assert state.load(node.config).standbys == {}


@pytest.mark.parametrize(
    "serving",
    [
        None,
        {"serving": False},
        {"left_s": -1.0},
        {"days": 0.9},  # everybody was off for weeks, and this one is back first
    ],
)
def test_only_who_has_served_for_a_while_drops_pins(
    node: Node1, serving: dict[str, float] | None
) -> None:
    node.add(*range(1, 6))
    node.pin("b", "own-1", days=15)
    node.pin("c", "own-5")
    if serving is not None:
        node.serve(**serving)  # type: ignore[arg-type]
    assert node.prune().dropped_pins == ()
    assert "own-1" in node.ids()


def test_a_clock_that_jumps_a_year_drops_no_pin_before_everybody_had_a_day(
    node: Node1, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is up to date is back in the next minutes, the other is just starting again."""
    node.add(*range(1, 6))
    node.pin("b", "own-1", days=0.1)
    node.pin("c", "own-5")
    node.serve()
    assert node.prune().dropped_pins == ()
    start = clock.instant()
    before = pins.load(node.config)

    def later(days: float) -> None:
        utc = start.utc + (365 + days) * DAY_S
        at = Instant(utc, start.up + days * DAY_S, start.boot)
        for module in (pruning, published):
            monkeypatch.setattr(module, "instant", lambda: at)
        monkeypatch.setattr(pruning, "utc_now", lambda: utc)
        pins.save(node.config, {**before, "c": structs.replace(before["c"], at=utc)})
        published.note_clock(node.config, at)

    later(0.01)
    assert node.prune().dropped_pins == ()
    later(0.9)
    assert node.prune().dropped_pins == ()
    later(1.1)
    assert node.prune().dropped_pins == ("b",)


def test_no_pin_is_dropped_when_no_other_standby_could_go_on(node: Node1) -> None:
    node.add(*range(1, 6))
    node.pin("b", "own-1", days=15)
    node.pin("c", "own-2", days=16)
    node.serve()
    assert node.prune().dropped_pins == ()
    node.pin("c", "own-9")  # it is gone here
    assert node.prune().dropped_pins == ()
    assert {"own-1", "own-5"} <= set(node.ids())


def test_a_limit_below_a_day_needs_no_longer_epoch_than_itself(node: Node1) -> None:
    short = structs.replace(node.config, replication=Replication(drop_pin_after=600.0))
    node.config = short
    node.add(*range(1, 6))
    node.pin("b", "own-1", days=0.01)
    node.pin("c", "own-5")
    node.serve(days=0.005)
    assert node.prune().dropped_pins == ()
    node.serve(days=0.01)
    assert node.prune().dropped_pins == ("b",)


def test_who_is_no_storage_node_any_more_loses_its_pin_after_the_limit(node: Node1) -> None:
    node.add(*range(1, 6))
    node.pin("gone", "own-1", days=13)
    assert node.prune().dropped_pins == ()
    pins.drop(node.config, "gone")
    node.pin("gone", "own-1", days=15)
    pruned = node.prune()
    assert (pruned.dropped_pins, ids(pruned.deleted)) == (("gone",), ["own-1"])
    assert "gone" not in state.load(node.config).standbys
    assert pins.load(node.config) == {}


# On btrfs


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[tuple[Config, BtrfsStore]]:
    require_btrfs()
    root = tmp_path / "disk"
    with btrfs_on_file(tmp_path / "disk.img", root):
        paths: Paths = paths_below(root)
        command("btrfs", "subvolume", "create", paths.live)
        (paths.live / "big").write_bytes(b"x" * 2_000_000)
        config = config_of("a", paths=paths, retention_own=KeepOwn(keep_last=2))
        yield config, BtrfsStore(paths)


def test_one_that_is_being_sent_by_others_keeps_nobody_else(
    volume: tuple[Config, BtrfsStore],
) -> None:
    """Another program's send holds a snapshot: the others go, and that one the next time."""
    config, store = volume
    taken = []
    for number in range(5):
        latest = store.take_snapshot(SnapshotName.at("services", utc_now() - 600 + number))
        note_epoch(config, latest.content_id, 1, store.snapshots)
        taken.append(latest)
    argv = ["btrfs", "-q", "send", str(taken[0].path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as sender:
        assert sender.stdout is not None
        sender.stdout.read(100)  # it goes on when somebody reads
        pruned = prune(config, store, also=())
        assert ids(pruned.deleted) == [snapshot.content_id for snapshot in taken[1:3]]
        assert pruned.left == 1 and "delete" in (pruned.trouble or "")
        sender.stdout.read()
    assert ids(prune(config, store, also=()).deleted) == [taken[0].content_id]
    assert ids(store.snapshots()) == [snapshot.content_id for snapshot in taken[3:]]
