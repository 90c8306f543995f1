"""The document of /api/v1/status: every volume of this node, for the status page and for scripts.

Invariants: pure. What could not be read is null and named in `sources`, never taken for well. The
keys are documented in docs/status-page.md; a test ties the two together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from msgspec import structs

from standfast.clients.record import RENEW_S
from standfast.config.model import Config
from standfast.consul.records import ClientRecord, HistoryEntry
from standfast.reasons import Reason
from standfast.replication.state import ReplicationState, StandbyState
from standfast.status.advice import REPLICATE, next_step
from standfast.status.headline import Level, headline
from standfast.status.notices import notices

VERSION = 1
MOST_EPOCHS = 20
MOST_CLIENTS = 500
# A client that is alive says so every RENEW_S, by a timer of a minute.
SILENT_S = 3 * RENEW_S
_RIGHT = (Reason.MOUNT_CURRENT, Reason.ROLE_IS_HERE, Reason.AUTOMOUNT_IDLE)
_FROM_CONSUL = frozenset(["serving", "holder", "state", "standbys", "failover"])
_STANDBY_KEYS = ("node", "age_s", "snapshot", "epoch", "candidate")


@dataclass(frozen=True, slots=True)
class Keys:
    """What Consul holds beside the status; a value that isn't ours is named in `foreign`."""

    history: Sequence[HistoryEntry] = ()
    clients: Sequence[ClientRecord] = ()
    foreign: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look at one volume found; an error in the place of what it could not read."""

    utc: float
    status: Mapping[str, Any] | str
    """The status document, or why there is none."""
    agent_error: str | None = None
    """Why the agent didn't answer, where Consul was asked instead."""
    keys: Keys | str = field(default_factory=Keys)
    replication: ReplicationState | str = field(default_factory=ReplicationState)
    trends: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """Ages of each standby, seconds, the oldest first, one for each `trend_step_s`."""
    trend_step_s: float = 30.0


def document(volumes: Sequence[Mapping[str, Any]], utc: float) -> dict[str, Any]:
    """The whole answer."""
    levels = [Level(one["level"]) for one in volumes]
    return {
        "v": VERSION,
        "at": round(utc, 3),
        "level": str(max(levels, key=list(Level).index, default=Level.UNKNOWN)),
        "volumes": list(volumes),
    }


def describe(seen: Seen, config: Config) -> dict[str, Any]:
    """One volume; KeyError and the like for a status document of another shape."""
    status: Mapping[str, Any] = seen.status if isinstance(seen.status, Mapping) else {}
    if "epoch" in status and not status.keys() >= _FROM_CONSUL:
        raise KeyError(f"{sorted(_FROM_CONSUL - status.keys())} missing")
    keys = seen.keys if isinstance(seen.keys, Keys) else None
    doc: dict[str, Any] = {
        "volume": config.volume,
        "node": config.node,
        "role": status.get("role", "unknown"),
        "mode": config.mode,
        "limits": {
            "interval_s": config.replication.interval,
            "max_data_loss_s": config.max_data_loss,
        },
        "serving": status.get("serving"),
        "holder": status.get("holder"),
        "state": status.get("state"),
        "epoch": status.get("epoch"),
        "since": status.get("since"),
        "began_by": status.get("began_by"),
        "lost_s": status.get("lost_s"),
        "last_heartbeat_seen_s": status.get("last_heartbeat_seen_s"),
        "unserved_s": status.get("unserved_s"),
        "not_surrendered": status.get("not_surrendered"),
        "given_up": status.get("given_up"),
        "lease": _lease(status, config),
        "fence": _fence(status),
        "failover": _failover(status),
        "paused": status.get("paused"),
        "decision": status.get("decision"),
        "standbys": _standbys(seen, status, config),
        "history": None if keys is None else [structs.asdict(one) for one in _newest(keys.history)],
        "clients": None if keys is None else _clients(keys.clients, status, seen.utc),
        "nomad": status.get("nomad"),
        "busy": status.get("busy"),
        "trouble": status.get("trouble"),
        "sick": status.get("sick"),
        "kept_aside": list(status["aside"]) if "aside" in status else None,
        "sources": _sources(seen, status),
    }
    found = notices(doc, config)
    line = headline(doc, config, seen.utc)
    doc["headline"] = {**asdict(line), "level": str(line.level)}
    worst = max((line.level, *(one.level for one in found)), key=list(Level).index)
    doc["level"] = str(worst)
    doc["notices"] = [{**asdict(one), "level": str(one.level)} for one in found]
    return doc


def _lease(status: Mapping[str, Any], config: Config) -> dict[str, Any] | None:
    """Only the holder knows what is left of it."""
    if status.get("lease_remaining_s") is None:
        return None
    return {
        "remaining_s": max(0.0, status["lease_remaining_s"]),
        "length_s": config.lease.length,
        "trouble": status.get("lease_trouble"),
    }


