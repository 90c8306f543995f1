"""What a script or a timer sees: the exit status of commands whose answer is in it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from standfast import guard
from standfast.agent import document as status
from standfast.cli import clients, verify
from standfast.clients.loop import Remount
from standfast.config.load import load
from standfast.config.model import Config
from standfast.doctor.finding import Finding
from standfast.errors import NeedsRoot, NotRunning, Refused, StandfastError, TimedOut, Unreachable
from standfast.names import SnapshotName
from standfast.reasons import Reason
from standfast.replication.cycle import CycleResult, Sender
from standfast.replication.fingerprint import Fingerprint
from standfast.replication.verify import Comparison
from standfast.status.document import Status
from standfast.system.clock import Deadline
from standfast.system.local_socket import connect, listen
from tests.fakes.client import FakeClient
from tests.support.observations import UTC, cluster
from tests.support.observations import config as of_three
from tests.support.scripts import script
from tests.support.terminal import Terminal, write_node

NAME = "services@20261122T101500Z"
OTHERS = """\
[nodes.c2]
address = "192.168.1.4"
[hooks]
dir = "{root}/hooks.d"
"""


@pytest.fixture
def zippy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    """A storage node whose standbys are c1 and c2."""
    path = write_node(tmp_path / "etc", tmp_path, "zippy", OTHERS.format(root=tmp_path))
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(path.parent))
    return Terminal(load(path), capsys)


# status, doctor


@pytest.mark.parametrize(("silent_s", "code"), [(1.0, 0), (9.0, 1)])
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_status_says_whether_somebody_serves(
    zippy: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    silent_s: float,
    code: int,
    form: tuple[str, ...],
) -> None:
    """The last heartbeat of a holder counts as long as a lease (8 s) lasts."""
    monkeypatch.setattr(status, "monotonic", lambda: 1000.0)
    doc = status.build(cluster("e5 a/a1 #7 serving", silent=silent_s), None, of_three(), UTC)
    monkeypatch.setattr("standfast.cli.status.fetch", lambda _: doc)
    assert zippy.run("status", *form)[0] == code


def test_status_that_can_not_know_who_serves_does_not_say_that_nobody_does(
    zippy: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No agent, and Consul is down: a script must not take that for the loss of the service."""
    code, out, _ = zippy.run("status")
    assert code == 3 and "UNKNOWN WHO SERVES" in out
    code, out, _ = zippy.run("status", "--json")
    assert (code, json.loads(out)["failover"]["reason"]) == (3, "consul-unreachable")
    starting = Status(volume="data-services", node="zippy", role="starting")
    monkeypatch.setattr("standfast.cli.status.fetch", lambda _: starting)
    assert zippy.run("status")[0] == 3


def test_status_without_root_does_not_say_that_no_agent_runs(
    zippy: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: Config) -> Status:
        raise NeedsRoot("agent.sock can't be asked: this needs root: run it with sudo")

    monkeypatch.setattr("standfast.cli.status.of_agent", denied)
    code, out, _ = zippy.run("status")
    assert code != 4 and "no agent runs here" not in out


