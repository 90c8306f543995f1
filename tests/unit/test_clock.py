"""The uptime counts from the start that the boot id names."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from standfast.system import clock


@pytest.fixture(autouse=True)
def fresh() -> None:
    clock.started_at.cache_clear()


def stat(path: Path, started_s: float) -> Path:
    """A process's `stat`, whose name tries to look like fields."""
    ticks = int(started_s * os.sysconf("SC_CLK_TCK"))
    path.write_text(f"1 (in) S 9 (it) S {' '.join(['7'] * 18)} {ticks} {' '.join(['8'] * 30)}\n")
    return path


def test_a_process_started_when_its_stat_says(tmp_path: Path) -> None:
    assert clock.started_at(stat(tmp_path / "stat", 4650.25)) == 4650.25


def test_this_process_started_a_moment_ago() -> None:
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - clock.started_at(Path("/proc/self/stat"))
    assert -0.1 < age_s < 86_400


def test_the_uptime_of_a_container_is_not_that_of_its_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all that it had before its start were taken for older by the host's whole uptime."""
    begun = time.clock_gettime(time.CLOCK_BOOTTIME) - 60.0
    first = stat(tmp_path / "stat", begun)
    monkeypatch.setattr(clock, "FIRST_PROCESS", first)
    assert clock.instant().up == pytest.approx(60.0, abs=30.0)
