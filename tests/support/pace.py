"""How slow this machine is right now, as one factor by which the tests' deadlines are stretched.

A deadline of a test says that something has hung; it is no promise of speed (those are measured by
`make bench`). So it is generous on a quiet machine, and longer still on a slow or busy one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

QUIET_S = 0.045
"""What `_piece_of_work` takes on a quiet machine of two cores (measured: 0.037 to 0.045 s)."""
MOST = 20.0
"""A machine that is slower than this is broken, and its deadlines pass."""
_WORK = "import hashlib, json; hashlib.sha256(bytes(4 << 20)).digest()"
_measured: list[float] = []


def _piece_of_work() -> float:
    """Seconds that a small program takes: a process, files to read, a computation."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-ISc", _WORK], check=True, timeout=60)
    return time.monotonic() - started


def measure() -> float:
    """The factor at this moment: 1.0 on a quiet machine like the one of QUIET_S, up to MOST."""
    taken_s = sorted(_piece_of_work() for _ in range(3))[1]
    _measured.append(min(MOST, max(1.0, taken_s / QUIET_S)))
    return factor()


def factor() -> float:
    """The largest factor measured so far; STANDFAST_TEST_PACE sets it instead."""
    if told := os.environ.get("STANDFAST_TEST_PACE"):
        return float(told)
    if not _measured:
        measure()
    return max(_measured)


def patient(seconds: float) -> float:
    """A deadline for this machine: `seconds` times the factor."""
    return seconds * factor()