def _fence(status: Mapping[str, Any]) -> dict[str, Any] | None:
    fence = status.get("fence")
    if fence is None:
        return None
    return {
        "in_place": fence["in_place"],
        "open_for_s": fence["open_for_s"],
        "flushes": status.get("fence_flushes", 0),
    }


def _failover(status: Mapping[str, Any]) -> dict[str, Any]:
    """`possible` is null when Consul did not tell: that is not a no."""
    found = status.get("failover")
    if found is None:
        sentence = "not known: there is no status"
        return {"possible": None, "reason": None, "sentence": sentence, "next": None}
    # Nobody should be promoted over a server that is well.
    serves, reason = status.get("serving"), found["reason"]
    late = serves and reason in (Reason.TOO_OLD, Reason.NO_PUBLISHED_SNAPSHOT)
    return {
        "possible": found["possible"] if "epoch" in status else None,
        "reason": found["reason"],
        "sentence": found["sentence"],
        "next": REPLICATE if late else next_step(found["reason"]),
    }


def _standbys(seen: Seen, status: Mapping[str, Any], config: Config) -> list[dict[str, Any]] | None:
    if "standbys" not in status:
        return None
    leads = status.get("holder") == config.node
    known = seen.replication if leads and isinstance(seen.replication, ReplicationState) else None
    return [
        {
            **{key: one.get(key) for key in _STANDBY_KEYS},
            "level": str(_standby_level(one, config)),
            "trend": {
                "step_s": seen.trend_step_s,
                "ages_s": [_short(age) for age in seen.trends.get(one["node"], ())],
            },
            "replication": None
            if known is None
            else _replication(known.standbys.get(one["node"], StandbyState())),
        }
        for one in status["standbys"]
    ]


def _standby_level(one: Mapping[str, Any], config: Config) -> Level:
    """Twice the interval is late; beyond `max_data_loss` it doesn't take over any more."""
    age_s = one["age_s"]
    if age_s is None or age_s > config.max_data_loss:
        return Level.ALARM
    late = age_s > 2 * config.replication.interval or not one["candidate"]
    return Level.WARNING if late else Level.OK


def _replication(one: StandbyState) -> dict[str, Any]:
    """What the primary noted; a failure only when no success came after it."""
    failed = (one.last_failure_at or 0.0) > (one.last_success_at or 0.0)
    return {
        "last_success_at": one.last_success_at,
        "duration_s": one.duration_s,
        "sent_bytes": one.sent_bytes,
        "needs_full": one.needs_full,
        "failure": {
            "at": one.last_failure_at,
            "reason": one.last_failure_reason,
            "text": one.last_failure,
        }
        if failed
        else None,
        "verified_at": one.verified_at,
        "verified_ok": one.verified_ok,
    }


def _newest(history: Sequence[HistoryEntry]) -> list[HistoryEntry]:
    return sorted(history, key=lambda one: one.epoch, reverse=True)[:MOST_EPOCHS]


def _clients(
    clients: Sequence[ClientRecord], status: Mapping[str, Any], utc: float
) -> list[dict[str, Any]]:
    """Those that mount, or should; one that has been silent for long is unknown."""
    shown = [one for one in clients if one.state != Reason.NOT_A_CLIENT]
    return [
        {**structs.asdict(one), "level": str(_client_level(one, status.get("serving"), utc))}
        for one in sorted(shown, key=lambda one: one.node)[:MOST_CLIENTS]
    ]


def _client_level(one: ClientRecord, serving: str | None, utc: float) -> Level:
    if utc - one.at > SILENT_S:
        return Level.UNKNOWN
    if serving is None:  # whatever it said, its mount waits now
        return Level.NOTE
    elsewhere = one.server is not None and one.server != serving
    return Level.WARNING if one.state not in _RIGHT or elsewhere else Level.OK


def _sources(seen: Seen, status: Mapping[str, Any]) -> dict[str, Any]:
    """ok, or what is wrong, in the words of who could not read it."""
    if isinstance(seen.status, str):
        agent: str | None = seen.agent_error or seen.status
        consul: str | None = seen.status
    else:
        agent = None if status.get("agent") is True else "none answers on this node"
        agent = seen.agent_error or agent
        if status.get("role") == "starting":
            agent = "the agent has just started"
        consul = None if "epoch" in status else _failover(status)["sentence"]
    keys = seen.keys if isinstance(seen.keys, str) else None
    replication = seen.replication if isinstance(seen.replication, str) else None
    if keys is None and isinstance(seen.keys, Keys) and seen.keys.foreign:
        keys = f"values that are not Standfast's: {', '.join(seen.keys.foreign)}"
    found = {"agent": agent, "consul": consul, "keys": keys, "replication": replication}
    return {name: {"ok": text is None, "text": text} for name, text in found.items()}


def _short(age_s: float | None) -> float | None:
    """Three digits are enough for a plot, and NaN is no JSON."""
    if age_s is None or not math.isfinite(age_s):
        return None
    return round(age_s) if age_s >= 10 else round(age_s, 1)
