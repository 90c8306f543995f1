"""What keeps a primary from giving its role up in order is found out before anything stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from standfast.errors import StandfastError
from standfast.node.node import Machine
from standfast.node.obstacle import CHECKS, Weight
from standfast.node.ports import LiveTree, Writer
from standfast.node.space import MIB, Space
from standfast.role.ahead import letting_go
from standfast.role.ahead.letting_go import in_the_way
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.fakes.machine import FakeNode, fake_node
from tests.support.scripts import script
from tests.unit.agents import SERVING, FakeAgent, agent, refusal, say, with_config

MYSQLD = Writer(47, "mysqld", "/data/services/db", "mysql.service")
CACHE = "/data/services/cache"


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    return stop_the_clock(monkeypatch)


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return served(fake_node(tmp_path))


def served(node: FakeNode) -> FakeNode:
    node.store.tree = LiveTree(node.config.paths.live, "uuid", writable=True)
    node.bind.mounted = True
    return node


def told(machine: Machine) -> list[tuple[str, Weight]]:
    return [(obstacle.check, obstacle.weight) for obstacle in in_the_way(machine)]


def test_nothing_keeps_a_primary_that_is_well(node: FakeNode) -> None:
    assert told(node.machine) == []
    assert set(letting_go.LOOKS) <= set(CHECKS)


def writes(node: FakeNode) -> None:
    node.store.writing = [MYSQLD]


def mounts_below(node: FakeNode) -> None:
    node.bind.below = [CACHE]


def pinned(node: FakeNode) -> None:
    node.store.in_the_way = "/persist/services is immutable: chattr -i"


def nested(node: FakeNode) -> None:
    node.store.left_out = "it contains other subvolumes: db"


def no_metadata(node: FakeNode) -> None:
    node.store.room = Space(1 << 41, 1 << 40, 0, 512 * MIB)


KEEPS: dict[str, tuple[Callable[[FakeNode], None], Weight, str]] = {
    "writers": (writes, Weight.REFUSES, "mysqld (pid 47: /data/services/db)"),
    "bind": (mounts_below, Weight.REFUSES, CACHE),
    "disk": (pinned, Weight.BARS, "immutable"),
    "snapshot": (nested, Weight.BARS, "contains other subvolumes: db"),
    "space": (no_metadata, Weight.REFUSES, "0 MiB are left for metadata"),
}


@pytest.mark.parametrize("check", KEEPS)
def test_what_the_plan_would_fail_at_is_found_with_what_mends_it(
    node: FakeNode, check: str
) -> None:
    make, weight, words = KEEPS[check]
    make(node)
    [obstacle] = in_the_way(node.machine)
    assert (obstacle.check, obstacle.weight) == (check, weight)
    assert words in obstacle.evidence and obstacle.fix
    if check == "writers":
        assert "systemctl stop mysql.service" in obstacle.fix
    if check == "bind":
        assert f"umount {CACHE}" in obstacle.fix


def as_primary(directory: Path, check: str) -> FakeAgent:
    made = with_config(agent(directory, SERVING), preferred="n2")
    machine = made.machine
    node = FakeNode(
        machine.store.world,  # type: ignore[attr-defined]
        machine.config,
        machine.store,  # type: ignore[arg-type]
        machine.nfs,  # type: ignore[arg-type]
        machine.fence,  # type: ignore[arg-type]
        machine.bind,  # type: ignore[arg-type]
        machine.units,  # type: ignore[arg-type]
        machine.consul,  # type: ignore[arg-type]
        machine.sender,  # type: ignore[arg-type]
    )
    make, _, _ = KEEPS[check]
    make(served(node))
    return made


@pytest.mark.parametrize("check", KEEPS)
@pytest.mark.parametrize("command", ["demote", "switchover", "failback"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_handover_that_this_node_would_fail_at_is_refused_before_anything_stops(
    tmp_path: Path, check: str, command: str, *, dry_run: bool
) -> None:
    made = as_primary(tmp_path, check)
    made.machine.sender.broken = True  # type: ignore[attr-defined]  # the target isn't asked yet
    to = "n2" if command == "switchover" else None
    reason, error = refusal(say(made, command, to=to, dry_run=dry_run))
    assert (reason, made.ran) == ("not-ready", [])
    assert error.startswith("n1 can't let go of the role in order; nothing was stopped:\n")
    assert KEEPS[check][2] in error and "->" in error
    is_light = KEEPS[check][1] is Weight.REFUSES and command != "demote"
    assert (f"--despite {check}`" in error) == is_light
    assert made.busy is None


@pytest.mark.parametrize("check", KEEPS)
def test_a_word_goes_past_what_may_come_to_pass_alone(tmp_path: Path, check: str) -> None:
    made = as_primary(tmp_path, check)
    lines = say(made, "switchover", to="n2", despite=check)
    if KEEPS[check][1] is Weight.BARS:
        assert refusal(lines)[0] == "not-ready" and made.ran == []
    else:
        assert lines[-1]["done"] is True and len(made.ran) == 1


@pytest.mark.parametrize("check", KEEPS)
def test_from_a_disk_that_takes_no_writes_the_role_goes_whatever_is_open_there(
    tmp_path: Path, check: str
) -> None:
    made = as_primary(tmp_path, check)
    made.machine.store.read_only = True  # type: ignore[attr-defined]
    assert say(made, "demote", accept_data_loss=True)[-1]["done"] is True
    [(plan, _)] = made.ran
    assert plan.name == "surrender"


def looks(node: FakeNode, monkeypatch: pytest.MonkeyPatch, *seen: Sequence[Writer]) -> None:
    """What each look shows; the last stays."""
    left = list(seen)
    monkeypatch.setattr(
        node.store, "writers", lambda _deadline: left.pop(0) if len(left) > 1 else left[0]
    )


def test_who_is_just_ending_or_opens_a_file_now_and_then_keeps_nobody(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks(node, monkeypatch, [MYSQLD], [MYSQLD], [])
    assert told(node.machine) == []
    others = [replace(MYSQLD, pid=pid) for pid in range(48, 60)]
    looks(node, monkeypatch, *([other] for other in others))
    assert told(node.machine) == []


@pytest.mark.parametrize(
    "writer",
    [
        Writer(9, "ganesha.nfsd", "/persist/services/db"),
        Writer(9, "a-thread", "/persist/services/db", "nfs-server.service"),
        Writer(9, "app", "/data/services/db", "app.service"),
    ],
)
def test_who_the_plan_stops_refuses_nothing(node: FakeNode, writer: Writer) -> None:
    """The server outside the kernel, and a service that requires the path's mount unit."""
    node.bind.services = ["app.service"]
    node.store.writing = [writer]
    assert told(node.machine) == []


