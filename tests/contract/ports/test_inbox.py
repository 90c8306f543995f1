"""What the lease process relies on where requests and the word to end come in.

Run on the real socket and on the simulation's inbox.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from standfast.lease.inbox import Inbox, SocketInbox
from standfast.system.clock import monotonic, sleep
from standfast.system.local_socket import ask, listen
from tests.contract.ports.implementations import Implementation, each
from tests.sim.node import SimInbox
from tests.sim.one_node import on_a_node
from tests.support.pace import patient
from tests.support.waiting import soon

PORTS = (Inbox,)
REQUEST = {"cmd": "serve"}


@dataclass
class Scene:
    """An inbox to which nobody has said anything."""

    inbox: Inbox
    ask: Callable[[], Callable[[], Any]]
    """Send REQUEST; what it gives back waits for the answer."""
    end: Callable[[], object]
    """The word to end."""


@contextlib.contextmanager
def on_a_socket(directory: Path) -> Iterator[Scene]:
    stop, end = socket.socketpair()
    with stop, end, tempfile.TemporaryDirectory() as short:
        path = Path(short) / "lease.sock"

        def send() -> Callable[[], Any]:
            answers: list[Any] = []
            client = threading.Thread(target=lambda: answers.append(ask(path, REQUEST, soon(20.0))))
            client.start()

            def answer() -> Any:
                client.join(patient(20.0))
                return answers[0]

            return answer

        with listen(path) as server, contextlib.closing(SocketInbox(server, stop)) as inbox:
            yield Scene(inbox, send, lambda: end.send(b"x"))


@contextlib.contextmanager
def simulated(directory: Path) -> Iterator[Scene]:
    with on_a_node(directory) as node:
        inbox = node.seat.inbox

        def send() -> Callable[[], Any]:
            answers: list[Any] = []
            node.spawn("asks", lambda: answers.append(inbox.ask(REQUEST, soon(20.0))))

            def answer() -> Any:
                sleep(0.01)
                return answers.pop()

            return answer

        with inbox.open():
            yield Scene(inbox, send, inbox.stop)


IMPLEMENTATIONS = (
    Implementation((SocketInbox,), on_a_socket),
    Implementation((SimInbox,), simulated),
)


@pytest.fixture(params=each(IMPLEMENTATIONS))
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with request.param.make(tmp_path) as made:
        yield made


def nobody(request: object) -> dict[str, Any]:
    raise AssertionError(f"nobody asked: {request}")


def test_when_nobody_asks_the_patience_passes(scene: Scene) -> None:
    begun, patience_s = monotonic(), 1 / 16  # added to a virtual time it loses nothing
    assert scene.inbox.wait(patience_s, nobody) is True
    assert monotonic() - begun >= patience_s


def test_who_asks_is_answered_and_not_made_to_wait_for_the_patience(scene: Scene) -> None:
    heard: list[object] = []

    def answer(request: object) -> dict[str, Any]:
        heard.append(request)
        return {"ok": True, "says": "fine"}

    for _ in range(2):
        replied = scene.ask()
        assert scene.inbox.wait(600.0, answer) is True
        assert replied() == {"ok": True, "says": "fine"}
    assert heard == [REQUEST, REQUEST]


def test_the_word_to_end_comes_before_the_patience_is_over(scene: Scene) -> None:
    scene.end()
    assert scene.inbox.wait(600.0, nobody) is False
