"""A state directory whose disk is full: the role goes all its ways, thanks to the reserve."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from standfast.errors import StepFailed
from standfast.lease.epochs import EpochFile
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.role import plan as plans
from standfast.role.execute import execute
from standfast.role.plan import Do
from standfast.role.steps import Effects
from standfast.system.files import RESERVE, keep_reserve, write_atomically
from tests.fakes.machine import FakeNode
from tests.support.plans import NAMES, is_primary, is_standby, made, promote, run, switch
from tests.support.volumes import command


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    """A standby in memory; its state directory is a real file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small tmpfs")
    node = made(tmp_path, monkeypatch)
    node.config.paths.state.mkdir()
    command("mount", "-t", "tmpfs", "-o", "size=1m", "standfast-test", node.config.paths.state)
    try:
        EpochFile(node.config.state_dir / "epoch").raise_to(4)
        keep_reserve(node.config.state_dir)
        yield node
    finally:
        command("umount", node.config.paths.state)


def fill(node: FakeNode) -> None:
    """Somebody's log, to the last byte."""
    with (
        contextlib.suppress(OSError),
        (node.config.paths.state / "log").open("ab", buffering=0) as log,
    ):
        while True:
            log.write(b"x" * 4096)
    with pytest.raises(OSError, match="No space") as raised:
        write_atomically(node.config.state_dir / "other", "x" * 4096, durable=True)
    assert raised.value.errno == errno.ENOSPC


def test_a_failover_works_on_a_full_disk(node: FakeNode) -> None:
    fill(node)
    EpochFile(node.config.state_dir / "epoch").raise_to(5)
    promote(node)
    is_primary(node)
    assert EpochFile(node.config.state_dir / "epoch").read() == 5


def test_a_switchover_on_a_full_disk_is_undone_and_then_done(node: FakeNode) -> None:
    promote(node)
    fill(node)
    table = dict(Effects(node.machine, to="n2").table())

    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    table[Do.FINAL_COPY] = fail
    with pytest.raises(StepFailed, match="This node serves again"):
        execute(plans.demotion(NAMES, "n2"), table, lambda _: None)
    is_primary(node)
    run(plans.demotion(NAMES, "n2"), Effects(node.machine, to="n2"))
    is_standby(node)


def test_with_the_reserve_used_up_it_fails_with_the_path_and_goes_on_when_there_is_room(
    node: FakeNode,
) -> None:
    promote(node)
    own = OwnEpoch.load(node.config.state_dir)
    assert own is not None
    for spare in (node.config.state_dir / RESERVE).iterdir():
        spare.unlink()
    fill(node)
    with pytest.raises(StepFailed, match=r"published\.json: No space.*\(ENOSPC\)"):
        switch(node)
    assert OwnEpoch.load(node.config.state_dir) in (own, own.at(Stage.READY))
    (node.config.paths.state / "log").unlink()
    keep_reserve(node.config.state_dir)
    switch(node)
    is_standby(node)
