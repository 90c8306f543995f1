"""One NFS server, several volumes: what the guard makes of its answers for each."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

from standfast import guard
from standfast.cli import services
from standfast.config.model import Config
from standfast.errors import ConfigError, Refused
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


# A node without a volume


def test_a_server_is_foreign_where_nothing_is_configured_and_nothing_ever_was(
    tmp_path: Path,
) -> None:
    etc, state = tmp_path / "etc", tmp_path / "state"
    assert guard.is_foreign(etc, etc, state)
    etc.mkdir()
    (etc / "token").write_text("secret\n")
    assert guard.is_foreign(etc, etc, state)


@pytest.mark.parametrize(
    "make",
    [
        lambda etc, state: (etc / "music.toml").write_text("not TOML"),
        lambda etc, state: state.mkdir(),
        lambda etc, state: state.symlink_to("nowhere"),
        lambda etc, state: (etc.rmdir(), etc.symlink_to("nowhere")),
        lambda etc, state: (etc.rmdir(), etc.write_text("no directory")),
        lambda etc, state: (etc.rmdir(), etc.symlink_to(etc)),
    ],
    ids=["configured", "agent-ran", "state-elsewhere", "link-to-nothing", "file", "circle"],
)
def test_a_server_is_not_foreign_in_doubt(
    tmp_path: Path, make: Callable[[Path, Path], object]
) -> None:
    etc, state = tmp_path / "etc", tmp_path / "state"
    etc.mkdir()
    make(etc, state)
    assert not guard.is_foreign(etc, etc, state)


def test_a_directory_that_somebody_names_holds_a_configuration_or_is_a_doubt(
    tmp_path: Path,
) -> None:
    assert not guard.is_foreign(tmp_path / "named", tmp_path / "etc", tmp_path / "state")


def guard_of_all(monkeypatch: pytest.MonkeyPatch, error: ConfigError, foreign: bool) -> int:
    """What the unit's guard answers where no configuration can be loaded."""

    def load() -> None:
        raise error

    monkeypatch.setattr(services, "load_stored", load)
    monkeypatch.setattr(services, "set_up_log", lambda: None)
    monkeypatch.setattr(guard, "is_foreign", lambda _directory: foreign)
    return services.guard(Namespace(volume=None))


def test_the_guard_lets_a_server_that_is_not_standfasts_start_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard_of_all(monkeypatch, ConfigError("there is none"), foreign=True) == 0
    assert "no volume is configured" in capsys.readouterr().out


def test_the_guard_refuses_where_the_configuration_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard_of_all(monkeypatch, ConfigError("it is gone"), foreign=False) == 1
    assert "it is gone" in capsys.readouterr().err
