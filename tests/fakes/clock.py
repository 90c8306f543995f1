"""A clock that only a test moves: for what pauses, backs off and gives up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from standfast.system import clock


@dataclass
class StoppedClock:
    """Stands in for the module `time` in `standfast.system.clock`; who sleeps moves it."""

    CLOCK_BOOTTIME: ClassVar[int] = 7

    now: float = 1_000_000.0
    slept: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_795_342_500.0 + self.now

    def clock_gettime(self, _: int) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += seconds


def at_the_kernels_start(_process: Path) -> float:
    """Stands in for `started_at` there: in a container the first process starts long after it."""
    return 0.0


def stop_the_clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    """For this test and the code that it calls, in whichever module that reads the time."""
    stopped = StoppedClock()
    monkeypatch.setattr(clock, "time", stopped)
    monkeypatch.setattr(clock, "started_at", at_the_kernels_start)
    return stopped
