"""The deployed handlers as processes: hints that change nothing, whatever they are given.

Each reads the state itself; what stands on stdin is read and thrown away.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from standfast.consul.records import dump_epoch
from standfast.consul.watch import argv, definitions, environment
from standfast.demo.consul.server import EmbeddedConsul
from standfast.system.local_socket import listen, parse, read_line, send
from tests.contract.consul_scene import SYNC_S, SYNCED
from tests.support.consul_clusters import consul_binary, real_cluster
from tests.support.figures import note
from tests.support.pace import patient
from tests.support.scripts import script
from tests.support.storage_node import (
    HANDLERS,
    VOLUME,
    Ended,
    StorageNode,
    embedded_primary,
    run_handler,
    unhurried_guard,
)
from tests.support.volumes import files
from tests.support.waiting import soon, wait_for

EVENTS = ("data-services-changed", "storage-role-changed")
ALL = tuple(sorted(path.name for path in HANDLERS.iterdir() if path.is_file()))
# What a handler waits for at most is 2 and 3 s as shipped.
QUICK = "from standfast.cli import wake; wake.DRAIN_S = wake.WAKE_S = 0.3"

HANG_S = 100.0
pytestmark = SYNCED

STDIN = {
    "empty": b"",
    "garbage": b"\x00\xff{]garbage\n" * 100,
    "an empty list": b"[]",
    "null": b"null",
    "10 MB": b'{"a": "' + b"x" * 10_000_000,
    "a million brackets": b"[" * 1_000_000,
}


@pytest.fixture
def node(tmp_path: Path) -> StorageNode:
    """A node without agent and without Consul."""
    node = StorageNode(tmp_path, "127.0.0.1:1", 20490)
    node.configure()
    return node


@dataclass
class NotingAgent:
    """Listens on agent.sock, notes what it is asked, and answers as `manner` says."""

    requests: list[dict[str, object]] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def agent_on(node: StorageNode, manner: str = "answers") -> Iterator[NotingAgent]:
    agent = NotingAgent()

    def treat(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if manner == "is deaf":
                agent.ending.wait(HANG_S)
                return
            agent.requests.append(dict(parse(read_line(connection, soon(20.0)))))
            if manner == "answers":
                send(connection, {"done": True})
            elif manner == "answers garbage":
                connection.sendall(b"\xff\x00 what?\n")
            elif manner == "hangs":
                agent.ending.wait(HANG_S)
            elif manner == "drips":
                while not agent.ending.wait(0.05):
                    connection.sendall(b"x")

    def accept(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                threading.Thread(target=treat, args=(connection,), daemon=True).start()

    with listen(node.config.run_dir / "agent.sock") as server:
        thread = threading.Thread(target=accept, args=(server,), daemon=True)
        thread.start()
        try:
            yield agent
        finally:
            agent.ending.set()
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            thread.join(patient(20.0))


def call(node: StorageNode, name: str, stdin: int | bytes | None = b"", changed: str = "") -> Ended:
    return run_handler(
        name, "--volume", VOLUME, env=node.environment(), stdin=stdin, changed=changed
    )


def assert_harmless(ended: Ended) -> None:
    assert ended.code == 0, ended
    assert ended.out == ""
    assert "Traceback" not in ended.said, ended


@pytest.mark.parametrize("given", STDIN)
@pytest.mark.parametrize("name", EVENTS)
def test_stdin_changes_nothing(node: StorageNode, name: str, given: str) -> None:
    before = files(node.root)
    with agent_on(node) as agent:
        assert_harmless(call(node, name, STDIN[given]))
    assert agent.requests == [{"v": 1, "command": "wake"}]
    assert files(node.root) == before


@pytest.mark.parametrize("name", EVENTS)
def test_a_closed_stdin(node: StorageNode, name: str) -> None:
    command = f"exec {sys.executable} {HANDLERS / name} --volume {VOLUME} <&-"
    with agent_on(node) as agent:
        done = subprocess.run(
            ["sh", "-c", command],
            env=node.environment(),
            capture_output=True,
            timeout=patient(20.0),
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(agent.requests) == 1


@pytest.mark.parametrize("writes", [False, True], ids=["says nothing", "writes for ever"])
def test_a_stdin_that_never_ends(node: StorageNode, writes: bool) -> None:
    reader, writer = os.pipe()
    ending = threading.Event()

    def write() -> None:
        with contextlib.suppress(OSError):
            while not ending.is_set():
                os.write(writer, b"x" * 4096)

    thread = threading.Thread(target=write, daemon=True)
    if writes:
        thread.start()
    try:
        with agent_on(node) as agent:
            assert_harmless(call(node, EVENTS[0], reader, "" if writes else QUICK))
        assert len(agent.requests) == 1
    finally:
        ending.set()
        os.close(reader)
        if writes:
            thread.join(patient(20.0))
        os.close(writer)


def test_called_twice_and_at_once_it_only_wakes_the_agent_more_often(node: StorageNode) -> None:
    before = files(node.root)
    with agent_on(node) as agent:
        threads = [
            threading.Thread(target=lambda name=name: assert_harmless(call(node, name)))
            for name in (*EVENTS, *EVENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(patient(30.0))
    assert agent.requests == [{"v": 1, "command": "wake"}] * 4
    assert files(node.root) == before


@pytest.mark.parametrize("name", EVENTS)
def test_without_an_agent_there_is_nothing_to_do(node: StorageNode, name: str) -> None:
    before = files(node.root)
    ended = call(node, name, b"[]")
    assert_harmless(ended)
    assert "no agent to wake on this node" in ended.said
    assert files(node.root) == before


@pytest.mark.parametrize("manner", ["is deaf", "hangs", "drips", "answers garbage", "hangs up"])
def test_an_agent_that(node: StorageNode, manner: str) -> None:
    with agent_on(node, manner):
        ended = call(node, EVENTS[0], b"[]", "" if manner == "drips" else QUICK)
    assert_harmless(ended)
    if manner == "drips":
        note(f"a handler gives up on an agent that drips after {ended.took_s:.1f} s")


def test_a_socket_that_a_dead_agent_left(node: StorageNode) -> None:
    listen(node.config.run_dir / "agent.sock").close()
    ended = call(node, EVENTS[0], b"[]")
    assert_harmless(ended)
    assert "no agent to wake" in ended.said


@pytest.mark.parametrize("name", EVENTS)
def test_a_broken_configuration_is_said(node: StorageNode, name: str) -> None:
    node.file.write_text("cluster = 7")
    ended = call(node, name, b"[]")
    assert ended.code == 2
    assert str(node.file) in ended.said and "Traceback" not in ended.said


def test_a_client_that_is_no_storage_node_may_have_handlers(node: StorageNode) -> None:
    text = node.file.read_text()
    assert 'node = "n1"' in text
    node.file.write_text(text.replace('node = "n1"', 'node = ""'))  # the host's name: none of them
    assert_harmless(call(node, EVENTS[0], b"[]"))


@pytest.mark.parametrize("given", ["garbage", "10 MB"])
def test_the_guard_reads_nothing_of_stdin(tmp_path: Path, given: str) -> None:
    with embedded_primary(tmp_path) as (node, _consul):
        ended = unhurried_guard(node, stdin=STDIN[given])
    assert (ended.code, ended.out) == (0, "")


def test_resync_wakes_the_agents_of_all_volumes_though_the_configuration_of_one_is_broken(
    node: StorageNode,
) -> None:
    (node.file.parent / "another.toml").write_text("{")
    with agent_on(node) as agent:
        done = subprocess.run(
            [sys.executable, "-m", "standfast", "reconcile"],
            env=node.environment(),
            capture_output=True,
            text=True,
            timeout=patient(20.0),
        )
    assert done.returncode == 2
    assert "another.toml" in done.stderr
    assert agent.requests == [{"v": 1, "command": "wake"}]


# Driven by the real `consul watch`


@dataclass
class WatchedConsul:
    """What a watch looks at, and how to change it."""

    address: str
    put: Callable[[str, str, bytes], None]
    """Method, path and body; to the agent that registers."""


@pytest.fixture(params=["embedded", "real"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WatchedConsul]:
    consul_binary()
    if request.param == "real":
        with real_cluster(tmp_path) as real:

            def ask(method: str, path: str, body: bytes) -> None:
                assert real.ask(method, path, body).status == 200

            yield WatchedConsul(real.address, ask)
        return
    with EmbeddedConsul() as embedded:
        embedded.add_agent("n1")

        def request_it(method: str, path: str, body: bytes) -> None:
            reply = embedded.request("n1", method, path, body)
            assert reply is not None and reply.status == 200

        yield WatchedConsul(embedded.address("n1"), request_it)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH as an installation has it: handlers that run with this interpreter."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ALL:
        text = (HANDLERS / name).read_text().split("\n", 1)[1]
        script = directory / name
        script.write_text(f"#!{sys.executable}\nimport os, sys\nNAME = {name!r}\n{NOTE}{text}")
        script.chmod(0o755)
    (directory / "consul").symlink_to(consul_binary())
    return directory


# Each copy notes its call and what it was given, and then does what the handler does.
NOTE = """
import tempfile
_given = sys.stdin.buffer.read()
with open(os.path.join(os.environ["CALLS"], NAME), "ab") as _file:
    _file.write(_given.strip().replace(b"\\n", b" ") + b"\\n")
