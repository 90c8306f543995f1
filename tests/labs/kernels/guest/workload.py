"""A client's program, inside a node: does one thing again and again, and logs each time.

    workload.py KIND DIRECTORY NAME INTERVAL_S

One line of JSON per action on standard output: {t, event, seq, took, error, text}. `t` is the
node's CLOCK_BOOTTIME when the action ended, `took` seconds. `ok` for a write means that fsync came
back: the record was acknowledged; its text is the file's device (`major:minor`). `begin` comes
first, and `start` before an action (so a hanging one shows as a start without an end).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

RECORD_BYTES = 16


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def log(event: str, seq: int, took: float = 0.0, error: str = "", text: str = "") -> None:
    line = {"t": now(), "event": event, "seq": seq, "took": took, "error": error, "text": text}
    os.write(1, json.dumps(line).encode() + b"\n")


def record(seq: int) -> bytes:
    return f"{seq:0{RECORD_BYTES - 1}d}\n".encode()


@contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write(descriptor: int, seq: int) -> str:
    os.pwrite(descriptor, record(seq), seq * RECORD_BYTES)
    os.fsync(descriptor)
    # Where nothing is mounted, a path leads to the node's own root: that's no acknowledgement.
    device = os.fstat(descriptor).st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def kept_open(path: str) -> Callable[[int], str]:
    """A database: one descriptor for ever, a write and an fsync each time."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    return lambda seq: write(descriptor, seq)


def reopened(path: str) -> Callable[[int], str]:
    """A shell script: the path is opened anew for each record."""

    def act(seq: int) -> str:
        with opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
            return write(descriptor, seq)

    return act


def reader(path: str) -> Callable[[int], str]:
    """A web server: opens and reads; the text is what was read first."""

    def act(seq: int) -> str:
        with opened(path, os.O_RDONLY) as descriptor:
            return os.read(descriptor, 200).decode(errors="replace")

    return act


def walk(path: str) -> Callable[[int], str]:
    """A backup: every directory and the attributes of every file; the text is the count."""

    def fail(error: OSError) -> None:
        raise error

    def act(seq: int) -> str:
        entries = 0
        for top, _, files in os.walk(path, onerror=fail):
            for name in files:
                try:
                    os.lstat(os.path.join(top, name))  # noqa: PTH118
                except FileNotFoundError:
                    continue
                entries += 1
        return str(entries)

    return act


def locked(path: str) -> Callable[[int], str]:
    """A program that must run once: holds flock(2) on an open file, and writes under it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def act(seq: int) -> str:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return write(descriptor, seq)

    return act


KINDS = {
    "kept_open": kept_open,
    "reopened": reopened,
    "reader": reader,
    "walk": walk,
    "flock": locked,
}


def main() -> None:
    kind, directory, name, interval_s = sys.argv[1:5]
    path = directory if kind == "walk" else f"{directory}/{name}"
    log("begin", 0, text=path)
    act: Callable[[int], str] | None = None
    seq = 0
    while True:
        began = now()
        log("start", seq)
        try:
            if act is None:
                act = KINDS[kind](path)
            text = act(seq)
        except OSError as error:
            log("error", seq, now() - began, errno.errorcode.get(error.errno or 0, str(error)))
        else:
            log("ok", seq, now() - began, text=text)
            seq += 1
        time.sleep(float(interval_s))


main()
