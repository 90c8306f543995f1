"""The document of /api/v1/status: every volume of this node, for the status page and for scripts.

Invariants: pure. What could not be read is null and named in `sources`, never taken for well. The
keys are documented in docs/status-page.md; a test ties the two together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import UNSET, structs, to_builtins

from standfast.clients.record import RENEW_S
from standfast.config.model import Config
from standfast.consul.records import ClientRecord, HistoryEntry
from standfast.reasons import Reason
from standfast.replication.state import ReplicationState, StandbyState
from standfast.status import document as document_of
from standfast.status.advice import REPLICATE, next_step
from standfast.status.document import FromConsul, FromFiles, Status, Work
from standfast.status.headline import headline
from standfast.status.notices import notices
from standfast.status.volume import (
    Client,
    Failover,
    Failure,
    Fence,
    Lease,
    Level,
    Limits,
    Replication,
    Source,
    Standby,
    Trend,
    Volume,
)
from standfast.text import some

VERSION = 1
MOST_EPOCHS = 20
MOST_CLIENTS = 500
# A client that is alive says so every RENEW_S, by a timer of a minute.
SILENT_S = 3 * RENEW_S
_RIGHT = (Reason.MOUNT_CURRENT, Reason.ROLE_IS_HERE, Reason.AUTOMOUNT_IDLE)
_NO_STATUS = Status(volume="", node="", role="unknown")
_NOTHING_OF_CONSUL = FromConsul(None, None, None)
_NO_FILES = FromFiles(fence_flushes=0)
_NO_WORK = Work(None, None, None)


@dataclass(frozen=True, slots=True)
class Keys:
    """Holds what is in Consul beside the status; a value that isn't ours is named in `foreign`."""

    history: Sequence[HistoryEntry] = ()
    clients: Sequence[ClientRecord] | str = ()
    """Or why they are not known."""
    foreign: Sequence[str] = ()
    foreign_clients: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """Holds what one look at one volume found; an error in the place of what it could not read."""

    utc: float
    status: Status | str
    """The status document, or why there is none."""
    agent_error: str | None = None
    """Why the agent didn't answer, where Consul was asked instead."""
    keys: Keys | str = field(default_factory=Keys)
    replication: ReplicationState | str = field(default_factory=ReplicationState)
    trends: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """Ages of each standby, seconds, the oldest first, one for each `trend_step_s`."""
    trend_step_s: float = 30.0


def document(volumes: Sequence[Volume], utc: float) -> dict[str, Any]:
    """Returns the whole answer."""
    levels = [volume.level for volume in volumes]
    return {
        "v": VERSION,
        "at": round(utc, 3),
        "level": str(max(levels, key=list(Level).index, default=Level.UNKNOWN)),
        "volumes": to_builtins(volumes),
    }


def describe(seen: Seen, config: Config) -> Volume:
    """Returns what is told of one volume."""
    status = seen.status if isinstance(seen.status, Status) else _NO_STATUS
    consul = status.consul or _NOTHING_OF_CONSUL
    files, work = status.files or _NO_FILES, status.work or _NO_WORK
    keys = seen.keys if isinstance(seen.keys, Keys) else None
    volume = Volume(
        volume=config.volume,
        node=config.node,
        role=status.role,
        mode=config.mode,
        limits=Limits(config.replication.interval, config.max_data_loss),
        serving=status.serving or None,
        holder=consul.holder,
        state=consul.state,
        epoch=consul.epoch,
        since=consul.since,
        began_by=consul.began_by,
        lost_s=consul.lost_s,
        last_heartbeat_seen_s=consul.last_heartbeat_seen_s,
        unserved_s=consul.unserved_s,
        not_surrendered=files.not_surrendered,
        given_up=consul.given_up,
        lease=_lease(files, config),
        fence=None
        if status.fence is None
        else Fence(status.fence.in_place, status.fence.open_for_s, files.fence_flushes),
        failover=_failover(status),
        paused=consul.paused,
        decision=status.decision,
        standbys=None if status.consul is None else _standbys(seen, consul, config),
        history=None if keys is None else tuple(map(structs.asdict, _newest(keys.history))),
        clients=None
        if keys is None or isinstance(keys.clients, str)
        else _clients(keys.clients, status.serving or None, seen.utc),
        nomad=status.nomad,
        busy=work.busy,
        trouble=work.trouble,
        sick=work.sick,
        hidden=work.hidden,
        kept_aside=status.aside,
        sources=_sources(seen),
    )
    line, beside = headline(volume, config, seen.utc), notices(volume, config)
    worst = max((line.level, *(notice.level for notice in beside)), key=list(Level).index)
    return structs.replace(volume, headline=line, level=worst, notices=tuple(beside))


def _lease(files: FromFiles, config: Config) -> Lease | None:
    """Only the holder knows what is left of it."""
    if files.lease_remaining_s is None:
        return None
    return Lease(max(0.0, files.lease_remaining_s), config.lease.length, files.lease_trouble)


