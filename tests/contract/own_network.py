"""A network of a test's own: its ports are free, its firewall is empty, nobody else is there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.pace import patient

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """This thread, its new sockets and its children, in a network namespace with a loopback."""
    with Path("/proc/thread-self/ns/net").open() as home:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], timeout=patient(20.0), check=True)
            yield
        finally:
            assert libc.setns(home.fileno(), CLONE_NEWNET) == 0
