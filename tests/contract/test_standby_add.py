"""Adding and removing standbys, through a real sshd on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from standfast.cli import standby_add
from standfast.consul.records import Hold, StandbyRecord
from standfast.doctor import standby_checks, storage_checks
from standfast.replication import pins, session, state, storage_facts, survey, wire
from standfast.replication.authorized import Bound, authorized_line
from standfast.replication.keys import PublicKey, known_hosts
from standfast.system.clock import monotonic
from tests.contract.two_nodes import (
    ADDRESSES,
    ME,
    TwoNodes,
    make_host_key,
    operator_may_log_in,
    two_nodes,
)
from tests.support.pace import patient
from tests.support.scripts import script
from tests.support.volumes import files
from tests.support.waiting import wait_for

THERE = f"{ME}@{ADDRESSES['c1']}"
RECEIVE = "standfast receive data-services"
ZIPPY = Bound("zippy", ADDRESSES["zippy"])


@pytest.fixture
def pair(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[TwoNodes]:
    with two_nodes(tmp_path, kind, monkeypatch, capsys) as pair:
        yield pair


plain = pytest.mark.parametrize("kind", ["directory"])
"""For what has nothing to do with the kind of storage."""


def key_of(pair: TwoNodes) -> PublicKey:
    return PublicKey.parse((pair.root / "zippy-key" / "replication_key.pub").read_text())


def let_in(pair: TwoNodes) -> None:
    """A key that c1 lets receive, by the commands that a person would run."""
    code, doc = pair.run_json("standby", "add", "c1")
    assert code == 1, doc
    [line] = [text for text in doc["steps"][-1]["fix"] if text.startswith("on c1: ")]
    pair.on_c1(line.removeprefix("on c1: "))


def marks(doc: dict[str, object]) -> list[tuple[str, str]]:
    steps = doc["steps"]
    assert isinstance(steps, list)
    return [(step["step"], step["mark"]) for step in steps]


# The whole way


def test_a_standby_is_added_in_steps_each_of_which_says_what_is_missing(pair: TwoNodes) -> None:
    live = pair.config("zippy").paths.live
    (live / "a").write_text("one")
    code, out, err = pair.run("standby", "add", "c1")
    assert code == 1
    assert err.startswith("standfast: standby-not-ready: c1 doesn't let the key in: ")
    line = authorized_line("data-services", ZIPPY, key_of(pair))
    assert line in out and f"replicationKeys = [ ''{line}'' ]" in out
    assert pair.names("c1", received=True) == []

    let_in(pair)
    assert pair.authorized.read_text() == line + "\n"
    code, doc = pair.run_json("standby", "add", "c1")
    assert (code, doc["done"]) == (0, True), doc
    assert [name for name, _ in marks(doc)] == ["node", "key", "door", "survey", "primary", "send",
                                                "timer"]  # fmt: skip
    assert files(pair.newest_on_c1()) == files(live)
    assert "everything" in doc["steps"][-2]["evidence"]

    (live / "b").write_text("two")
    code, doc = pair.run_json("standby", "add", "c1")
    assert code == 0 and "the changes since services@" in doc["steps"][-2]["evidence"]
    assert files(pair.newest_on_c1()) == files(live)
    assert pair.authorized.read_text() == line + "\n"


@plain
def test_the_key_is_installed_over_the_ssh_of_the_operator(pair: TwoNodes) -> None:
    operator_may_log_in(pair)
    before = pair.authorized.read_text()
    code, doc = pair.run_json("standby", "add", "c1", "--install-key")
    assert code == 0, doc
    assert ("install", "ok") in marks(doc)
    line = authorized_line("data-services", ZIPPY, key_of(pair))
    assert pair.authorized.read_text() == f"{before}{line}\n"
    code, doc = pair.run_json("standby", "add", "c1", "--install-key")
    assert code == 0 and ("install", "ok") not in marks(doc)


@plain
def test_without_the_ssh_of_the_operator_the_key_is_not_installed(pair: TwoNodes) -> None:
    code, doc = pair.run_json("standby", "add", "c1", "--install-key")
    assert code != 0 and marks(doc)[-1] == ("install", "BAD")
    assert any(
        line.startswith("on c1: standfast standby authorize") for line in doc["steps"][-1]["fix"]
    )


@plain
def test_a_dry_run_changes_nothing(pair: TwoNodes) -> None:
    code, out, _ = pair.run("standby", "add", "c1", "--dry-run")
    assert code == 0 and "would make" in out
    assert not (pair.root / "zippy-key").exists()
    let_in(pair)
    known_hosts(pair.config("zippy")).unlink()
    code, out, _ = pair.run("standby", "add", "c1", "--dry-run")
    assert code == 0 and "would note the host key" in out
    assert not known_hosts(pair.config("zippy")).exists()
    assert pair.names("zippy", received=False) == []


@plain
def test_a_dry_run_says_what_would_be_sent(pair: TwoNodes) -> None:
    let_in(pair)
    pair.run("standby", "add", "c1")
    [name] = pair.names("c1", received=True)
    code, doc = pair.run_json("standby", "add", "c1", "--dry-run")
    assert code == 0 and f"the changes since {name}" in doc["steps"][-1]["evidence"]
    code, doc = pair.run_json("replicate", "--dry-run")
    assert doc["plans"][0]["answers"] and doc["plans"][0]["parent"] == name
    code, doc = pair.run_json("replicate", "c1", "--full", "--dry-run")
    assert doc["plans"][0]["parent"] is None
    assert pair.names("c1", received=True) == [name]


@plain
def test_a_dry_run_sends_everything_again_to_a_standby_that_lost_all_as_the_command_does(
    pair: TwoNodes,
) -> None:
    let_in(pair)
    pair.run("standby", "add", "c1")
    shutil.rmtree(pair.config("c1").paths.standby)
    code, doc = pair.run_json("standby", "add", "c1", "--dry-run")
    assert code == 0 and not doc["done"]
    assert "would be sent everything" in doc["steps"][-1]["evidence"]
    code, doc = pair.run_json("standby", "add", "c1")
    assert code == 0 and "everything" in doc["steps"][-2]["evidence"]


@plain
def test_a_node_that_is_not_configured_gets_the_lines_to_write(pair: TwoNodes) -> None:
    code, out, err = pair.run("standby", "add", "c2")
    assert code == 1 and err.startswith("standfast: unknown-node: c2 is not in [nodes] of ")
    assert "[nodes.c2]" in out and "standfast-agent@data-services" in out
    assert not (pair.root / "zippy-key").exists()
    assert pair.run("standby", "add", "zippy")[0] == 1
    assert pair.run("standby", "add", "../x")[0] == 2


@plain
def test_on_another_node_than_the_primary_only_the_way_is_made_ready(pair: TwoNodes) -> None:
    let_in(pair)
    pair.lead("c1")
    code, doc = pair.run_json("standby", "add", "c1")
    assert code == 0 and marks(doc)[-1] == ("primary", "-")
    assert pair.names("zippy", received=False) == []


@plain
@pytest.mark.parametrize(
    ("late", "clock"), [("the answer", None), ("the way", "BAD")], ids=["answer", "way"]
)
def test_what_a_slow_answer_may_explain_is_no_wrong_clock_but_what_a_slow_way_does_is(
    pair: TwoNodes, monkeypatch: pytest.MonkeyPatch, late: str, clock: str | None
) -> None:
    """The standby looks a minute ahead: as its answer was slow, or although only the way was."""
    let_in(pair)
    late_s, moved = 60.0, []

    @contextmanager
    def greet(*arguments: Any) -> Iterator[Any]:
        with session.greet(*arguments) as greeted:
            if late == "the way":
                moved.append(late_s)
            yield greeted

    def ask(*arguments: Any) -> Any:
        answer = session.ask(*arguments)
        if late == "the answer":
            moved.append(late_s)
        return answer

    def facts_here(*arguments: Any) -> storage_facts.Facts:
        facts = storage_facts.facts_here(*arguments)
        return structs.replace(facts, utc_s=facts.utc_s - late_s)

    monkeypatch.setattr(survey, "session", SimpleNamespace(greet=greet, ask=ask))
    asked = SimpleNamespace(**{**vars(storage_facts), "facts_here": facts_here})
    monkeypatch.setattr(survey, "storage_facts", asked)
    monkeypatch.setattr(survey, "monotonic", lambda: monotonic() + sum(moved))
    code, doc = pair.run_json("standby", "add", "c1")
    assert (code == 0, dict(marks(doc)).get("clock")) == (clock is None, clock), doc


# The door


@plain
def test_a_host_key_is_noted_once_and_a_changed_one_is_refused(pair: TwoNodes) -> None:
    let_in(pair)
    assert pair.run("standby", "add", "c1")[0] == 0
    hosts = known_hosts(pair.config("zippy"))
    assert hosts.read_text().count("ssh-ed25519") == 1
    make_host_key(pair.root)  # sshd reads it anew for each connection
    code, _, err = pair.run("standby", "add", "c1")
    assert code == 1 and "the host key of c1 is not the one that is known" in err
    assert pair.run("replicate", "c1")[0] != 0
    hosts.unlink()
    assert pair.run("replicate", "c1")[0] == 3, "a cycle notes no host key by itself"
    assert not hosts.exists()


@plain
def test_a_key_that_opens_a_shell_is_found(pair: TwoNodes) -> None:
    pair.run("standby", "add", "c1")
    pair.authorized.write_text(f"{key_of(pair)}\n")
    code, out, err = pair.run("standby", "add", "c1")
    assert code == 1 and "c1 lets the key run any command, a shell too" in err
    assert "remove the key's line" in out
    assert pair.names("c1", received=True) == []


@plain
def test_the_key_can_do_nothing_but_receive(pair: TwoNodes) -> None:
    let_in(pair)
    told = pair.by_key("ssh", THERE, RECEIVE, input="")
    assert json.loads(told.stdout)["message_type"] == "refusal"
    assert "before it said anything" in told.stdout
    for asked in (["id"], ["-tt"], ["standfast", "receive", "media"], [f"{RECEIVE}; id"],
                  ["standfast", "standby", "list"]):  # fmt: skip
        told = pair.by_key("ssh", THERE, *asked, input="id\n")
        assert "uid=" not in told.stdout and told.returncode != 0, asked
        if asked != ["-tt"]:
            assert json.loads(told.stdout)["reason"] == "protocol", asked
    local = pair.root / "stolen"
    told = pair.by_key("scp", f"{THERE}:/etc/passwd", str(local))
    assert told.returncode != 0 and not local.exists()
    told = pair.by_key("ssh", "-s", THERE, "sftp", input="")
    assert json.loads(told.stdout)["reason"] == "protocol"


@plain
def test_the_key_opens_nothing_from_another_address(pair: TwoNodes) -> None:
    let_in(pair)
    assert pair.by_key("ssh", THERE, RECEIVE, input="").returncode == 1
    stolen = pair.by_key("ssh", "-b", "127.0.0.3", THERE, RECEIVE, input="")
    assert stolen.returncode == 255 and "Permission denied" in stolen.stderr
    assert stolen.stdout == ""


PROXY = """
import os, socket, sys, threading
there = socket.create_connection(sys.argv[1:], source_address=("127.0.0.3", 0))
def send():
    while data := os.read(0, 65536):
        there.sendall(data)
    there.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
