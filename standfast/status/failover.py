"""Can we fail over now? As the candidates themselves say it in Consul; nothing is judged here.

Invariant: a candidate that says nothing any more, or speaks of another epoch, is none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from standfast.config.model import Config
from standfast.consul.records import CandidateRecord
from standfast.lease.surrender import FRESH_S, Sign, rank
from standfast.reasons import Reason
from standfast.status.document import Failover
from standfast.text import clean, duration


def spoken(
    words: Iterable[Sign], epoch: int | None, now: float, utc: float
) -> dict[str, CandidateRecord]:
    """Returns the words that count at `now` (monotonic s), `utc`, by node: of this epoch, and of a
    node that still speaks.

    Whoever has seen a word change goes by that. Else the two nodes' wall clocks tell: one that is
    wrong makes a word of now look old, and never an old one new for longer than `FRESH_S`.
    """
    return {
        sign.record.node: sign.record
        for sign in words
        if sign.record.epoch == epoch and _is_fresh(sign, now, utc)
    }


def _is_fresh(sign: Sign, now: float, utc: float) -> bool:
    if sign.changed_at is not None:
        return now - sign.changed_at <= FRESH_S
    return abs(utc - sign.record.at) <= FRESH_S


def would_take_over(word: CandidateRecord) -> bool:
    """Tells what a word says of a dead primary; an older version tells only of one that gives the
    role up."""
    return word.ready if word.takes_over is None else word.takes_over


def failover(
    words: Mapping[str, CandidateRecord],
    candidates: Collection[str],
    ages: Mapping[str, float | None],
    config: Config,
) -> Failover:
    """Returns the answer that the best candidate gives; `ages` are those of their newest snapshots,
    seconds."""

    def order(word: CandidateRecord) -> tuple[object, ...]:
        node = config.nodes.get(word.node)
        priority = 0 if node is None else node.priority
        return (
            would_take_over(word),
            word.node in candidates,
            *rank(word.snapshot_epoch, word.snapshot, priority, word.node),
        )

    best = max(words.values(), key=order, default=None)
    if best is None:
        return Failover(False, Reason.NO_STANDBY_READY, _nobody(candidates))
    if would_take_over(best):
        return Failover(True, None, _yes(best, ages.get(best.node)), best.node)
    reason = best.reason if best.because is None else best.because
    sentence = best.sentence or f"{best.node} says {reason}"
    return Failover(False, reason, sentence)


def _nobody(candidates: Collection[str]) -> str:
    if not candidates:
        return "there is no standby: name one in [nodes], then `standfast standby add NODE`"
    names = ", ".join(sorted(candidates))
    return (
        f"no standby says that it could take over ({names}; a word counts {FRESH_S:g} s). After "
        f"a change of the role that takes some seconds; else: is it on, does it reach Consul, and "
        f"does its agent run (`standfast doctor` there)?"
    )


def _yes(word: CandidateRecord, age_s: float | None) -> str:
    """What else it tells bars it from nothing, but a nearly full disk may end the promotion."""
    met = f"; it also tells: {clean(word.obstacles[0])}" if word.obstacles else ""
    met += f", and {len(word.obstacles) - 1} more" if len(word.obstacles) > 1 else ""
    if age_s is None:
        return f"{word.node} would take over{met}"
    return f"{word.node} would lose {duration(age_s)} of data at most{met}"
