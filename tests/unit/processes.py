"""Whether a process is still there."""

from __future__ import annotations

from pathlib import Path

from tests.support.waiting import wait_for


def is_alive(pid: int) -> bool:
    """A zombie, whose parent has yet to look, is not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_gone(pid: int) -> None:
    wait_for(lambda: not is_alive(pid), 30, f"process {pid} is gone")
