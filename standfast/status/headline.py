"""The first line of the status page: who serves, or that nobody does, and what to do about it.

Pure. It says that nobody serves only when Consul's answer shows it; what could not be read is
"not known".
"""

from __future__ import annotations

from standfast.config.model import Config
from standfast.consul.records import LeaderState
from standfast.reasons import Reason
from standfast.status.text import given_up, unheard
from standfast.status.volume import Level, Line, Volume
from standfast.system.clock import format_utc
from standfast.text import duration

# What an agent says until the silence has lasted: no help to who reads that nobody serves.
_CALM = (Reason.PRIMARY_ALIVE, Reason.STANDING_BY, Reason.SERVING)


def headline(volume: Volume, config: Config, utc: float) -> Line:
    """Returns the line for one volume, whose other fields are there already."""
    if not volume.sources["consul"].ok:
        return _unseen(volume)
    if volume.serving:
        return _serving(volume, utc)
    name, failover = volume.volume, volume.failover
    if volume.holder is None:
        if volume.epoch is None:
            return Line(Level.WARNING, f"{name} has never had a primary.", failover.next)
        if volume.state != LeaderState.CLEAN:
            text = f"Nobody is known to serve {name}: {ended(failover.sentence)}"
            return Line(Level.ALARM, text, failover.next)
        text, what_now = given_up(volume.epoch, volume.given_up)
        return Line(Level.ALARM, f"Nobody serves {name}: {text}.", what_now)
    return _held(volume, config)


def _unseen(volume: Volume) -> Line:
    name, node, lease = volume.volume, volume.node, volume.lease
    advice = volume.failover.next
    if lease is not None and lease.remaining_s > 0:
        text = (
            f"{node} serves {name} by its own lease for another {lease.remaining_s:.0f} s, and "
            "can't read Consul."
        )
        return Line(Level.WARNING, text, advice)
    agent, why = volume.sources["agent"], volume.sources["consul"].text
    if not agent.ok and volume.failover.reason is None:
        why = agent.text
        advice = f"`systemctl status standfast-agent@{name}` on {node}."
    return Line(Level.UNKNOWN, f"It is not known who serves {name}: {ended(why or '')}", advice)


def _serving(volume: Volume, utc: float) -> Line:
    since = "" if volume.since is None else f" since {time_of(volume.since, utc)}"
    text = f"{volume.serving} serves {volume.volume}{since} (epoch {volume.epoch})."
    age_s, failover = volume.best_age_s, volume.failover
    loss = "" if age_s is None else f"would lose {duration(age_s)}"
    if failover.possible:
        return Line(Level.OK, f"{text} A failover {loss}." if loss else text)
    if failover.reason == Reason.MANUAL_MODE and age_s is not None:
        return Line(Level.OK, f"{text} A failover is done by hand and {loss}.")
    advice = " ".join(part for part in (f"Why: {ended(failover.sentence)}", failover.next) if part)
    return Line(Level.WARNING, f"{text} No failover is possible now.", advice)


def _held(volume: Volume, config: Config) -> Line:
    name, holder, epoch = volume.volume, volume.holder, volume.epoch
    seen_s = volume.last_heartbeat_seen_s
    if seen_s is None and volume.state == LeaderState.SERVING:
        text = f"It is not known who serves {name}: {unheard(holder, epoch)}."
        return Line(Level.UNKNOWN, text)
    if seen_s is not None and seen_s <= config.lease.length:
        if volume.unserved_s:
            return _unserved(volume, volume.unserved_s, config)
        if volume.state == LeaderState.STARTING:
            text = f"{holder} is about to serve {name} (epoch {epoch})."
            return Line(Level.WARNING, text)
        text = f"{holder} is giving {name} up in order (epoch {epoch})."
        return Line(Level.WARNING, text)
    text = (
        f"Nobody serves {name}: the last heartbeat of {holder} (epoch {epoch}) was seen "
        f"{duration(seen_s)} ago."
    )
    return Line(Level.ALARM, text, _what_now(volume, config))


def _unserved(volume: Volume, unserved_s: float, config: Config) -> Line:
    name, holder, epoch = volume.volume, volume.holder, volume.epoch
    text = (
        f"Nobody serves {name}: {holder} holds epoch {epoch} and has not served for "
        f"{duration(unserved_s)}."
    )
    advice = f"`standfast status` on {holder} says why; `standfast demote` there gives the role up."
    if volume.not_surrendered:
        advice = f"It keeps the role ({volume.not_surrendered}). {advice}"
    elif volume.paused or config.mode == "manual":
        advice = f"It keeps the role: failover by itself is off. {advice}"
    elif config.surrender_after and unserved_s <= config.surrender_after:
        advice = (
            f"It gives the role up by itself after {duration(config.surrender_after)} if a standby "
            f"is ready. {advice}"
        )
    return Line(Level.ALARM, text, advice)


def _what_now(volume: Volume, config: Config) -> str | None:
    """Returns what keeps a failover away; what this node's agent is about to do, where it
    speaks."""
    failover, decision = volume.failover, volume.decision
    parts = []
    if failover.possible is False:
        parts += [f"No failover by itself: {ended(failover.sentence)}", failover.next]
    elif failover.possible:
        age_s = volume.best_age_s
        loss = "" if age_s is None else f", losing {duration(age_s)} at most"
        parts.append(
            f"A standby takes over by itself{loss}, {duration(config.failover_after)} after the "
            "last heartbeat at the latest. If none does, `standfast promote` on it."
        )
    if decision is not None and decision.reason not in _CALM:
        parts.append(f"{volume.node} says: {ended(decision.sentence)}")
    return " ".join(part for part in parts if part) or None


def ended(sentence: str) -> str:
    """Ends a sentence with one full stop, whether it came with one or not."""
    return f"{sentence.rstrip('.')}."


def time_of(seconds: float, utc: float) -> str:
    """Writes `12:01 UTC`, with the date when it isn't today's."""
    text, today = format_utc(seconds), format_utc(utc)
    day, clock = text.split(" ")[:2]
    return f"{clock[:5]} UTC" if day == today.split(" ")[0] else f"{day} {clock[:5]} UTC"
