"""All checks as one list: groups, causes, a check that fails or hangs, and the way to a standby."""

from __future__ import annotations

import argparse
import base64
import errno
import json
import os
import pwd
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from standfast.cli import doctor, targets
from standfast.config.model import Config, Hooks, Node, Replication
from standfast.consul.values import parse_election_timeout
from standfast.doctor import node_checks, standby_checks, storage_checks
from standfast.doctor.causes import CAUSES
from standfast.doctor.finding import Finding
from standfast.doctor.run import GROUPS, document, gather, listed, looks_of, render
from standfast.errors import TimedOut, Unreachable
from standfast.names import SnapshotName
from standfast.node.obstacle import CHECKS
from standfast.node.ports import Snapshot
from standfast.replication.storage_facts import Facts
from standfast.status.document import FromConsul, Standby, Status, Verified
from standfast.system.clock import Deadline
from standfast.system.threads import Question
from tests.support.checkout import CHECKOUT
from tests.support.configs import config_in
from tests.support.pace import patient

pytestmark = pytest.mark.usefixtures("demo_parts")

SOURCES = {
    "service": ["doctor/service_checks.py", "doctor/run.py"],
    "storage": ["doctor/storage_checks.py", "doctor/exposure_checks.py"],
    "replication": ["doctor/standby_checks.py"],
    "clients": ["doctor/client_checks.py"],
    "takeover": ["doctor/takeover_checks.py"],
    "nomad": ["doctor/nomad_checks.py"],
    "node": ["doctor/node_checks.py"],
}
# Problems of the preflight come with their own names; these are never bad, or of any group.
NEVER_BAD = {"confined", "elections", "eligible", "export", "limit", "look", "ready", "users"}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_in(tmp_path)


@pytest.mark.parametrize("group", GROUPS)
def test_every_check_says_what_it_means(group: str) -> None:
    text = "".join((CHECKOUT / "standfast" / name).read_text() for name in SOURCES[group])
    named = set(re.findall(r'Finding\(\s*"([a-z-]+)"', text))
    if group in ("storage", "replication"):
        preflight = (CHECKOUT / "standfast/replication/preflight.py").read_text()
        named |= set(re.findall(r'Problem\(\s*"([a-z-]+)"', preflight))
    if group == "takeover":
        named |= set(CHECKS) - {"writers"}  # asked of a primary alone, before a handover
        rooms = (CHECKOUT / "standfast" / name for name in ("agent", "nfs", "role"))
        made = "".join(path.read_text() for room in rooms for path in room.rglob("*.py"))
        assert set(re.findall(r'Obstacle\(\s*"([a-z-]+)"', made)) <= set(CHECKS)
    if group == "storage":
        named -= {"clock", "store"}  # between two nodes
    if group in ("storage", "replication"):
        named -= {"space"}  # for one snapshot: told by `standby add` and by a replication
    known = {check for its_group, check in CAUSES if its_group == group}
    assert named - NEVER_BAD <= known, named - known
    assert all(len(check) <= 10 and CAUSES[group, check].endswith(".") for check in known)


def test_a_group_that_fails_or_hangs_is_a_finding_and_the_others_are_there() -> None:
    hold = threading.Event()

    def hangs() -> Iterator[Finding]:
        hold.wait(60)
        return iter(())

    def breaks() -> list[Finding]:
        raise KeyError("x")

    def refuses() -> list[Finding]:
        raise Unreachable("no way")

    looks: dict[str, Any] = {
        "service": lambda: [Finding("serving", True, "n1 serves", "a fix of no use")],
        "storage": breaks,
        "clients": refuses,
        "node": hangs,
    }
    findings = gather(looks, Deadline.after(1.0))
    hold.set()
    assert [(finding.group, finding.check, finding.ok) for finding in findings] == [
        ("service", "serving", True),
        ("storage", "look", False),
        ("clients", "look", False),
        ("node", "look", False),
    ]
    assert findings[0].fix == "" and findings[0].cause == ""
    assert "KeyError: 'x'" in findings[1].evidence and "no way" in findings[2].evidence
    assert "no answer in time" in findings[3].evidence
    assert all(finding.fix for finding in findings[1:])


