"""Real Prometheus and Alertmanager scrape real exporters: the shipped rules tell what happens, and
every query of the dashboard has an answer.

All waits of the rules are divided by one factor, which `monitoring.quicker` does; n3 is only the
third vote in Consul, so that a power cut leaves no redundancy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from tests.labs.containers.cluster import FAST, VOLUME
from tests.labs.containers.lab import Lab
from tests.labs.containers.watched import FACTOR, INTERVAL_S, SCRAPE_S, Watched
from tests.support.figures import note
from tests.support.monitoring import RULES, Monitoring, dashboard_queries, names_in, quicker

LAG_S = 2 * INTERVAL_S + 60 / FACTOR
"""What docs/alerts.md promises of the lag: two intervals and a minute."""
# Nomad isn't configured here, and nothing was compared, failed, or is late. The contract test,
# whose exporters know all that, leaves nothing out.
NOTHING_HERE = {
    "standfast_nomad_up",
    "standfast_nomad_pending",
    "standfast_replication_verified_timestamp_seconds",
    "standfast_replication_verify_failed",
    "standfast_replication_failures_total",
    "standfast_failover_blocked",
}


@pytest.fixture(scope="module")
def cluster(lab_factory: Callable[..., Lab]) -> Iterator[Watched]:
    lab = lab_factory()
    made = Watched(lab, FAST, extra="failover_cooldown = 0\nfailover_after = 6")
    made.install()
    made.begin()
    yield made
    lab.close()


@pytest.fixture(scope="module")
def monitoring(cluster: Watched, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitoring]:
    with Monitoring(
        tmp_path_factory.mktemp("monitoring"),
        [f"{node.address}:9756" for node in cluster.storage],
        quicker(RULES.read_text(), FACTOR),
        interval_s=SCRAPE_S,
        netns=cluster.lab.client.netns,
    ) as made:
        made.wait_for(lambda: len(made.query("up == 1")) == 2, "both exporters are scraped", 60.0)
        # Two samples, for the queries that compare.
        made.wait_for(
            lambda: made.query("count_over_time(standfast_serving[1m]) > 3"), "some scrapes", 60.0
        )
        yield made


def test_every_query_has_an_answer(monitoring: Monitoring) -> None:
    queries = dashboard_queries(VOLUME) | {name: name for name in names_in(RULES.read_text())}
    for name in [name for name, text in queries.items() if names_in(text) & NOTHING_HERE]:
        del queries[name]
    assert len(queries) > 20
    assert monitoring.unanswered(queries) == {}


@pytest.mark.timeout(240)
def test_replication_that_stops_is_told_when_it_is_late_and_so_is_its_return(
    cluster: Watched, monitoring: Monitoring
) -> None:
    monitoring.wait_for(lambda: not monitoring.telling("Replication"), "replication is well", 60.0)
    standby = cluster[cluster.other()]
    standby.sh("mv /root/.ssh/authorized_keys /root/.ssh/away")
    told = monitoring.wait_for_alert("StandfastReplicationLag", 4 * LAG_S)
    newest = monitoring.value(
        f'max(standfast_replica_newest_snapshot_timestamp_seconds{{standby="{standby.name}"}})'
    )
    seen_s = datetime.fromisoformat(told["startsAt"]).timestamp() - newest
    note(
        f"replication stopped: alert {seen_s:.1f} s after the newest snapshot, promised {LAG_S:.0f}"
        f" s and up to {2 * SCRAPE_S} s for scrape and evaluation"
    )
    assert seen_s >= LAG_S - SCRAPE_S, "an alarm before its time"
    standby.sh("mv /root/.ssh/away /root/.ssh/authorized_keys")
    monitoring.wait_for(lambda: not monitoring.telling("Replication"), "it resolves", 90.0)


@pytest.mark.timeout(240)
def test_a_power_cut_is_told_as_a_failover_and_as_lost_redundancy(
    cluster: Watched, monitoring: Monitoring
) -> None:
    assert "StandfastFailoverHappened" not in monitoring.alerts()
    primary = cluster.primary()
    epoch = cluster.epoch(primary)
    cluster.wait_until_replicated(primary)
    cluster[primary].power_cut()
    told = monitoring.wait_for_alert("StandfastFailoverHappened", 120.0)
    assert f"epoch {epoch + 1} began" in told["annotations"]["summary"]
    lost = monitoring.wait_for_alert("StandfastNoFailoverPossible", 120.0)
    assert "Reason: " in lost["annotations"]["description"]
    monitoring.wait_for_alert("StandfastExporterDown", 60.0)
    assert "StandfastTwoPrimaries" not in monitoring.alerts()
    assert "StandfastSwitchoverHappened" not in monitoring.alerts()
