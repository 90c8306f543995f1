"""Gathers what `role.observation` describes: the leader key by blocking query, the rest in time.

Invariants: what could not be read is Blind, never a guess. A value read again unchanged means that
no heartbeat committed in between only while this node was looking: it may have changed and changed
back (a restored Consul, a key deleted twice). After a time without an answer, whether Consul was
away or this process stood still, the time since the last heartbeat counts anew.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from standfast.config.model import Config
from standfast.consul.blindness import Blind, blindness
from standfast.consul.gateway import Entry
from standfast.consul.records import (
    CandidateRecord,
    HistoryEntry,
    Hold,
    Leader,
    Pause,
    StandbyRecord,
    is_epoch,
    parse_epoch,
)
from standfast.consul.volume_keys import CANDIDATES, HOLDS, highest_epoch, read_volume
from standfast.errors import (
    ConsulError,
    ForeignValue,
)
from standfast.lease.protocol import NEVER
from standfast.lease.surrender import Sign, watch
from standfast.node.node import Consul
from standfast.reasons import Reason
from standfast.role.observation import Beginning, Cluster, LastHeartbeat, heartbeat_seen
from standfast.system.clock import monotonic
from standfast.system.probe import answers

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

DETAILS_EVERY_S = 10.0
SILENT_DETAILS_EVERY_S = 1.0
NAME_EVERY_S = 60.0
"""How often Consul's agent is asked what this node is called: it may start again as another."""


def assemble(
    config: Config, entries: Mapping[str, Entry], last_heartbeat: LastHeartbeat
) -> Cluster:
    """Reads the volume's keys, by name, as a Cluster; ForeignValue when one of ours isn't ours."""
    values = {name: entry.value for name, entry in entries.items()}
    epoch = values.get("epoch")
    leader = values.get("leader")
    pause = values.get("pause")
    history = {}
    standbys = {}
    words = {}
    holds = {}
    for name, value in values.items():
        kind, _, rest = name.partition("/")
        if kind == "history" and is_epoch(rest):
            history[int(rest)] = HistoryEntry.parse(value, config.key(name))
        elif kind == "candidates" and rest:
            with contextlib.suppress(ForeignValue):  # whoever wrote it is no candidate
                words[rest] = (
                    CandidateRecord.parse(value, config.key(name)),
                    entries[name].modify_index,
                )
        elif kind == "holds" and rest:
            holds[rest] = _hold(rest, value, config.key(name))
        elif kind == "standbys" and rest:
            standbys[rest] = StandbyRecord.parse(value, config.key(name))
    return Cluster(
        words=watch({}, words, 0.0),
        epoch=None if epoch is None else parse_epoch(epoch, config.key("epoch")),
        leader=None if leader is None else Leader.parse(leader, config.key("leader")),
        last_heartbeat=last_heartbeat,
        pause=None if pause is None else Pause.parse(pause, config.key("pause")),
        history=history,
        holds=holds,
        standbys=standbys,
        highest_epoch=highest_epoch(values),
    )


def _hold(node: str, value: bytes, key: str) -> Hold:
    """What is no record keeps its node from the role all the same, and no other one."""
    try:
        return Hold.parse(value, key)
    except ForeignValue as error:
        return Hold(node, "nobody knows whom", str(error), 0.0)


@dataclass(slots=True)
class _Details:
    entries: Mapping[str, Entry]
    at: float


