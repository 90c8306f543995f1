"""How soon real Prometheus and Alertmanager tell of replication that has stopped."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.figures import Benchmark, Figure
from tests.labs.containers.cluster import FAST
from tests.labs.containers.lab import NEEDS, Lab
from tests.labs.containers.watched import FACTOR, SCRAPE_S, Watched
from tests.labs.shared import host
from tests.support.monitoring import RULES, Monitoring, quicker

LAG_S = 2 * Watched.interval_s + 60 / FACTOR
"""What docs/alerts.md promises of the alert's time, with the rules' waits divided by FACTOR."""


@dataclass(frozen=True)
class MonitoredCluster:
    """Two storage nodes, and what watches them."""

    cluster: Watched
    monitoring: Monitoring


@contextmanager
def site() -> Iterator[MonitoredCluster]:
    with tempfile.TemporaryDirectory() as directory, Lab() as lab:
        cluster = Watched(lab, FAST, extra="failover_cooldown = 0\nfailover_after = 6")
        cluster.install()
        cluster.begin()
        with Monitoring(
            Path(directory),
            [f"{node.address}:9756" for node in cluster.storage],
            quicker(RULES.read_text(), FACTOR),
            interval_s=SCRAPE_S,
            netns=lab.client.netns,
        ) as made:
            made.wait_for(lambda: len(made.query("up == 1")) == 2, "both are scraped", 60.0)
            yield MonitoredCluster(cluster, made)


def lag(place: MonitoredCluster, rounds: int) -> Sequence[Figure]:
    """From the time of the newest snapshot, which no other follows, to the alert."""
    standby, taken_s = place.cluster[place.cluster.other()], []
    for _ in range(rounds):
        place.monitoring.wait_for(
            lambda: not place.monitoring.telling("Replication"), "replication is well", 90.0
        )
        place.cluster.wait_until_replicated(place.cluster.primary())
        standby.sh("mv /root/.ssh/authorized_keys /root/.ssh/away")
        told = place.monitoring.wait_for_alert("StandfastReplicationLag", 4 * LAG_S)
        newest_s = place.monitoring.value(
            f'max(standfast_replica_newest_snapshot_timestamp_seconds{{standby="{standby.name}"}})'
        )
        taken_s.append(datetime.fromisoformat(told["startsAt"]).timestamp() - newest_s)
        standby.sh("mv /root/.ssh/away /root/.ssh/authorized_keys")
    # Each of the two may come just after what it would have seen.
    promise_s = LAG_S + 2 * SCRAPE_S
    return [Figure("newest snapshot to the alert", "s", taken_s, promise_s)]


def why_not() -> str | None:
    for program in ("prometheus", "prometheus-alertmanager"):
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install {program}"
    return host.why_not(NEEDS)


BENCHMARKS = (
    Benchmark(
        "alert",
        f"Replication stops: `StandfastReplicationLag`, with an interval of {Watched.interval_s} "
        f"s, a scrape and an evaluation every {SCRAPE_S} s, and the rules' waits divided by "
        f"{FACTOR:g}. Promised are two intervals and a minute, and a scrape and an evaluation.",
        on=site,
        measure=lag,
        rounds=3,
        quick=1,
        seconds=(30, 40),
        why_not=why_not,
    ),
)
