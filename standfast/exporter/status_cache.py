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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from standfast.agent import document as status
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.consul.records import ClientRecord, HistoryEntry, Leader, StandbyRecord
from standfast.errors import ForeignValue, StandfastError
from standfast.exporter.trend import STEP_S, Trend
from standfast.replication import state
from standfast.status.overview import Keys, Seen, describe, document
from standfast.system.clock import monotonic, utc_now

log = logging.getLogger(__name__)

T = TypeVar("T")

KEEP_S = 1.0
SAMPLE_EVERY_S = 10.0
CONSUL_S = 2.0
MOST_AT_ONCE = 8


def read_keys(config: Config) -> Keys:
    """One read of everything below the volume's prefix; ConsulError."""
    entries = ConsulGateway.from_config(config, timeout_s=CONSUL_S).get_many(config.key(""))
    prefix = config.key("")
    return sort_keys({entry.key.removeprefix(prefix): entry.value for entry in entries})


def sort_keys(values: Mapping[str, bytes]) -> Keys:
    """Values by their keys without the prefix; what isn't ours is named, and hides nothing else."""
    history, clients, foreign = [], [], []
    for key, value in values.items():
        kind = key.partition("/")[0]
        try:
            if kind == "history":
                history.append(HistoryEntry.parse(value, key))
            elif kind == "clients":
                clients.append(ClientRecord.parse(value, key))
            elif kind == "standbys":
                record = StandbyRecord.parse(value, key)
                if record.time is None:
                    raise ValueError(record.snapshot)
            elif key == "leader":
                Leader.parse(value, key)
        except (ForeignValue, ValueError):
            foreign.append(key)
    return Keys(history, clients, foreign)


@dataclass(frozen=True, slots=True)
class Readers:
    """Where the facts come from."""

    fetch: Callable[[Config], Mapping[str, Any]] = status.fetch
    from_consul: Callable[[Config], Mapping[str, Any]] = status.without_agent
    """Asked when `fetch` fails: an agent that hangs must not hide the cluster."""
    keys: Callable[[Config], Keys] = read_keys
    replication: Callable[[Config], state.ReplicationState] = state.load
    utc: Callable[[], float] = utc_now
    now: Callable[[], float] = monotonic


class StatusCache:
    """The document of /api/v1/status, for any thread; `start` begins to keep the trends."""

    def __init__(self, configs: Sequence[Config], readers: Readers | None = None) -> None:
        self._configs = configs
        self._read = readers or Readers()
        self._trends = {config.volume: Trend() for config in configs}
        self._lock = threading.Lock()
        self._body = b""
        self._until = float("-inf")
        self._stopped = threading.Event()

    def body(self) -> bytes:
        """The document as JSON."""
        with self._lock:
            if self._read.now() >= self._until:
                doc = document(self._volumes(), self._read.utc())
                self._body = json.dumps(doc, separators=(",", ":"), allow_nan=False).encode()
                self._until = self._read.now() + KEEP_S
            return self._body

    def start(self) -> None:
        """Sample the ages from now on, in a thread of its own."""
        threading.Thread(target=self._sample_on, name="status-trend", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def sample(self) -> None:
        """Note each standby's age once, as status tells it; what can't be read leaves a gap."""
        for config in self._configs:
            doc, _ = self._status(config)
            if isinstance(doc, Mapping):
                with suppress(KeyError, TypeError, ValueError):  # an agent of another version
                    ages = {
                        standby["node"]: standby["age_s"] for standby in doc.get("standbys", ())
                    }
                    self._trends[config.volume].note(ages, self._read.now())

    def _sample_on(self) -> None:
        while True:
            self.sample()
            if self._stopped.wait(SAMPLE_EVERY_S):
                return

    def _volumes(self) -> list[Mapping[str, Any]]:
        if len(self._configs) == 1:  # the usual case needs no threads
            return [self._volume(self._configs[0])]
        with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
            return list(pool.map(self._volume, self._configs))

    def _status(self, config: Config) -> tuple[Mapping[str, Any] | str, str | None]:
        """The document, or why there is none; and why the agent didn't answer."""
        doc = _or_text(config, "agent", lambda: self._read.fetch(config))
        if not isinstance(doc, str):
            return doc, None
        return _or_text(config, "consul", lambda: self._read.from_consul(config)), doc

    def _volume(self, config: Config) -> Mapping[str, Any]:
        read = self._read
        doc, agent_error = self._status(config)
        keys: Keys | str | None = _silence(doc)
        if keys is None:
            keys = _or_text(config, "keys", lambda: read.keys(config))
        seen = Seen(
            read.utc(),
            doc,
            agent_error,
            keys,
            _or_text(config, "replication", lambda: read.replication(config)),
            self._trends[config.volume].ages(read.now()),
            STEP_S,
        )
        try:
            return describe(seen, config)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            # An agent of another version: what it says must not hide that of the others.
            text = f"the agent's answer can't be understood ({error!r}): is it of this version?"
            return describe(Seen(seen.utc, text, text, seen.keys, seen.replication), config)


def _silence(doc: object) -> str | None:
    """Why Consul gave this process no answer just now: asking again would only take as long."""
    if isinstance(doc, str):
        return doc
    if not isinstance(doc, Mapping) or doc.get("agent") is not False or "epoch" in doc:
        return None
    failover = doc.get("failover")
    return str(failover.get("sentence")) if isinstance(failover, Mapping) else None


def _or_text(config: Config, source: str, read: Callable[[], T]) -> T | str:
    """The value, or why there is none."""
    try:
        return read()
    except (StandfastError, OSError) as error:
        log.debug("status page of %s: %s can't be read: %s", config.volume, source, error)
        return str(error)
    except Exception as error:
        log.exception("status page of %s: %s can't be read", config.volume, source)
        return repr(error)
