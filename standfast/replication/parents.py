"""Which snapshot an increment builds on: pure.

Invariant: parents are matched by content (received UUID, or else UUID), never by name: a name
says when, not what. Everything is sent only where nothing was before, or when told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from standfast.errors import Refused
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication.wire import Offer


def newest_of(snapshots: Iterable[Snapshot], content_ids: Collection[str]) -> Snapshot | None:
    """Returns the newest snapshot, by its name, that has one of these contents."""
    matching = (snapshot for snapshot in snapshots if snapshot.content_id in content_ids)
    return max(matching, key=lambda snapshot: snapshot.name, default=None)


def newest_common(
    ours: Sequence[Snapshot], theirs: Sequence[Offer], snapshot: Snapshot
) -> Snapshot | None:
    """Returns the newest snapshot before `snapshot` whose content both sides have, own or
    published."""
    earlier = (candidate for candidate in ours if candidate.name < snapshot.name)
    return newest_of(earlier, {offer.content_id for offer in theirs})


def choose(
    standby: str,
    parent: Snapshot | None,
    theirs: Sequence[Offer],
    *,
    may_be_full: bool,
    served_before: bool,
) -> Snapshot | None:
    """Returns the parent, or None for a full send; Refused (needs-full) where that wasn't asked
    for.

    A standby that never had anything gets everything by itself; one that had something and has
    nothing in common any more (`served_before`, or snapshots of another past) waits for a word.
    """
    if parent is not None or may_be_full or not (theirs or served_before):
        return parent
    newest = max((str(offer.name) for offer in theirs), default=None)
    has = f"{len(theirs)} snapshots (newest {newest}), none" if newest else "no snapshot"
    raise Refused(
        Reason.NEEDS_FULL,
        f"{standby} has {has} in common with this node: everything has to be sent once, "
        f"`standfast replicate {standby} --full`",
    )


def taken_here(snapshots: Sequence[Snapshot], content_id: str | None) -> Snapshot | None:
    """Returns the snapshot of this content that was taken here; None where it was received, too."""
    same = [snapshot for snapshot in snapshots if snapshot.content_id == content_id]
    return None if any(snapshot.received for snapshot in same) else next(iter(same), None)
