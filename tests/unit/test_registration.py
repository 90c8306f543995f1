"""What Consul is told of this node's server: well only when a client could reach it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from standfast.consul.records import LeaderState
from standfast.consul.values import Registration
from standfast.errors import StandfastError
from standfast.lease.files import LeaseStatus
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import FenceState
from standfast.role import registration
from standfast.system.clock import monotonic
from tests.fakes.machine import FakeNode, fake_node

OWN = OwnEpoch(4, Stage.READY, "fsid-4", None, in_place=True)


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    """A primary that serves."""
    made = fake_node(tmp_path)
    OWN.save(made.config.state_dir)
    made.nfs.running, made.nfs.fsid = True, OWN.fsid
    made.fence.open_until = monotonic() + 60
    registration.register(made.machine, OWN.epoch)
    return made


def fed(node: FakeNode) -> list[str]:
    """What the check says when it is fed now."""
    node.world.log.clear()
    registration.feed(node.machine, registration.ailment(node.machine))
    return node.world.log


def test_a_server_that_answers_behind_an_open_port_is_well(node: FakeNode) -> None:
    assert fed(node) == ["pass-check"]


def port_shut(node: FakeNode) -> None:
    """A call over loopback would succeed all the same."""
    node.fence.open_until = 0.0


def rules_gone(node: FakeNode) -> None:
    node.fence.in_place = False


def fence_unknown(node: FakeNode) -> None:
    def state() -> FenceState:
        raise StandfastError("nft can't list the table")

    node.fence.state = state  # type: ignore[method-assign]


def server_gone(node: FakeNode) -> None:
    node.nfs.running = False


@pytest.mark.parametrize("trouble", [port_shut, rules_gone, fence_unknown, server_gone])
def test_a_server_with_its(node: FakeNode, trouble: Callable[[FakeNode], None]) -> None:
    trouble(node)
    assert fed(node) == ["fail-check"]
    assert registration.ailment(node.machine)


def test_why_the_port_is_shut(node: FakeNode) -> None:
    """It goes to the history when the role is surrendered for it."""
    port_shut(node)
    over = "the NFS port is shut: the lease has run out"
    assert registration.ailment(node.machine) == over
    until = monotonic() + 60
    trouble = "the port can't be opened: No space left on device"
    lease = LeaseStatus(4, "boot-1", 1, LeaderState.SERVING, True, until, until, 1, 0.0)
    replace(lease, trouble=trouble).save(node.config.run_dir)
    assert registration.ailment(node.machine) == (
        f"the NFS port is shut, though the lease lasts: {trouble}"
    )
    replace(lease, valid_until=monotonic() - 1).save(node.config.run_dir)
    assert registration.ailment(node.machine) == over


def test_what_clients_mount_is_told_of_this_epoch_alone(node: FakeNode) -> None:
    assert registration.meta(node.machine, 4) == {"epoch": "4", "node": "n1", "fsid": "fsid-4"}
    assert registration.meta(node.machine, 5) == {"epoch": "5", "node": "n1"}


def test_an_entry_that_says_something_else_is_made_again(node: FakeNode) -> None:
    registration.register(node.machine, 4)
    assert registration.is_registered(node.machine, 4)
    assert not registration.is_registered(node.machine, 5)
    [name] = node.consul.local_services()
    older = {"epoch": "4", "node": "n1"}  # an older version's
    node.consul.register(
        Registration(name, node.config.service, "192.168.1.2", 2049, older, 60, "answers NFS")
    )
    assert not registration.is_registered(node.machine, 4)
