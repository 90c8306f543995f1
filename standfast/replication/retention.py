"""Which snapshots may go: pure.

Invariants: nothing goes that may be the newest common snapshot of this node and another one: with
it goes the chance of an increment, and the next replication would have to send everything. The
newest snapshot of each reign stays: when that reign's primary is lost, it is the only copy of what
its successor never had. What Standfast didn't make is not its to delete.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from standfast.act.ports import Snapshot
from standfast.replication.published import ranked

KEEP_OWN = 24
KEEP_PUBLISHED = 48


def own_to_delete(
    snapshots: Sequence[Snapshot],
    epochs: Mapping[str, int],
    protected: Collection[str],
    keep: int = KEEP_OWN,
) -> list[Snapshot]:
    """Own snapshots beyond the newest `keep` that may go."""
    own = sorted((one for one in snapshots if not one.received), key=lambda one: one.name)
    return _that_may_go(own, epochs, protected, keep)


def published_to_delete(
    snapshots: Sequence[Snapshot],
    epochs: Mapping[str, int],
    protected: Collection[str],
    keep: int = KEEP_PUBLISHED,
) -> list[Snapshot]:
    """Published snapshots beyond the best `keep` that may go."""
    return _that_may_go(ranked(snapshots, epochs), epochs, protected, keep)


def _that_may_go(
    best_last: Sequence[Snapshot],
    epochs: Mapping[str, int],
    protected: Collection[str],
    keep: int,
) -> list[Snapshot]:
    """Only snapshots that Standfast made, and never the newest of a reign."""
    ours = [one for one in best_last if one.content_id in epochs]
    last_of_reign = {epochs[one.content_id]: one for one in sorted(ours, key=lambda one: one.name)}
    kept = {one.content_id for one in last_of_reign.values()} | set(protected)
    return [one for one in ours[:-keep] if one.content_id not in kept]
