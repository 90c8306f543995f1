"""When a holder that can't serve gives the role up by itself, and to whom: pure.

Invariants: never while nobody else could do better (no candidate that says it is ready, a pause,
mode manual), and not by a reign that began by itself within `min_reign`: two nodes that both can't
serve don't throw the role at each other. What is given up so is told as a loss, never as a clean
handover.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from standfast.config.model import Config
from standfast.observe import rank
from standfast.reasons import Reason
from standfast.records import CandidateRecord, Pause, Reign

TOLD_EVERY_S = 15.0
"""At least, by a candidate whose agent lives and looks."""
FRESH_S = 3 * TOLD_EVERY_S
"""A candidate that has written nothing for so long may be dead."""
TOLD_FROM_S = 10.0
"""A shorter time is between two looks."""


@dataclass(frozen=True, slots=True)
class Spell:
    """Until when this node is known to have served, and what has been in the way since."""

    served_at: float
    """Monotonic seconds."""
    why: str | None = None

    def unserved_s(self, now: float) -> float:
        return 0.0 if self.why is None else max(0.0, now - self.served_at)

    def seen(self, now: float, why: str | None, *, valid: bool) -> Spell:
        """After a look; while the lease isn't valid the time is Consul's, and isn't counted."""
        return Spell(now) if why is None or not valid else replace(self, why=why)


@dataclass(frozen=True, slots=True)
class Sign:
    """The last word of a candidate, and when (monotonic) it was seen to change; None: not yet."""

    record: CandidateRecord
    index: int
    changed_at: float | None = None


def watch(
    before: Mapping[str, Sign], found: Mapping[str, tuple[CandidateRecord, int]], now: float
) -> dict[str, Sign]:
    """What is known of the candidates after another look.

    A word that was there before the first look may be of a dead node: only one that changes counts.
    """

    def sign(name: str, record: CandidateRecord, index: int) -> Sign:
        known = before.get(name)
        if known is None:
            return Sign(record, index)
        return known if known.index == index else Sign(record, index, now)

    return {name: sign(name, *word) for name, word in found.items()}


@dataclass(frozen=True, slots=True)
class Standing:
    """What a holder knows of itself and of the cluster."""

    epoch: int
    held_s: float
    """Since this reign began on this node."""
    unserved_s: float
    patience_s: float
    """`surrender_after`, and more while a handover is at work."""
    pause: Pause | None = None
    reign: Reign | None = None
    signs: Mapping[str, Sign] = field(default_factory=dict)


def successor(standing: Standing, config: Config, now: float) -> str | Reason | None:
    """The node to surrender to; a Reason: why not, though it is time; None: it isn't time."""
    if not config.surrender_after or standing.unserved_s < standing.patience_s:
        return None
    if standing.pause is not None:
        return Reason.PAUSED
    if config.mode == "manual":
        return Reason.MANUAL_MODE
    reign = standing.reign
    if reign is not None and reign.is_automatic and standing.held_s < config.min_reign:
        return Reason.MIN_REIGN
    ready = [
        sign.record
        for name, sign in standing.signs.items()
        if name in config.standbys
        and sign.record.ready
        and sign.record.epoch == standing.epoch
        and sign.changed_at is not None
        and now - sign.changed_at <= FRESH_S
    ]
    best = max(
        ready,
        key=lambda one: rank(
            one.snapshot_epoch, one.snapshot, config.nodes[one.node].priority, one.node
        ),
        default=None,
    )
    return Reason.NO_STANDBY_READY if best is None else best.node
