"""The first epoch on a real btrfs where replicas lie and nobody has a record of them: what the
refusal says is done to the letter, and the files are served."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from standfast.agent.local_view import LocalView
from standfast.btrfs.store import BtrfsStore
from standfast.names import SnapshotName
from standfast.node.node import Machine
from standfast.role import volume
from standfast.role.decide import decide
from standfast.role.decision import Action, Decision, Moment, Request
from tests.fakes.machine import fake_node
from tests.support.observations import NOW_S, UTC, cluster
from tests.support.volumes import (
    btrfs_on_file,
    command,
    config_for,
    files,
    make_live,
    require_btrfs,
)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """c1: two full replicas in its standby directory, and no live tree."""
    require_btrfs()
    root = tmp_path / "persist"
    config = config_for(root, "c1", nodes=("c1", "zippy"))
    with btrfs_on_file(tmp_path / "disk.img", root):
        command("btrfs", "-q", "subvolume", "create", config.paths.standby)
        make_live(root / "zippys", "btrfs")
        for ago_s, text in ((600.0, "old"), (60.0, "new")):
            (root / "zippys" / "file").write_text(text)
            sent = root / str(SnapshotName.at(config.base, UTC - ago_s))
            command("btrfs", "-q", "subvolume", "snapshot", "-r", root / "zippys", sent)
            pipe = f"btrfs -q send {sent} | btrfs -q receive {config.paths.standby}"
            subprocess.run(["sh", "-c", pipe], check=True, capture_output=True)
            command("btrfs", "-q", "subvolume", "delete", sent)
        command("btrfs", "-q", "subvolume", "delete", root / "zippys")
        store = BtrfsStore(config.paths)
        yield replace(fake_node(tmp_path / "node").machine, config=config, store=store)


def asked_to_promote(machine: Machine) -> Decision:
    local = LocalView(machine).look(fresh=True)
    view = cluster(None, silent=13)
    return decide(view, local, machine.config, Moment(NOW_S, UTC), Request(promote=True))


@pytest.mark.parametrize("live", ["none", "empty", "only directories"])
def test_the_command_of_the_refusal_makes_a_tree_with_the_newest_files(
    machine: Machine, live: str
) -> None:
    if live != "none":
        make_live(machine.config.paths.live, "btrfs")
    if live == "only directories":
        (machine.config.paths.live / "app" / "data").mkdir(parents=True)
    refused = asked_to_promote(machine)
    assert refused.action is Action.BLOCKED, refused.sentence
    told = next(part for part in refused.sentence.split("`") if "btrfs subvolume snapshot" in part)
    subprocess.run(["sh", "-ec", told], check=True, capture_output=True)
    assert asked_to_promote(machine).action is Action.PROMOTE
    assert files(machine.config.paths.live) == {"file": b"new"}
    (machine.config.paths.live / "more").write_text("it can be written to")
    snapshot = volume.snapshot_of_epoch(machine, 0)  # as the promotion takes it
    assert files(snapshot.path).keys() == {"file", "more"}


def test_what_is_mounted_in_the_tree_or_another_subvolume_is_no_part_of_it(
    machine: Machine,
) -> None:
    live = machine.config.paths.live
    make_live(live, "btrfs")
    for part in ("nested", "mounted"):
        command("btrfs", "-q", "subvolume", "create", live / part)
    command("mount", "-t", "tmpfs", "tmpfs", live / "mounted")
    try:
        for part in ("nested", "mounted"):
            (live / part / "file").touch()
        assert LocalView(machine).look(fresh=True).live_is_empty
    finally:
        command("umount", live / "mounted")


def test_a_new_volume_begins_empty_and_can_be_begun_again_after_a_failure(machine: Machine) -> None:
    """A promotion that failed leaves its snapshot of the empty tree."""
    for replica in machine.store.snapshots():
        command("btrfs", "-q", "subvolume", "delete", replica.path)
    make_live(machine.config.paths.live, "btrfs")
    (machine.config.paths.live / "app").mkdir()
    assert asked_to_promote(machine).action is Action.PROMOTE
    volume.snapshot_of_epoch(machine, 0)
    assert asked_to_promote(machine).action is Action.PROMOTE
