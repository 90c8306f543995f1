"""The service manager hears of the agent for as long as its loop keeps its word, and no longer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from standfast.agent import main
from standfast.agent.local_view import LocalView
from standfast.agent.loop import PATIENCE_S, Agent
from standfast.agent.main import keep_fed, serve
from standfast.agent.watcher import Watcher
from standfast.role.plan import Do, Plan, Step
from standfast.role.steps import Effects
from standfast.system import threads
from standfast.system.clock import Deadline
from standfast.system.sd_notify import watchdog_s
from standfast.system.threads import any_in_the_kernel
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.fakes.machine import fake_node
from tests.support.checkout import CHECKOUT
from tests.support.pace import patient

FED = b"WATCHDOG=1"


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as here:
        here.bind(str(tmp_path / "notify"))
        here.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield here


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    return stop_the_clock(monkeypatch)


@pytest.fixture
def agent(tmp_path: Path, clock: StoppedClock) -> Agent:
    machine = fake_node(tmp_path).machine
    return Agent(machine, Watcher(machine.config, machine.consul), LocalView(machine))


class OneTurn(threading.Event):
    """Lets the feeder have one turn."""

    def wait(self, timeout: float | None = None) -> bool:
        was = self.is_set()
        self.set()
        return was


def fed(agent: Agent, manager: socket.socket) -> bool:
    """Whether the service manager is told in one turn."""
    agent.stopping = OneTurn()
    keep_fed(agent, 10.0)
    try:
        return manager.recv(100) == FED
    except BlockingIOError:
        return False


def test_a_loop_that_looks_is_fed_for_and_one_that_hangs_is_not(
    agent: Agent, manager: socket.socket, clock: StoppedClock
) -> None:
    assert fed(agent, manager)
    clock.sleep(PATIENCE_S + agent.config.hooks.timeout)
    assert fed(agent, manager), "the longest command of a look is not over yet"
    clock.sleep(1.0)
    assert not fed(agent, manager)
    agent.moved_at = clock.now
    assert fed(agent, manager), "it came back"


def test_a_step_is_fed_for_until_well_after_the_deadline_of_its_plan(
    agent: Agent, manager: socket.socket, clock: StoppedClock
) -> None:
    hours = 6 * 3600.0
    seen: list[bool] = []

    def copy() -> None:
        clock.sleep(hours)
        seen.append(fed(agent, manager))
        effects.deadline = Deadline.after(100.0)  # as a step sets it that has another one
        clock.sleep(100.0 + PATIENCE_S)
        seen.append(fed(agent, manager))
        clock.sleep(1.0)
        seen.append(fed(agent, manager))

    class Copy(Effects):
        def table(self) -> dict[Do, Callable[[], None]]:
            return {Do.PRE_COPY: copy}

    effects = Copy(agent.machine, deadline=Deadline.after(hours))
    plan = Plan("switchover", (Step(Do.PRE_COPY, "replicate"),))
    agent.run_plan(plan, effects)
    assert seen == [True, True, False]
    assert fed(agent, manager), "the plan is over"
    clock.sleep(hours)
    assert not fed(agent, manager), "and its deadline is no look's"


def test_an_agent_that_a_kill_could_not_end_is_left_to_those_of_its_threads_that_work(
    agent: Agent,
    manager: socket.socket,
    clock: StoppedClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(main, "any_in_the_kernel", lambda: True)
    clock.sleep(PATIENCE_S + agent.config.hooks.timeout + 1.0)
    assert fed(agent, manager)
    assert "hangs in the kernel" in caplog.text
    monkeypatch.setattr(main, "any_in_the_kernel", lambda: False)
    assert not fed(agent, manager)
    assert "the service manager starts a new agent" in caplog.text


def test_a_thread_in_the_kernel_is_told_by_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any_in_the_kernel()
    monkeypatch.setattr(threads, "TASKS", tmp_path)
    for name, line in (("7", b"7 (a) D) S 1 2"), ("8", b"8 (D) R 1 2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stat").write_bytes(line)
    assert not any_in_the_kernel()
    (tmp_path / "8" / "stat").write_bytes(b"8 (x) D 1 2")
    assert any_in_the_kernel()


def test_how_often_it_is_due_is_told_by_the_service_manager(
    agent: Agent, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside: list[str] = []
    agent.stopping.set()
    for told, whose, expected in (
        ("60000000", str(os.getpid()), 60.0),
        ("60000000", None, 60.0),
        ("60000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ):
        for name, value in (("WATCHDOG_USEC", told), ("WATCHDOG_PID", whose)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        assert watchdog_s() == expected
        beside.clear()
        serve(agent, lambda name, _body: beside.append(name))
        assert ("watchdog" in beside) is (expected is not None)


FROZEN = """
import re, sys, threading
from types import SimpleNamespace
from standfast.agent.main import keep_fed
agent = SimpleNamespace(stopping=threading.Event(), busy=None, overdue_at=lambda: float("inf"))
threading.Thread(target=keep_fed, args=(agent, 0.02), daemon=True).start()
sys.stdin.readline()
print("frozen", flush=True)
re.match("(.?){60}z$", "a" * 60)  # with the lock of all threads, for longer than anybody waits
"""


def test_an_interpreter_that_is_frozen_feeds_nobody(tmp_path: Path, manager: socket.socket) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", FROZEN],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        manager.settimeout(patient(20.0))
        assert manager.recv(100) == FED
        child.stdin.write(b"\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"frozen\n"
        manager.settimeout(patient(1.0))
        with pytest.raises(TimeoutError):
            for _ in range(1000):  # what was sent before
                manager.recv(100)
        assert child.poll() is None
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdin.close()
        child.stdout.close()
