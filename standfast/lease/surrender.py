"""When a holder that can't serve gives the role up by itself, and to whom: pure.

Invariants: never while nobody else could do better (no candidate that says it is ready, a pause,
mode manual). An epoch that began by itself waits for
`failover_cooldown`; one that has never served goes
before that only to a node that hasn't had the role since it was last given by an operator or in
order: nodes that can't serve don't throw it at each other. What is given up so is told as a loss,
never as a clean handover.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from standfast.config.model import Config
from standfast.consul.records import CandidateRecord, HistoryEntry, Pause
from standfast.names import SnapshotName
from standfast.reasons import Reason

TOLD_EVERY_S = 15.0
"""At least, by a candidate whose agent lives and looks."""
FRESH_S = 3 * TOLD_EVERY_S
"""A candidate that has written nothing for so long may be dead."""
TOLD_FROM_S = 10.0
"""A shorter time is between two looks."""
OUTAGE_LIMIT_S = 120.0
"""For an orderly handover from its deregistration to its end: past it, the node serves again. Until
then it isn't surrendered."""
WELL_S = 30.0
"""It serves again when it has for so long: a server that starts anew lets nobody open anything for
its grace time (10 s by default), and one that dies again and again never serves."""
PAID_OFF = 0.25
"""So much of the time that it didn't serve is made up for by each second in which it does."""
MOST_S = 20.0
"""Between two looks: a process that was frozen for longer doesn't know what was meanwhile."""


@dataclass(frozen=True, slots=True)
class Spell:
    """For how long this node has not served, and what is in the way."""

    at: float
    """The last look, monotonic seconds."""
    lacked_s: float = 0.0
    """Until then."""
    why: str | None = None
    counts: bool = True
    """The lease was valid at the last look: the time since is this node's."""
    served: bool = False
    """It has served in this epoch."""
    opened: bool = False
    """The port was opened in this epoch: a client may have written, whatever was seen of it."""
    well_since: float | None = None
    """Nothing is in the way since then."""

    def unserved_s(self, now: float) -> float:
        return self.lacked_s if self.why is None else self.lacked_s + self._since_s(now)

    def seen(self, now: float, why: str | None) -> Spell:
        """Counts after a look within the lease."""
        at, since_s = replace(self, at=now, why=why, counts=True), self._since_s(now)
        if why is not None:
            # Until now it was well, as far as is known.
            lacked_s = self.lacked_s + (0.0 if self.well_since is not None else since_s)
            return replace(at, lacked_s=lacked_s, well_since=None)
        since = now if self.well_since is None else self.well_since
        paid_s = math.inf if now - since >= WELL_S else since_s * PAID_OFF
        return replace(at, lacked_s=max(0.0, self.lacked_s - paid_s), served=True, well_since=since)

    def paused(self, now: float) -> Spell:
        """Counts nothing while the lease isn't valid: that time is Consul's; what was before it is
        kept."""
        return replace(self, at=now, counts=False, well_since=None)

    def _since_s(self, now: float) -> float:
        return min(max(0.0, now - self.at), MOST_S) if self.counts else 0.0


@dataclass(frozen=True, slots=True)
class Sign:
    """The last word of a candidate, and when (monotonic) it was seen to change; None: not yet."""

    record: CandidateRecord
    index: int
    changed_at: float | None = None


def watch(
    before: Mapping[str, Sign], words: Mapping[str, tuple[CandidateRecord, int]], now: float
) -> dict[str, Sign]:
    """Returns what is known of the candidates after another look.

    A word that was there before the first look may be of a dead node: only one that changes counts.
    """

    def sign(name: str, record: CandidateRecord, index: int) -> Sign:
        known = before.get(name)
        if known is None:
            return Sign(record, index)
        return known if known.index == index else Sign(record, index, now)

    return {name: sign(name, *word) for name, word in words.items()}


@dataclass(frozen=True, slots=True)
class Standing:
    """What a holder knows of itself and of the cluster."""

    epoch: int
    held_s: float
    """Since this epoch began on this node."""
    unserved_s: float
    patience_s: float
    """`surrender_after`, and more while a handover is at work."""
    pause: Pause | None = None
    history_entry: HistoryEntry | None = None
    served: bool = True
    """In this epoch."""
    had_it: frozenset[str] = frozenset()
    """See `had_it`."""
    signs: Mapping[str, Sign] = field(default_factory=dict)


def had_it(history_entries: Mapping[int, HistoryEntry], epoch: int) -> frozenset[str]:
    """Returns the nodes that have lost the role, one after the other, since it last was given by an
    operator or in order; `epoch`'s is not among them. `history_entries` is by epoch."""
    nodes = set()
    while (history_entry := history_entries.get(epoch)) is not None and history_entry.is_automatic:
        epoch -= 1
        if epoch in history_entries:
            nodes.add(history_entries[epoch].node)
    return frozenset(nodes)


def successor(standing: Standing, config: Config, now: float) -> str | Reason | None:
    """Returns the node to surrender to; a Reason: why not, though it is time; None: it isn't
    time."""
    if not config.surrender_after or standing.unserved_s < standing.patience_s:
        return None
    if standing.pause is not None:
        return Reason.PAUSED
    if config.mode == "manual":
        return Reason.MANUAL_MODE
    history_entry = standing.history_entry
    young = (
        history_entry is not None
        and history_entry.is_automatic
        and standing.held_s < config.failover_cooldown
    )
    if young and standing.served:
        return Reason.COOLDOWN
    # Else each node of those that can't serve has its turn once, and the last one keeps it.
    barred = standing.had_it if young else frozenset()
    ready = [
        sign.record
        for name, sign in standing.signs.items()
        if name in config.standbys
        and name not in barred
        and sign.record.ready
        and sign.record.epoch == standing.epoch
        and sign.changed_at is not None
        and now - sign.changed_at <= FRESH_S
    ]
    best = max(
        ready,
        key=lambda record: rank(
            record.snapshot_epoch,
            record.snapshot,
            config.nodes[record.node].priority,
            record.node,
        ),
        default=None,
    )
    return Reason.NO_STANDBY_READY if best is None else best.node


Rank = tuple[int, float, int, str]


def rank(epoch: int, snapshot: str | None, priority: int, node: str) -> Rank:
    """Tells who should rather take over, highest best: by epoch, snapshot, priority, name.

    What is no name, as nobody of ours writes it, comes before all.
    """
    try:
        stamp = SnapshotName.parse(snapshot or "").stamp
    except ValueError:
        stamp = float("-inf")
    return (epoch, stamp, priority, node)
