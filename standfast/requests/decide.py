"""Whose request is taken: only of a requester that is there now (pure).

Invariants: no clocks are compared. A request is taken only after its beat was seen to rise twice,
each time between two looks close together on this node's own clock. A requester that stood still
raises it once more at most (`asking`): so one that died, was suspended or cut off has nothing
carried out late. What wasn't seen to rise for a while is dead for good, also when it comes back: a
Consul that is restored brings old requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

CLOSE_S = 5.0
"""Between two looks, or two beats: beyond that a requester counts as gone."""
RAISES = 2
LATE_S = 10.0
"""After the last sign of the requester nothing is begun: an answer of Consul's may take long."""
MOST_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Sighting:
    """An open request as it stands in Consul."""

    beat: int
    index: int


@dataclass(frozen=True, slots=True)
class Look:
    """All open requests for this node, read consistently; times on this node's own clock, which
    goes on while the machine is suspended, seconds."""

    began: float
    ended: float
    seen: Mapping[str, Sighting]


@dataclass(frozen=True, slots=True)
class Trace:
    """What is known of one request."""

    sighting: Sighting
    seen_at: float
    """The end of the look that saw this beat first."""
    alive_at: float
    """The requester raised the beat after that."""
    raises: int = 0
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Traces:
    """What is known of all."""

    looked_at: float = float("-inf")
    """When the last look began."""
    by_id: Mapping[str, Trace] = field(default_factory=dict)


def follow(known: Traces, look: Look) -> Traces:
    """Returns what is known after one more look."""
    traces = {
        name: trace if name in look.seen else replace(trace, dead=True)
        for name, trace in known.by_id.items()
    }
    for name, sighting in look.seen.items():
        traces[name] = _next(known, traces.get(name), sighting, look)
    gone = [name for name in traces if name not in look.seen]
    for name in gone[: max(0, len(gone) - MOST_REMEMBERED)]:
        del traces[name]
    return Traces(look.began, traces)


def _next(known: Traces, was: Trace | None, now: Sighting, look: Look) -> Trace:
    if was is None:
        return Trace(now, look.ended, look.began)
    if was.dead:
        return was
    if now == was.sighting:
        return replace(was, dead=look.ended - was.seen_at > CLOSE_S)
    close = look.ended - known.looked_at <= CLOSE_S
    if close and now.beat > was.sighting.beat and now.index > was.sighting.index:
        return Trace(now, look.ended, known.looked_at, was.raises + 1)
    return replace(was, dead=True)


def to_take(known: Traces, now: float) -> Sequence[str]:
    """Returns the ids of those that may be taken now, those that wait longest first."""
    there = [
        (trace.sighting.index, name)
        for name, trace in known.by_id.items()
        if not trace.dead and trace.raises >= RAISES and is_in_time(trace.alive_at, now)
    ]
    return [name for _, name in sorted(there)]


def is_in_time(alive_at: float, now: float) -> bool:
    """Tells whether something may be begun of which the requester was there at `alive_at`."""
    return now - alive_at <= LATE_S


def stood_still(before: float, now: float) -> bool:
    """Tells a requester, which read its clock right before its last beat, whether it may raise it
    again."""
    return now - before > CLOSE_S