_again = tempfile.TemporaryFile()
_again.write(_given)
_again.seek(0)
os.dup2(_again.fileno(), 0)
"""


def value(given: list[bytes]) -> bytes | None:
    """Of the key, in what the handler was given last."""
    entry = json.loads(given[-1])
    return None if entry is None else base64.b64decode(entry["Value"])


def own_checks(given: bytes) -> list[str]:
    """The states of a service's own checks, in what the handler was given."""
    return [
        check["Status"]
        for load in json.loads(given)
        for check in load["Checks"]
        if check["ServiceID"]
    ]


def test_the_watches_call_their_handlers_at_once_and_at_each_change(
    cluster: WatchedConsul, tools: Path, tmp_path: Path
) -> None:
    node = StorageNode(tmp_path, cluster.address, 20490)
    config = node.configure()
    calls = tmp_path / "calls"
    calls.mkdir()
    env = node.environment(
        PATH=f"{tools}:{os.environ['PATH']}", CALLS=str(calls), **environment(config)
    )

    def given(name: str) -> list[bytes]:
        path = calls / name
        return path.read_bytes().splitlines() if path.exists() else []

    service, role = EVENTS
    with agent_on(node) as agent, contextlib.ExitStack() as stack:
        for watch in definitions(config):
            command = argv(watch, cluster.address)
            assert shutil.which(watch["handler"][0], path=env["PATH"]) == str(
                tools / watch["handler"][0]
            )
            process = subprocess.Popen(command, env=env)
            stack.callback(process.wait, patient(20.0))
            stack.callback(process.terminate)
        wait_for(lambda: given(service), 30.0, "a first call for the service")
        assert given(service) == [b"[]"]
        wait_for(lambda: given(role) == [b"null"], 30.0, "a first call for the epoch")

        for epoch in (1, 2):
            cluster.put("PUT", f"/v1/kv/{config.key('epoch')}", dump_epoch(epoch))
            wait_for(
                lambda epoch=epoch: value(given(role)) == dump_epoch(epoch),  # type: ignore[misc]
                30.0,
                f"a call for epoch {epoch}",
            )

        document = {"Name": config.service, "Port": 2049, "Check": {"Name": "NFS", "TTL": "60s"}}
        cluster.put("PUT", "/v1/agent/service/register", json.dumps(document).encode())
        wait_for(lambda: len(given(service)) == 2, SYNC_S, "a call for the registration")
        assert json.loads(given(service)[-1])[0]["Service"]["Service"] == config.service
        cluster.put("PUT", f"/v1/agent/check/pass/service:{config.service}", b"")
        wait_for(
            lambda: "passing" in own_checks(given(service)[-1]), SYNC_S, "a call for the check"
        )

        # A heartbeat is none of their business: while one handler is called again and again for
        # something else, the other one isn't called.
        changes = [
            *((role, f"/v1/kv/{config.key('epoch')}", dump_epoch(epoch)) for epoch in (3, 4)),
            *(
                (service, f"/v1/agent/check/{check}/service:{config.service}", b"")
                for check in ("fail", "pass", "fail")
            ),
        ]
        counts = {name: len(given(name)) for name in EVENTS}

        def enough(name: str) -> bool:
            return len(given(name)) >= counts[name]

        for name, path, body in changes:
            for number in range(5):
                cluster.put("PUT", f"/v1/kv/{config.key('leader')}", b"%d" % number)
            cluster.put("PUT", path, body)
            counts[name] += 1
            wait_for(partial(enough, name), SYNC_S, f"a call of {name}")
        assert {name: len(given(name)) for name in EVENTS} == counts
        assert value(given(role)) == dump_epoch(4)
        assert "critical" in own_checks(given(service)[-1])
        wait_for(lambda: len(agent.requests) == sum(counts.values()), 30.0, "each woke the agent")
    assert {json.dumps(request) for request in agent.requests} == {'{"v": 1, "command": "wake"}'}


