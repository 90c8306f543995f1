"""One NFS server, several volumes: what the guard makes of its answers for each."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

from standfast import guard
from standfast.config.model import Config
from standfast.errors import Refused
from standfast.guard import Question, check_fence, node_verdict
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import FenceState
from standfast.reasons import Reason
from standfast.system.clock import Deadline
from tests.fakes.machine import FakeNfs, World
from tests.support.configs import config_in

OWN = OwnEpoch(4, Stage.READY, "fsid", None, in_place=True)


@pytest.fixture
def volumes(tmp_path: Path) -> tuple[Config, Config]:
    """`data`, which may be served, and `music`, which may not."""
    config = config_in(tmp_path)
    return replace(config, volume="data"), replace(config, volume="music")


@pytest.fixture(autouse=True)
def refused(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The volumes that may not be served."""
    names = {"music"}

    def judge(config: Config, _deadline: Deadline, _ask: object) -> None:
        if config.volume in names:
            raise Refused(Reason.LEASE_NOT_HELD, f"the lease of {config.volume} is n2's")

    monkeypatch.setattr(guard, "judge", judge)
    return names


def verdict(volumes: tuple[Config, Config], nfs: FakeNfs | None = None) -> str:
    """`nfs`: the server, as the volume that may not be served has it."""
    question = SimpleNamespace(nfs=nfs or FakeNfs(World(), "fsid"))
    return node_verdict(volumes, Deadline.after(60), lambda *_: cast("Question", question))


def test_a_volume_that_is_a_standby_here_keeps_no_other_from_being_served(
    volumes: tuple[Config, Config],
) -> None:
    assert verdict(volumes, FakeNfs(World())) == "data"


def test_an_export_whose_epoch_nobody_knows_is_one(volumes: tuple[Config, Config]) -> None:
    """The state directory was lost, and a power cut left the export."""
    with pytest.raises(Refused, match="music"):
        verdict(volumes)


def test_a_server_does_not_start_with_a_volume_that_is_exported_still(
    volumes: tuple[Config, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts the server would serve it, too."""
    OWN.save(volumes[1].state_dir)
    nfs = FakeNfs(World(), "fsid")
    with pytest.raises(Refused, match="music"):
        verdict(volumes, nfs)

    def unknown() -> bool:
        raise PermissionError("/etc/exports.d")

    monkeypatch.setattr(nfs, "would_export", unknown)
    with pytest.raises(Refused, match="music"):
        verdict(volumes, nfs)


def test_what_is_left_of_an_epoch_that_is_not_exported_keeps_no_other_from_being_served(
    volumes: tuple[Config, Config],
) -> None:
    """To put it away may take a disk that is gone."""
    OWN.save(volumes[1].state_dir)
    assert verdict(volumes, FakeNfs(World())) == "data"


def test_an_epoch_that_can_not_be_read_is_one(volumes: tuple[Config, Config]) -> None:
    OWN.save(volumes[1].state_dir)
    (volumes[1].state_dir / "own-epoch.json").write_text("{}")
    with pytest.raises(Refused, match="music"):
        verdict(volumes)


def test_a_server_without_any_volume_does_not_start(
    volumes: tuple[Config, Config], refused: set[str]
) -> None:
    refused.add("data")
    with pytest.raises(Refused, match="data"):
        verdict(volumes)
    with pytest.raises(Refused, match="no volume is configured"):
        node_verdict((), Deadline.after(60))


def test_a_server_does_not_start_with_a_volume_that_has_no_claim_to_the_port(
    volumes: tuple[Config, Config],
) -> None:
    """An export that a power cut left behind is served with whatever else is."""
    with pytest.raises(Refused, match="promotion of data has not come to its export") as caught:
        check_fence(volumes[0], FenceState(in_place=True, open_for_s=8.0, claimed=False))
    assert caught.value.reason is Reason.FENCE_NOT_ARMED
    check_fence(volumes[0], FenceState(in_place=True, open_for_s=0.0, claimed=True))
