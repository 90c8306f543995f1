"""Virtual time: one queue of events on the real time, and a clock of its own for each node.

Nothing sleeps and nothing runs beside anything else. A program under test that makes a call which
takes time lets the queue run on in the meantime (`Clockwork.pass_time`), so other nodes act
between its reading of the clock and what follows.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

UTC_START = 1_795_342_500.0  # 2026-11-22 10:15:00 UTC


class Violation(BaseException):
    """An invariant was broken; the text tells how. The program takes an Exception for a failure
    of its own, and goes on."""


class Killed(BaseException):
    """Unwinds a program that was killed in the middle of a call."""


@dataclass(slots=True)
class NodeClock:
    """One machine's clocks: its monotonic runs at `rate` of the real time, its UTC is stepped."""

    rate: float = 1.0
    origin: float = 0.0
    stopped_s: float = 0.0
    utc_step_s: float = 0.0

    def monotonic(self, real: float) -> float:
        return self.origin + (real - self.stopped_s) * self.rate

    def utc(self, real: float) -> float:
        return UTC_START + real + self.utc_step_s

    def real_s(self, local_s: float) -> float:
        """How much real time passes in `local_s` of this clock."""
        return local_s / self.rate


@dataclass(slots=True, eq=False)
class Actor:
    """One process: frozen, killed, or busy inside a call that takes time."""

    name: str
    clock: NodeClock
    frozen_until: float = 0.0
    dead: bool = False
    busy: bool = False


Routine = Generator[float, None, None]


@dataclass(order=True, slots=True)
class _Event:
    at: float
    number: int
    actor: Actor | None = field(compare=False)
    what: Callable[[], None] = field(compare=False)


class Clockwork:
    """The queue. `after_event` is called after each event, to look at the invariants."""

    def __init__(self) -> None:
        self.now = 0.0
        self.after_event: Callable[[], None] = lambda: None
        self._queue: list[_Event] = []
        self._numbers = itertools.count()
        self._stack: list[Actor] = []

    @property
    def active(self) -> Actor:
        return self._stack[-1]

    def at(self, when: float, what: Callable[[], None], actor: Actor | None = None) -> None:
        heapq.heappush(self._queue, _Event(max(when, self.now), next(self._numbers), actor, what))

    def after(self, delay_s: float, what: Callable[[], None], actor: Actor | None = None) -> None:
        self.at(self.now + delay_s, what, actor)

    def run_until(self, end: float) -> None:
        while self._queue and self._queue[0].at <= end:
            event = heapq.heappop(self._queue)
            self.now = max(self.now, event.at)
            self._run(event)
        self.now = max(self.now, end)

    def _run(self, event: _Event) -> None:
        actor = event.actor
        if actor is None:
            event.what()
            self.after_event()
            return
        if actor.dead:
            return
        if actor.busy:
            self.after(0.01, event.what, actor)
        elif actor.frozen_until > self.now:
            self.at(actor.frozen_until, event.what, actor)
        else:
            with self.acting(actor):
                event.what()
            self.after_event()

    @contextmanager
    def acting(self, actor: Actor) -> Iterator[None]:
        """Run code as this process; its being killed on the way ends the code, not the test."""
        was_busy = actor.busy
        actor.busy = True
        self._stack.append(actor)
        try:
            yield
        except Killed:
            if not actor.dead:
                raise
        finally:
            self._stack.pop()
            actor.busy = was_busy

    def pass_time(self, seconds: float) -> None:
        """The active process is inside a call for so long, longer when it is frozen then."""
        actor, stack = self.active, self._stack
        self._stack = []
        try:
            self.run_until(self.now + seconds)
            while actor.frozen_until > self.now and not actor.dead:
                self.run_until(actor.frozen_until)
        finally:
            self._stack = stack
        self.after_event()
        if actor.dead:
            raise Killed

    def start(self, actor: Actor, routine: Routine) -> None:
        """Run a routine; each value that it yields is how long it sleeps, in its own seconds."""

        def step() -> None:
            pause_s = next(routine, None)
            if pause_s is not None:
                self.after(actor.clock.real_s(max(pause_s, 0.001)), step, actor)

        self.after(0.0, step, actor)
