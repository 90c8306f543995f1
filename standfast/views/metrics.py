"""Prometheus metrics of this node's volumes, computed at each scrape; nothing is kept.

Invariant: a scrape never fails. Each source is read whole or not at all; one that can't be read is
`standfast_up{source} 0`, and its metrics are left out rather than guessed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from standfast.clock import utc_now
from standfast.config.model import Config
from standfast.errors import StandfastError, Unreachable, UsageError
from standfast.names import SnapshotName
from standfast.reign import OwnReign
from standfast.replication import state
from standfast.replication.published import epochs_of_snapshots
from standfast.views import status

log = logging.getLogger(__name__)

T = TypeVar("T")
Status = Mapping[str, Any]
Sample = tuple[str, float, tuple[str, ...]]

DEFAULT_LISTEN = "127.0.0.1:9756"
ROLES = ("primary", "standby", "changing", "starting", "unknown")

# Name without the prefix: (type, labels beyond `volume`, help).
FAMILIES: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "up": (
        "gauge",
        ("source",),
        "1: this source of the metrics could be read. 0: it could not, its metrics are missing",
    ),
    "role": ("gauge", ("role",), "1 for the role that this node has now, 0 for the others"),
    "epoch": ("gauge", (), "Number of the current reign in Consul; rises by 1 at each takeover"),
    "serving": (
        "gauge",
        (),
        "1: this node is primary, its NFS server answers and the port is open",
    ),
    "lease_remaining_seconds": (
        "gauge",
        (),
        "How long this node may go on serving without another heartbeat; on the holder only",
    ),
    "fence_flushes": (
        "counter",
        (),
        "How often this lease process found the fence's firewall rules removed and put them back",
    ),
    "failover_possible": ("gauge", (), "1: a standby could take over by itself now"),
    "failover_blocked": (
        "gauge",
        ("reason",),
        "1 with the reason code why no standby could take over by itself now",
    ),
    "diverged_subvolumes": (
        "gauge",
        (),
        "Subvolumes kept aside here with data that the current primary never had",
    ),
    "replication_age_seconds": (
        "gauge",
        ("standby",),
        "Age of the standby's newest complete snapshot: the data that a failover to it would "
        "lose; +Inf: it has none",
    ),
    "replica_newest_snapshot_timestamp_seconds": (
        "gauge",
        ("standby",),
        "UTC time in the name of the standby's newest complete snapshot",
    ),
    "replication_last_success_timestamp_seconds": (
        "gauge",
        ("standby",),
        "When this node last had a snapshot acknowledged by the standby",
    ),
    "replication_duration_seconds": (
        "gauge",
        ("standby",),
        "How long this node's last successful replication to the standby took",
    ),
    "replication_sent_bytes": (
        "counter",
        ("standby",),
        "Bytes of snapshots that this node has sent to the standby and that arrived",
    ),
    "replication_failures": (
        "counter",
        ("standby", "reason"),
        "Failed replications from this node to the standby, by reason code",
    ),
    "replication_needs_full": (
        "gauge",
        ("standby",),
        "1: there is no common snapshot; `standfast replicate STANDBY --full` sends everything",
    ),
}


@dataclass(frozen=True, slots=True)
class Replica:
    """What the store of this node says."""

    newest: SnapshotName | None
    """The best snapshot that this node could start from; None: it has none."""
    diverged: int


def read_replica(config: Config) -> Replica:
    """Only snapshots of a known epoch count, as for a promotion; the newest reign goes first."""
    from standfast.adapters.stores import open_store

    store = open_store(config)
    epochs = epochs_of_snapshots(config)
    usable = [one for one in store.snapshots() if one.content_id in epochs]
    best = max(usable, key=lambda one: (epochs[one.content_id], one.name), default=None)
    kept = f"{config.base}.diverged-"
    return Replica(
        newest=None if best is None else best.name,
        diverged=sum(path.name.startswith(kept) for path in store.aside()),
    )


def has_reign(config: Config) -> bool:
    """Whether this node is, or was until its last end, the primary: by its own files."""
    return OwnReign.load(config.state_dir) is not None


@dataclass(frozen=True, slots=True)
class Readers:
    """Where the facts come from."""

    fetch: Callable[[Config], Status] = status.fetch
    from_consul: Callable[[Config], Status] = status.without_agent
    """Asked when `fetch` fails: an agent that hangs must not hide the cluster."""
    replication: Callable[[Config], state.ReplicationState] = state.load
    replica: Callable[[Config], Replica] = read_replica
    has_reign: Callable[[Config], bool] = has_reign
    utc: Callable[[], float] = utc_now


class VolumeCollector(Collector):
    """All metrics of the given volumes."""

    def __init__(self, configs: Sequence[Config], readers: Readers | None = None) -> None:
        self._configs = configs
        self._read = readers or Readers()
        # Sources that failed last time: a lasting failure is logged once.
        self._failing: set[tuple[str, str]] = set()

    def collect(self) -> Iterator[Metric]:
        metrics: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for name, (kind, labels, text) in FAMILIES.items():
            family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            metrics[name] = family(f"standfast_{name}", text, labels=("volume", *labels))
        for config in self._configs:
            for name, value, values in self._volume(config):
                metrics[name].add_metric((config.volume, *values), value)
        yield from (metric for metric in metrics.values() if metric.samples)

    def _volume(self, config: Config) -> Iterator[Sample]:
        read = self._read
        doc, known = self._status(config)
        yield "up", float(doc.get("agent") is True), ("agent",)
        yield "up", float(_sees_consul(doc)), ("consul",)
        yield from known
        sent = self._try(config, "replication", lambda: read.replication(config))
        cycles = self._try(config, "replication", lambda: list(_cycles(config, sent)))
        yield "up", float(cycles is not None), ("replication",)
        yield from cycles or ()
        ages = self._try(config, "store", lambda: list(self._stored(config, doc, sent)))
        yield "up", float(ages is not None), ("store",)
        yield from ages or ()

    def _status(self, config: Config) -> tuple[Status, list[Sample]]:
        def understood(fetch: Callable[[Config], Status]) -> tuple[Status, list[Sample]]:
            doc = fetch(config)
            return doc, list(_from_status(doc))

        return (
            self._try(config, "agent", lambda: understood(self._read.fetch))
            or self._try(config, "consul", lambda: understood(self._read.from_consul))
            or ({}, [])
        )

    def _stored(
        self, config: Config, doc: Status, sent: state.ReplicationState | None
    ) -> Iterator[Sample]:
        replica = self._read.replica(config)
        yield "diverged_subvolumes", replica.diverged, ()
        holder = doc.get("holder")
        leads = self._read.has_reign(config) if holder is None else holder == config.node
        newest = _newest_of_standbys(config, doc, sent) if leads else {config.node: replica.newest}
        for standby, name in newest.items():
            age_s = math.inf if name is None else max(0.0, self._read.utc() - name.taken_at)
            yield "replication_age_seconds", age_s, (standby,)
            if name is not None:
                yield "replica_newest_snapshot_timestamp_seconds", name.taken_at, (standby,)

    def _try(self, config: Config, source: str, read: Callable[[], T]) -> T | None:
        key = (config.volume, source)
        try:
            found = read()
        except Exception as error:
            if key not in self._failing:
                known = isinstance(error, StandfastError | OSError)
                log.warning(
                    "metrics of %s: %s can't be read: %s",
                    *(config.volume, source, error),
                    exc_info=None if known else error,
                )
            self._failing.add(key)
            return None
        self._failing.discard(key)
        return found


def _sees_consul(doc: Status) -> bool:
    """Whether the status rests on an answer of Consul."""
    return "epoch" in doc


def _from_status(doc: Status) -> Iterator[Sample]:
    """What the agent, or Consul alone, says; what they don't know is left out."""
    for role in ROLES:
        yield "role", float(doc["role"] == role), (role,)
    if doc.get("epoch") is not None:
        yield "epoch", doc["epoch"], ()
    if doc.get("agent") is True:
        yield "serving", float(doc["role"] == "primary" and doc["sick"] is None), ()
        yield "fence_flushes", doc["fence_flushes"], ()
    if doc.get("lease_remaining_s") is not None:
        yield "lease_remaining_seconds", max(0.0, doc["lease_remaining_s"]), ()
    failover = doc.get("failover")
    if failover is not None:
        yield "failover_possible", float(failover["possible"]), ()
        if failover["reason"] is not None:
            yield "failover_blocked", 1.0, (failover["reason"],)


