"""Wall clocks that only a test moves, each node its own, shared with the processes forked later."""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Sequence

import pytest

from tests.fakes.clock import at_the_kernels_start

_SECONDS = struct.Struct("=d")
START_UTC = 1_790_000_000.0


class Clocks:
    """Stands in for `time` in `standfast.system.clock`; monotonic time goes on as ever."""

    CLOCK_BOOTTIME = 7
    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)

    def __init__(self, nodes: Sequence[str]) -> None:
        self._memory = mmap.mmap(-1, _SECONDS.size * (1 + len(nodes)))
        self._places = {node: number for number, node in enumerate(nodes, 1)}
        self._me = 0
        self.reset()

    def reset(self) -> None:
        for place in (0, *self._places.values()):
            self._set(place, 0.0)
        self._set(0, START_UTC)

    def act_as(self, node: str) -> None:
        """This process is that node."""
        self._me = self._places[node]

    def advance(self, seconds: float) -> None:
        self._set(0, self._get(0) + seconds)

    def step(self, node: str, seconds: float) -> None:
        """This node's clock is set."""
        self._set(self._places[node], self._get(self._places[node]) + seconds)

    def time(self) -> float:
        return self._get(0) + (self._get(self._me) if self._me else 0.0)

    def clock_gettime(self, _: int) -> float:
        """Uptime: it goes on with everybody's time, and nobody sets it."""
        return self._get(0)

    def rule(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("standfast.system.clock.time", self)
        monkeypatch.setattr("standfast.system.clock.started_at", at_the_kernels_start)

    def _get(self, place: int) -> float:
        return float(_SECONDS.unpack_from(self._memory, place * _SECONDS.size)[0])

    def _set(self, place: int, seconds: float) -> None:
        _SECONDS.pack_into(self._memory, place * _SECONDS.size, seconds)
