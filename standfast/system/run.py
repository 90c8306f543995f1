"""The only door to other processes.

Whatever is started here has an operation name and a deadline, runs in a session of its own, and
is gone, with everything it started, when the call returns (but for `start_detached`, for which the
demo's stand-in of a service manager has to answer). Arguments are logged; input and environment
never are, as they may hold secrets. Data streams are in `standfast.system.streams`, which builds on
`spawn` here.

Why the standard library and not `sh`: measured, `sh` costs 4.9 ms of CPU and 18 ms for each
command (here 0.9 ms and 2 ms), runs Python between fork and exec in processes that have threads,
and leaves the children of a command alive at a timeout.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from standfast.errors import CommandFailed, TimedOut
from standfast.system.clock import Deadline, monotonic
from standfast.system.lines import clean, lines_of

log = logging.getLogger(__name__)

MAX_OUTPUT_BYTES = 16 * 1024 * 1024
"""A control command that writes more than this to stdout is broken: it is killed."""
TAIL_BYTES = 8 * 1024
"""How much of the end of stderr is kept."""
TOO_LATE = 75
"""Status of an `exec_before` whose time was over before the program was started."""
LAST_LINES = 3
LINE_CHARS = 300
"""Of stderr, in the message of a failure."""
_CHUNK = 64 * 1024
_READS = 32  # at a time: more than any pipe holds, and an endless writer doesn't keep us

Child = subprocess.Popen[bytes]
Starts = Callable[[Callable[[], Child]], Child]

_detached: list[Child] = []

hook: Callable[[str], None] | None = None
"""Called with the operation's name before each start; a test raises here."""
# After SIGKILL, for a child to be gone, seconds.
REAP_S = 5.0


@dataclass(frozen=True, slots=True)
class Completed:
    """How a command ended. `returncode` is negative for a signal, as in subprocess."""

    stdout: str
    stderr: str
    returncode: int


_inherited: ContextVar[tuple[int, ...]] = ContextVar("inherited", default=())


@contextlib.contextmanager
def inheriting(lock: int) -> Iterator[None]:
    """Lets every program that is started inside inherit this descriptor of a lock.

    So the lock is held until the last of them is gone, also when this process is killed first.
    """
    before = _inherited.set((*_inherited.get(), lock))
    try:
        yield
    finally:
        _inherited.reset(before)


_starts: ContextVar[Starts] = ContextVar("starts", default=lambda start: start())


@contextlib.contextmanager
def starting(how: Starts) -> Iterator[None]:
    """Has every program that is started inside be started by `how`, which calls what it is given,
    in whatever thread."""
    before = _starts.set(how)
    try:
        yield
    finally:
        _starts.reset(before)


def announce(op: str, argv: Sequence[str]) -> None:
    """Says what is about to start; the place where a test's hook fails it."""
    if hook is not None:
        hook(op)
    log.debug("%s: %s", op, argv)


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", **(extra or {})}


def _last_words(stderr: str) -> str:
    """Returns the last lines that say something, as they can be shown (a program passes on what
    another machine says); not the `^^^^` below what a program points at."""
    lines = [line.strip() for line in lines_of(stderr)]
    telling = [line for line in lines if any(letter.isalnum() for letter in line)]
    words = [clean(line[:LINE_CHARS]) for line in telling[-LAST_LINES:]]
    return "; ".join(words) or "it said nothing on stderr"


def failure(op: str, program: str, returncode: int, stderr: str) -> CommandFailed:
    """Returns the error for a program that ended badly, with its last words."""
    if returncode < 0:
        how = f"was killed by signal {-returncode} ({signal.strsignal(-returncode)})"
    else:
        how = f"ended with status {returncode}"
    return CommandFailed(
        f"{op}: {program} {how}: {_last_words(stderr)}", returncode=returncode, stderr=stderr
    )


def _not_started(op: str, argv: Sequence[str], error: OSError) -> CommandFailed:
    return CommandFailed(
        f"{op}: {argv[0]} can't be started ({error.strerror}); is its package installed?",
        returncode=127,
    )


def spawn(
    op: str,
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes],
    stdout: int | IO[bytes],
    stderr: int,
    env: Mapping[str, str] | None = None,
) -> Child:
    """Starts a program in a session of its own; the caller ends it by `kill_group`."""
    kept = _inherited.get()

    def start() -> Child:
        return subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=_environment(env),
            start_new_session=True,
            pass_fds=kept,
        )

    try:
        return _starts.get()(start)
    except OSError as error:
        raise _not_started(op, argv, error) from error


def start_detached(
    argv: Sequence[str], *, op: str, log_file: Path, env: Mapping[str, str] | None = None
) -> Child:
    """Starts a program that may outlive this process; what it says is appended to `log_file`."""
    announce(op, argv)
    for earlier in list(_detached):
        if earlier.poll() is not None:  # reaped here, as nobody else waits for it
            _detached.remove(earlier)
    with log_file.open("ab") as out:
        process = spawn(
            op, argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out.fileno(), env=env
        )
    _detached.append(process)
    return process


def kill_group(process: Child) -> int:
    """Kills a child's whole group and reaps the child; returns its status."""
    # Before the child is reaped its pid, and so the group's number, can't be given to another.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(REAP_S)
        except subprocess.TimeoutExpired:
            # In the kernel's hands (a hung disk or mount): nothing here may wait for that.
            return -signal.SIGKILL
    return process.returncode