while data := there.recv(65536):
    os.write(1, data)
"""


def move_zippy(pair: TwoNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """To an address of this machine that isn't the one by which it goes to c1."""
    monkeypatch.setitem(ADDRESSES, "zippy", "127.0.0.3")
    for node in ("zippy", "c1"):
        pair.write_config(node)


@plain
@pytest.mark.parametrize("by_proxy", [False, True], ids=["directly", "by a proxy"])
def test_a_node_with_several_addresses_comes_from_the_one_that_its_line_names(
    pair: TwoNodes, monkeypatch: pytest.MonkeyPatch, by_proxy: bool
) -> None:
    move_zippy(pair, monkeypatch)
    (pair.root / "proxy.py").write_text(PROXY)
    if by_proxy:
        with (pair.root / "product.conf").open("a") as conf:
            conf.write(f"ProxyCommand {sys.executable} {pair.root}/proxy.py %h %p\n")
    let_in(pair)
    assert 'from="127.0.0.3"' in pair.authorized.read_text()
    code, doc = pair.run_json("standby", "add", "c1")
    assert (code, doc["done"]) == (0, True), doc


@plain
@pytest.mark.parametrize("names", ["BindAddress 127.0.0.4", "BindInterface lo"])
def test_what_roots_ssh_says_of_the_way_counts_and_a_line_that_works_stays_open(
    pair: TwoNodes, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    move_zippy(pair, monkeypatch)
    for conf in ("product.conf", "operator.conf"):
        with (pair.root / conf).open("a") as file:
            file.write(f"{names}\n")
    pair.run("standby", "add", "c1")  # makes the key
    operator_may_log_in(pair)
    with pair.authorized.open("a") as file:
        file.write(f'restrict,command="{RECEIVE}" {key_of(pair)}\n')
    code, doc = pair.run_json("standby", "add", "c1", "--install-key")
    assert (code, doc["done"]) == (0, True), doc
    [said] = [step["evidence"] for step in doc["steps"] if step["step"] == "install"]
    assert "Its from= was left as it was: this came from 127.0.0." in said
    assert "[nodes.zippy] has 127.0.0.3" in said
    line = pair.authorized.read_text().splitlines()[-1]
    assert line == f'restrict,command="{RECEIVE} --from zippy" {key_of(pair)}'


@plain
@pytest.mark.parametrize("where", ["below it", "in the second file"])
def test_who_stole_the_key_is_let_in_by_a_further_line_which_is_named(
    pair: TwoNodes, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """That sshd goes on where `from=` isn't for the sender is what `loose_lines` is about."""
    let_in(pair)
    second = pair.authorized.with_name("authorized_keys2")
    with (pair.authorized if where == "below it" else second).open("a") as file:
        file.write(f"{key_of(pair)}\n")
    own = pair.by_key("ssh", THERE, "id", input="")
    assert "uid=" not in own.stdout and json.loads(own.stdout)["reason"] == "protocol"
    stolen = pair.by_key("ssh", "-b", "127.0.0.3", THERE, "id", input="")
    assert "uid=" in stolen.stdout
    monkeypatch.setattr(storage_checks, "authorized_keys_of", lambda _user: pair.authorized)
    [line] = storage_checks.lines(pair.config("c1"))
    assert not line.ok and "do something else than receive" in line.evidence


@plain
def test_the_key_speaks_for_no_other_node(pair: TwoNodes) -> None:
    let_in(pair)
    pair.write_config("c1", nodes=("zippy", "c1", "c2"))
    for purpose in wire.Purpose:
        hello = wire.dump(wire.Hello("test", "data-services", "c2", purpose))
        told = pair.by_key("ssh", THERE, RECEIVE, input=f"{hello}\n")
        refusal = json.loads(told.stdout)
        assert refusal["reason"] == "unknown-node"
        assert refusal["message"] == "the journal of c1 says more"
        assert "c2" not in told.stderr and "zippy" not in told.stderr


@plain
def test_a_line_of_an_older_version_replicates_and_is_told_with_the_new_one(
    pair: TwoNodes,
) -> None:
    let_in(pair)
    line = authorized_line("data-services", ZIPPY, key_of(pair))
    pair.authorized.write_text(f'restrict,command="{RECEIVE}" {key_of(pair)}\n')
    code, doc = pair.run_json("standby", "add", "c1")
    assert (code, doc["done"]) == (0, True), doc
    [door] = [step for step in doc["steps"] if step["step"] == "door"]
    assert door["mark"] == "!" and "passes for any node" in door["evidence"]
    assert any(line in fix for fix in door["fix"])
    [way, bound] = standby_checks.way_and_facts(pair.config("zippy"), "c1")[:2]
    assert (way.check, way.ok, bound.check, bound.ok) == ("way", True, "line", False)
    assert line in bound.fix
    named = wire.dump(wire.Hello("test", "data-services", "c1"))
    told = json.loads(pair.by_key("ssh", THERE, RECEIVE, input=f"{named}\n").stdout)
    assert told["reason"] == "unknown-node" and "c1 says more" in told["message"]

    before = pair.authorized.read_text()
    operator_may_log_in(pair)
    with pair.authorized.open("a") as file:
        file.write(before)
    code, doc = pair.run_json("standby", "add", "c1", "--install-key")
    assert code == 0 and ("install", "ok") in marks(doc) and ("door", "ok") in marks(doc)
    assert pair.authorized.read_text().splitlines()[-1] == line


@plain
def test_whose_key_it_is_has_to_be_known(pair: TwoNodes) -> None:
    pair.run("standby", "add", "c1")
    key = str(key_of(pair)).rpartition(" ")[0]
    told = pair.on_c1(f"standfast standby authorize '{key} somebody' 2>&1 || true")
    assert "whose key is it?" in told and "--from NODE, one of: zippy" in told
    told = pair.on_c1(f"standfast standby authorize --from zipy '{key}' 2>&1 || true")
    assert "did you mean zippy?" in told and not pair.authorized.exists()


@plain
def test_what_a_standby_prints_does_nothing_to_the_terminal(pair: TwoNodes) -> None:
    let_in(pair)
    pair.run("standby", "add", "c1")
    script(pair.root / "c1-bin" / "standfast", "printf '\\033[2Jhello\\007\\n' >&2\nexit 7\n")
    for words in (("replicate", "c1"), ("standby", "add", "c1")):
        code, out, err = pair.run(*words)
        assert code != 0 and "hello" in out + err
        assert all(line.isprintable() for line in (out + err).splitlines()), (out, err)


@plain
def test_the_key_forwards_no_ports(pair: TwoNodes) -> None:
    let_in(pair)
    with socket.socket() as target, socket.socket() as probe:
        target.bind(("127.0.0.1", 0))
        target.listen()
        probe.bind(("127.0.0.1", 0))
        local = probe.getsockname()[1]
        probe.close()
        there = f"127.0.0.1:{target.getsockname()[1]}"
        options = ["-F", f"{pair.root}/by_key.conf", "-N", "-L", f"{local}:{there}", THERE]
        with subprocess.Popen(["ssh", *options], stderr=subprocess.PIPE, text=True) as ssh:
            try:
                wait_for(lambda: closed_at_once(local), 30, "the forwarding is refused")
            finally:
                ssh.kill()  # a mere SIGTERM may come just before it waits, and isn't seen then
            assert ssh.stderr is not None
            assert "administratively prohibited" in ssh.stderr.read()


HOSTILE = {
    "a command of its own": "RemoteCommand echo hello",
    "a local command": "PermitLocalCommand yes\nLocalCommand touch {root}/ran",
    "no command": "SessionType none",
    "a subsystem": "SessionType subsystem",
    "no stdin": "StdinNull yes",
    "in the background": "ForkAfterAuthentication yes",
    "forwarded ports": "ExitOnForwardFailure yes\nLocalForward 127.0.0.1:{busy} 127.0.0.1:1",
    "remote ports": "ExitOnForwardFailure yes\nRemoteForward 0 127.0.0.1:1",
    "a proxy": "ExitOnForwardFailure yes\nDynamicForward 127.0.0.1:{busy}",
    "other ways in": "PubkeyAuthentication no\nPreferredAuthentications password",
    "a younger ssh's": "IgnoreUnknown AnOption\nAnOption yes\nAnother yes",
    "another shared connection": "ControlMaster auto\nControlPath {root}/mux\nControlPersist 60",
}


@plain
@pytest.mark.parametrize("lines", HOSTILE.values(), ids=list(HOSTILE))
def test_roots_own_ssh_with(pair: TwoNodes, lines: str) -> None:
    let_in(pair)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        text = lines.format(root=pair.root, busy=busy.getsockname()[1])
        with (pair.root / "product.conf").open("a") as conf:
            conf.write(f"{text}\n")
        code, doc = pair.run_json("standby", "add", "c1")
    assert (code, doc["done"]) == (0, True), doc
    assert len(pair.names("c1", received=True)) == 1
    assert not (pair.root / "ran").exists() and not (pair.root / "mux").exists()


@plain
def test_a_quiet_ssh_still_says_why_it_was_not_let_in(pair: TwoNodes) -> None:
    with (pair.root / "product.conf").open("a") as conf:
        conf.write("LogLevel QUIET\n")
    code, _, err = pair.run("standby", "add", "c1")
    assert code == 1 and "c1 doesn't let the key in" in err


@plain
def test_the_connection_of_an_operator_is_not_used(pair: TwoNodes, tmp_path: Path) -> None:
    """It is another key's, which may do more: a shared one, and an agent that has that key."""
    let_in(pair)
    line = pair.authorized.read_text()
    operator_may_log_in(pair)
    with pair.authorized.open("a") as file:
        file.write(line)
    with (
        contextlib.ExitStack() as stack,
        tempfile.TemporaryDirectory(prefix="mux-") as short,
    ):
        mux, agent = Path(short, "mux"), Path(short, "agent")
        for argv, there in (
            (["ssh", "-o", f"ControlPath={mux}", "-M", "-N", THERE], mux),
            (["ssh-agent", "-D", "-a", str(agent)], agent),
        ):
            process = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.DEVNULL))
            stack.callback(process.kill)
            wait_for(there.exists, 30, f"{argv[0]} runs")
        key = pair.root / "operator-key"
        env = {**os.environ, "SSH_AUTH_SOCK": str(agent)}
        subprocess.run(["ssh-add", "-q", key], env=env, check=True)
        with (pair.root / "product.conf").open("a") as conf:
            conf.write(f"ControlMaster auto\nControlPath {mux}\n")
            conf.write(f"IdentityAgent {agent}\nIdentityFile {key}\n")
        code, doc = pair.run_json("standby", "add", "c1")
        assert (code, doc["done"]) == (0, True), doc


