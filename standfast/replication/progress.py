"""How far a stream is, for people: a bar on a terminal, a line now and then elsewhere.

Invariant: it goes to stderr alone, and nothing that happens in here ends a replication.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TextIO

from standfast.system.clock import monotonic
from standfast.text import duration, size

FIRST_LINE_S = 5.0
LINE_EVERY_S = 10.0
RATE_OVER_S = 30.0
"""The rate is that of about this last time: what the remaining time is reckoned from."""
_LOCK = threading.RLock()
"""Bars of several standbys share a terminal."""


class Progress(Protocol):
    """Takes each piece of a stream; `total_bytes` is an estimate, None when there is none."""

    def __call__(self, piece_bytes: int, total_bytes: int | None) -> None: ...

    def close(self) -> None:
        """Ends the display: the stream has ended, well or not."""


class Silent:
    """Shows nothing."""

    def __call__(self, piece_bytes: int, total_bytes: int | None) -> None:
        pass

    def close(self) -> None:
        pass


class Meter:
    """Counts the bytes so far, and their rate of late; it reads no clock."""

    def __init__(self, now: float) -> None:
        self.moved = 0
        self.started = now
        self._marks = [(now, 0)]

    def add(self, piece_bytes: int, now: float) -> None:
        self.moved += piece_bytes
        newest, _ = self._marks[-1]
        if now - newest >= 1.0:
            self._marks.append((now, self.moved))
            while len(self._marks) > 2 and now - self._marks[1][0] >= RATE_OVER_S:
                del self._marks[0]

    def rate(self, now: float) -> float:
        """Returns the bytes a second of about the last RATE_OVER_S seconds."""
        since, before = self._marks[0]
        return (self.moved - before) / max(now - since, 0.001)

    def left_s(self, total_bytes: int | None, now: float) -> float | None:
        """Returns seconds to the end at this rate; None when that can't be said."""
        rate = self.rate(now)
        if total_bytes is None or rate <= 0 or self.moved > total_bytes:
            return None
        return (total_bytes - self.moved) / rate


class Lines:
    """Prints a line after 5 s, then every 10 s, and one at the end of a stream that had one
    before."""

    def __init__(
        self, name: str, say: Callable[[str], None], clock: Callable[[], float] = monotonic
    ) -> None:
        self._name = name
        self._say = say
        self._clock = clock
        self._meter: Meter | None = None
        self._next = 0.0
        self._said = False

    def __call__(self, piece_bytes: int, total_bytes: int | None) -> None:
        now = self._clock()
        if self._meter is None:
            self._meter = Meter(now)
            self._next = now + FIRST_LINE_S
        self._meter.add(piece_bytes, now)
        if now >= self._next:
            self._next = now + LINE_EVERY_S
            self._said = True
            self._say(f"{self._name}: {describe(self._meter, total_bytes, now)}")

    def close(self) -> None:
        if self._meter is None or not self._said:
            return
        now = self._clock()
        seconds = max(now - self._meter.started, 0.001)
        rate = size(round(self._meter.moved / seconds))
        self._say(f"{self._name}: {size(self._meter.moved)} sent in {seconds:.0f} s, {rate}/s")
        self._said = False


class Bar:
    """Draws one line of a terminal, by tqdm; several at once have a `position` each."""

    def __init__(self, name: str, position: int, out: TextIO) -> None:
        from tqdm.std import tqdm

        # Neither a monitor thread nor locks between processes, in a process that starts others.
        tqdm.monitor_interval = 0
        tqdm.set_lock(_LOCK)
        self._make: Callable[[int | None], Any] = lambda total: tqdm(
            total=total,
            desc=name,
            position=position,
            file=out,
            leave=False,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            dynamic_ncols=True,
            mininterval=0.2,
            miniters=1,
        )
        self._bar: Any = None

    def __call__(self, piece_bytes: int, total_bytes: int | None) -> None:
        if self._bar is None:
            self._bar = self._make(total_bytes)
        self._bar.update(piece_bytes)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextlib.contextmanager
def showing(
    name: str, *, quiet: bool = False, position: int = 0, out: TextIO | None = None
) -> Iterator[Progress]:
    """Yields what suits the place: a bar where `out` (stderr) is a terminal, lines elsewhere."""
    stream = sys.stderr if out is None else out
    progress: Progress
    if quiet:
        progress = Silent()
    elif stream.isatty() and _columns(stream) > 0:
        progress = Bar(name, position, stream)
    else:
        progress = Lines(name, lambda text: _write(stream, text))
    guarded = _Guarded(progress)
    try:
        yield guarded
    finally:
        guarded.close()


def _columns(terminal: TextIO) -> int:
    """0 for a serial console that doesn't know: no bar fits there."""
    try:
        return os.get_terminal_size(terminal.fileno()).columns
    except (OSError, ValueError):
        return 80


class _Guarded:
    """A terminal that is gone must not end a replication."""

    def __init__(self, progress: Progress) -> None:
        self._progress: Progress = progress

    def __call__(self, piece_bytes: int, total_bytes: int | None) -> None:
        try:
            self._progress(piece_bytes, total_bytes)
        except (OSError, ValueError):
            self._progress = Silent()

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._progress.close()


@contextlib.contextmanager
def above_bars(out: TextIO | None = None) -> Iterator[None]:
    """Lets lines be printed in the block: bars are taken away and drawn again below them."""
    if "tqdm.std" not in sys.modules:
        yield
        return
    from tqdm.std import tqdm

    with tqdm.external_write_mode(file=sys.stdout if out is None else out):
        yield


def describe(meter: Meter, total_bytes: int | None, now: float) -> str:
    """Returns `1.2 GiB of 4.0 GiB, 96.0 MiB/s, 30 s left`."""
    known = total_bytes is not None and meter.moved <= total_bytes
    of = f" of about {size(total_bytes)}" if known and total_bytes is not None else ""
    left = meter.left_s(total_bytes, now)
    rest = "" if left is None else f", {duration(left)} left"
    return f"{size(meter.moved)}{of}, {size(round(meter.rate(now)))}/s{rest}"


def _write(stream: TextIO, text: str) -> None:
    stream.write(text + "\n")
    stream.flush()
