"""The export and the claim to the port change together, within the lease, one process at a time."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from standfast.consul.records import LeaderState
from standfast.errors import Refused, StandfastError
from standfast.lease import exports
from standfast.lease.files import LeaseStatus
from standfast.lease.protocol import NEVER
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.reasons import Reason
from standfast.system.clock import Deadline, monotonic
from tests.fakes.machine import FakeNode, fake_node


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return fake_node(tmp_path)


def says(node: FakeNode, *, epoch: int = 4, until: float | None = None) -> None:
    """The lease process's last word."""
    until = monotonic() + 60 if until is None else until
    status = LeaseStatus(epoch, "boot-1", 1, LeaderState.STARTING, False, until, NEVER, 1, 0.0)
    status.save(node.config.run_dir)


def export(node: FakeNode) -> None:
    exports.export(node.config, node.fence, node.nfs, 4, "fsid")


def withdraw(node: FakeNode) -> None:
    exports.withdraw(node.config, node.fence, node.nfs, Deadline.after(60))


def test_what_is_exported_has_its_claim_before(node: FakeNode) -> None:
    says(node)
    export(node)
    assert node.world.log == ["claim", "export"]


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_what_can_not_be_exported_keeps_no_claim_to_the_port(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep the port shut for the other volumes of this node."""
    says(node)

    def refused(_fsid: str) -> None:
        raise StandfastError("exportfs: no such host")

    with monkeypatch.context() as patch:
        patch.setattr(exports, "write_atomically", lambda *_: (_ for _ in ()).throw(FULL))
        with pytest.raises(OSError, match="No space left"):
            export(node)
        assert node.world.log == ["claim", "unexport", "release"]
    node.world.log.clear()
    monkeypatch.setattr(node.nfs, "export", refused)
    with pytest.raises(StandfastError, match="no such host"):
        export(node)
    assert node.world.log == ["claim", "unexport", "release"]
    assert not (node.config.run_dir / "exported").exists(), "it was asked nothing"
    node.world.log.clear()
    node.fence.claimed = True
    with pytest.raises(StandfastError, match="no such host"):
        export(node)
    assert node.world.log == ["claim"], "what serves is left as it is"


@pytest.mark.parametrize("said", [None, {"until": NEVER}, {"until": 0.0}, {"epoch": 5}])
def test_nothing_is_exported_for_a_lease_that_is_over(
    node: FakeNode, said: dict[str, Any] | None
) -> None:
    if said is not None:
        says(node, **said)
    with pytest.raises(Refused) as refusal:
        export(node)
    assert refusal.value.reason is Reason.LEASE_NOT_HELD
    assert node.world.log == []


def test_an_export_under_way_is_not_taken_for_unexported(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who surrenders the lease waits for it; else it would come back beside a successor."""
    says(node)
    monkeypatch.setattr(exports, "LOCK_S", 0.0)
    meanwhile = []
    done = node.nfs.export

    def slow(fsid: str) -> None:
        with pytest.raises(Refused) as refusal:
            withdraw(node)
        meanwhile.append(refusal.value.reason)
        done(fsid)

    monkeypatch.setattr(node.nfs, "export", slow)
    export(node)
    assert meanwhile == [Reason.BUSY]
    assert node.world.log == ["claim", "export"]
    withdraw(node)
    assert node.world.log[2:] == ["stop-nfs", "unexport", "release"]


def test_a_server_that_does_not_stop_leaves_the_port_shut_for_every_volume(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(node)
    export(node)

    def stuck(_deadline: Deadline) -> None:
        raise StandfastError("a thread of nfsd is left")

    monkeypatch.setattr(node.nfs, "stop", stuck)
    with pytest.raises(StandfastError, match="is left"):
        withdraw(node)
    assert "release" not in node.world.log


OTHERS = ("music",)


@pytest.fixture
def shared(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    """Another volume is served by the same server, and the epoch's server runs."""
    says(node)
    OwnEpoch(4, Stage.READY, "fsid", None, in_place=True).save(node.config.state_dir)
    export(node)
    node.nfs.running = True
    monkeypatch.setattr(exports, "others_serving", lambda _config: OTHERS)
    node.world.log.clear()
    return node


def test_within_the_lease_the_server_goes_on_for_others(shared: FakeNode) -> None:
    withdraw(shared)
    assert shared.world.log == ["unexport", "release"]


@pytest.mark.parametrize("said", [{"until": NEVER}, {"until": 0.0}, {"epoch": 5}], ids=str)
def test_what_a_server_was_asked_before_is_not_answered_after_the_lease(
    shared: FakeNode, said: dict[str, Any]
) -> None:
    """Also when the export was taken away within it: a request may be stuck since before."""
    withdraw(shared)
    says(shared, **said)
    shared.world.log.clear()
    withdraw(shared)
    assert shared.world.log == ["stop-nfs", "unexport", "release"]
    shared.nfs.running = True  # another volume's agent started it
    shared.world.log.clear()
    withdraw(shared)
    assert shared.world.log == ["unexport", "release"], "this one was asked nothing"


def test_in_doubt_the_volume_was_exported_by_the_server_that_runs(
    shared: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by one that an older version started, which left no mark."""
    says(shared, until=NEVER)
    (shared.config.run_dir / "exported").unlink()

    def unknown(_fsid: str) -> bool:
        raise PermissionError("/var/lib/nfs/etab")

    monkeypatch.setattr(shared.nfs, "is_exported", unknown)
    withdraw(shared)
    assert shared.world.log == ["stop-nfs", "unexport", "release"]