def test_a_command_without_an_agent_has_a_code_of_its_own(zippy: Terminal) -> None:
    code, out, err = zippy.run("demote", "--json")
    assert (code, json.loads(out)["reason"]) == (3, "not-running")
    assert "systemctl start standfast-agent@data-services" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_a_socket_of_roots_is_told_from_one_that_nobody_listens_at(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with pytest.raises(NotRunning), connect(path, Deadline.after(1.0)):
        pass
    with listen(path):
        os.seteuid(65534)
        try:
            with pytest.raises(NeedsRoot, match="sudo"), connect(path, Deadline.after(1.0)):
                pass
        finally:
            os.seteuid(0)
    with pytest.raises(NotRunning), connect(path, Deadline.after(1.0)):
        pass


@pytest.mark.parametrize(("well", "code"), [(True, 0), (False, 1)])
def test_doctor_says_whether_every_check_is_well(
    zippy: Terminal, monkeypatch: pytest.MonkeyPatch, well: bool, code: int
) -> None:
    findings = [Finding("disk", True, "it is there"), Finding("tools", well, "as it is", "do this")]
    monkeypatch.setattr("standfast.cli.doctor.looks_of", lambda _: {"storage": lambda: findings})
    assert zippy.run("doctor")[0] == code
    assert zippy.run("doctor", "--json")[0] == code


# verify


def compared(standby: str, theirs: str) -> Comparison:
    ours = Fingerprint("same", 3)
    return Comparison(standby, NAME, "x", True, ours, Fingerprint(theirs, 3), 0.1, 9)


@pytest.mark.parametrize(("theirs", "code", "reason"), [
    ({"c1": "same", "c2": "same"}, 0, None),
    ({"c1": "same", "c2": "other"}, 1, Reason.CONTENT_DIFFERS),
    ({"c1": "same", "c2": Unreachable("no answer")}, 3, Reason.REPLICATION_FAILED),
    ({"c1": Unreachable("no answer"), "c2": "other"}, 1, Reason.CONTENT_DIFFERS),
    ({"c1": "same", "c2": Refused(Reason.CONTENT_DIFFERS, "EIO")}, 1, Reason.CONTENT_DIFFERS),
])  # fmt: skip
def test_verify_says_whether_all_are_equal(
    zippy: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    theirs: dict[str, str | StandfastError],
    code: int,
    reason: Reason | None,
) -> None:
    def compare(_config: Config, _store: object, standby: str, **_: object) -> Comparison:
        answer = theirs[standby]
        if isinstance(answer, StandfastError):
            raise answer
        return compared(standby, answer)

    monkeypatch.setattr(verify, "compare", compare)
    assert zippy.run("verify")[0] == code
    got, out, _ = zippy.run("verify", "--json")
    assert (got, json.loads(out).get("reason")) == (code, reason)


# replicate


def cycles(monkeypatch: pytest.MonkeyPatch, failing: dict[str, StandfastError]) -> None:
    def cycle(_: Sender, standby: str, **__: object) -> CycleResult:
        if standby in failing:
            raise failing[standby]
        return CycleResult(SnapshotName.parse(NAME), None, 9, 0.1, was_full=True)

    monkeypatch.setattr(Sender, "cycle", cycle)


def hook_of_failed_cycles(config: Config) -> Path:
    """Where each call of the hook leaves a line."""
    hook, told = config.hooks.dir / "failed-cycle" / "10-x", config.hooks.dir.parent / "told"
    script(hook, f'echo "$STANDFAST_STANDBY $STANDFAST_REASON" >> {told}')
    told.touch()
    return told


@pytest.mark.parametrize(("failing", "code"), [
    ({}, 0),
    ({"c2": TimedOut("nothing moved")}, 1),
])  # fmt: skip
def test_replicate_says_whether_every_standby_has_it(
    zippy: Terminal, monkeypatch: pytest.MonkeyPatch, failing: dict[str, StandfastError], code: int
) -> None:
    cycles(monkeypatch, failing)
    assert zippy.run("replicate")[0] == code
    got, out, _ = zippy.run("replicate", "--json")
    doc = json.loads(out)
    assert (got, doc["done"]) == (code, code == 0)
    assert ["error" in outcome for outcome in doc["replicated"]] == [
        standby in failing for standby in ("c1", "c2")
    ]


def test_a_cycle_that_failed_has_its_hooks_and_its_own_exit_status(
    zippy: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = hook_of_failed_cycles(zippy.config)
    cycles(monkeypatch, {"c1": TimedOut("nothing moved")})
    assert zippy.run("replicate", "--instance", "data-services:c1")[0] == 3
    assert told.read_text().splitlines() == ["c1 deadline"]


@pytest.mark.parametrize("reason", [Reason.NOT_PRIMARY, Reason.BUSY])
def test_a_cycle_that_is_not_due_has_no_hooks(
    zippy: Terminal, monkeypatch: pytest.MonkeyPatch, reason: Reason
) -> None:
    told = hook_of_failed_cycles(zippy.config)
    cycles(monkeypatch, {"c1": Refused(reason, "not now")})
    assert zippy.run("replicate", "--instance", "data-services:c1")[0] == 1
    assert told.read_text() == ""


# remount


@pytest.mark.parametrize(("tree", "code"), [(1, 0), (None, 4)])
def test_remount_says_whether_it_is_done(
    zippy: Terminal, monkeypatch: pytest.MonkeyPatch, tree: int | None, code: int
) -> None:
    client = FakeClient(zippy.config)
    client.serve("192.168.1.3", 1, 1)
    client.trees["192.168.1.3"] = tree
    at_once = Deadline.after(0)
    monkeypatch.setattr(clients, "parts_of", lambda _: client.parts)
    monkeypatch.setattr(clients, "Remount", lambda parts: Remount(parts, limit=at_once))
    assert zippy.run("remount", "--volume", "data-services")[0] == code
    assert client.is_right() == (code == 0)


def test_a_volume_that_is_configured_wrongly_does_not_keep_the_others_from_their_remount(
    zippy: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    (zippy.config.source.parent / "a-broken-one.toml").write_text("cluster = 1")
    client = FakeClient(zippy.config)
    client.serve("192.168.1.3", 1, 1)
    monkeypatch.setattr(clients, "parts_of", lambda _: client.parts)
    assert zippy.run("remount")[0] == 2
    assert client.is_right()


# guard


def test_the_guard_of_several_volumes_answers_by_the_shortest_of_their_deadlines(
    zippy: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = zippy.config.source
    first.write_text(first.read_text() + "[guard]\ndeadline = 40\n")
    text = first.read_text().replace("/persist", "/other").replace("/data", "/more")
    first.with_name("other.toml").write_text(text.replace("deadline = 40", "deadline = 20"))
    left: list[float] = []

    def main(configs: tuple[Config, ...], deadline: Deadline) -> int:
        left.append(deadline.remaining_s())
        return 0

    monkeypatch.setattr(guard, "main", main)
    assert zippy.run("guard") == (0, "", "")
    assert len(left) == 1 and left[0] <= 20
