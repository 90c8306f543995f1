"""Data streams between programs: kernel pipes, every status collected, nothing left behind.

A stream ends well only when every byte was read to its end and every stage ended with status 0;
at the first failure all stages are killed with what they started.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import selectors
from collections.abc import Callable, Sequence
from signal import SIGPIPE
from typing import Self

from standfast.errors import CommandFailed, TimedOut
from standfast.system.clock import Deadline, monotonic
from standfast.system.run import TAIL_BYTES, Child, Completed, announce, failure, kill_group, spawn

MAX_LINE_BYTES = 64 * 1024
"""Longest line taken from the other side of a conversation."""
_SPLICE_BYTES = 1024 * 1024
_LIMITED_PIECE_S = 0.05
_REST_S = 0.001
# A stage killed by SIGPIPE is mostly the echo of another's failure, which this long is awaited.
_SIGPIPE_GRACE_S = 1.0
_LOOK_UP_S = 1.0


def pipeline(
    stages: Sequence[Sequence[str]],
    *,
    deadline: Deadline,
    op: str,
    stdin: int | None = None,
    stdout: int | None = None,
    stall_s: float | None = None,
    limit_bytes_s: float | None = None,
    on_bytes: Callable[[int], None] | None = None,
    give_up: Callable[[float], str | None] | None = None,
) -> int:
    """Runs stages connected by pipes; returns the number of bytes that passed the meter.

    The first stage may read from the descriptor `stdin`, the last write to `stdout`; both stay
    open here. The meter sits at the `stdin` that was given, or else at the `stdout`, or else after
    the first stage: it counts, `on_bytes` gets the length of each piece, and no more than
    `limit_bytes_s` pass. `give_up` is asked every second, with the seconds since the last piece: a
    text is the reason to end. Raises CommandFailed naming the stage that
    failed, TimedOut at the deadline, when nothing passed the meter for `stall_s` seconds, or with
    that reason.
    """
    for stage in stages:
        announce(op, stage)
    deadline.check(f"{op}: {stages[0][0]} was not started")
    with _Descriptors() as fds, _Stages(op, fds) as running:
        meter = _start(stages, (stdin, stdout), running, fds, limit_bytes_s)
        stalled = deadline if stall_s is None else deadline.within(stall_s)
        last = asked = monotonic()
        at_most_s = None if give_up is None else _LOOK_UP_S
        while meter.open or running.alive:
            _wait(op, running, meter, stalled if meter.open else deadline, at_most_s)
            moved, now = meter.step(), monotonic()
            if moved:
                last = now
                stalled = deadline if stall_s is None else deadline.within(stall_s)
                if on_bytes is not None:
                    on_bytes(moved)
            if give_up is not None and meter.open and now - asked >= _LOOK_UP_S:
                asked = now
                if (why := give_up(now - last)) is not None:
                    raise TimedOut(f"{op}: {why}, killed after {meter.moved} bytes")
            running.look()
        if meter.broken:
            raise CommandFailed(
                f"{op}: the reader closed the stream after {meter.moved} bytes, before its end",
                returncode=-SIGPIPE,
            )
        return meter.moved


class _Descriptors:
    """The descriptors that are ours to close."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in list(self._open):
            self.close(fd)

    def own(self, fd: int) -> int:
        self._open.add(fd)
        return fd

    def pipe(self) -> tuple[int, int]:
        read, write = os.pipe()
        return self.own(read), self.own(write)

    def close(self, fd: int) -> None:
        """Closes it if it is ours; a caller's stays open."""
        if fd in self._open:
            self._open.discard(fd)
            os.close(fd)


class _Stages:
    """The programs of a pipeline; all are gone when the block is left."""

    def __init__(self, op: str, fds: _Descriptors) -> None:
        self._op = op
        self._fds = fds
        self._started: list[tuple[str, Child, int]] = []
        self.alive: dict[int, Child] = {}  # by pidfd
        self._grace: Deadline | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _name, child, _messages in self._started:
            kill_group(child)

    def start(self, argv: Sequence[str], stdin: int, stdout: int) -> None:
        """Start a stage; its ends of our pipes are closed here."""
        messages = self._fds.own(os.memfd_create("standfast-stderr"))
        child = spawn(self._op, argv, stdin=stdin, stdout=stdout, stderr=messages)
        self._started.append((argv[0], child, messages))
        self.alive[self._fds.own(os.pidfd_open(child.pid))] = child
        self._fds.close(stdin)
        self._fds.close(stdout)

    @property
    def names(self) -> str:
        return " | ".join(name for name, _child, _messages in self._started)

    def look(self) -> None:
        """Reap what has ended; CommandFailed when that was a failure."""
        for pidfd in [fd for fd in self.alive if _is_ready(fd)]:
            kill_group(self.alive.pop(pidfd))
        failed = [stage for stage in self._started if stage[1].returncode]
        loud = [stage for stage in failed if stage[1].returncode != -SIGPIPE]
        if failed and self._grace is None:
            self._grace = Deadline.after(_SIGPIPE_GRACE_S)
        if loud or (self._grace is not None and (not self.alive or self._grace.expired)):
            name, child, messages = (loud or failed)[0]
            raise failure(self._op, name, child.returncode, _tail_of(messages))

    def patience(self, deadline: Deadline) -> Deadline:
        return deadline if self._grace is None else deadline.within(self._grace.remaining_s())


