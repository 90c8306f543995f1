"""The demo's client: what it wrote and got acknowledged, line by line, and the thread that writes.

Invariant: a line counts as acknowledged only after the server answered the write and gave the same
line back. Each line has its own place in the file, so a repeated write changes nothing.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from standfast.consul.gateway import ConsulGateway
from standfast.demo.invariants import Invariants
from standfast.demo.stand_ins.file_calls import Session
from standfast.errors import StandfastError, Unreachable
from standfast.system.clock import Deadline, monotonic

FILE = "journal"
LINE_BYTES = 32
CALL_S = 1.0
RETRY_S = 0.05


@dataclass(frozen=True, slots=True)
class Line:
    """One acknowledged line."""

    number: int
    text: str
    epoch: int
    node: str
    at: float
    """Monotonic seconds of the acknowledgement."""


def line_text(number: int, token: int) -> str:
    """Exactly LINE_BYTES bytes."""
    return f"line {number:06d} {token:016x}".ljust(LINE_BYTES - 1) + "\n"


class Ledger:
    """All acknowledged lines, in their order; thread-safe."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._lock = threading.Lock()

    def add(self, line: Line) -> None:
        with self._lock:
            self._lines.append(line)

    def lines(self) -> tuple[Line, ...]:
        with self._lock:
            return tuple(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def last(self) -> Line | None:
        with self._lock:
            return self._lines[-1] if self._lines else None

    def before(self, moment: float) -> tuple[Line, ...]:
        """Lines acknowledged before `moment` (monotonic s)."""
        with self._lock:
            return tuple(self._lines[: bisect.bisect_left(self._lines, moment, key=_at)])

    def longest_pause(self, since: float, until: float) -> float:
        """The longest time between two acknowledgements in a row in this span, seconds."""
        times = [line.at for line in self.lines() if since <= line.at <= until]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


def _at(line: Line) -> float:
    return line.at


def missing(content: bytes, lines: Iterable[Line]) -> list[int]:
    """Numbers of the lines that are not, byte for byte, in their place in `content`."""
    return [
        line.number
        for line in lines
        if content[line.number * LINE_BYTES : (line.number + 1) * LINE_BYTES] != line.text.encode()
    ]


class Every:
    """A thread that does something again and again until the block ends."""

    def __init__(self, seconds: float, name: str, work: Callable[[], None]) -> None:
        self.seconds = seconds
        self._work = work
        self._stop = threading.Event()
        self.trouble: str | None = None
        """Why it doesn't get on: a node that is off, a Consul that closes. It tries again."""
        self.error: BaseException | None = None
        """What it died of."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Asks it to end; `join` waits for that."""
        self._stop.set()

    def join(self) -> None:
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self.seconds):
            try:
                self._work()
            except StandfastError as error:
                self.trouble = str(error)
            except Exception as error:  # noqa: BLE001 - shown by the main thread
                self.error = error
                return


class Client(Every):
    """Writes one line after the other, through whatever server Consul's catalog names.

    It stands for a client that mounts by Consul's DNS alone: a node with Standfast on it follows
    the holder's own entry only (`node/other_server.py`). In the demo nobody forges one.
    """

    def __init__(
        self,
        consul: ConsulGateway,
        service: str,
        ledger: Ledger,
        invariants: Invariants,
        pause_s: float,
    ) -> None:
        self._pause_s = pause_s
        self._consul = consul
        self._service = service
        self._ledger = ledger
        self._invariants = invariants
        super().__init__(RETRY_S, "client", self._write_lines)

    def _find(self) -> tuple[str, str, int]:
        instances = self._consul.instances(self._service, consistent=False)
        for instance in instances:
            if instance.checks == "passing" and instance.node_health == "passing":
                return instance.node, instance.address, instance.port
        raise Unreachable(f"{self._service} has no passing instance in Consul")

    def _write_lines(self) -> None:
        node, address, port = self._find()
        with Session(address, port, Deadline.after(CALL_S)) as session:
            fsid = session.mount(Deadline.after(CALL_S))
            while not self._stop.wait(self._pause_s):
                self._write_one(session, fsid, node)
                self.trouble = None

    def _write_one(self, session: Session, fsid: str, node: str) -> None:
        number = len(self._ledger)
        text = line_text(number, random.getrandbits(64))
        where = (FILE, number * LINE_BYTES)
        limit = Deadline.after(CALL_S)
        reply = session.write(fsid, where, text, limit)
        if session.read(fsid, where, LINE_BYTES, limit) != text:
            raise Unreachable(f"line {number} was read back with another content")
        self._invariants.answered(node, reply["epoch"], reply["at"])
        self._ledger.add(Line(number, text, reply["epoch"], node, monotonic()))


def poll(node: str, address: str, port: int, invariants: Invariants) -> int | None:
    """Asks one node's port whether it serves; the epoch in which it does, None when it doesn't."""
    limit = Deadline.after(CALL_S)
    with contextlib.suppress(StandfastError), Session(address, port, limit) as session:
        reply = session.null(limit)
        invariants.answered(node, reply["epoch"], reply["at"])
        epoch = reply["epoch"]
        return epoch if isinstance(epoch, int) else None
    return None
