"""Which snapshots may go: pure.

Invariant: nothing goes that may be the newest common snapshot of this node and another one: with
it goes the chance of an increment, and the next replication would have to send everything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from standfast.act.ports import Snapshot
from standfast.replication.published import ranked

KEEP_OWN = 24
KEEP_PUBLISHED = 48


def own_to_delete(
    snapshots: Sequence[Snapshot], protected: Collection[str], keep: int = KEEP_OWN
) -> list[Snapshot]:
    """Own snapshots beyond the newest `keep`, without the protected content ids."""
    own = sorted((one for one in snapshots if not one.received), key=lambda one: one.name)
    return [one for one in own[:-keep] if one.content_id not in protected]


def published_to_delete(
    snapshots: Sequence[Snapshot],
    epochs: Mapping[str, int],
    protected: Collection[str],
    keep: int = KEEP_PUBLISHED,
) -> list[Snapshot]:
    """Published snapshots beyond the best `keep`, without the protected content ids."""
    best_last = ranked(snapshots, epochs)
    return [one for one in best_last[:-keep] if one.content_id not in protected]
