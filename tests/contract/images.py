"""Copies of a mounted file system's backing file: what a power cut at that moment leaves.

The copy sees what the file system has handed to its disk, in the order in which it did; what is
still only in the memory of the mounted file system is lost. That a disk loses what it has not been
told to flush isn't seen.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PIECE = 4 * 1024 * 1024
SUPERBLOCK = (4096, 64 * 1024)
"""Bytes and place of what says where everything else lies; each commit writes it last."""
NEEDED_BYTES = 2 * 2**30
"""For all images of one test, and for those of the tests that run beside it."""


def copy_image(image: Path, copy: Path) -> None:
    """What the image was at one moment: it is copied again when a commit came in between.

    Two commits during a copy may overwrite what its superblock refers to: no power cut does that.
    """
    while True:
        with image.open("rb") as read:
            before = os.pread(read.fileno(), *SUPERBLOCK)
            copy_data(image, copy)
            if os.pread(read.fileno(), *SUPERBLOCK) == before:
                return


def copy_data(image: Path, copy: Path) -> None:
    """Only what isn't a hole."""
    copy.unlink(missing_ok=True)
    with image.open("rb") as read, copy.open("wb") as write:
        size = os.fstat(read.fileno()).st_size
        os.truncate(write.fileno(), size)
        end = 0
        with contextlib.suppress(OSError):  # no data after this: ENXIO
            while end < size:
                start = os.lseek(read.fileno(), end, os.SEEK_DATA)
                end = os.lseek(read.fileno(), start, os.SEEK_HOLE)
                _copy_range(read.fileno(), write.fileno(), start, end)


def _copy_range(read: int, write: int, start: int, end: int) -> None:
    while start < end:
        data = os.pread(read, min(PIECE, end - start), start)
        os.pwrite(write, data, start)
        start += len(data)


@contextlib.contextmanager
def quick_directory(fallback: Path) -> Iterator[Path]:
    """In memory where there is room for it: images are copied again and again."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < NEEDED_BYTES:
        yield fallback
        return
    directory = Path(tempfile.mkdtemp(prefix="standfast-test-", dir=memory))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
