"""A node's disk: a loop device over memory, which can lose power.

Invariant: after `cut()` not one more byte reaches the disk, and what a later `attach()`
gives is exactly what had reached it before: file systems unmounted in between write
nothing, so unsynced data is lost as on a real machine.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path

from tests.support.commands import sh, wait_for

_CTL_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_CLR_FD = 0x4C01
_AUTOCLEAR = 4
# struct loop_info64: 5 u64, 4 u32, file name, crypt name, key, 2 u64
_INFO = struct.pack("=5Q4I64s64s32s2Q", *(0,) * 8, _AUTOCLEAR, b"standfast-lab", b"", b"", 0, 0)


class LoopDisk:
    """Holds the loop device as long as it is open; the kernel frees it with the process."""

    def __init__(self, size_bytes: int = 1 << 30) -> None:
        self.size_bytes = size_bytes
        self._memory = self._new_memory()
        self._loop = -1
        self.device = Path("/dev/null")

    def _new_memory(self) -> int:
        memory = os.memfd_create("standfast-lab", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, self.size_bytes)
        return memory

    def attach(self) -> Path:
        """Bind the disk to a free loop device; its path."""
        with Path("/dev/loop-control").open("rb") as control:
            wait_for(
                lambda: self._configure(fcntl.ioctl(control, _CTL_GET_FREE)),
                30.0,
                "a loop device comes free (see losetup -l)",
                0.02,
            )
        return self.device

    def _configure(self, number: int) -> bool:
        device = Path(f"/dev/loop{number}")
        if not device.exists():
            os.mknod(device, 0o600 | 0o060000, os.makedev(7, number))
        loop = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(loop, _CONFIGURE, struct.pack("=II", self._memory, 0) + _INFO + bytes(64))
        except OSError as error:
            os.close(loop)
            # Somebody else was quicker, or an autocleared device is still going away.
            if error.errno in (errno.EBUSY, errno.ENXIO):
                return False
            raise
        self._loop, self.device = loop, device
        return True

    def format(self, label: str) -> None:
        """A fresh btrfs on the attached disk."""
        sh("mkfs.btrfs", "-q", "-f", "-L", label, self.device)

    def cut(self) -> None:
        """Power off: from now on every write to the disk fails."""
        fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)

    def detach(self) -> None:
        """Let the loop device go; the kernel frees it when nothing has it mounted any more."""
        if self._loop >= 0:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._loop, _CLR_FD)
            os.close(self._loop)
            self._loop = -1

    def repower(self) -> None:
        """After a cut: the same content, writable again (attach it next)."""
        old, self._memory = self._memory, self._new_memory()
        position = 0
        while True:
            try:
                start = os.lseek(old, position, os.SEEK_DATA)
            except OSError:  # ENXIO: no data beyond this position
                break
            position = os.lseek(old, start, os.SEEK_HOLE)
            os.lseek(self._memory, start, os.SEEK_SET)
            while start < position:
                start += os.sendfile(self._memory, old, start, position - start)
        os.close(old)

    def close(self) -> None:
        """Give the memory back; may be called again."""
        self.detach()
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
