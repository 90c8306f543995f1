"""What a program may open files of, whatever it is told: Landlock, the kernel's own door for that.

Invariant: a confined thread stays so, and what it starts is so too, which is all that it is for;
every other thread is as it was. Linux has what is needed since 5.19, if it is built in and not
turned off (`lsm=`): before, a confined program can't even rename from one directory to another.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from standfast.system.run import Child, starting

log = logging.getLogger(__name__)

# Numbers and layouts: linux/landlock.h, asm-generic/unistd.h (the same on every architecture).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_WRITE_FILE, _READ_FILE, _RENAME_ACROSS = 1 << 1, 1 << 2, 1 << 13
_OLDEST = 2  # of Landlock itself: the first with _RENAME_ACROSS
_RULESET = struct.Struct("=Q")
_RULE = struct.Struct("=Qi")
_SET_NO_NEW_PRIVS = 38
PROGRAMS = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store"),
    *("/etc/ld.so.cache", "/proc", "/sys"),
)
"""What a program needs to start: itself, its libraries, and what the kernel says of the machine."""
_NOTHING = Path("/dev/null")


@contextlib.contextmanager
def confined(places: Sequence[Path] | None) -> Iterator[None]:
    """Lets programs that are started inside open files below `places`, and read those where
    programs are, and no others. Directories they may list everywhere. None, or without
    Landlock: as ever.

    Starting one raises OSError where Landlock is there and refuses.
    """
    if places is None or not is_there():
        log.debug("not confined: the store needs it not, or this kernel has no Landlock")
        yield
        return
    with starting(partial(_start_confined, [*places, _NOTHING])):
        yield


def _start_confined(places: Sequence[Path], start: Callable[[], Child]) -> Child:
    """In a thread for that alone: nothing else in this process is confined."""

    def inside() -> Child:
        _confine(places)
        return start()

    with ThreadPoolExecutor(1, "confined") as thread:
        return thread.submit(inside).result()


def is_there() -> bool:
    """Tells whether this kernel has it, and lets this process use it."""
    try:
        return _call(_CREATE_RULESET, None, 0, 1) >= _OLDEST
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP):
            log.warning("Landlock is shut to this process, by a filter of system calls: %s", error)
        return False


def _search_path() -> list[Path]:
    words = os.environ.get("PATH", "").split(":")
    return [Path(word) for word in words if word.startswith("/") and word != "/"]


def _confine(places: Sequence[Path]) -> None:
    attributes = _RULESET.pack(_READ_FILE | _WRITE_FILE | _RENAME_ACROSS)
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for place in places:
            _allow(ruleset, place, _READ_FILE | _WRITE_FILE | _RENAME_ACROSS)
        for place in (*map(Path, PROGRAMS), *_search_path()):
            _allow(ruleset, place, _READ_FILE)
        _prctl(_SET_NO_NEW_PRIVS)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, place: Path, access: int) -> None:
    """One that isn't there needs no leave."""
    try:
        descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            access &= ~_RENAME_ACROSS  # the kernel takes that of directories alone
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, _RULE.pack(access, descriptor), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: int | bytes | None) -> int:
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return _checked(int(_libc().syscall(ctypes.c_long(number), *words)))


def _prctl(option: int) -> None:
    _checked(int(_libc().prctl(option, *map(ctypes.c_ulong, (1, 0, 0, 0)))))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
