"""The resident receiver, beside a conversation that can't be killed: its own process."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from standfast.cli.receive import INSTALLED, request
from standfast.cli.receiver import MOST_OF_VOLUME, Request
from tests.support.pace import patient
from tests.support.waiting import wait_for

# SIGKILL does nothing to who waits for a disk that doesn't answer.
RESIDENT = """
import os, signal, socket, sys, time
from standfast.cli import receiver

here = os.getpid()

def converse(request, descriptors):
    while request.of_volume == "sick" and os.getppid() == here and not os.path.exists(sys.argv[2]):
        time.sleep(0.02)
    os._exit(7)

receiver._converse = converse
signal.pidfd_send_signal = lambda *_: None
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
listener.listen()
receiver.Resident(listener).run()
"""


class Place:
    """Where the resident listens, and what ends its hanging conversations."""

    def __init__(self, root: Path) -> None:
        self.path, self.answers = root / "receive.sock", root / "answers"
        self.notified = root / "notify.sock"

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        argv = [sys.executable, "-c", RESIDENT, str(self.path), str(self.answers)]
        watchdog = {"NOTIFY_SOCKET": str(self.notified), "WATCHDOG_USEC": "400000"}
        with subprocess.Popen(argv, env={**os.environ, **watchdog}) as process:
            try:
                wait_for(self.path.exists, 30, "it listens")
                yield process
            finally:
                process.kill()

    def hand_over(self, volume: str, bound: str = "c", asked: str = "") -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(patient(10))
        connection.connect(str(self.path))
        assert connection.recv(4096) == INSTALLED
        with Path(os.devnull).open("r+b") as null:
            words = request(volume or None, bound, "", asked)
            socket.send_fds(connection, [words], [null.fileno()] * 3)
        return connection


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    with place.running():
        yield place


def children(place: Place, connection: socket.socket) -> list[int]:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid = int.from_bytes(raw[:4], sys.byteorder)
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_busy(answer: bytes) -> bool:
    return answer[:1] == b"\1" and json.loads(answer[1:])["reason"] == "busy"


def test_a_conversation_that_can_not_be_killed_keeps_nobody_else_waiting(place: Place) -> None:
    hangs = place.hand_over("sick")
    wait_for(lambda: len(children(place, hangs)) == 1, 30, "it was taken over")
    hangs.close()  # its sender is gone
    for bound in ("c", "a"):
        with place.hand_over("healthy", bound) as other:
            assert other.recv(4096) == b"\7"
    with place.hand_over("healthy") as other:
        place.answers.touch()
        wait_for(lambda: children(place, other) == [], 30, "all that ended are gone")


def has_children(place: Place, hangs: socket.socket, count: int) -> bool:
    return len(children(place, hangs)) == count


def test_what_hangs_on_one_volume_takes_no_place_of_another(place: Place) -> None:
    for number in range(MOST_OF_VOLUME):  # by a line that names the volume, or none
        by_line = number % 2 == 0
        asked = "" if by_line else "standfast receive sick"
        hangs = place.hand_over("sick" if by_line else "", asked=asked)
        taken = partial(has_children, place, hangs, number + 1)
        wait_for(taken, 30, "taken over")
        hangs.close()
    with place.hand_over("sick") as one_more:
        assert is_busy(one_more.recv(4096))
    with place.hand_over("healthy") as other:
        assert other.recv(4096) == b"\7"
    place.answers.touch()

    def is_free() -> bool:
        with place.hand_over("sick") as again:
            return again.recv(4096) == b"\7"

    wait_for(is_free, 30, "the places of what hung are free")


def test_the_service_manager_hears_that_it_waits(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place.notified))
        manager.settimeout(patient(10))
        with place.running():
            assert [manager.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            place.hand_over("sick").close()
            assert manager.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("volume", "asked", "of"),
    [
        ("media", "standfast receive other", "media"),
        ("", " standfast receive media\n", "media"),
        ("", "", ""),
    ],
)
def test_whose_place_it_takes(volume: str, asked: str, of: str) -> None:
    assert Request(volume, "c", "", asked).of_volume == of
