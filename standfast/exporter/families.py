"""The metrics: their names, labels and the texts that Prometheus shows for them.

Interface: rules and dashboards of others are written against these names. docs/metrics.md lists
them all; a test ties the two together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

PREFIX = "standfast_"
ROLES = ("primary", "standby", "changing", "starting", "unknown")
MODES = ("auto", "manual", "paused")
SOURCES = ("agent", "consul", "replication", "store")

Sample = tuple[str, float, tuple[str, ...]]
"""Family without the prefix, value, values of its labels beyond `volume`."""


@dataclass(frozen=True, slots=True)
class Family:
    """Describes one metric; its labels begin with `volume`, unless it is the whole node's."""

    name: str
    """Without the prefix and, for a counter, without `_total`."""
    help: str
    labels: tuple[str, ...] = ()
    """Beyond `volume`."""
    counter: bool = False
    of_node: bool = False

    @property
    def full_name(self) -> str:
        """Returns its name as Prometheus stores it."""
        return f"{PREFIX}{self.name}{'_total' if self.counter else ''}"

    def metric(self) -> CounterMetricFamily | GaugeMetricFamily:
        """Returns the library's own family, without a sample yet."""
        kind = CounterMetricFamily if self.counter else GaugeMetricFamily
        labels = self.labels if self.of_node else ("volume", *self.labels)
        return kind(f"{PREFIX}{self.name}", self.help, labels=labels)


def by_name(families: Iterable[Family]) -> Mapping[str, Family]:
    return {family.name: family for family in families}


_STANDBY = ("standby",)

FAMILIES = by_name(
    [
        Family(
            "build_info",
            "1, with the version of the exporter that answers",
            ("version",),
            of_node=True,
        ),
        Family(
            "time_seconds",
            "This node's clock (UTC) when the scrape began: ages are only as right as the clocks",
            of_node=True,
        ),
        Family(
            "up",
            "1: this source of the metrics could be read. 0: it could not, its metrics are missing",
            ("source",),
        ),
        Family("role", "1 for the role that this node has now, 0 for the others", ("role",)),
        Family(
            "mode",
            "1 for how a standby is promoted now: auto, manual (only by an operator), paused",
            ("mode",),
        ),
        Family("epoch", "Number of the current epoch in Consul; rises by 1 at each takeover"),
        Family(
            "epoch_start_timestamp_seconds",
            "When the current epoch began (UTC), with the reason code of its beginning",
            ("began_by",),
        ),
        Family("serving", "1: this node is primary, its NFS server answers and the port is open"),
        Family(
            "trouble",
            "1: the agent's plan doesn't get on, a step of it fails; `standfast status` says which",
        ),
        Family(
            "lease_remaining_seconds",
            "How long this node may go on serving without another heartbeat; on the holder only",
        ),
        Family(
            "lease_length_seconds",
            "A whole lease, as configured: what a heartbeat sets lease_remaining_seconds to",
        ),
        Family(
            "fence_armed",
            "1: the firewall rules that cut this node off at its lease's end are in place; on the "
            "primary only",
        ),
        Family(
            "fence_flushes",
            "How often this lease process found the fence's firewall rules removed and put them "
            "back",
            counter=True,
        ),
        Family("failover_possible", "1: a standby could take over by itself now"),
        Family(
            "failover_blocked",
            "1 with the reason code why no standby could take over by itself now",
            ("reason",),
        ),
        Family(
            "takeover_obstacles",
            "What a standby finds in the way of its own promotion, by its last look; no sample: it "
            "says nothing",
            _STANDBY,
        ),
        Family(
            "standby_on_hold",
            "1: the standby is on hold (`standfast standby hold`): it doesn't take over by itself",
            _STANDBY,
        ),
        Family(
            "diverged_subvolumes",
            "Subvolumes kept aside here with data that the current primary never had",
        ),
        Family("nomad_up", "1: Nomad answered this node's agent when it last asked"),
        Family(
            "nomad_pending",
            "1: Nomad doesn't follow the role yet, a job or the node's meta is on its way",
        ),
        Family(
            "replication_interval_seconds",
            "Time between two replications, as configured: what the age of a standby grows to",
        ),
        Family(
            "replication_age_seconds",
            "Age of the standby's newest complete snapshot: the data that a failover to it would "
            "lose; +Inf: it has none, or nobody knows",
            _STANDBY,
        ),
        Family(
            "replica_has_snapshot",
            "1: the standby has a complete snapshot, of whatever age; 0: it has none",
            _STANDBY,
        ),
        Family(
            "replica_newest_snapshot_timestamp_seconds",
            "When the standby's newest complete snapshot was taken",
            _STANDBY,
        ),
        Family(
            "replication_last_success_timestamp_seconds",
            "When this node last had a snapshot acknowledged by the standby",
            _STANDBY,
        ),
        Family(
            "replication_duration_seconds",
            "How long this node's last successful replication to the standby took",
            _STANDBY,
        ),
        Family(
            "replication_sent_bytes",
            "Bytes of snapshots that this node has sent to the standby and that arrived",
            _STANDBY,
            counter=True,
        ),
        Family(
            "replication_failures",
            "Failed replications from this node to the standby, by reason code",
            ("standby", "reason"),
            counter=True,
        ),
        Family(
            "replication_needs_full",
            "1: there is no common snapshot; `standfast replicate STANDBY --full` sends everything",
            _STANDBY,
        ),
        Family(
            "replication_verified_timestamp_seconds",
            "When this node last compared the standby's snapshot with its own",
            _STANDBY,
        ),
        Family(
            "replication_verify_failed",
            "1: that comparison found a difference; 0: both sides were equal",
            _STANDBY,
        ),
    ]
)