class _Meter:
    """Moves bytes from one descriptor to another inside the kernel, and counts them.

    Large pipes and a rest between two looks: woken for every piece that a program writes or reads
    it would take as much processor time as the programs do.
    """

    def __init__(
        self, source: int, sink: int, fds: _Descriptors, limit_bytes_s: float | None
    ) -> None:
        self._source = source
        self._sink = sink
        self._fds = fds
        self._can_read, self._can_write = select.poll(), select.poll()
        self._can_read.register(source, select.POLLIN)
        self._can_write.register(sink, select.POLLOUT)
        self._limit_bytes_s = limit_bytes_s
        # Small pieces under a limit: an even flow, and no long sleep that looks like a stall.
        self._piece = _SPLICE_BYTES
        if limit_bytes_s is not None:
            self._piece = max(1, min(_SPLICE_BYTES, int(limit_bytes_s * _LIMITED_PIECE_S)))
        self._rest_below = min(_enlarge(source), _enlarge(sink)) // 2
        self.rests = Deadline.after(0.0)
        """Nothing more may pass before this is over."""
        self.waits_for = (source, selectors.EVENT_READ)
        """Descriptor and event: first something to read, then room to write it."""
        self.open = True
        self.broken = False
        self.moved = 0

    def step(self) -> int:
        """Moves what can be moved now; returns how much that was."""
        moved = 0
        while self.open and self.rests.expired and moved < _SPLICE_BYTES:
            piece = self._move()
            if piece == 0:
                break
            moved += piece
            if self._limit_bytes_s is not None:
                self.rests = Deadline.after(piece / self._limit_bytes_s)
        self.moved += moved
        if self._limit_bytes_s is None and 0 < moved < self._rest_below:
            self.rests = Deadline.after(_REST_S)
        return moved

    def _move(self) -> int:
        if not self._can_read.poll(0):
            self.waits_for = (self._source, selectors.EVENT_READ)
            return 0
        if not self._can_write.poll(0):
            self.waits_for = (self._sink, selectors.EVENT_WRITE)
            return 0
        try:
            moved = os.splice(self._source, self._sink, self._piece, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            self.rests = Deadline.after(_REST_S)
            return 0
        except BrokenPipeError:
            self.broken = True
            moved = 0
        if moved == 0:
            self.open = False
            self._fds.close(self._source)
            self._fds.close(self._sink)
        return moved


def _enlarge(fd: int) -> int:
    """Bytes that the pipe now holds; 0 for what is none, or may not grow."""
    try:
        return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _SPLICE_BYTES)
    except OSError:
        return 0


def _start(
    stages: Sequence[Sequence[str]],
    ends: tuple[int | None, int | None],
    running: _Stages,
    fds: _Descriptors,
    limit_bytes_s: float | None,
) -> _Meter:
    stdin, stdout = ends
    if stdin is not None:
        upstream, sink = fds.pipe()
        source, metered = stdin, 0
    else:
        upstream = fds.own(os.open(os.devnull, os.O_RDONLY))
        metered = len(stages) if stdout is not None else 1
    last = fds.own(os.open(os.devnull, os.O_WRONLY)) if stdout is None else stdout
    for number, stage in enumerate(stages, 1):
        is_last = number == len(stages)
        if number == metered:
            source, write = fds.pipe()
            following, sink = (-1, last) if is_last else fds.pipe()
        else:
            following, write = (-1, last) if is_last else fds.pipe()
        running.start(stage, upstream, write)
        upstream = following
    return _Meter(source, sink, fds, limit_bytes_s)


def _wait(
    op: str, running: _Stages, meter: _Meter, limit: Deadline, at_most_s: float | None
) -> None:
    """Until something happens or `at_most_s` passed; TimedOut when the time for it is over."""
    if limit.expired:
        raise TimedOut(
            f"{op}: {running.names} stalled or took too long, killed after {meter.moved} bytes"
        )
    with selectors.PollSelector() as selector:
        for pidfd in running.alive:
            selector.register(pidfd, selectors.EVENT_READ)
        patience_s = running.patience(limit).remaining_s()
        if at_most_s is not None:
            patience_s = min(patience_s, at_most_s)
        if meter.open and meter.rests.expired:
            selector.register(*meter.waits_for)
        elif meter.open:
            patience_s = min(patience_s, meter.rests.remaining_s())
        selector.select(patience_s)


