"""How long a job that is bound to the primary is down at a switchover: Nomad is a stand-in that
moves it at once, so this is the product's own part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.cluster import handover
from benchmarks.figures import Benchmark, Figure
from tests.lab.cluster import FAST
from tests.lab.lab import NEEDS, Lab
from tests.lab.nomad import JOBS, WithNomad, with_nomad
from tests.machines.host import why_not


@contextmanager
def site() -> Iterator[WithNomad]:
    with Lab() as lab, with_nomad(lab, FAST, "min_reign = 0\nfailover_after = 6") as cluster:
        cluster.wait_until_followed(cluster.primary())
        yield cluster


def moving(cluster: WithNomad, rounds: int) -> Sequence[Figure]:
    down_s: dict[str, list[float]] = {name: [] for name in JOBS}
    pauses_s = []
    for _ in range(rounds):
        source, target = cluster.primary(), cluster.standby().name
        cluster.wait_until_replicated(source)
        words = ("switchover", "--to", target)
        pauses_s.append(handover(cluster, source, target, words, f"to-{target}")[0])
        cluster.wait_until_followed(target)
        for name, taken_s in told(cluster, source).items():
            down_s[name].append(taken_s)
        cluster.wait_until_plain(source)
    pause = {"the storage's pause": pauses_s}
    return [
        Figure(f"a {JOBS[name]} job was down", "s", taken, baselines=pause)
        for name, taken in down_s.items()
    ]


def told(cluster: WithNomad, source: str) -> dict[str, float]:
    """How long each job was down, once the old primary, which stopped them, says so of all."""

    def of_all() -> dict[str, float] | None:
        moves: list[dict[str, Any]] = cluster.status(source)["nomad"]["jobs"]
        found = {one["job"].partition(".")[0]: one["down_s"] for one in moves}
        return None if None in map(found.get, JOBS) else {name: found[name] for name in JOBS}

    return cluster.lab.wait_for(of_all, 30.0, "every job's time is known") or {}


BENCHMARKS = (
    Benchmark(
        "nomad",
        "A switchover with jobs of Nomad that are bound to the primary; Nomad is a stand-in, fast "
        "timings.",
        on=site,
        measure=moving,
        rounds=4,
        quick=1,
        seconds=(30, 9),
        why_not=lambda: why_not(NEEDS),
    ),
)
