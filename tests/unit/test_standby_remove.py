"""`standfast standby remove`: of a node that is no storage node any more nothing is remembered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from standfast.cli import standby_remove
from standfast.consul.records import Holder, Leader, LeaderState, StandbyRecord
from standfast.replication import pins, state
from standfast.replication.state import Shared
from tests.support.terminal import Desk, a_desk

NAME = "services@20261122T101500Z"


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nodes whose timers were stopped: no systemd is asked."""
    nodes: list[str] = []

    class Timers:
        def __init__(self, *_: object) -> None:
            pass

        def forget(self, node: str) -> None:
            nodes.append(node)

    monkeypatch.setattr(standby_remove, "ReplicationTimers", Timers)
    return nodes


@pytest.fixture
def desk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    """zippy, which has replicated to c1 and, before it was taken out, to c9."""
    with a_desk(tmp_path, monkeypatch, capsys) as made:
        for node in ("c1", "c9"):
            pins.note(made.config, node, pins.Pin(NAME, "id", 1, 1e9))
            shared = Shared(NAME, "id", 1)
            state.note_success(made.config, node, shared, duration_s=1.0, sent_bytes=1)
            made.put(f"standbys/{node}", StandbyRecord(node, 1, NAME, "id", 1e9).dump())
        yield made


def remembered(desk: Desk) -> set[str]:
    """Nodes of which anything is left here or in Consul."""
    known = {*pins.load(desk.config), *state.load(desk.config).standbys}
    return known | {node for node in ("c1", "c9") if desk.key(f"standbys/{node}") is not None}


def test_nothing_of_a_removed_node_is_remembered(desk: Desk, stopped: list[str]) -> None:
    assert desk.run("standby", "remove", "c9")[0] == 0
    assert remembered(desk) == {"c1"}
    assert stopped == ["c9"]


def test_a_dry_run_forgets_nothing(desk: Desk, stopped: list[str]) -> None:
    code, out, _ = desk.run("standby", "remove", "c9", "--dry-run")
    assert code == 0 and f"would no longer keep {NAME} for c9" in out
    assert pins.load(desk.config).keys() == state.load(desk.config).standbys.keys() == {"c1", "c9"}
    assert desk.key("standbys/c9") is not None
    assert stopped == []


def test_a_node_that_is_still_configured_is_not_removed(desk: Desk, stopped: list[str]) -> None:
    code, _, err = desk.run("standby", "remove", "c1")
    assert code == 1 and err.startswith("standfast: still-configured: ")
    assert remembered(desk) == {"c1", "c9"} and stopped == []


def test_the_primary_is_not_removed_whatever_the_configuration_says(
    desk: Desk, stopped: list[str]
) -> None:
    desk.put("leader", Leader(3, Holder("c9", "boot"), 1, LeaderState.SERVING, ()).dump())
    code, _, err = desk.run("standby", "remove", "c9")
    assert code == 1 and err.startswith("standfast: serving: ")
    assert remembered(desk) == {"c1", "c9"} and stopped == []
