"""The processes of one node of the demo, found by the environment that they were started with.

Invariant: a signal reaches such a process and no other, even where a pid is given out anew.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from standfast.system.clock import Deadline, sleep


def kill_processes(environment: Mapping[str, str]) -> tuple[int, ...]:
    """Kills every process that was started with this environment, and what those start meanwhile.

    A node's environment names its own directory, so nobody else's process has it. TimedOut.
    """
    killed: list[int] = []
    deadline = Deadline.after(5.0)
    while pids := [pid for pid in _all_pids() if carries(pid, environment)]:
        deadline.check(f"the death of processes {pids}")
        for pid in pids:
            send_signal(pid, signal.SIGKILL, environment)
        killed += [pid for pid in pids if pid not in killed]
        sleep(0.01)
    return tuple(killed)


def carries(pid: int, environment: Mapping[str, str]) -> bool:
    """Whether the process has these variables; not when it is dead, or another user's."""
    wanted = {f"{name}={value}".encode() for name, value in environment.items()}
    try:
        return wanted <= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return False


def send_signal(pid: int, number: signal.Signals, environment: Mapping[str, str]) -> bool:
    """Whether there was such a process to send it to."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if carries(pid, environment):  # still the same process
                signal.pidfd_send_signal(descriptor, number)
                return True
        finally:
            os.close(descriptor)
    return False


def _all_pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]  # noqa: PTH208