def test_the_text_has_a_heading_for_each_group_and_the_cause_and_fix_below() -> None:
    findings = [
        listed("service", Finding("serving", False, "nobody", "do this")),
        listed("replication", Finding("age", True, "3 s behind", "", "n2")),
    ]
    assert render(findings).splitlines() == [
        "service",
        "BAD  serving   nobody",
        "               Clients wait until somebody serves.",
        "               -> do this",
        "",
        "replication",
        "ok   age       n2: 3 s behind",
        "",
        "2 checks, 1 bad",
    ]


def test_the_names_of_the_json_are_stable(config: Config) -> None:
    finding = listed("replication", Finding("age", False, "a day behind", "do this", "n2"))
    assert document(config, [finding]) == {
        "v": 1,
        "volume": "data-services",
        "node": "n1",
        "ok": False,
        "findings": [
            {
                "group": "replication",
                "check": "age",
                "subject": "n2",
                "ok": False,
                "cause": CAUSES["replication", "age"],
                "evidence": "a day behind",
                "fix": "do this",
            }
        ],
    }


def test_an_agent_that_hangs_keeps_no_other_check_from_its_answer(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hangs(_config: Config, *, listens: bool) -> dict[str, Any]:
        raise TimedOut("no whole line arrived in time")

    strange = config.paths.live.parent / "hooks.d"
    (strange / "pre-promotion").mkdir(parents=True)
    hooked = structs.replace(config, hooks=Hooks(dir=strange))
    monkeypatch.setattr("standfast.doctor.run.fetch", hangs)
    monkeypatch.setattr(targets, "load_volume", lambda *_args, **_more: hooked)
    assert (
        doctor.run(argparse.Namespace(volume="data-services", json=True, all=False, on=None)) == 1
    )
    doc = json.loads(capsys.readouterr().out)
    assert [finding["check"] for finding in doc["findings"] if finding["group"] == "service"] == [
        "agent"
    ]
    assert [finding["check"] for finding in doc["findings"] if finding["group"] == "node"] == [
        "name",
        "hooks",
    ]


# Standbys

TOLD = Standby("n2", age_s=30.0, snapshot="services@x", candidate=True)
VERIFIED = Verified(ok=True, at=1_795_000_000.0, snapshot="services@x", full=True)
DATA: dict[str, tuple[dict[str, Any], set[str]]] = {
    "well": ({"verified": VERIFIED}, set()),
    "late": ({"age_s": 601.0}, {"age"}),
    "empty": ({"age_s": None}, {"age"}),
    "failed": ({"failure": "no-space: full"}, {"cycle"}),
    "lost": ({"needs_full": True, "failure": "needs-full: x"}, {"full"}),
    "damaged": ({"verified": structs.replace(VERIFIED, ok=False)}, {"verified"}),
}


@pytest.mark.parametrize("case", DATA)
def test_what_status_knows_of_a_standby_is_judged(config: Config, case: str) -> None:
    told, bad = DATA[case]
    findings = standby_checks.examine(structs.replace(TOLD, **told), config)
    assert {finding.check for finding in findings if not finding.ok} == bad
    assert all(finding.subject == "n2" and finding.fix for finding in findings if not finding.ok)


def facts(node: str, **changes: Any) -> Facts:
    made = Facts(
        node, "directory", 1000.0, 2**40, (), (), "6.1", None,
        {"live": "/a", "snapshots": "/", "standby": "/b"}, {}, (), None, None, (),
    )  # fmt: skip
    return structs.replace(made, **changes)


def test_two_clocks_are_compared_within_the_time_that_the_question_took() -> None:
    ahead = facts("n2", utc_s=1004.0)
    assert [finding.check for finding in standby_checks.compare(facts("n1"), ahead, 4.0)] == [
        "survey"
    ]
    [clock] = standby_checks.compare(facts("n1"), ahead, 0.5)
    assert (clock.check, clock.ok, clock.subject) == ("clock", False, "n2")


def held_by(holder: str, *standbys: Standby) -> Status:
    told = FromConsul(4, holder, "serving", standbys=standbys)
    return Status(volume="data-services", node="n1", role="unknown", consul=told)


def primary(config: Config, command: list[str]) -> Config:
    return structs.replace(
        config,
        nodes={"n1": Node(address="127.0.0.1"), "n2": Node(address="127.0.0.2")},
        replication=Replication(command=tuple(command)),
    )


def test_a_standby_that_does_not_answer_is_named_with_the_command_that_goes_on(
    config: Config,
) -> None:
    there = primary(config, [sys.executable, "-c", "raise SystemExit(255)"])
    findings = standby_checks.look(there, held_by("n1", TOLD))
    [bad] = [finding for finding in findings if not finding.ok]
    assert (bad.check, bad.subject) == ("survey", "n2")
    assert "n2 can't be reached" in bad.evidence and "standby add n2" in bad.fix
    assert [finding.check for finding in findings if finding.ok] == ["age"]


def test_without_a_key_nothing_is_made(config: Config, tmp_path: Path) -> None:
    there = structs.replace(config, replication=Replication(ssh_key=tmp_path / "key"))
    findings = standby_checks.look(there, held_by("n1"))
    assert [(finding.check, finding.ok, finding.subject) for finding in findings] == [
        ("way", False, "n2"),
        ("way", False, "n3"),
    ]
    assert "standfast standby add n2" in findings[0].fix
    assert not list(tmp_path.glob("key*"))


def test_a_standby_looks_at_no_other(config: Config) -> None:
    assert standby_checks.look(config, held_by("n2", TOLD)) == []
    assert standby_checks.look(config, None) == []


# The storage


def test_who_has_the_role_is_told_to_the_look_at_the_storage(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.paths.live.mkdir(parents=True)
    monkeypatch.setattr("standfast.doctor.run.fetch", lambda _config, **_: held_by("n2"))
    assert [seen.check for seen in looks_of(config)["storage"]() if not seen.ok] == ["replicas"]


def test_a_standby_without_a_replica_is_not_well(config: Config) -> None:
    """Its own look, also where the standby directory is gone; a primary needs none."""

    def told(holder: str | None) -> list[tuple[bool, str]]:
        findings = storage_checks.look(config, holder)
        return [(seen.ok, seen.evidence) for seen in findings if seen.check == "replicas"]

    config.paths.live.mkdir(parents=True)
    [(ok, evidence)] = told("n2")
    assert not ok and f"no published snapshot is in {config.paths.standby}" in evidence
    assert told("n1") == told(None) == []
    name = SnapshotName.at(config.base, 1_795_342_500.0)
    published = Snapshot(name, config.paths.standby / str(name), "id", received=True)
    own = Snapshot(name, config.paths.snapshots / str(name), "id", received=False)
    assert storage_checks.replicas(config, [own, published], "n2").ok
    lacking = storage_checks.replicas(config, [own], "n2")
    assert not lacking.ok and "on n2: standfast standby add n1" in lacking.fix


def blob() -> str:
    return base64.b64encode(b"\0\0\0\x0bssh-ed25519" + bytes(36)).decode()


def test_a_line_that_lets_a_key_pass_for_any_node_is_named_with_the_one_to_put_there(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "authorized_keys"
    monkeypatch.setattr(storage_checks, "authorized_keys_of", lambda _user: file)
    monkeypatch.setattr(storage_checks, "SYSTEM_KEYS", tmp_path / "none")
    me = pwd.getpwuid(os.getuid()).pw_name
    config = structs.replace(config, replication=structs.replace(config.replication, ssh_user=me))
    assert storage_checks.lines(config) == []
    key = f"ssh-ed25519 {blob()} standfast-{config.cluster}-n2"
    file.write_text(f'restrict,command="standfast receive {config.volume}" {key}\n')
    [bad] = storage_checks.lines(config)
    assert not bad.ok and f"line 1 of {file} lacks --from n2, from=" in bad.evidence
    file.write_text(bad.fix.rpartition(": ")[2])
    [good] = storage_checks.lines(config)
    assert good.ok and good.check == bad.check == "line"
    file.with_name("authorized_keys2").write_text(f"{key}\n")
    [further] = storage_checks.lines(config)
    assert not further.ok and f"line 1 of {file}2 lets do something else" in further.evidence
    assert f"the key of line 1 of {file}," in further.evidence
    by_hand = structs.replace(config.replication, command=("nc", "{address}"))
    assert storage_checks.lines(structs.replace(config, replication=by_hand)) == []


@pytest.mark.parametrize("what", ["a FIFO", "a link", "huge"])
def test_a_file_of_keys_that_a_user_has_spoiled_is_not_read(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Doctor is root: it waits for nobody, and reads nothing that the user could not."""
    file, secret = tmp_path / "authorized_keys", tmp_path / "secret"
    line = f'restrict,command="standfast receive {config.volume}" ssh-ed25519 {"A" * 68}\n'
    if what == "a FIFO":
        os.mkfifo(file)
    elif what == "a link":
        secret.write_text(line)
        file.symlink_to(secret)
    else:
        file.touch()
        os.truncate(file, 2 << 20)
    monkeypatch.setattr(storage_checks, "authorized_keys_of", lambda _user: file)
    monkeypatch.setattr(storage_checks, "SYSTEM_KEYS", tmp_path / "none")
    me = pwd.getpwuid(os.getuid()).pw_name
    config = structs.replace(config, replication=structs.replace(config.replication, ssh_user=me))
    looked = Question("lines", lambda: storage_checks.lines(config))
    [told] = looked.answer(Deadline.after(patient(10.0)))
    assert told.ok and f"not looked at: {file} " in told.evidence


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the places are root's")
def test_the_systems_file_of_keys_may_be_a_link_of_roots_and_of_nobody_elses(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is on NixOS."""
    store, etc = tmp_path / "store", tmp_path / "authorized_keys.d"
    store.mkdir()
    etc.mkdir()
    key = f"ssh-ed25519 {blob()} standfast-{config.cluster}-n2"
    (store / "keys").write_text(f'restrict,command="standfast receive" {key}\n')
    (etc / "root").symlink_to(store / "keys")
    monkeypatch.setattr(storage_checks, "authorized_keys_of", lambda _user: tmp_path / "no/file")
    monkeypatch.setattr(storage_checks, "SYSTEM_KEYS", etc)
    config = structs.replace(
        config, replication=structs.replace(config.replication, ssh_user="root")
    )
    [bad] = storage_checks.lines(config)
    assert not bad.ok and "lacks --from n2" in bad.evidence
    os.chown(store, 65534, -1)
    [told] = storage_checks.lines(config)
    assert told.ok and f"chown -h root {store}" in told.evidence
    os.chown(store, 0, -1)
    (store / "keys").unlink()
    os.mkfifo(store / "keys", 0o600)
    [told] = storage_checks.lines(config)
    assert told.ok and "is no file of at most" in told.evidence


def test_whether_what_is_received_is_confined_is_told_and_never_bad() -> None:
    [there] = storage_checks.confined("btrfs", there=True)
    [lacking] = storage_checks.confined("btrfs", there=False)
    assert there.ok and lacking.ok and there.check == lacking.check == "confined"
    assert "not confined" in lacking.evidence and "5.19" in lacking.evidence
    assert storage_checks.confined("directory", there=False) == []


def test_a_disk_that_is_not_there_is_not_to_be_looked_at_as_root(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = structs.replace(config.paths, live=Path("/nowhere/live"), standby=Path("/nowhere/s"))
    [bad] = storage_checks.look(structs.replace(config, paths=there))
    assert "is the volume's file system mounted?" in bad.evidence
    assert bad.fix == f"mount the volume's disk, or correct [paths] in {config.source}"

    def refused(*_: object) -> Facts:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(storage_checks, "facts_here", refused)
    [bad] = storage_checks.look(config)
    assert bad.fix == "This needs root: run it with sudo"


# The node


def test_an_agent_that_starts_before_its_disk_is_mounted_is_named_with_the_drop_in() -> None:
    agent, after = "standfast-agent@x.service", ["consul.service", "persist.mount"]
    assert node_checks.waits_for_disk(Path("/persist"), "persist.mount", agent, after).ok
    assert node_checks.waits_for_disk(Path("/"), "-.mount", agent, after).ok
    finding = node_checks.waits_for_disk(Path("/srv/x"), "srv-x.mount", agent, after)
    assert not finding.ok
    assert "Wants=srv-x.mount and After=srv-x.mount" in finding.fix
    assert "RequiresMountsFor=/srv/x" in finding.fix


def test_failed_units_are_named_with_their_journal() -> None:
    assert node_checks.failed_units("\n").ok
    assert node_checks.failed_units("standfast-replicate@x:n2.service loaded failed failed x\n").ok
    finding = node_checks.failed_units("standfast-agent@x.service loaded failed failed Standfast\n")
    assert not finding.ok
    assert "journalctl -u standfast-agent@x.service" in finding.fix


WATCH, AGENT = "standfast-watch@x.service", "standfast-agent@x.service"


def shown(unit: str, sub_state: str = "running", restarts: int = 0) -> str:
    """A block of `systemctl show`."""
    return f"Id={unit}\nSubState={sub_state}\nNRestarts={restarts}\n"


def journal(*units: str) -> str:
    """Restarts as `journalctl -o json` has them; a user's units have another field."""
    lines = [json.dumps({"UNIT": unit, "__CURSOR": "s=1"}) for unit in units]
    return "\n".join([*lines, json.dumps({"__CURSOR": "s=2"}), "no json", ""])


@pytest.mark.parametrize(
    ("states", "restarts", "named"),
    [
        (["running"], [], ""),
        (["running", 40], [WATCH, WATCH], ""),  # in a month, and at a restart of Consul
        (["running", 40], [WATCH] * 3, "standfast-watch@x.service (3 times in 3 minutes)"),
        (["auto-restart", 40], [WATCH] * 60, "standfast-watch@x.service (60 times in 3 minutes)"),
        (["auto-restart", 40], [], "standfast-watch@x.service (40 times since it was started)"),
        (["auto-restart-queued", 3], [], "standfast-watch@x.service (3 times since"),
        (["auto-restart", 1], [], ""),
        (["running"], ["somebody-elses.service"] * 9, ""),
        (["running"], ["consul.service"] * 9, "consul.service (9 times"),
    ],
)
def test_a_unit_that_restarts_again_and_again_is_named_though_it_never_fails(
    states: list[Any], restarts: list[str], named: str
) -> None:
    listing = f"{shown(AGENT)}\n{shown(WATCH, *states)}\n{shown('consul.service')}"
    finding = node_checks.restarting(listing, journal(*restarts))
    assert finding.ok == (not named)
    if named:
        assert named in finding.evidence and AGENT not in finding.evidence
        assert finding.fix.startswith(f"journalctl -u {named.split(maxsplit=1)[0]}")


def test_a_clock_that_was_set_lately_is_a_finding() -> None:
    assert node_checks.clock_set(None).ok
    assert node_checks.clock_set(86_401.0).ok
    finding = node_checks.clock_set(60.0)
    assert not finding.ok and "set 60 s ago" in finding.evidence and "ntpdate" in finding.fix


def test_hooks_that_are_not_run_are_named(config: Config, tmp_path: Path) -> None:
    place = tmp_path / "hooks.d"
    (place / "post-promote").mkdir(parents=True)
    (place / "pre-promotion").mkdir()
    (place / "post-promote/10-mail").write_text("")
    finding = node_checks.look(structs.replace(config, hooks=Hooks(dir=place)))[-1]
    assert not finding.ok
    assert "10-mail is not executable" in finding.evidence
    assert "pre-promotion is no event's directory" in finding.evidence
    looked = node_checks.look(structs.replace(config, hooks=Hooks(dir=tmp_path / "none")))
    assert [finding.check for finding in looked] == ["name"]


@pytest.mark.parametrize(
    ("timeout_s", "wait_s", "words"),
    [(1.0, 12.0, ("1 s", "4 s", "no more")), (5.0, 12.0, ("5 s", "18 s", "12 s (W) after it"))],
)
def test_what_an_election_of_consul_adds_to_a_failover_is_told(
    timeout_s: float, wait_s: float, words: tuple[str, ...]
) -> None:
    finding = node_checks.elections(timeout_s, wait_s, is_leader=True)
    assert finding.ok and all(word in finding.evidence for word in words), finding
    assert "this machine leads Consul" in finding.evidence
    finding = node_checks.elections(timeout_s, wait_s, is_leader=False)
    assert finding.ok and "this machine does not lead Consul" in finding.evidence


def test_of_a_client_agent_nothing_is_said_of_the_servers_elections() -> None:
    debug = {"DebugConfig": {"ConsulRaftElectionTimeout": "1s"}}
    assert parse_election_timeout({"Config": {"NodeName": "n1", "Server": False}, **debug}) is None


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("5s", 5.0), ("1.5s", 1.5), ("52ms", 0.052), ("", None), ("1m0s", None), (None, None)],
)
def test_a_time_as_go_writes_it(told: str | None, seconds: float | None) -> None:
    debug = {} if told is None else {"DebugConfig": {"ConsulRaftElectionTimeout": told}}
    timeout_s = parse_election_timeout({"Config": {"NodeName": "n1"}, "Stats": None, **debug})
    assert timeout_s == (None if seconds is None else pytest.approx(seconds))
