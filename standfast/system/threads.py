"""Threads of which one that hangs keeps neither the process from its end nor anybody else waiting:
what runs beside the rest, and questions that may get no answer, of which none piles up.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from standfast.errors import TimedOut
from standfast.system.clock import Deadline

T = TypeVar("T")
TASKS = Path("/proc/self/task")


def start(name: str, body: Callable[[], object]) -> threading.Thread:
    """Runs `body` beside the rest, for as long as the process lives."""
    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    return thread


def any_in_the_kernel() -> bool:
    """Tells whether one of this process's threads is in a wait that no signal ends (state D of
    proc(5)): for a disk or a mount that hangs. Such a process can't be killed."""
    for stat in TASKS.glob("*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if stat.read_bytes().rpartition(b") ")[2][:1] == b"D":
                return True
    return False


class Question(Generic[T]):
    """Asks at once, in a thread of its own, for what `read` returns or raises."""

    def __init__(self, name: str, read: Callable[[], T]) -> None:
        self._read = read
        self._answer: tuple[T] | Exception | None = None
        self._thread = start(name, self._ask)

    def _ask(self) -> None:
        try:
            self._answer = (self._read(),)
        except Exception as error:  # noqa: BLE001  # raised again where it is waited for
            self._answer = error

    def answer(self, deadline: Deadline | None = None, late: str = "no answer in time") -> T:
        """Waits for it; TimedOut, in the words of `late`, when it isn't there by the deadline.

        An answer that comes too late is heard by nobody.
        """
        self._thread.join(None if deadline is None else deadline.remaining_s())
        if self._answer is None:
            raise TimedOut(late)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer[0]


class SingleFlight:
    """Lets one look at a time go to each source that may hang; for any thread.

    However many ask and however long it hangs: there are never more hanging threads than sources.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[Hashable, threading.Lock] = {}

    def look(self, source: Hashable, read: Callable[[], T], deadline: Deadline) -> T:
        """Returns what `read` returns or raises; TimedOut when it takes too long, or the one before
        does.

        A look that came too late ends by itself, unheard.
        """
        with self._lock:
            flight = self._flights.setdefault(source, threading.Lock())
        if not flight.acquire(timeout=deadline.remaining_s()):
            raise TimedOut("the look before this one hangs, still")

        def read_and_release() -> T:
            try:
                return read()
            finally:
                flight.release()

        try:
            question = Question(f"look at {source}", read_and_release)
        except RuntimeError:  # no more threads: the source must not stay locked for ever
            flight.release()
            raise
        return question.answer(deadline)


def all_at_once(name: str, reads: Sequence[Callable[[], T]]) -> list[T]:
    """Reads all side by side, so that one that takes long delays no other; the answers in order.

    A single one, the usual case of a node with one volume, needs no thread.
    """
    if len(reads) == 1:
        return [reads[0]()]
    questions = [Question(name, read) for read in reads]
    return [question.answer() for question in questions]
