"""How long a job that is constrained to the primary is down at a switchover: a stand-in for Nomad
that
moves it at once, so this is the product's own part.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.cluster import handover
from benchmarks.figures import Benchmark, Figure
from tests.fakes.nomad_api import Manner
from tests.labs.containers.cluster import FAST
from tests.labs.containers.lab import NEEDS, Lab
from tests.labs.containers.nomad import JOBS, WithNomad, with_nomad
from tests.labs.shared.host import why_not

NOMAD_MAY_ADD_S = 1.0
"""To the storage's pause, whatever it does: a request to it may take 2 s here."""


@contextmanager
def site() -> Iterator[WithNomad]:
    with (
        Lab() as lab,
        with_nomad(lab, FAST, "failover_cooldown = 0\nfailover_after = 6") as cluster,
    ):
        cluster.wait_until_followed(cluster.primary())
        yield cluster


def moving(cluster: WithNomad, rounds: int) -> Sequence[Figure]:
    """In turn with a Nomad that answers, and with one that hangs from before the switchover on."""
    down_s: dict[str, list[float]] = {name: [] for name in JOBS}
    pauses_s: dict[Manner, list[float]] = {Manner.NORMAL: [], Manner.HANG: []}
    for number in range(rounds):
        # Each goes both ways: the nodes may differ.
        for manner in sorted(pauses_s, key=lambda manner: manner.value, reverse=number % 2 == 1):
            source, target = cluster.primary(), cluster.standby().name
            cluster.wait_until_replicated(source)
            cluster.nomad.be(manner)
            words = ("switchover", "--to", target)
            path = f"to-{target}-{manner.value}{number}"
            pauses_s[manner].append(handover(cluster, source, target, words, path)[0])
            cluster.nomad.be(Manner.NORMAL)
            cluster.wait_until_followed(target)
            if manner is Manner.NORMAL:
                for name, job_s in told(cluster, source).items():
                    down_s[name].append(job_s)
            cluster.wait_until_plain(source)
    pause = {"the storage's pause": pauses_s[Manner.NORMAL]}
    longest_s = statistics.median(pauses_s[Manner.NORMAL]) + NOMAD_MAY_ADD_S
    return [
        *(
            Figure(f"a {JOBS[name]} job was down", "s", taken_s, baselines=pause)
            for name, taken_s in down_s.items()
        ),
        Figure(
            "the storage's pause while Nomad hangs",
            "s",
            pauses_s[Manner.HANG],
            longest_s,
            {"while it answers": pauses_s[Manner.NORMAL]},
        ),
    ]


def told(cluster: WithNomad, source: str) -> dict[str, float]:
    """How long each job was down, once the old primary, which stopped them, says so of all."""

    def of_all() -> dict[str, float] | None:
        moves: list[dict[str, Any]] = cluster.status(source)["nomad"]["jobs"]
        down_s = {move["job"].partition(".")[0]: move["down_s"] for move in moves}
        return None if None in map(down_s.get, JOBS) else {name: down_s[name] for name in JOBS}

    return cluster.lab.wait_for(of_all, 30.0, "every job's time is known") or {}


BENCHMARKS = (
    Benchmark(
        "nomad",
        "A switchover with jobs of Nomad that are constrained to the primary; a stand-in for "
        "Nomad, fast timings.",
        on=site,
        measure=moving,
        rounds=4,
        quick=1,
        seconds=(30, 20),
        why_not=lambda: why_not(NEEDS),
    ),
)
