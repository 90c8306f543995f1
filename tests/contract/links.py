"""A way from the nodes to each other in tests that can be cut anywhere, and is quick.

A server, forked from the test once, forks a process for every connection: the receiving end, with
everything imported already. So a cycle costs milliseconds rather than an interpreter's start, and
what a test patched holds for the receivers, too. What is to go wrong is read at each connection.

python -IS -c CONNECT SOCKET NODE    is the transport's command, what ssh is in real life
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from tests.contract.effects import at_effect
from tests.contract.images import copy_image
from tests.contract.peers import answer
from tests.support.waiting import wait_for

CONNECT = """
import _socket, array, os, sys
link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
link.connect(sys.argv[1])
text = f"{sys.argv[2]} {os.getppid()}".encode()
link.sendmsg([text], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
os.close(0), os.close(1)
status = link.recv(1)
sys.exit(status[0] if status else 255)
"""
PIECE = 65536
UP = ("hello", "begin")
DOWN = ("welcome", "ready", "published")


@dataclass(frozen=True, slots=True)
class LinkFault:
    """What goes wrong in one connection, and when."""

    do: str
    """cut (the link), end (of the receiver's input), kill-receiver, kill-sender, lose-consul, or
    watch (nothing).
    """
    message: str | None = None
    passed: bool = False
    """At the message: after it was passed on, rather than before."""
    stream_bytes: int | None = None
    """After so many bytes of the stream."""
    effect: int | None = None
    """Before the receiver's effect of this number."""
    image: str | None = None
    """A disk that is copied at that moment: the power cut of its node."""
    copy: str | None = None
    touch: str | None = None
    """A file that exists from then on."""


class Links:
    """The transport between the nodes of one test."""

    def __init__(self, directory: Path, be: Callable[[str], None] = lambda _: None) -> None:
        """`be` is told in each receiver which node it is."""
        self._directory = directory
        self._be = be
        directory.mkdir(parents=True, exist_ok=True)
        self._socket = directory / "links"
        self._server = 0
        self._ways = itertools.count()

    def command(self, node: str) -> tuple[str, ...]:
        return (sys.executable, "-IS", "-c", CONNECT, str(self._socket), node)

    def reach(self, node: str, spec: dict[str, object]) -> None:
        """From now on, what `spec` describes answers for the node."""
        (self._directory / f"{node}.json").write_text(json.dumps(spec))

    def way_to(self, spec: dict[str, object]) -> tuple[str, ...]:
        """The transport's command to what `spec` describes, beside all others."""
        name = f"way{next(self._ways)}"
        self.reach(name, spec)
        return self.command(name)

    def arm(self, fault: LinkFault | None) -> None:
        path = self._directory / "fault.json"
        path.unlink(missing_ok=True)
        self.happened.unlink(missing_ok=True)
        if fault is not None:
            path.write_text(json.dumps(asdict(fault)))

    @property
    def happened(self) -> Path:
        """Exists when the fault has come to pass."""
        return self._directory / "happened"

    @property
    def complaints(self) -> Path:
        """What the receivers wrote to their stderr."""
        return self._directory / "stderr"

    def wait_idle(self) -> None:
        """Until every receiver is gone."""
        with (self._directory / "busy").open("w") as busy:

            def is_idle() -> bool:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                return False

            wait_for(is_idle, 30, "every receiver has ended", interval_s=0.005)

    @contextlib.contextmanager
    def serve(self) -> Iterator[Links]:
        listener = socket.socket(socket.AF_UNIX)
        self._socket.unlink(missing_ok=True)
        listener.bind(str(self._socket))
        listener.listen(16)
        self._server = fork(lambda: self._accept(listener))
        listener.close()
        try:
            yield self
        finally:
            os.killpg(self._server, signal.SIGKILL)
            os.waitpid(self._server, 0)
            self.wait_idle()

    def _accept(self, listener: socket.socket) -> int:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the children are nobody's concern
        parent = os.getppid()
        listener.settimeout(1.0)
        while os.getppid() == parent:
            with contextlib.suppress(TimeoutError):
                link, _ = listener.accept()
                busy = (self._directory / "busy").open("w")
                fcntl.flock(busy, fcntl.LOCK_SH)
                fork(partial(self._answer, link))
                busy.close()
                link.close()
        return 0

    def _answer(self, link: socket.socket) -> int:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        text, ends, _flags, _address = socket.recv_fds(link, 200, 3)
        node, sender = text.decode().split()
        os.dup2(os.open(self.complaints, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        spec = self._directory / f"{node}.json"
        fault = self._fault()
        up, down, _stderr = ends
        if fault is None or fault.effect is not None:
            status = self._receive(spec, up, down, fault)
        else:
            status = _Link(self, fault, int(sender), link).run(spec, up, down)
        with contextlib.suppress(OSError):
            link.send(bytes([status]))
        return 0

    def _fault(self) -> LinkFault | None:
        try:
            return LinkFault(**json.loads((self._directory / "fault.json").read_text()))
        except FileNotFoundError:
            return None

    def _receive(self, spec: Path, stdin: int, stdout: int, fault: LinkFault | None) -> int:
        if fault is not None and fault.effect is not None:
            at_effect(fault.effect, lambda: self._fall(fault))
        peer_spec = json.loads(spec.read_text())
        self._be(peer_spec["node"])
        status = 1
        # What is left to write when the sender is gone.
        with contextlib.suppress(BrokenPipeError), os.fdopen(stdout, "w") as answers:
            status = answer(peer_spec, stdin, answers)
        return status

    def _fall(self, fault: LinkFault) -> None:
        self.come_to_pass(fault)
        os.kill(os.getpid(), signal.SIGKILL)

    def come_to_pass(self, fault: LinkFault) -> None:
        if fault.image is not None and fault.copy is not None:
            copy_image(Path(fault.image), Path(fault.copy))
        if fault.touch is not None:
            Path(fault.touch).touch()
        self.note(f"{fault.message or fault.do}")
        self.happened.touch()

    def note(self, line: str) -> None:
        """A line in the order of what happened in all the processes."""
        with self.log.open("a") as stream:
            stream.write(f"{line}\n")

    @property
    def log(self) -> Path:
        return self._directory / "log"

    def start_receiver(self, spec: Path, others: tuple[int, ...]) -> tuple[int, int, int]:
        """A receiver behind two pipes: its pid, where to write, where to read."""
        (stdin, to), (back, stdout) = os.pipe(), os.pipe()

        def child() -> int:
            for fd in (to, back, *others):
                os.close(fd)
            return self._receive(spec, stdin, stdout, None)

        pid = fork(child)
        os.close(stdin)
        os.close(stdout)
        return pid, to, back


class _Link:
    """What passes messages and bytes on, until the fault comes."""

    def __init__(self, links: Links, fault: LinkFault, sender: int, link: socket.socket) -> None:
        self._links = links
        self._fault = fault
        self._sender = sender
        self._link = link
        self._streamed = 0
        self._up = list(UP)
        self._down = list(DOWN)
        self._receiver = 0
        self._struck = False

    def run(self, spec: Path, up: int, down: int) -> int:
        others = (up, down, self._link.fileno())
        self._receiver, to, back = self._links.start_receiver(spec, others)
        routes = {up: (to, self._pass_up), back: (down, self._pass_down)}
        while routes:
            for source in select.select(list(routes), [], [])[0]:
                sink, passing = routes[source]
                if not passing(source, sink):
                    os.close(sink)
                    os.close(source)
                    del routes[source]
        _, status = os.waitpid(self._receiver, 0)
        return os.waitstatus_to_exitcode(status) & 0xFF

    def _pass_up(self, source: int, sink: int) -> bool:
        if self._up:
            return self._pass_line(source, sink, self._up)
        room = PIECE
        if self._fault.stream_bytes is not None:
            room = self._fault.stream_bytes - self._streamed
            if room == 0:
                self._strike()
                if self._fault.do == "end":
                    return False
        data = _read(source, min(PIECE, room))
        self._streamed += len(data)
        return _write(sink, data) and bool(data)

    def _pass_down(self, source: int, sink: int) -> bool:
        return self._pass_line(source, sink, self._down)

    def _pass_line(self, source: int, sink: int, names: list[str]) -> bool:
        line = bytearray()
        while not line.endswith(b"\n"):
            byte = _read(source, 1)
            if not byte:
                return _write(sink, bytes(line)) and False
            line += byte
        name = names.pop(0) if names else ""
        if name == self._fault.message and not self._fault.passed:
            self._strike()
        alive = _write(sink, bytes(line))
        if name == self._fault.message and self._fault.passed:
            self._strike()
        return alive

    def _strike(self) -> None:
        """What dies first decides what the others notice; the link goes with either end."""
        if self._struck:
            return
        self._struck = True
        self._links.come_to_pass(self._fault)
        if self._fault.do in ("end", "lose-consul", "watch"):
            return
        if self._fault.do == "kill-receiver":
            os.kill(self._receiver, signal.SIGKILL)
        elif self._fault.do == "kill-sender":
            os.kill(self._sender, signal.SIGKILL)
        os._exit(1)  # all ends of pipes are closed by that


def _read(source: int, size: int) -> bytes:
    try:
        return os.read(source, size)
    except OSError:
        return b""


def _write(sink: int, data: bytes) -> bool:
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(sink, left) :]
    except BrokenPipeError:
        return False
    return True


def fork(child: Callable[[], int]) -> int:
    """The pid of a process that runs `child` and ends with its status, whatever happens."""
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        status = child()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(status)
