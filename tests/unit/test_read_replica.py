"""What a node's own store tells the exporter: the snapshot that it could be promoted from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from standfast.btrfs.names_and_places import TreeInfo
from standfast.config.model import Config
from standfast.demo.stand_ins.directory import DirectoryStore, initialise, save_info
from standfast.exporter.metrics import Replica, read_replica
from standfast.names import SnapshotName, diverged_name, retired_name
from standfast.system.clock import utc_now
from tests.fakes.replication import storage_node
from tests.support.origins import note_epoch

pytestmark = pytest.mark.usefixtures("demo_parts")


@dataclass
class Disk:
    config: Config

    def add(self, age_s: float, epoch: int | None) -> SnapshotName:
        """A received snapshot; without an epoch nobody knows what it is."""
        name = SnapshotName.at("services", utc_now() - age_s)
        path = self.config.paths.standby / str(name)
        path.mkdir(parents=True)
        content_id = f"of {age_s}"
        save_info(path, TreeInfo("x", content_id, read_only=True))
        if epoch is not None:
            store = DirectoryStore(self.config.paths)
            note_epoch(self.config, content_id, epoch, store.snapshots)
        return name


def newest(disk: Disk) -> SnapshotName:
    newest_copy = read_replica(disk.config).newest
    assert newest_copy is not None
    return newest_copy.name


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(storage_node(tmp_path, "b"))


def test_a_node_without_a_snapshot_has_none(disk: Disk) -> None:
    assert read_replica(disk.config) == Replica(None, 0)


def test_a_snapshot_of_unknown_origin_never_counts(disk: Disk) -> None:
    disk.add(60, None)
    assert read_replica(disk.config).newest is None
    known = disk.add(600, 3)
    assert newest(disk) == known


def test_the_later_epoch_goes_before_the_later_time(disk: Disk) -> None:
    disk.add(60, 3)
    later = disk.add(600, 4)
    assert newest(disk) == later


def test_only_what_its_successor_never_had_counts_as_diverged(disk: Disk) -> None:
    live = disk.config.paths.live
    for name in (diverged_name("services", 3, 1e9), retired_name("services", 4, 1e9)):
        initialise(live.with_name(name))
    assert read_replica(disk.config).diverged == 1
