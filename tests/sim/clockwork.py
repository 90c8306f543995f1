"""Virtual time: one queue of events on the real time, and a clock of its own for each node.

The program's own loops run as tasks (greenlets) of processes. Whatever would wait for something
switches back to the queue, so that calls of different processes overlap in any order; nothing
sleeps really, and nothing runs beside anything else.
"""

from __future__ import annotations

import heapq
import itertools
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from greenlet import getcurrent, greenlet

UTC_START = 1_795_342_500.0  # 2026-11-22 10:15:00 UTC
FOREVER = float("inf")
LEAST_S = 1e-6
"""Every wait takes some time; less is lost when it is added to the time."""


class Violation(BaseException):
    """An invariant was broken; the text tells how. The program takes an Exception for a failure
    of its own, and goes on."""


class Killed(BaseException):
    """Unwinds a program that was killed, wherever it waits."""


class Exited(BaseException):
    """A program ended itself by os._exit."""


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
class SimProcess:
    """One process of a node; frozen or dead with all its tasks."""

    name: str
    clock: NodeClock
    owner: object = None
    """The node."""
    pid: int = 0
    booted_at: float = 0.0
    """When its machine started, by that machine's clock."""
    frozen_until: float = 0.0
    dead: bool = False
    stall_in: int = -1
    """It stands still at the so-many-th look at a clock, or call, from now; -1: at none."""
    stall_s: float = 0.0
    tasks: list[SimTask] = field(default_factory=list)
    ended: Callable[[SimProcess, BaseException | None], None] = lambda _process, _error: None
    """Called once when the main task has ended by itself, with what it raised."""


class SimTask:
    """One thread of a process."""

    __slots__ = ("done", "greenlet", "process", "ticket")

    def __init__(self, process: SimProcess) -> None:
        self.process = process
        self.greenlet: greenlet
        self.ticket = 0
        self.done = False


class Clockwork:
    """The queue. `after_event` is called after each event, to look at the invariants."""

    def __init__(self) -> None:
        self.now = 0.0
        self.after_event: Callable[[], None] = lambda: None
        self.on_crash: Callable[[SimProcess, BaseException, str], None] = lambda *_: None
        self.on_stall: Callable[[SimProcess, float], None] = lambda _process, _seconds: None
        self.current: SimTask | None = None
        self.events = 0
        self.pace = 1.0
        """What calls take, as a share of what they ordinarily do."""
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._hub = getcurrent()

    # The queue

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (max(when, self.now), next(self._numbers), what))

    def after(self, delay_s: float, what: Callable[[], None]) -> None:
        self.at(self.now + delay_s, what)

    def run_until(self, end: float, enough: Callable[[], bool] | None = None) -> None:
        """To `end`, or until `enough` is seen true after an event."""
        queue = self._queue
        while queue and queue[0][0] <= end:
            at, _, what = heapq.heappop(queue)
            self.now = max(self.now, at)
            self.events += 1
            what()
            self.after_event()
            if enough is not None and enough():
                return
        self.now = max(self.now, end)

    # Processes

    def start(self, process: SimProcess, body: Callable[[], object]) -> SimProcess:
        """Begin a process with its main task."""
        process.pid = next(self._numbers)
        self.begin_task(process, body, main=True)
        return process

    def begin_task(
        self, process: SimProcess, body: Callable[[], object], *, main: bool = False
    ) -> None:
        """A further thread of the process; it begins as an event of its own."""
        task = SimTask(process)

        def run() -> None:
            error: BaseException | None = None
            try:
                body()
            except Killed:
                task.done = True
                return
            except Violation:
                raise
            except BaseException as caught:
                error = caught
                if not isinstance(caught, Exited):
                    self.on_crash(process, caught, traceback.format_exc())
            task.done = True
            if main or error is not None:
                self._ended(process, error)

        def whole() -> None:
            try:
                run()
            finally:
                task.greenlet.parent = self._hub  # where the queue runs by now: see `joined_by`

        task.greenlet = greenlet(whole, self._hub)
        process.tasks.append(task)
        self.at(self.now, lambda: self._resume(task, 0))

    @contextmanager
    def joined_by(self, process: SimProcess) -> Iterator[None]:
        """The caller itself is a task of the process; whatever it waits for comes about meanwhile.

        What is raised in an event, an invariant's violation above all, is raised here.
        """
        task, outside = SimTask(process), self._hub
        process.pid = next(self._numbers)
        process.tasks.append(task)
        task.greenlet = getcurrent()
        self._hub = greenlet(self._go_on)
        self.current = task
        try:
            yield
        finally:
            self.current = None
            self._hub.throw()  # what is still to come nobody waits for
            self._hub = outside

    def _go_on(self) -> None:
        self.run_until(FOREVER)
        raise AssertionError("somebody waits, and nothing is to come")

    def _ended(self, process: SimProcess, error: BaseException | None) -> None:
        if not process.dead:
            self.kill(process)
            process.ended(process, error)

    def kill(self, process: SimProcess) -> None:
        """SIGKILL; whoever is killed while it runs this has to call `check` afterwards."""
        if process.dead:
            return
        process.dead = True
        for task in process.tasks:
            if not task.done and task is not self.current:
                self.at(self.now, lambda task=task: self._reap(task))  # type: ignore[misc]

    def check(self) -> None:
        """Killed when the running process is dead."""
        if self.current is not None and self.current.process.dead:
            raise Killed

    def _reap(self, task: SimTask) -> None:
        if task.done:
            return
        if not task.greenlet:  # it never began
            task.done = True
            return
        self.current = task
        try:
            task.greenlet.throw(Killed)
        finally:
            self.current = None
        if not task.done:
            raise AssertionError(f"{task.process.name} goes on though it was killed")

    def _resume(self, task: SimTask, ticket: int) -> None:
        if task.done or task.ticket != ticket or task.process.dead:
            return
        until = task.process.frozen_until
        if until > self.now:
            self.at(until, lambda: self._resume(task, ticket))
            return
        task.ticket += 1
        self.current = task
        try:
            task.greenlet.switch()
        finally:
            self.current = None

    # What a running task calls

    def pause(self, until: float) -> None:
        """The running task waits until then, longer when it is frozen at that moment."""
        task = self._running()
        ticket = task.ticket
        self.at(until, lambda: self._resume(task, ticket))
        self.suspend()

    def suspend(self) -> None:
        """Wait for a `wake` (see Signal)."""
        task = self._running()
        self.current = None
        self._hub.switch()
        self.current = task
        if task.process.dead:
            raise Killed

    def wake(self, task: SimTask, ticket: int) -> None:
        self.at(self.now, lambda: self._resume(task, ticket))

    def _running(self) -> SimTask:
        task = self.current
        if task is None:
            raise AssertionError("only a process of the simulation can wait")
        if task.process.dead:
            raise Killed
        return task

    def sleep(self, local_s: float) -> None:
        """By the clock of the running process."""
        self.pause(self.now + max(self._running().process.clock.real_s(local_s), LEAST_S))

    def take(self, seconds: float) -> None:
        """A call that takes so long in real time, on a machine of an ordinary pace; it may stall
        at its beginning."""
        self.door()
        self.pause(self.now + max(seconds * self.pace, LEAST_S))

    def door(self) -> None:
        """A look at a clock, or a call: where a process may stand still."""
        task = self.current
        if task is None:
            return
        process = task.process
        if process.dead:
            raise Killed
        if process.stall_in >= 0:
            process.stall_in -= 1
            if process.stall_in < 0:
                self.stall(process.stall_s)

    def stall(self, seconds: float) -> None:
        """The running process stands still, with all its threads."""
        process = self._running().process
        self.on_stall(process, seconds)
        process.frozen_until = max(process.frozen_until, self.now + seconds)
        self.pause(process.frozen_until)

    @property
    def clock(self) -> NodeClock | None:
        return None if self.current is None else self.current.process.clock