def _failover(status: Status) -> Failover:
    """`possible` is None when Consul did not tell: that is not a no."""
    told = status.failover
    if told is None:
        return Failover(None, None, "not known: there is no status", None)
    # Nobody should be promoted over a server that is well.
    late = status.serving and told.reason in (Reason.TOO_OLD, Reason.NO_PUBLISHED_SNAPSHOT)
    return Failover(
        None if status.consul is None else told.possible,
        told.reason,
        told.sentence,
        REPLICATE if late else next_step(told.reason),
        told.to,
    )


def _standbys(seen: Seen, consul: FromConsul, config: Config) -> tuple[Standby, ...]:
    leads = consul.holder == config.node
    known = seen.replication if leads and isinstance(seen.replication, ReplicationState) else None
    failover = seen.status.failover if isinstance(seen.status, Status) else None
    common = None if failover is None else failover.reason
    return tuple(
        Standby(
            told.node,
            told.age_s,
            told.snapshot,
            told.epoch,
            told.candidate,
            _standby_level(told, config, common),
            Trend(seen.trend_step_s, tuple(map(_short, seen.trends.get(told.node, ())))),
            None if known is None else _replication(known.standbys.get(told.node, StandbyState())),
            told.word,
            told.on_hold,
        )
        for told in consul.standbys
    )


def _standby_level(told: document_of.Standby, config: Config, common: str | None) -> Level:
    """Twice the interval is late; beyond `max_data_loss` it doesn't take over any more."""
    if told.age_s is None or told.age_s > config.max_data_loss:
        return Level.ALARM
    late = told.age_s > 2 * config.replication.interval or not told.candidate
    word = told.word
    if word is None:
        return Level.WARNING
    # What keeps all of them from it is no standby's own matter.
    barred = word is not UNSET and (
        word.obstacles or not (word.takes_over or word.reason == common)
    )
    return Level.WARNING if late or barred else Level.OK


def _replication(noted: StandbyState) -> Replication:
    """Returns what the primary noted; a failure only when no success came after it."""
    failure = None
    if noted.has_failed:
        failure = Failure(noted.last_failure_at, noted.last_failure_reason, noted.last_failure)
    return Replication(
        noted.last_success_at,
        noted.duration_s,
        noted.sent_bytes,
        noted.needs_full,
        failure,
        noted.verified_at,
        noted.verified_ok,
    )


def _newest(history: Sequence[HistoryEntry]) -> list[HistoryEntry]:
    return sorted(history, key=lambda entry: entry.epoch, reverse=True)[:MOST_EPOCHS]


def _clients(
    records: Sequence[ClientRecord], serving: str | None, utc: float
) -> tuple[Client, ...]:
    """Returns those that mount, or should; one that has been silent for long is unknown."""
    shown = [record for record in records if record.state != Reason.NOT_A_CLIENT]
    return tuple(
        Client(**structs.asdict(record), level=_client_level(record, serving, utc))
        for record in sorted(shown, key=lambda record: record.node)[:MOST_CLIENTS]
    )


def _client_level(record: ClientRecord, serving: str | None, utc: float) -> Level:
    if utc - record.at > SILENT_S:
        return Level.UNKNOWN
    if serving is None:  # whatever it said, its mount waits now
        return Level.NOTE
    elsewhere = record.server is not None and record.server != serving
    return Level.WARNING if record.state not in _RIGHT or elsewhere else Level.OK


def _sources(seen: Seen) -> dict[str, Source]:
    """ok, or what is wrong, in the words of who could not read it."""
    status = seen.status
    if isinstance(status, str):
        agent: str | None = seen.agent_error or status
        consul: str | None = status
    else:
        agent = None if status.agent is True else "none answers on this node"
        agent = seen.agent_error or agent
        if status.role == "starting":
            agent = "the agent has just started"
        consul = None if status.consul is not None else _failover(status).sentence
    replication = seen.replication if isinstance(seen.replication, str) else None
    if isinstance(seen.keys, str):
        keys: str | None = seen.keys
        clients: str | None = seen.keys
    else:
        told = seen.keys.clients
        keys = _not_ours(seen.keys.foreign)
        clients = told if isinstance(told, str) else _not_ours(seen.keys.foreign_clients)
    failures = {
        "agent": agent,
        "consul": consul,
        "keys": keys,
        "clients": clients,
        "replication": replication,
    }
    return {name: Source(text is None, text) for name, text in failures.items()}


def _not_ours(names: Sequence[str]) -> str | None:
    return f"values that are not Standfast's: {some(names)}" if names else None


def _short(age_s: float | None) -> float | None:
    """Three digits are enough for a plot, and NaN is no JSON."""
    if age_s is None or not math.isfinite(age_s):
        return None
    return round(age_s) if age_s >= 10 else round(age_s, 1)