@pytest.mark.parametrize("check", ["writers", "bind"])
@pytest.mark.parametrize("ends", ["jobs", "a hook", "a hook that isn't run"])
def test_what_jobs_or_hooks_may_end_is_told_alone(node: FakeNode, check: str, ends: str) -> None:
    KEEPS[check][0](node)
    config = node.config
    if ends == "jobs":
        config = structs.replace(config, nomad=structs.replace(config.nomad, enabled=True))
    else:
        hooks = config.state_dir / "hooks"
        script(hooks / "pre-demote" / "stop-db", "systemctl stop mysql")
        if ends != "a hook":
            (hooks / "pre-demote" / "stop-db").chmod(0o644)
        config = structs.replace(config, hooks=structs.replace(config.hooks, dir=hooks))
    weight = Weight.REFUSES if ends == "a hook that isn't run" else Weight.TOLD
    assert told(replace(node.machine, config=config)) == [(check, weight)]


def test_little_room_is_told_and_a_look_that_fails_ends_no_other(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.store.room = Space(1 << 41, 1 << 40, 100 * MIB, 512 * MIB)
    writes(node)

    def fails() -> str | None:
        raise StandfastError("btrfs hangs")

    monkeypatch.setattr(node.store, "snapshot_obstacle", fails)
    assert told(node.machine) == [
        ("snapshot", Weight.TOLD),
        ("space", Weight.TOLD),
        ("writers", Weight.REFUSES),
    ]
