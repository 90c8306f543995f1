"""The first line of the status page: who serves, or that nobody does, and what to do about it.

Pure. It says that nobody serves only when Consul's answer shows it; what could not be read is
"not known".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from standfast.config.model import Config
from standfast.consul.records import LeaderState
from standfast.reasons import Reason
from standfast.status.text import given_up
from standfast.system.clock import format_utc
from standfast.text import duration

# What an agent says until the silence has lasted: no help to who reads that nobody serves.
_CALM = (Reason.PRIMARY_ALIVE, Reason.STANDING_BY, Reason.SERVING)


class Level(StrEnum):
    """How well it is, from the best to the worst."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    UNKNOWN = "unknown"
    ALARM = "alarm"


@dataclass(frozen=True, slots=True)
class Line:
    """`advice`: what to do, None when nothing is to be done."""

    level: Level
    text: str
    advice: str | None = None


def headline(doc: Mapping[str, Any], config: Config, utc: float) -> Line:
    """The line for one volume of the overview, whose other keys are there already."""
    volume = doc["volume"]
    if not doc["sources"]["consul"]["ok"]:
        return _unseen(doc)
    if doc["serving"]:
        return _serving(doc, utc)
    failover = doc["failover"]
    if doc["holder"] is None:
        if doc["epoch"] is None:
            return Line(Level.WARNING, f"{volume} has never had a primary.", failover["next"])
        if doc["state"] != LeaderState.CLEAN:
            text = f"Nobody is known to serve {volume}: {ended(failover['sentence'])}"
            return Line(Level.ALARM, text, failover["next"])
        text, what_now = given_up(doc)
        return Line(Level.ALARM, f"Nobody serves {volume}: {text}.", what_now)
    return _held(doc, config)


def best_age_s(doc: Mapping[str, Any]) -> float | None:
    """Age of the newest snapshot that a candidate has, seconds."""
    ages = [
        one["age_s"]
        for one in doc["standbys"] or ()
        if one["candidate"] and one["age_s"] is not None
    ]
    return min(ages, default=None)


def _unseen(doc: Mapping[str, Any]) -> Line:
    volume, failover = doc["volume"], doc["failover"]
    advice = failover["next"]
    lease = doc["lease"]
    if lease is not None and lease["remaining_s"] > 0:
        text = (
            f"{doc['node']} serves {volume} by its own lease for another "
            f"{lease['remaining_s']:.0f} s, and can't read Consul."
        )
        return Line(Level.WARNING, text, advice)
    sources = doc["sources"]
    if not sources["agent"]["ok"] and failover["reason"] is None:
        why = sources["agent"]["text"]
        advice = f"`systemctl status standfast-agent@{volume}` on {doc['node']}."
    else:
        why = sources["consul"]["text"]
    return Line(Level.UNKNOWN, f"It is not known who serves {volume}: {ended(why)}", advice)


def _serving(doc: Mapping[str, Any], utc: float) -> Line:
    since = "" if doc["since"] is None else f" since {time_of(doc['since'], utc)}"
    text = f"{doc['serving']} serves {doc['volume']}{since} (epoch {doc['epoch']})."
    age_s, failover = best_age_s(doc), doc["failover"]
    loss = "" if age_s is None else f"would lose {duration(age_s)}"
    if failover["possible"]:
        return Line(Level.OK, f"{text} A failover {loss}." if loss else text)
    if failover["reason"] == Reason.MANUAL_MODE and age_s is not None:
        return Line(Level.OK, f"{text} A failover is done by hand and {loss}.")
    advice = " ".join(
        part for part in (f"Why: {ended(failover['sentence'])}", failover["next"]) if part
    )
    return Line(Level.WARNING, f"{text} No failover is possible now.", advice)


def _held(doc: Mapping[str, Any], config: Config) -> Line:
    volume, holder, epoch = doc["volume"], doc["holder"], doc["epoch"]
    seen_s = doc["last_heartbeat_seen_s"]
    if seen_s is not None and seen_s <= config.lease.length:
        if doc["unserved_s"]:
            return _unserved(doc, config)
        if doc["state"] == LeaderState.STARTING:
            text = f"{holder} is about to serve {volume} (epoch {epoch})."
            return Line(Level.WARNING, text)
        text = f"{holder} is giving {volume} up in order (epoch {epoch})."
        return Line(Level.WARNING, text)
    text = (
        f"Nobody serves {volume}: the last heartbeat of {holder} (epoch {epoch}) was seen "
        f"{duration(seen_s)} ago."
    )
    return Line(Level.ALARM, text, _what_now(doc, config))


def _unserved(doc: Mapping[str, Any], config: Config) -> Line:
    volume, holder, epoch = doc["volume"], doc["holder"], doc["epoch"]
    text = (
        f"Nobody serves {volume}: {holder} holds epoch {epoch} and has not served for "
        f"{duration(doc['unserved_s'])}."
    )
    advice = f"`standfast status` on {holder} says why; `standfast demote` there gives the role up."
    if doc.get("not_surrendered"):
        advice = f"It keeps the role ({doc['not_surrendered']}). {advice}"
    elif doc["paused"] or config.mode == "manual":
        advice = f"It keeps the role: failover by itself is off. {advice}"
    elif config.surrender_after and doc["unserved_s"] <= config.surrender_after:
        advice = (
            f"It gives the role up by itself after {duration(config.surrender_after)} if a standby "
            f"is ready. {advice}"
        )
    return Line(Level.ALARM, text, advice)


def _what_now(doc: Mapping[str, Any], config: Config) -> str | None:
    """What keeps a failover away; what this node's agent is about to do, where it speaks."""
    failover, decision = doc["failover"], doc["decision"]
    parts = []
    if failover["possible"] is False:
        parts += [f"No failover by itself: {ended(failover['sentence'])}", failover["next"]]
    elif failover["possible"]:
        age_s = best_age_s(doc)
        loss = "" if age_s is None else f", losing {duration(age_s)} at most"
        parts.append(
            f"A standby takes over by itself{loss}, {duration(config.failover_after)} after the "
            "last heartbeat at the latest. If none does, `standfast promote` on it."
        )
    if decision is not None and decision["reason"] not in _CALM:
        parts.append(f"{doc['node']} says: {ended(decision['sentence'])}")
    return " ".join(part for part in parts if part) or None


def ended(sentence: str) -> str:
    """With one full stop, whether it came with one or not."""
    return f"{sentence.rstrip('.')}."


def time_of(seconds: float, utc: float) -> str:
    """`12:01 UTC`, with the date when it isn't today's."""
    text, today = format_utc(seconds), format_utc(utc)
    day, clock = text.split()[:2]
    return f"{clock[:5]} UTC" if day == today.split()[0] else f"{day} {clock[:5]} UTC"