def closed_at_once(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as through:
            through.settimeout(patient(5))
            return through.recv(1) == b""
    except ConnectionRefusedError:
        return False


@plain
def test_one_line_serves_several_volumes_of_one_key(pair: TwoNodes) -> None:
    let_in(pair)
    pair.write_config("c1", volume="media")
    key = key_of(pair)
    pair.on_c1(f"standfast standby authorize --volume media --from zippy '{key}'")
    assert pair.authorized.read_text() == authorized_line(None, ZIPPY, key) + "\n"
    assert pair.run("standby", "add", "c1")[0] == 0
    told = pair.by_key("ssh", THERE, "standfast receive media", input="")
    assert "the sender closed the connection before it said anything" in told.stdout
    for asked, reason in (
        ("id", "protocol"),
        ("standfast receive ../x", "protocol"),
        ("standfast receive nothing", "config-invalid"),
        ("", "config-invalid"),
    ):
        told = pair.by_key("ssh", THERE, *([asked] if asked else []), input="")
        assert json.loads(told.stdout)["reason"] == reason, asked
        assert told.returncode != 0


# Cuts


def test_a_cut_in_the_first_send_is_followed_by_another_try_with_the_same_snapshot(
    pair: TwoNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_in(pair)
    pair.write_config("zippy", replication={"bandwidth_limit": 4_000_000})
    live = pair.config("zippy").paths.live
    (live / "big").write_bytes(os.urandom(6_000_000))
    monkeypatch.setattr(standby_add, "FIRST_PAUSE_S", 0.2)
    cutter = threading.Thread(target=cut_in_the_middle, args=(pair,))
    cutter.start()
    code, _, err = pair.run("standby", "add", "c1")
    cutter.join()
    assert code == 0, err
    assert "trying again in 0 s (1 of 5 tries)" in err
    assert pair.names("zippy", received=False) == pair.names("c1", received=True)
    assert len(pair.names("c1", received=True)) == 1
    assert files(pair.newest_on_c1()) == files(live)
    remembered = state.load(pair.config("zippy")).standbys["c1"]
    assert remembered.successes == 1 and sum(remembered.failures.values()) == 1


def cut_in_the_middle(pair: TwoNodes) -> None:
    """Kill the receiver, by its pid, when a part of the tree is there."""

    def arriving() -> bool:
        standby = pair.config("c1").paths.standby
        return any(
            path.is_file() and path.stat().st_size > 1_000_000 for path in standby.rglob("*")
        )

    wait_for(arriving, 30, "a part of the first snapshot arrives")
    os.kill(pair.receiver_pids()[-1], signal.SIGKILL)


@plain
def test_what_another_try_cannot_cure_is_said_at_once(
    pair: TwoNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_in(pair)
    monkeypatch.setattr(standby_add, "FIRST_PAUSE_S", 30.0)
    pair.gateway.put(pair.config("zippy").key("epoch"), b'{"v": 1, "epoch": 9}')
    code, _, err = pair.run("standby", "add", "c1")
    assert code == 1 and err.startswith("standfast: wrong-epoch: ")


# Afterwards


@plain
def test_a_removed_standby_is_forgotten_and_keeps_its_data(pair: TwoNodes) -> None:
    let_in(pair)
    assert pair.run("standby", "add", "c1")[0] == 0
    there = pair.names("c1", received=True)
    listed = {
        standby["node"]: standby for standby in pair.run_json("standby", "list")[1]["standbys"]
    }
    assert listed["c1"]["pin"] == there[0] and not listed["c1"]["needs_full"]
    code, _, err = pair.run("standby", "remove", "c1")
    assert code == 1 and err.startswith("standfast: still-configured: c1 is in [nodes] of ")
    config = pair.write_config("zippy", nodes=("zippy", "c2"))
    code, out, _ = pair.run("standby", "remove", "c1", "--dry-run")
    assert code == 0 and "would no longer keep" in out
    assert set(pins.load(config)) == {"c1"}
    hold = Hold("c1", "ann", "a new disk", 1e9)
    pair.gateway.put(config.key("holds/c1"), hold.dump())
    code, doc = pair.run_json("standby", "remove", "c1")
    assert code == 0 and doc["done"]
    assert dict(pins.load(config)) == {} and dict(state.load(config).standbys) == {}
    about = [pair.gateway.get(config.key(f"{folder}/c1")) for folder in ("standbys", "holds")]
    assert about == [None, None], "a machine of that name that comes later is barred by nothing"
    assert pair.names("c1", received=True) == there
    assert pair.run("standby", "remove", "c1")[0] == 0


@plain
def test_the_primary_is_not_removed(pair: TwoNodes) -> None:
    config = pair.write_config("zippy", nodes=("zippy", "c2"))
    pair.lead("c1")
    record = StandbyRecord("c1", 3, "services@20260101T000000Z", "id", 1e9)
    pair.gateway.put(config.key("standbys/c1"), record.dump())
    code, _, err = pair.run("standby", "remove", "c1")
    assert code == 1 and "c1 is the primary" in err
    assert pair.gateway.get(config.key("standbys/c1")) is not None


@plain
def test_the_list_tells_what_failed_last(pair: TwoNodes) -> None:
    assert pair.run("replicate", "c1")[0] == 3
    listed = {
        standby["node"]: standby for standby in pair.run_json("standby", "list")[1]["standbys"]
    }
    assert listed["c1"]["last_failure"]["reason"] == "replication-failed"
    out = pair.run("standby", "list")[1]
    assert "failed 0 s ago: replication-failed: " in out


# Several at once


@plain
def test_a_slow_standby_delays_no_result_of_another(pair: TwoNodes) -> None:
    way, go = pair.root / "way", pair.root / "go"
    receive = f"env STANDFAST_CONFIG_DIR={pair.etc('c1')} {shlex.join(pair.words)} receive"
    # Both are c1's disk: what counts is who waits for whom.
    way.write_text(
        f'if [ "$1" = c1 ]; then while [ ! -e {go} ]; do sleep 0.05; done; exit 1; fi\n'
        f"exec {receive}\n"
    )
    nodes = ("zippy", "c1", "c2")
    pair.write_config("zippy", nodes=nodes, replication={"command": ["sh", str(way), "{node}"]})
    words = [*pair.words, "replicate"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.readline().startswith("c2: services@")
            assert set(state.load(pair.config("zippy")).standbys) == {"c2"}, "c1 is at work"
            go.touch()
            assert process.wait(patient(60)) == 1
            assert "c1: not replicated: " in process.stderr.read()
        finally:
            process.kill()
    code, doc = pair.run_json("replicate")
    assert code == 1 and not doc["done"] and doc["reason"] == "replication-failed"
    assert [cycle["standby"] for cycle in doc["replicated"]] == ["c1", "c2"]
    assert doc["replicated"][1]["parent"] is not None
