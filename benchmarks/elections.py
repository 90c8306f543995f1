"""What an election of Consul's adds to a failover: by the timing of its servers, and whether the
primary that dies led them as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from benchmarks.cluster import power_cut
from benchmarks.figures import Benchmark, Figure
from tests.labs.containers.cluster import DEFAULT, FAST, ContainerCluster, Timing
from tests.labs.containers.lab import NEEDS, Lab
from tests.labs.shared.host import why_not

Bed = Callable[[], AbstractContextManager[ContainerCluster]]


def installed(timing: Timing, multiplier: int) -> Bed:
    """Three nodes, each with a Consul server of this `raft_multiplier`."""

    @contextmanager
    def made() -> Iterator[ContainerCluster]:
        with Lab(consul_config={"performance": {"raft_multiplier": multiplier}}) as lab:
            extra = "failover_cooldown = 0\nfailover_after = 15"
            cluster = ContainerCluster(lab, timing, extra)
            cluster.install()
            cluster.begin()
            yield cluster

    return made


def first_writes(cluster: ContainerCluster, rounds: int) -> Sequence[Figure]:
    taken_s: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds):
        for leads, samples in taken_s.items():
            cluster.move_role(to_consul_leader=leads)
            samples.append(power_cut(cluster, f"election{leads:d}{number}"))
    alone = {"another server led Consul": taken_s[False]}
    what = "power cut to the first acknowledged write on a standby"
    return [
        Figure(f"{what}; another server led Consul", "s", taken_s[False]),
        Figure(f"{what}; the primary led Consul, too", "s", taken_s[True], baselines=alone),
    ]


def benchmark(
    name: str, timing: Timing, called: str, multiplier: int, round_s: float
) -> Benchmark[ContainerCluster]:
    return Benchmark(
        name,
        "The primary of three nodes with real parts loses power; "
        f"{called} timings, Consul's servers have `raft_multiplier = {multiplier}`.",
        on=installed(timing, multiplier),
        measure=first_writes,
        rounds=3,
        quick=1,
        seconds=(30, round_s),
        why_not=lambda: why_not(NEEDS),
    )


BENCHMARKS = (
    benchmark("elections-1", DEFAULT, "default", 1, 60),
    benchmark("elections-1-fast", FAST, "fast", 1, 45),
    benchmark("elections-5", DEFAULT, "default", 5, 120),
    benchmark("elections-5-fast", FAST, "fast", 5, 100),
)
