"""How long `standfast demo` takes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from benchmarks.figures import Benchmark, Figure
from standfast.system.clock import monotonic
from tests.support.commands import sh


def demo(_: None, rounds: int) -> Sequence[Figure]:
    took_s = []
    for _round in range(rounds):
        began_s = monotonic()
        sh(Path(sys.executable).parent / "standfast", "demo", timeout_s=300.0)
        took_s.append(monotonic() - began_s)
    return [Figure("from its start to its end", "s", took_s)]


BENCHMARKS = (
    Benchmark(
        "demo",
        "`make demo` without its set-up: a failover and the way back on loopback.",
        on=nullcontext,
        measure=demo,
        rounds=2,
        quick=1,
        seconds=(0, 18),
    ),
)
