"""Which kernel and which btrfs-progs are here, and what they are trusted with.

Compressed data as it is (`send --compressed-data`) was made for Linux 6.0 and btrfs-progs 6.0, but
is used from these versions on only: btrfs-progs 6.0.2 and 6.2 mended silent losses where
`receive` has to decompress after all, and Linux up to 6.13 could free what `send` still read
(two fixes; the second came with 6.14, and what distributions took into older kernels doesn't
show in their number).
"""

from __future__ import annotations

import os
import re

from standfast.errors import CommandFailed, TimedOut
from standfast.system.clock import Deadline
from standfast.system.run import run

Version = tuple[int, ...]

COMPRESSED_DATA_KERNEL: Version = (6, 14)
COMPRESSED_DATA_PROGS: Version = (6, 2)
OLDEST_KERNEL: Version = (4, 18)
"""Of BTRFS_IOC_GET_SUBVOL_INFO, by which subvolumes are told apart."""
_TIMEOUT_S = 5.0
_VERSION = re.compile(r"(?<!\d)\d{1,9}(?:\.\d{1,9}(?!\d))+")


def parse(text: str) -> Version:
    """Returns the first version number in a text (`6.1.0-37-amd64`, `btrfs-progs v6.2`); () for
    none."""
    match = _VERSION.search(text)
    return tuple(int(part) for part in match[0].split(".")) if match is not None else ()


def kernel() -> str:
    """Returns the release of the running kernel, as `6.1.0-37-amd64`."""
    return os.uname().release


def progs() -> str | None:
    """Returns the version of btrfs-progs, as `6.2`; None when there are none."""
    try:
        said = run(["btrfs", "--version"], deadline=Deadline.after(_TIMEOUT_S), op="version")
    except (CommandFailed, TimedOut):
        return None
    return ".".join(map(str, parse(said.stdout))) or None


def moves_compressed_data(kernel_release: str, progs_version: str | None) -> bool:
    """Tells whether this end, sending or receiving, may be given compressed extents as they are."""
    return (
        parse(kernel_release) >= COMPRESSED_DATA_KERNEL
        and parse(progs_version or "") >= COMPRESSED_DATA_PROGS
    )


def here_moves_compressed_data() -> bool:
    """Tells the same of this machine; every receive asks, so a process is spent only where the
    kernel will do."""
    release = kernel()
    if parse(release) < COMPRESSED_DATA_KERNEL:
        return False
    return moves_compressed_data(release, progs())
