"""A program: prints who has files of a subvolume open, or mapped, for writing; a line for each.

    python -I -S writers_look.py LIVE DEVICE OWN OTHERS

A loop device on a file of it counts, too, with 0 for the process and its own name.

DEVICE is the file system's, as in mountinfo (0:42); OWN and OTHERS are numbers of mounts, of this
file system and of others, joined by commas. The files of others are never touched: a dead server's
would hang. It runs as a process of its own, since reading the maps of a process may wait for that
process.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

PROC = Path("/proc")
BLOCK = Path("/sys/block")
DEV = Path("/dev")
# linux/loop.h: struct loop_info64 begins with the device of the file that is behind it.
LOOP_GET_STATUS64 = 0x4C05
LOOP_INFO_BYTES = 232
APART_S = 1
# ADDRESSES PERMISSIONS OFFSET DEVICE INODE PATH, of shared memory for writing
MAPPING = re.compile(
    r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) .w.s \S+ (?P<major>[0-9a-f]+):(?P<minor>[0-9a-f]+) "
    r"\d+ +(?P<path>.+)",
    re.ASCII | re.DOTALL,
)
MAPPING_NUMBERS = ("start", "end", "major", "minor")


def read(path: Path) -> str:
    """Returns the text of a file; empty when it is gone, or not to be seen.

    Its lines end at a line feed and nowhere else: names in them have all other characters, among
    them what a reader of texts would take for the end of a line.
    """
    try:
        return os.fsdecode(path.read_bytes())
    except OSError:
        return ""


def is_of(subvolume: int, path: Path) -> bool:
    """Tells whether a path is of the subvolume; not of it where that can't be seen."""
    try:
        return path.stat().st_dev == subvolume
    except OSError:
        return False


def apart(ask: Callable[[], str]) -> str:
    """Returns what `ask` says in a process of its own; empty when that hangs.

    Even waits for a dead server, and for the memory of a process that hangs there, end at a deadly
    signal.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(APART_S)
        os.write(write_end, os.fsencode(ask()))
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as told:
        said = os.fsdecode(told.read())
    os.waitpid(child, 0)
    return said


def is_of_apart(subvolume: int, path: Path) -> bool:
    """Tells the same by a process of its own, as the path may be on a dead server."""
    return apart(lambda: "yes" if is_of(subvolume, path) else "") == "yes"


def target_of(descriptor: Path) -> str:
    """Returns what a descriptor is of; empty when it was closed just now."""
    try:
        return str(descriptor.readlink())
    except OSError:
        return ""


def opened(process: Path, subvolume: int, own: set[str], others: set[str]) -> Iterator[str]:
    """Yields what is open for writing."""
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:
        return
    for descriptor in descriptors:
        target = target_of(descriptor)
        if not target.startswith("/"):  # a socket, a pipe
            continue
        info: dict[str, str] = {}
        for line in read(process / "fdinfo" / descriptor.name).split("\n"):
            key, _, value = line.partition(":")
            info.setdefault(key, value.strip())  # what a driver adds comes last
        flags = int(info.get("flags", "0"), 8)
        if flags & os.O_ACCMODE == os.O_RDONLY or info.get("mnt_id") in others:
            continue
        # A mount that is in no table any more may be a dead server's.
        known = info.get("mnt_id") in own
        if is_of(subvolume, descriptor) if known else is_of_apart(subvolume, descriptor):
            yield target


def mapped(process: Path, subvolume: int, device: str) -> Iterator[str]:
    """Yields what is shared memory for writing; a file that is closed stays mapped."""
    for line in read(process / "maps").split("\n"):
        match = MAPPING.fullmatch(line)
        if match is None:
            continue
        start, end, major, minor = (int(match[name], 16) for name in MAPPING_NUMBERS)
        area = process / "map_files" / f"{start:x}-{end:x}"
        if f"{major}:{minor}" == device and is_of(subvolume, area):
            yield match["path"]


def mapped_by_hanging(process: Path, subvolume: int, device: str) -> Iterator[str]:
    """Yields the same of a process whose memory may be locked while it waits."""
    if file := apart(lambda: next(mapped(process, subvolume, device), "")):
        yield file


def backing_device(loop: str) -> int | None:
    """Returns the file system of the file behind a loop device; None: none, or it can't be opened
    here."""
    info = bytearray(LOOP_INFO_BYTES)
    try:
        descriptor = os.open(DEV / loop, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.ioctl(descriptor, LOOP_GET_STATUS64, info)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return int(struct.unpack_from("=Q", info)[0])


def looped(subvolume: int) -> Iterator[tuple[str, str]]:
    """Yields the loop devices that write into a file of the subvolume, and that file."""
    for backing in BLOCK.glob("loop*/loop/backing_file"):
        device = backing.parent.parent
        if read(device / "ro").strip() == "0" and backing_device(device.name) == subvolume:
            yield device.name, read(backing).rstrip("\n")


def main(live: str, device: str, own: str, others: str) -> None:
    """Prints one line a process: its id, its name, a file."""
    subvolume = Path(live).stat().st_dev
    numbers = set(own.split(",")), set(others.split(","))
    for device_name, image in looped(subvolume):
        sys.stdout.write(f"0\t{device_name!a}\t{image!a}\n")
    for process in PROC.iterdir():
        if not process.name.isdigit():
            continue
        hangs = read(process / "stat").rpartition(")")[2].startswith(" D ")
        maps = mapped_by_hanging if hangs else mapped
        files = itertools.chain(
            opened(process, subvolume, *numbers), maps(process, subvolume, device)
        )
        if (file := next(files, None)) is not None:
            name = read(process / "comm").strip()
            sys.stdout.write(f"{process.name}\t{name!a}\t{file!a}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