@contextlib.contextmanager
def watching(node: StorageNode, consul: str) -> Iterator[subprocess.Popen[str]]:
    """`standfast watch` with a stand-in for the consul command."""
    directory = node.root / "stand-in"
    script(directory / "consul", consul)
    env = node.environment(PATH=f"{directory}:{os.environ['PATH']}", PIDS=str(node.root / "pids"))
    with subprocess.Popen(
        [sys.executable, "-m", "standfast", "watch", VOLUME],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_watch_that_ends_ends_all_of_them_and_the_unit_starts_them_again(
    node: StorageNode,
) -> None:
    """The first of the two ends at once, the other would go on."""
    ends = 'echo $$ >> "$PIDS"; case "$*" in *-type=key*) exit 7;; esac; exec sleep 60'
    with watching(node, ends) as process:
        _, said = process.communicate(timeout=patient(20.0))
        assert process.returncode == 3
        assert "ended with status 7" in said
    assert not any(is_alive(pid) for pid in pids(node))


def test_an_orderly_end_takes_the_watches_along(node: StorageNode) -> None:
    with watching(node, 'echo $$ >> "$PIDS"; exec sleep 60') as process:
        wait_for(lambda: len(pids(node)) == 3, 30.0, "all watches run")
        process.terminate()
        assert process.wait(patient(20.0)) == 0
    assert not any(is_alive(pid) for pid in pids(node))


def pids(node: StorageNode) -> list[int]:
    path = node.root / "pids"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
