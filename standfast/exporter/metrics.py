"""Prometheus metrics of this node's volumes, computed at each scrape; nothing is kept.

Invariants: a scrape never fails, and ends by its deadline. Each source is read whole or not at all;
one that can't be read in time is `standfast_up{source} 0`, and its metrics are left out rather than
guessed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from standfast import __version__
from standfast.agent.document import fetch, without_agent
from standfast.assembly.parts import open_store
from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.exporter import samples
from standfast.exporter.families import FAMILIES, SOURCES, Sample
from standfast.exporter.samples import Copy
from standfast.node.own_epoch import OwnEpoch
from standfast.replication import state
from standfast.replication.published import origins_of_snapshots
from standfast.status.document import Status
from standfast.system.clock import Deadline, instant, utc_now
from standfast.system.threads import SingleFlight, all_at_once
from standfast.text import MOST_NAME, clean

log = logging.getLogger(__name__)

T = TypeVar("T")

# Below the 10 s that Prometheus gives a scrape by default.
SCRAPE_S = 8.0
# Shares of a scrape's time: an agent that hangs leaves enough to ask Consul instead, and Consul
# enough for what this node knows by itself.
AGENT_SHARE = 0.4
CONSUL_SHARE = 0.35


@dataclass(frozen=True, slots=True)
class Replica:
    """Holds what the store of this node says."""

    newest: Copy | None
    """The best snapshot that this node could start from; None: it has none."""
    diverged: int
    times: Mapping[str, float] = field(default_factory=dict)
    """When the snapshots here were taken, UTC seconds by their names."""


def read_replica(config: Config) -> Replica:
    """Reads the store; only snapshots of a known epoch count, as for a promotion; the newest epoch
    goes first."""
    store = open_store(config)
    snapshots = store.snapshots()
    origins = origins_of_snapshots(config, instant())
    usable = [snapshot for snapshot in snapshots if snapshot.content_id in origins]
    best = max(usable, key=lambda each: (origins[each.content_id].epoch, each.name), default=None)
    times = {str(each.name): origins[each.content_id].time(each.name) for each in usable}
    kept = f"{config.base}.diverged-"
    return Replica(
        newest=None if best is None else Copy(best.name, times[str(best.name)]),
        diverged=sum(path.name.startswith(kept) for path in store.aside()),
        times=times,
    )


def has_epoch(config: Config) -> bool:
    """Says whether this node is, or was until its last end, the primary: by its own files."""
    return OwnEpoch.load(config.state_dir) is not None


@dataclass(frozen=True, slots=True)
class Readers:
    """Says where the facts come from."""

    fetch: Callable[[Config], Status] = fetch
    from_consul: Callable[[Config], Status] = without_agent
    """Asked when `fetch` fails, which by itself asks Consul only where no agent listens: one that
    hangs must not hide the cluster."""
    replication: Callable[[Config], state.ReplicationState] = state.load
    replica: Callable[[Config], Replica] = read_replica
    has_epoch: Callable[[Config], bool] = has_epoch
    utc: Callable[[], float] = utc_now


class VolumeMetrics:
    """Collects all metrics of the given volumes; for any thread."""

    def __init__(self, configs: Sequence[Config], readers: Readers | None = None) -> None:
        self._configs = configs
        self._read = readers or Readers()
        self._flights = SingleFlight()
        # Sources that failed last time: a lasting failure is logged once.
        self._failing: set[tuple[str, str]] = set()

    def registry(self, deadline: Deadline) -> CollectorRegistry:
        """Returns what the library's encoders take, for one scrape: it is over at the deadline, or
        a moment later."""
        registry = CollectorRegistry()
        registry.register(_Scrape(self, deadline))
        return registry

    def collect(self, deadline: Deadline) -> Iterator[Metric]:
        """Yields each family that has a sample."""
        utc = self._read.utc()
        metrics = {name: family.metric() for name, family in FAMILIES.items()}
        metrics["build_info"].add_metric((__version__,), 1.0)
        metrics["time_seconds"].add_metric((), utc)
        for config, told in zip(self._configs, self._volumes(utc, deadline), strict=True):
            for name, value, labels in told:
                metrics[name].add_metric(
                    (config.volume, *(clean(label, MOST_NAME) for label in labels)), value
                )
        return (metric for metric in metrics.values() if metric.samples)

    def _volumes(self, utc: float, deadline: Deadline) -> Sequence[Sequence[Sample]]:
        """Each source in them has the deadline."""
        looks = [_Look(self, config, utc, deadline) for config in self._configs]
        return all_at_once("scrape", [look.samples for look in looks])

    def try_to(
        self, config: Config, source: str, read: Callable[[], T], deadline: Deadline
    ) -> T | None:
        """Reads a source; None when it fails or hangs, which is logged when it begins."""
        key = (config.volume, source)
        try:
            value = self._flights.look(key, read, deadline)
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
        return value

    @property
    def read(self) -> Readers:
        return self._read


@dataclass(frozen=True, slots=True)
class _Scrape(Collector):
    """The library's collector takes no deadline; this one has it."""

    metrics: VolumeMetrics
    deadline: Deadline

    def collect(self) -> Iterator[Metric]:
        return self.metrics.collect(self.deadline)


class _Look:
    """One volume in one scrape."""

    def __init__(
        self, metrics: VolumeMetrics, config: Config, utc: float, deadline: Deadline
    ) -> None:
        self._metrics, self._config = metrics, config
        self._utc, self._deadline = utc, deadline
        self._whole_s = deadline.remaining_s()

    def samples(self) -> Sequence[Sample]:
        config, read = self._config, self._metrics.read
        status, known = self._status()
        sent = self._try("replication", lambda: read.replication(config))
        cycles = None
        if sent is not None:
            cycles = self._try("replication", lambda: [*samples.from_replication(config, sent)])
        stored = self._try("store", lambda: self._stored(status, sent))
        up = {
            "agent": status is not None and status.agent is True,
            "consul": status is not None and status.consul is not None,
            "replication": cycles is not None,
            "store": stored is not None,
        }
        told: list[Sample] = [("up", float(up[source]), (source,)) for source in SOURCES]
        return [*told, *samples.from_config(config), *known, *(cycles or ()), *(stored or ())]

    def _status(self) -> tuple[Status | None, Sequence[Sample]]:
        config, read = self._config, self._metrics.read

        def understood(fetch: Callable[[Config], Status]) -> tuple[Status, Sequence[Sample]]:
            status = fetch(config)
            return status, [*samples.from_status(status, config, self._utc)]

        return (
            self._try("agent", lambda: understood(read.fetch), AGENT_SHARE)
            or self._try("consul", lambda: understood(read.from_consul), CONSUL_SHARE)
            or (None, ())
        )

    def _stored(
        self, status: Status | None, sent: state.ReplicationState | None
    ) -> Sequence[Sample]:
        config, read = self._config, self._metrics.read
        replica = read.replica(config)
        holder, standbys = (None, ()) if status is None else (status.holder, status.standbys)
        leads = read.has_epoch(config) if holder is None else holder == config.node
        newest: Mapping[str, Copy | None] = {config.node: replica.newest}
        if leads:
            newest = samples.newest_of_standbys(config, standbys, sent, replica.times)
        return [("diverged_subvolumes", replica.diverged, ()), *samples.ages(newest, read.utc())]

    def _try(self, source: str, read: Callable[[], T], share: float = 1.0) -> T | None:
        deadline = Deadline(min(self._deadline.at, Deadline.after(share * self._whole_s).at))
        return self._metrics.try_to(self._config, source, read, deadline)