class Watcher:
    """Observes one volume from one node; used by one thread."""

    def __init__(self, config: Config, consul: Consul) -> None:
        self._config = config
        self._consul = consul
        self._index = 0
        self._last_heartbeat: LastHeartbeat | None = None
        self._beginning: Beginning | None = None
        self._details: _Details | None = None
        self._words: dict[str, Sign] = {}
        self._unanswered_since: float | None = None
        self._readable_since: float | None = None
        self._heard_at = NEVER
        self._unbroken_since = NEVER
        self._named: str | None = None
        self._named_at = NEVER

    def look(self, wait_s: float, *, fresh: bool = False) -> Cluster | Blind:
        """Returns the cluster as it is now, early when the leader key changes.

        `fresh`: everything is read again, consistently.
        """
        try:
            cluster = self._look(wait_s, fresh)
        except ConsulError as error:
            self._index = 0
            self._readable_since = None
            self._go_on_probing()
            return blindness(error)
        except ForeignValue as error:
            self._last_heartbeat = None  # as far as is known, something else stood there meanwhile
            self.distrust()
            return Blind(Reason.FOREIGN_VALUE, str(error))
        if self._readable_since is None:
            self._readable_since = monotonic()
        # Last, as it may have been within this look that the process stood still.
        last_heartbeat = cluster.last_heartbeat
        if self._unbroken_since > last_heartbeat.first_seen:
            since = last_heartbeat.evident_since
            last_heartbeat = replace(
                last_heartbeat,
                first_seen=self._unbroken_since,
                unchanged_since=since,
                witnessed=False,
            )
        self._last_heartbeat = last_heartbeat
        return replace(cluster, last_heartbeat=last_heartbeat, readable_since=self._readable_since)

    def distrust(self) -> None:
        """Notes that what Consul holds kept a living primary from its heartbeats: it gets a chance
        first."""
        self._readable_since = None

    def _heard(self, answer: Answer) -> Answer:
        """What Consul answers comes through here.

        From one answer to the next W/2 may pass: more than the long poll and the deadline of a
        request, or a short election of Consul's. A whole look may take longer, where each of its
        answers is slow.
        """
        now = monotonic()
        gap_s = now - self._heard_at
        if gap_s > self._config.lease.wait / 2:
            if self._heard_at != NEVER:
                log.info("no answer of Consul's for %.1f s: the wait begins anew", gap_s)
            self._unbroken_since, self._readable_since = now, None
        self._heard_at = now
        return answer

    def _look(self, wait_s: float, fresh: bool) -> Cluster:
        key = self._config.key("leader")
        index = 0 if fresh else self._index
        self._index, entry = self._heard(self._consul.wait(key, index, wait_s=wait_s))
        leader = None if entry is None else Leader.parse(entry.value, key)
        now = monotonic()
        identity = None if leader is None else leader.identity
        modified = self._index if entry is None else entry.modify_index
        self._last_heartbeat = heartbeat_seen(
            self._last_heartbeat, identity, modified, now, self._unbroken_since
        )
        silent_s = now - self._last_heartbeat.first_seen
        silent = silent_s > 1.5 * self._config.lease.heartbeat
        details = self._refresh(leader, now, fresh=fresh, silent=silent)
        cluster = assemble(self._config, details.entries, self._last_heartbeat)
        words = {name: (sign.record, sign.index) for name, sign in cluster.words.items()}
        self._words = watch(self._words, words, details.at)
        cluster = replace(cluster, leader=leader, words=self._words)
        if self._beginning is None or self._beginning.epoch != cluster.epoch:
            gapless = self._readable_since is not None
            self._beginning = Beginning(cluster.epoch, now, witnessed=gapless)
        cluster = replace(cluster, beginning=self._beginning, named=self._name(now, silent=silent))
        if leader is None or leader.is_clean or not self._looks_dead(now):
            self._unanswered_since = None
            return cluster
        return self._with_evidence(cluster, leader, silent_s)

    def _refresh(self, leader: Leader | None, now: float, *, fresh: bool, silent: bool) -> _Details:
        limit_s = SILENT_DETAILS_EVERY_S if silent else DETAILS_EVERY_S
        details = self._details
        due = details is None or now - details.at >= limit_s
        if not due and details is not None:
            entry = details.entries.get("epoch")
            known = None if entry is None else parse_epoch(entry.value, entry.key)
            due = leader is not None and leader.epoch != known
        if details is None or due or fresh:
            entries = self._heard(read_volume(self._consul, self._config, CANDIDATES, HOLDS))
            details = self._details = _Details(entries, now)
        return details

    def _name(self, now: float, *, silent: bool) -> str | None:
        """Returns what Consul's agent here last said that it is called.

        It says nothing of the cluster, and one that hangs may cost no failover its time.
        """
        due = now - self._named_at >= NAME_EVERY_S
        # A name that bars this node's promotion is asked for again at any time: none is under way.
        wrong = self._named not in (None, self._config.node)
        if self._named_at == NEVER or (due and (wrong or not silent)):
            self._named_at = now
            with contextlib.suppress(ConsulError):
                self._named = self._consul.node_name()
        return self._named

    def _with_evidence(self, cluster: Cluster, leader: Leader, silent_s: float) -> Cluster:
        holder = leader.holder.node
        unanswered_s = self._probe(holder)
        alive: frozenset[str] = frozenset()
        if silent_s > self._config.lease.wait / 2:
            others = {*leader.candidates, holder} - {self._config.node}
            alive = frozenset(name for name in sorted(others) if self._health(name) == "passing")
        return replace(
            cluster,
            holder_health=self._health(holder),
            holder_unanswered_s=unanswered_s,
            alive=alive,
        )

    def _looks_dead(self, now: float) -> bool:
        """Tells whether the last heartbeat is old by all that is known: also where the wait for the
        lease's end began anew, as nobody was looking at Consul for a while."""
        seen = self._last_heartbeat
        return seen is not None and now - seen.evident_since > 1.5 * self._config.lease.heartbeat

    def _go_on_probing(self) -> None:
        """Consul elects a leader, say, whose machine died together with the holder: whether that
        answers needs no Consul."""
        seen = self._last_heartbeat
        if seen is None or seen.identity is None or not self._looks_dead(monotonic()):
            return
        self._probe(seen.identity[1])

    def _health(self, node: str) -> str:
        return self._heard(self._consul.node_health(node))

    def _probe(self, holder: str) -> float:
        """For how long the holder's machine has answered nothing, seconds."""
        node = self._config.nodes.get(holder)
        if node is None or holder == self._config.node or answers(node.address, node.probe_port):
            self._unanswered_since = None
            return 0.0
        now = monotonic()
        if self._unanswered_since is None:
            # Not the time before the probe: what it missed was the answer of now.
            self._unanswered_since = now
        return now - self._unanswered_since