class _Tail:
    """The end of what came through a pipe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()
        self.overflowed = False

    def add(self, data: bytes) -> None:
        self._kept += data
        if len(self._kept) > self._limit:
            self.overflowed = True
            del self._kept[: len(self._kept) - self._limit]

    def text(self) -> str:
        """For people: what is no text is replaced."""
        return self._kept.decode("utf-8", "replace")

    def foreign_text(self) -> str:
        """For programs: names in it may be any bytes, as `files.read_foreign_text` has them."""
        return os.fsdecode(bytes(self._kept))


def _memory_file(data: bytes) -> int:
    """Returns a descriptor from which `data` is read: no pipe that could block us."""
    fd = os.memfd_create("standfast-input")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def run(
    argv: Sequence[str],
    *,
    deadline: Deadline,
    op: str,
    input: str | None = None,
    check: bool = True,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Runs a control command; `env` is added to the environment, messages are in English.

    Raises TimedOut at the deadline (the whole process group is killed; what it did is unknown)
    and CommandFailed when it can't be started, writes without end, or, with `check`, ends with
    another status than 0.
    """
    announce(op, argv)
    deadline.check(f"{op}: {argv[0]} was not started")
    stdin = subprocess.DEVNULL if input is None else _memory_file(os.fsencode(input))
    try:
        process = spawn(
            op, argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
        )
    finally:
        if stdin >= 0:
            os.close(stdin)
    try:
        stdout, stderr = _collect(process, deadline, f"{op}: {argv[0]}")
    finally:
        returncode = kill_group(process)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if stdout.overflowed:
        raise CommandFailed(
            f"{op}: {argv[0]} wrote more than {MAX_OUTPUT_BYTES} bytes", returncode=returncode
        )
    if check and returncode != 0:
        raise failure(op, argv[0], returncode, stderr.text())
    return Completed(stdout.foreign_text(), stderr.text(), returncode)


def _collect(process: Child, deadline: Deadline, what: str) -> tuple[_Tail, _Tail]:
    """Read both pipes until the child itself ends; grandchildren may hold them open for ever."""
    out, err = _Tail(MAX_OUTPUT_BYTES), _Tail(TAIL_BYTES)
    tails = {_fileno(process.stdout): out, _fileno(process.stderr): err}
    pidfd = os.pidfd_open(process.pid)
    try:
        with selectors.PollSelector() as selector:
            selector.register(pidfd, selectors.EVENT_READ)
            for fd in tails:
                os.set_blocking(fd, False)
                selector.register(fd, selectors.EVENT_READ)
            ended = False
            while not ended and not out.overflowed:
                ready = {key.fd for key, _ in selector.select(deadline.remaining_s())}
                ended = pidfd in ready
                if not ended and deadline.expired:
                    raise TimedOut(f"{what} did not end before its deadline and was killed")
                for fd in list(tails) if ended else ready:
                    if _drain(fd, tails[fd]) and fd in selector.get_map():
                        selector.unregister(fd)
    finally:
        os.close(pidfd)
    return out, err


def _fileno(pipe: IO[bytes] | None) -> int:
    assert pipe is not None
    return pipe.fileno()


def _drain(fd: int, tail: _Tail) -> bool:
    """Takes what a non-blocking pipe holds now; True at its end."""
    for _ in range(_READS):
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            return True
        tail.add(data)
    return False


def exec_before(latest: float, argv: Sequence[str], *, op: str) -> Completed:
    """Runs a program that is dead at `latest` (monotonic s), whatever freezes on the way.

    For effects that are harmful when late: the child carries a kernel timer (it survives exec
    and kills by default), reads the clock again after setting it, and only then becomes the
    program. A process stopped anywhere in between dies when it is let go, before its next
    instruction. The status is TOO_LATE when nothing was started, -SIGALRM or -SIGKILL when the
    program was cut off (its effect, if any, came before `latest`). Output must fit a pipe.

    It forks: between fork and exec only system calls run, so threads of the caller do no harm.
    """
    announce(op, argv)
    path = shutil.which(argv[0])
    if path is None:
        raise _not_started(op, argv, FileNotFoundError(2, "No such file or directory"))
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    pid = os.fork()
    if pid == 0:
        _become(latest, path, list(argv), (null, out_write, err_write))
    for fd in (null, out_write, err_write):
        os.close(fd)
    try:
        returncode = _reap_by(pid, latest)
        return Completed(_what_is_left(out_read), _what_is_left(err_read), returncode)
    finally:
        os.close(out_read)
        os.close(err_read)


def _become(latest: float, path: str, argv: list[str], stdio: tuple[int, int, int]) -> None:
    """In the child: set the timer, look at the clock again, be the program. Never returns."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        asked_at = monotonic()
        left_s = latest - asked_at
        if left_s <= 0:
            os._exit(TOO_LATE)
        # Frozen between reading the clock and setting the timer, the timer ends that much later:
        # so it is set a quarter short, and a longer pause than that is too late.
        slack_s = left_s / 4
        signal.setitimer(signal.ITIMER_REAL, left_s - slack_s)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if monotonic() >= asked_at + slack_s:
            os._exit(TOO_LATE)
        for target, fd in enumerate(stdio):
            os.dup2(fd, target)
        os.execv(path, argv)
    except BaseException:
        os._exit(126)


def _reap_by(pid: int, latest: float) -> int:
    """Waits for the child; one that can't even be killed by its timer (stopped) is killed here."""
    pidfd = os.pidfd_open(pid)
    try:
        with selectors.PollSelector() as selector:
            selector.register(pidfd, selectors.EVENT_READ)
            if not selector.select(max(0.0, latest - monotonic()) + 0.02):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _what_is_left(fd: int) -> str:
    os.set_blocking(fd, False)
    tail = _Tail(MAX_OUTPUT_BYTES)
    _drain(fd, tail)
    return tail.text()
