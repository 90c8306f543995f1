"""A returned primary's step-down on a real btrfs that is mounted late, with its real effects on the
volume; the server and the lease are the tests' fakes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from standfast.btrfs.store import BtrfsStore
from standfast.errors import StepFailed
from standfast.node.node import Machine
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.role import plan as plans
from standfast.role.execute import execute
from standfast.role.plan import names_of
from standfast.role.steps import Effects
from tests.fakes.machine import fake_node
from tests.support.volumes import (
    btrfs_on_file,
    command,
    config_for,
    make_live,
    mount_image,
    require_btrfs,
    unmount,
)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """It was primary with epoch 4; its disk is not mounted yet. `disk.img` is it."""
    require_btrfs()
    root = tmp_path / "persist"
    config = config_for(root, "n1", nodes=("n1", "n2"))
    with btrfs_on_file(tmp_path / "disk.img", root):
        make_live(config.paths.live, "btrfs")
        (config.paths.live / "written-here").write_text("and nowhere else")
        store = BtrfsStore(config.paths)
        live = store.live()
        assert live is not None
        own = OwnEpoch(4, Stage.READY, "fsid-4", None, in_place=False, live_uuid=live.uuid)
        structs.replace(own, file_system=store.file_system()).save(config.state_dir)
    yield replace(fake_node(tmp_path / "node").machine, config=config, store=store)
    if root.is_mount():
        unmount(root)


def step_down(machine: Machine) -> None:
    execute(plans.step_down(names_of(machine.config)), Effects(machine).table(), lambda _: None)


def test_nothing_is_done_or_forgotten_until_the_disk_is_there_then_its_tree_is_aside(
    machine: Machine, tmp_path: Path
) -> None:
    root = machine.config.paths.live.parent
    with pytest.raises(StepFailed, match=r"on no btrfs: .*not mounted"):
        step_down(machine)
    assert list(root.iterdir()) == []
    with btrfs_on_file(tmp_path / "other.img", root):
        make_live(machine.config.paths.live, "btrfs")
        with pytest.raises(StepFailed, match=r"the disk of epoch 4 .* is not mounted at"):
            step_down(machine)
        assert BtrfsStore(machine.config.paths).aside() == ()
        assert (machine.store.live() or pytest.fail("it is gone")).writable
    assert OwnEpoch.load(machine.config.state_dir) is not None

    mount_image(tmp_path / "disk.img", root)
    step_down(machine)
    assert OwnEpoch.load(machine.config.state_dir) is None
    [aside] = machine.store.aside()
    assert aside.name.startswith("services.diverged-4-")
    assert (aside / "written-here").read_text() == "and nowhere else"
    assert "ro=true" in command("btrfs", "property", "get", "-t", "subvol", aside, "ro")
    assert not machine.config.paths.live.exists()


def test_a_tree_that_somebody_moved_away_is_not_taken_for_set_aside(
    machine: Machine, tmp_path: Path
) -> None:
    root = machine.config.paths.live.parent
    mount_image(tmp_path / "disk.img", root)
    machine.config.paths.live.rename(root / "elsewhere")
    with pytest.raises(StepFailed, match=r"is neither at .* nor set aside"):
        step_down(machine)
    assert OwnEpoch.load(machine.config.state_dir) is not None
    (root / "elsewhere").rename(machine.config.paths.live)
    step_down(machine)
    assert OwnEpoch.load(machine.config.state_dir) is None
