"""What is done to a node of the demo, and what is told of it, without a cluster."""

from __future__ import annotations

import contextlib
import io
import itertools
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from standfast.demo.cluster import Cluster
from standfast.demo.consul.server import EmbeddedConsul
from standfast.demo.invariants import Broken
from standfast.demo.ledger import Ledger, Line, line_text
from standfast.demo.nodes import AgentEnded, Node, Place, config_text
from standfast.demo.processes import carries, send_signal
from standfast.demo.screen import Screen
from standfast.demo.stand_ins.embedded import lease_pid_file
from standfast.demo.stay import news as module
from standfast.demo.stay.news import News
from standfast.errors import StandfastError
from standfast.system.clock import monotonic
from standfast.system.run import kill_group, start_detached
from tests.support.pace import patient
from tests.support.waiting import wait_for

PLACES = (Place("zippy", "127.0.0.1", "127.0.0.1:1"), Place("c1", "127.0.0.2", "127.0.0.1:1"))
SLEEP = [sys.executable, "-ISc", "import time; time.sleep(600)"]


@pytest.fixture
def node() -> Iterator[Node]:
    with tempfile.TemporaryDirectory(prefix="demo-") as directory, EmbeddedConsul() as consul:
        root = Path(directory)
        consul.add_agent("zippy")
        text = config_text(PLACES[0], PLACES, root, 40_000)
        made = Node.make(PLACES[0], root / "zippy", text, consul)
        made.boot()
        yield made
        made.cut_power()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_frozen_process_goes_on_when_it_is_thawed_and_is_forgotten_when_it_is_killed(
    node: Node,
) -> None:
    with pytest.raises(StandfastError, match="no process `lease` runs on zippy"):
        node.freeze("lease")
    child = start_detached(SLEEP, op="x", log_file=node.root / "log", env=node.environment())
    lease_pid_file(node.config).parent.mkdir(parents=True)
    lease_pid_file(node.config).write_text(str(child.pid))
    wait_for(lambda: carries(child.pid, node.environment()), 10.0, "it runs")
    assert node.freeze("lease") == child.pid
    wait_for(lambda: state_of(child.pid) == "T", 10.0, "it is stopped")
    assert node.frozen() == ("lease",)
    assert node.thaw() == ("lease",)
    wait_for(lambda: state_of(child.pid) == "S", 10.0, "it goes on")
    assert node.frozen() == node.thaw() == ()
    node.freeze("lease")
    kill_group(child)
    assert node.frozen() == node.thaw() == ()


def test_a_process_of_somebody_else_gets_no_signal(node: Node) -> None:
    child = start_detached(SLEEP, op="x", log_file=node.root / "log")
    try:
        assert not send_signal(child.pid, signal.SIGKILL, node.environment())
        assert child.poll() is None
    finally:
        kill_group(child)


def test_a_power_cut_takes_everything_and_can_be_repeated(node: Node) -> None:
    child = start_detached(SLEEP, op="x", log_file=node.root / "log", env=node.environment())
    wait_for(lambda: carries(child.pid, node.environment()), 10.0, "it runs")
    assert node.cut_power() == (child.pid,)
    assert node.cut_power() == ()
    assert not (node.root / "etc").exists()
    node.boot()
    node.boot()
    assert (node.root / "etc").exists()
    assert node.consul.request("zippy", "GET", "/v1/agent/services") is not None


def test_the_program_of_a_node_runs_on_it_and_says_when_it_is_off(node: Node) -> None:
    def said(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [str(node.program), *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=patient(30.0))

    assert f'node = "{node.name}"' in (node.root / "etc/data-services.toml").read_text()
    history = said("history")
    assert "data-services" in history.stdout + history.stderr
    node.cut_power()
    off = said("history")
    assert (off.returncode, off.stderr) == (
        3,
        "zippy is off: `start zippy` at the prompt of the demo\n",
    )


def test_a_node_that_is_cut_off_has_no_consul_until_it_is_connected_again(node: Node) -> None:
    host, _, port = node.consul.address("zippy").partition(":")

    def answers() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection((host, int(port)), patient(5.0)).close()
            return True
        return False

    assert answers()
    node.cut_off()
    assert (node.is_cut_off, answers()) == (True, False)
    node.reconnect()
    assert (node.is_cut_off, answers()) == (False, True)


# The news


class Scene:
    """A ledger, what is judged, and the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out = io.StringIO()
        self.ledger = Ledger()
        self.now = 100.0
        self.broken: StandfastError | None = None
        self._numbers = itertools.count()
        monkeypatch.setattr(module, "monotonic", lambda: self.now)
        self.write("zippy", 1)
        self.news = News(
            cast(
                Cluster,
                SimpleNamespace(
                    ledger=self.ledger,
                    screen=Screen(self.out, monotonic(), live=False),
                    client=SimpleNamespace(trouble="nobody is passing"),
                    check=self.check,
                ),
            )
        )

    def check(self) -> None:
        if self.broken is not None:
            raise self.broken

    def write(self, node: str, epoch: int) -> None:
        number = next(self._numbers)
        self.ledger.add(Line(number, line_text(number, 0), epoch, node, self.now))

    def told(self) -> list[str]:
        self.news.tell()
        self.news.tell()
        lines = [line.split("] ", 1)[1] for line in self.out.getvalue().splitlines()]
        self.out.seek(0)
        self.out.truncate()
        return lines


def test_the_clients_wait_and_its_next_line_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.now += 0.5
    assert scene.told() == []
    scene.now += 1.0
    assert scene.told() == ["! the client waits: nobody is passing"]
    scene.write("zippy", 1)
    scene.now += 3.0
    scene.write("c2", 2)
    scene.now += 0.2
    scene.write("c2", 2)
    assert scene.told() == [
        "+ the client's next line is on c2, epoch 2: 3.0 s after the last one on zippy"
    ]
    scene.now += 2.0
    assert scene.told() == ["! the client waits: nobody is passing"]


def test_what_is_found_broken_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.broken = Broken("one owner per epoch", "two")
    assert scene.told() == ["! INVARIANT BROKEN: one owner per epoch: two"]
    assert scene.told() == []
    scene.broken = AgentEnded("c1", "the agent of c1 ended with status -9: killed")
    assert scene.told() == [f"! {scene.broken}; `start c1` starts it again"]
