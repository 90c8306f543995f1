"""The processes of the labs, all started by the `sh` library, with its options in one place.

Invariant: a command has a deadline, and what passes it is killed together with its children, in a
node too; every process is in a session of its own.
"""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from sh import Command, CommandNotFound, ErrorReturnCode

from tests.support import pace, waiting

# Not `_timeout`: it kills the one process that was started (nsenter, but not the command in the
# node), and each command that has one takes 107 ms instead of 7. Collected by lines, as is the
# library's default, 300 000 of them take 5.2 s instead of 0.1.
_OPTIONS: dict[str, Any] = {
    "_bg": True,
    "_bg_exc": False,
    "_new_session": True,
    "_return_cmd": True,
    "_tty_out": False,
}
_COLLECTED: dict[str, Any] = {"_out_bufsize": 1 << 16, "_err_bufsize": 1 << 16}
T = TypeVar("T")
Output = IO[bytes] | Callable[[str], object]


class LabError(Exception):
    """Something the lab itself needed did not happen; the message says what and where."""


class LabTimeout(LabError):
    """A deadline of the lab passed."""


def wait_for(
    predicate: Callable[[], T], timeout_s: float, what: str, interval_s: float = 0.05
) -> T:
    """The first truthy answer of predicate; else LabTimeout."""
    return waiting.wait_for(predicate, timeout_s, what, interval_s, late=LabTimeout)


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended."""

    what: str
    """On which node it ran, and its words."""
    returncode: int
    """Below zero: the signal that ended it."""
    out: bytes
    err: bytes

    @property
    def stdout(self) -> str:
        return self.out.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.err.decode(errors="replace")

    def checked(self) -> Finished:
        """Itself, if it succeeded; else LabError with what it said."""
        if self.returncode != 0:
            said = f"{self.stdout}{self.stderr}".strip()
            raise LabError(f"{self.what}: exit {self.returncode}: {said}")
        return self


def words(argv: Sequence[str | Path], node: str = "") -> str:
    """How messages name a command: the node, if it is not the host's, and what was asked of it."""
    return f"{node}: " * bool(node) + shlex.join(map(str, argv))


class Process:
    """A running command. Its standard output is collected, or goes where `out` says (with its
    standard error): to a file, or line by line to a function."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        what: str = "",
        stdin: bytes | int = b"",
        out: Output | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """`what`: its name in messages, if not its words; `stdin`: data or a file descriptor."""
        self.what = what or words(argv)
        name, *arguments = map(str, argv)
        options: dict[str, Any] = {"_in": stdin, "_cwd": cwd, **_OPTIONS}
        options |= _COLLECTED if out is None else {"_out": out, "_err_to_out": True}
        if env is not None:
            options["_env"] = dict(env)
        try:
            command = Command(name)
        except CommandNotFound as error:
            raise LabError(f"{self.what}: there is no program {name}") from error
        self._running = command(*arguments, **options)
        self.pid: int = self._running.pid

    def alive(self) -> bool:
        return bool(self._running.is_alive())

    def kill(self) -> None:
        """SIGKILL to it and its children; no error when it is over."""
        if self.alive():
            self._kill_group()

    def wait(self, within_s: float) -> int:
        """Its exit status; LabTimeout when it runs on."""
        ended = f"{self.what} ends"
        waiting.wait_for(lambda: not self.alive(), within_s, ended, 0.01, late=LabTimeout)
        return self._ended()

    def finish(self, within_s: float) -> Finished:
        """What became of it; LabTimeout with what it said when it had to be killed.

        `within_s` is not stretched here.
        """
        late = threading.Event()

        def end() -> None:
            late.set()
            self._kill_group()

        deadline = threading.Timer(within_s, end)
        deadline.start()
        try:
            returncode = self._ended()
        except BaseException:
            self._kill_group()
            raise
        finally:
            deadline.cancel()
        done = Finished(self.what, returncode, self._running.stdout, self._running.stderr)
        if late.is_set():
            said = f"{done.stdout}{done.stderr}".strip()
            raise LabTimeout(f"{self.what}: still running after {within_s:.1f} s: {said}")
        return done

    def _kill_group(self) -> None:
        """Also when it has ended itself: children that hold its output keep its group in being."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _ended(self) -> int:
        with suppress(ErrorReturnCode):
            self._running.wait()
        return int(self._running.exit_code)


def sh(*argv: str | Path, input_text: str = "", check: bool = True, timeout_s: float = 30.0) -> str:
    """Run a command on the host; its standard output. Raises LabError with what it said."""
    done = Process(argv, stdin=input_text.encode()).finish(pace.patient(timeout_s))
    return (done.checked() if check else done).stdout
