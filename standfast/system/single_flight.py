"""Looks at sources that may hang: nobody waits longer than a deadline, and no look piles up.

Invariant: of each source there is at most one look at a time, however many scrapes ask and however
long it hangs; so there are never more hanging threads than sources.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

from standfast.errors import TimedOut
from standfast.system.clock import Deadline
from standfast.system.threads import Question

T = TypeVar("T")


class SingleFlight:
    """Lets one look at a time go to each source; for any thread."""

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