def _cycles(config: Config, sent: state.ReplicationState | None) -> Iterator[Sample]:
    """What this node has sent, ever, to each standby that is still configured."""
    if sent is None:
        raise StandfastError("the state of the replication is unknown")
    for name in config.standbys:
        standby = sent.standbys.get(name, state.StandbyState())
        yield "replication_sent_bytes", standby.sent_bytes_total, (name,)
        yield "replication_needs_full", float(standby.needs_full), (name,)
        for reason, count in standby.failures.items():
            yield "replication_failures", count, (name, reason)
        if standby.last_success_at is not None:
            yield "replication_last_success_timestamp_seconds", standby.last_success_at, (name,)
        if standby.duration_s is not None:
            yield "replication_duration_seconds", standby.duration_s, (name,)


def _newest_of_standbys(
    config: Config, doc: Status, sent: state.ReplicationState | None
) -> Mapping[str, SnapshotName | None]:
    """By Consul's records and by what this node saw acknowledged, whichever is newer.

    With neither at hand a standby is left out: unknown is not "none".
    """
    records = {one["node"]: one["snapshot"] for one in doc.get("standbys", ())}
    found: dict[str, SnapshotName | None] = {}
    for name in config.standbys:
        own = sent.standbys.get(name) if sent is not None else None
        texts = (records.get(name), own.snapshot if own is not None else None)
        names = [parsed for text in texts if (parsed := _parsed(text)) is not None]
        if names or name in records:
            found[name] = max(names, default=None)
    return found


def _parsed(text: str | None) -> SnapshotName | None:
    try:
        return None if text is None else SnapshotName.parse(text)
    except ValueError:
        return None


def address_of(text: str) -> tuple[str, int]:
    """`127.0.0.1:9756` or `[::1]:9756`; UsageError for anything else, an empty address above all:
    that would be every address of this machine."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and colon and port.isascii() and port.isdigit() and int(port) < 65536):
        raise UsageError(f"{text!r} is not ADDRESS:PORT, for example {DEFAULT_LISTEN}")
    return host, int(port)


def serve(configs: Sequence[Config], listen: str) -> None:
    """Answer scrapes until killed; UsageError, or Unreachable when the address can't be had."""
    host, port = address_of(listen)
    registry = CollectorRegistry()
    registry.register(VolumeCollector(configs))
    try:
        # The library's own default is 0.0.0.0.
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise Unreachable(
            f"can't listen on {listen} ({error.strerror or error}): is another exporter running "
            f"there? `--listen ADDRESS:PORT` chooses another address"
        ) from error
    volumes = ", ".join(config.volume for config in configs)
    log.info("metrics of %s at http://%s/metrics", volumes, listen)
    with server:
        thread.join()