def _is_ready(fd: int, event: int = selectors.EVENT_READ, timeout_s: float = 0.0) -> bool:
    with selectors.PollSelector() as selector:
        selector.register(fd, event)
        return bool(selector.select(timeout_s))


def _tail_of(memory_file: int) -> str:
    size = os.fstat(memory_file).st_size
    return os.pread(memory_file, TAIL_BYTES, max(0, size - TAIL_BYTES)).decode("utf-8", "replace")


class Conversation:
    """A long-lived program that is spoken to line by line over its stdin and stdout.

    Between two lines `stdin_fd` may be handed to a pipeline as its `stdout`. The program is
    killed with all it started when the block is left, unless `finish` saw its end.
    """

    def __init__(self, argv: Sequence[str], *, op: str) -> None:
        self._argv = tuple(argv)
        self._op = op
        self._fds = _Descriptors()
        self._buffer = bytearray()
        self._ended = False
        self._child: Child | None = None

    def __enter__(self) -> Self:
        announce(self._op, self._argv)
        try:
            read, self._stdin = self._fds.pipe()
            self._stdout, write = self._fds.pipe()
            self._messages = self._fds.own(os.memfd_create("standfast-stderr"))
            self._child = spawn(
                self._op, self._argv, stdin=read, stdout=write, stderr=self._messages
            )
            self._fds.close(read)
            self._fds.close(write)
            self._pidfd = self._fds.own(os.pidfd_open(self._child.pid))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            kill_group(self._child)
        self._fds.__exit__()

    @property
    def stdin_fd(self) -> int:
        return self._stdin

    def send_line(self, line: str, deadline: Deadline) -> None:
        """Raises CommandFailed when the program has gone, TimedOut when it doesn't read."""
        left = memoryview(line.encode() + b"\n")
        os.set_blocking(self._stdin, False)
        try:
            while left:
                with contextlib.suppress(BlockingIOError):
                    left = left[os.write(self._stdin, left) :]
                if left and not _is_ready(
                    self._stdin, selectors.EVENT_WRITE, deadline.remaining_s()
                ):
                    raise TimedOut(f"{self._op}: {self._argv[0]} does not read what it is sent")
        except BrokenPipeError:
            raise self._gone() from None
        finally:
            os.set_blocking(self._stdin, True)

    def has_answer(self) -> bool:
        """Tells whether `read_line` has something to read now, be it the program's end."""
        return bool(self._buffer) or self._ended or _is_ready(self._stdout)

    def read_line(self, deadline: Deadline) -> str:
        """Returns the next line without its end; CommandFailed when the program ends instead."""
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_LINE_BYTES:
                raise CommandFailed(
                    f"{self._op}: {self._argv[0]} answered a line of more than "
                    f"{MAX_LINE_BYTES} bytes",
                    returncode=0,
                )
            if self._ended:
                raise self._gone()
            self._receive(deadline)
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        return line.decode("utf-8", "replace")

    def _receive(self, deadline: Deadline) -> None:
        if not _is_ready(self._stdout, timeout_s=deadline.remaining_s()):
            raise TimedOut(f"{self._op}: no answer from {self._argv[0]} before the deadline")
        data = os.read(self._stdout, MAX_LINE_BYTES)
        self._ended = not data
        self._buffer += data

    def _gone(self) -> CommandFailed:
        """Its status says more than a deadline that is over in that moment."""
        assert self._child is not None
        _is_ready(self._pidfd, timeout_s=_SIGPIPE_GRACE_S)
        returncode = kill_group(self._child)
        return failure(self._op, self._argv[0], returncode, _tail_of(self._messages))

    def close_stdin(self) -> None:
        """Ends the program's input."""
        self._fds.close(self._stdin)

    def finish(self, deadline: Deadline) -> Completed:
        """Closes stdin, waits for the end and returns what it still wrote. CommandFailed unless
        status 0."""
        assert self._child is not None
        self.close_stdin()
        while not self._ended and len(self._buffer) <= MAX_LINE_BYTES:
            self._receive(deadline)
        if not _is_ready(self._pidfd, timeout_s=deadline.remaining_s()):
            raise TimedOut(f"{self._op}: {self._argv[0]} did not end before its deadline")
        returncode = kill_group(self._child)
        stderr = _tail_of(self._messages)
        if returncode != 0:
            raise failure(self._op, self._argv[0], returncode, stderr)
        return Completed(self._buffer.decode("utf-8", "replace"), stderr, returncode)
