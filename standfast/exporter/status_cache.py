"""Looks at this node's volumes for the status page: one look serves everybody who asks.

Invariant: a look never fails and ends by the deadlines of its sources; what could not be read takes
the place of the value as a text. An answer is at most KEEP_S older than the look's end, and nobody
waits for more than one look at a time.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from standfast.agent.document import Heard, fetch, without_agent
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.consul.records import ClientRecord, HistoryEntry, Leader, StandbyRecord
from standfast.consul.volume_keys import read_volume
from standfast.errors import ConsulError, ForeignValue, StandfastError
from standfast.exporter.trend import STEP_S, Trend
from standfast.replication import state
from standfast.status.document import Status
from standfast.status.overview import Keys, Seen, describe, document
from standfast.status.volume import Volume
from standfast.system.clock import monotonic, utc_now
from standfast.system.threads import all_at_once, start
from standfast.text import MOST_NAME, clean

log = logging.getLogger(__name__)

T = TypeVar("T")

KEEP_S = 1.0
SAMPLE_EVERY_S = 10.0
CONSUL_S = 2.0
MOST_CLIENTS_BYTES = 1 << 20
"""Of all that clients say, as Consul sends it: room for more than a thousand, and several times in
memory while it is read (the unit has MemoryMax=128M)."""


def read_keys(config: Config) -> Keys:
    """Reads the volume's keys at once, and what clients say; ConsulError."""
    consul = ConsulGateway.from_config(config, timeout_s=CONSUL_S)
    keys = sort_keys({name: entry.value for name, entry in read_volume(consul, config).items()})
    prefix = config.client_key("")
    try:
        # Apart, and last: whatever clients write, it hides nothing but them.
        told = consul.get_many(prefix, most_bytes=MOST_CLIENTS_BYTES)
    except ConsulError as error:
        return replace(keys, clients=str(error))
    return with_clients(keys, {entry.key.removeprefix(prefix): entry.value for entry in told})


def with_clients(keys: Keys, values: Mapping[str, bytes]) -> Keys:
    """Adds what clients say, by their names; one that isn't ours is named, and hides no other."""
    clients, foreign = [], []
    for node, value in values.items():
        try:
            clients.append(ClientRecord.parse(value, node))
        except ForeignValue:
            foreign.append(clean(node, MOST_NAME))
    return replace(keys, clients=clients, foreign_clients=foreign)


def sort_keys(values: Mapping[str, bytes]) -> Keys:
    """Parses values by their keys without the prefix; what isn't ours is named, and hides nothing
    else."""
    history, foreign = [], []
    for key, value in values.items():
        kind = key.partition("/")[0]
        try:
            if kind == "history":
                history.append(HistoryEntry.parse(value, key))
            elif kind == "standbys":
                record = StandbyRecord.parse(value, key)
                if record.time is None:
                    raise ValueError(record.snapshot)
            elif key == "leader":
                Leader.parse(value, key)
        except (ForeignValue, ValueError):
            foreign.append(clean(key, MOST_NAME))
    return Keys(history, foreign=foreign)


@dataclass(frozen=True, slots=True)
class Readers:
    """Says where the facts come from."""

    fetch: Callable[[Config], Status] = fetch
    from_consul: Callable[[Config], Status] = without_agent
    """Asked when `fetch` fails: an agent that hangs must not hide the cluster."""
    keys: Callable[[Config], Keys] = read_keys
    replication: Callable[[Config], state.ReplicationState] = state.load
    utc: Callable[[], float] = utc_now
    now: Callable[[], float] = monotonic


def remembering() -> Readers:
    """Returns readers that keep what they heard of heartbeats, without an agent: a page waits for
    none."""
    heard: Heard = {}
    return Readers(
        fetch=lambda config: fetch(config, heard),
        from_consul=lambda config: without_agent(config, heard),
    )


class StatusCache:
    """Keeps the document of /api/v1/status, for any thread; `start` begins to keep the trends."""

    def __init__(self, configs: Sequence[Config], readers: Readers | None = None) -> None:
        self._configs = configs
        self._read = readers or remembering()
        self._trends = {config.volume: Trend() for config in configs}
        self._lock = threading.Lock()
        self._body = b""
        self._until = float("-inf")
        self._stopped = threading.Event()

    def body(self) -> bytes:
        """Returns the document as JSON."""
        with self._lock:
            if self._read.now() >= self._until:
                doc = document(self._volumes(), self._read.utc())
                self._body = json.dumps(doc, separators=(",", ":"), allow_nan=False).encode()
                self._until = self._read.now() + KEEP_S
            return self._body

    def start(self) -> None:
        """Samples the ages from now on, in a thread of its own."""
        start("status-trend", self._sample_on)

    def stop(self) -> None:
        self._stopped.set()

    def sample(self) -> None:
        """Notes each standby's age once, as status tells it; what can't be read leaves a gap."""
        for config in self._configs:
            status, _ = self._status(config)
            if isinstance(status, Status):
                ages = {standby.node: standby.age_s for standby in status.standbys}
                self._trends[config.volume].note(ages, self._read.now())

    def _sample_on(self) -> None:
        while True:
            self.sample()
            if self._stopped.wait(SAMPLE_EVERY_S):
                return

    def _volumes(self) -> list[Volume]:
        looks = [partial(self._volume, config) for config in self._configs]
        return all_at_once("status", looks)

    def _status(self, config: Config) -> tuple[Status | str, str | None]:
        """Returns the document, or why there is none; and why the agent didn't answer."""
        status = _or_text(config, "agent", lambda: self._read.fetch(config))
        if not isinstance(status, str):
            return status, None
        return _or_text(config, "consul", lambda: self._read.from_consul(config)), status

    def _volume(self, config: Config) -> Volume:
        read = self._read
        status, agent_error = self._status(config)
        keys: Keys | str | None = _silence(status)
        if keys is None:
            keys = _or_text(config, "keys", lambda: read.keys(config))
        seen = Seen(
            read.utc(),
            status,
            agent_error,
            keys,
            _or_text(config, "replication", lambda: read.replication(config)),
            self._trends[config.volume].ages(read.now()),
            STEP_S,
        )
        return describe(seen, config)


def _silence(status: Status | str) -> str | None:
    """Returns why Consul gave this process no answer just now: asking again would only take as
    long."""
    if isinstance(status, str):
        return status
    if status.agent is not False or status.consul is not None or status.failover is None:
        return None
    return status.failover.sentence


def _or_text(config: Config, source: str, read: Callable[[], T]) -> T | str:
    """Returns the value, or why there is none."""
    try:
        return read()
    except (StandfastError, OSError) as error:
        log.debug("status page of %s: %s can't be read: %s", config.volume, source, error)
        return str(error)
    except Exception as error:
        log.exception("status page of %s: %s can't be read", config.volume, source)
        return repr(error)