class SimTime:
    """Stands in for the module `time` in `standfast.system.clock`."""

    def __init__(self, clockwork: Clockwork) -> None:
        self._clockwork = clockwork

    def monotonic(self) -> float:
        clockwork = self._clockwork
        task = clockwork.current
        if task is None:
            return clockwork.now
        read = task.process.clock.monotonic(clockwork.now)
        if task.process.stall_in >= 0 or task.process.dead:
            clockwork.door()
        return read

    def time(self) -> float:
        clock = self._clockwork.clock
        now = self._clockwork.now
        return UTC_START + now if clock is None else clock.utc(now)

    def sleep(self, seconds: float) -> None:
        self._clockwork.sleep(seconds)

    CLOCK_BOOTTIME = 7

    def clock_gettime(self, _clock: int) -> float:
        """Seconds since this machine started."""
        task = self._clockwork.current
        booted_at = 0.0 if task is None else task.process.booted_at
        return self.monotonic() - booted_at


class Signal:
    """Tasks wait for it; `set` wakes all that wait at that moment."""

    __slots__ = ("_clockwork", "_waiting")

    def __init__(self, clockwork: Clockwork) -> None:
        self._clockwork = clockwork
        self._waiting: list[tuple[SimTask, int]] = []

    def wait(self, until: float) -> None:
        """Until it is set, or that real time is reached."""
        clockwork = self._clockwork
        task = clockwork.current
        assert task is not None
        entry = (task, task.ticket)
        self._waiting.append(entry)
        try:
            if until < FOREVER:
                clockwork.pause(until)
            else:
                clockwork.suspend()
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    def set(self) -> None:
        waiting, self._waiting = self._waiting, []
        for task, ticket in waiting:
            self._clockwork.wake(task, ticket)


class SimEvent:
    """threading.Event in virtual time."""

    def __init__(self, clockwork: Clockwork) -> None:
        self._clockwork = clockwork
        self._signal = Signal(clockwork)
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        self._signal.set()

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        """`timeout` by the clock of whoever waits."""
        clockwork = self._clockwork
        clock = clockwork.clock
        assert clock is not None
        until = FOREVER
        if timeout is not None:
            until = clockwork.now + max(clock.real_s(timeout), LEAST_S)
        while not self._set and clockwork.now < until:
            self._signal.wait(until)
        return self._set
