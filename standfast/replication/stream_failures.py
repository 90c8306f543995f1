"""Why a stream wasn't taken in, from btrfs' own words (pure).

Invariant: what the next cycle would meet again is told as needing another way (`needs-full`,
`no-space`), never as a stream that was cut.
"""

from __future__ import annotations

import re

from standfast.errors import CommandFailed, Refused
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication.failures import lacks_space
from standfast.replication.receive_checks import RESERVE_BYTES

_AT_THE_END = r": {}[.!]?$"
_HINDERED = re.compile(_AT_THE_END.format("(?:Operation not permitted|Invalid argument)"), re.M)
_QUOTA = re.compile(_AT_THE_END.format("Disk quota exceeded"), re.M)


def why_not_taken_in(
    error: CommandFailed, node: str, own_parent: Snapshot | None, free_bytes: int
) -> Refused:
    """Returns the refusal to tell the sender.

    `own_parent` is what the increment builds on where `node` took that itself: only such a one has
    what no stream carries, and so nothing of it is known where the increment was made.
    """
    once = f"It fails every time: send everything once, `standfast replicate {node} --full`"
    if _QUOTA.search(error.stderr):
        return Refused(
            Reason.NO_SPACE,
            f"{error}. A limit of btrfs' quota is reached on {node}: `btrfs qgroup show -re` "
            f"there says which; raise it, or `btrfs qgroup limit none` ends it",
        )
    if own_parent is not None and _HINDERED.search(error.stderr):
        return Refused(
            Reason.NEEDS_FULL,
            f"{error}. {own_parent.name} on {node}, which this builds on, was made there and has "
            f"files that chattr (+C, +i, +a) or a mount option (nodatacow, nodatasum) changed, "
            f"which no stream carries. {once}",
        )
    if any(map(_is_of_checksums, error.stderr.split("\n"))):
        return Refused(
            Reason.NEEDS_FULL,
            f"{error}. A file without checksums shares no data with one that has some, and is not "
            f"compressed, and no stream carries which have none: was `chattr +C` set on {node} "
            f"when that was primary, or was it mounted with nodatacow or nodatasum, or without, "
            f"since it took in what this builds on? {once}",
        )
    full = lacks_space(error) or free_bytes < RESERVE_BYTES
    return Refused(Reason.NO_SPACE if full else Reason.INCOMPLETE, str(error))


def _is_of_checksums(line: str) -> bool:
    """Tells whether btrfs receive could not clone into a file, or compress it, that has none.

    By hand: clients of the volume choose the names in it, and a pattern with a `.*` for each would
    try a whole second's worth of ways.
    """
    if not line.endswith(": Invalid argument"):
        return False
    _, found, rest = line.partition("lsetxattr ")
    return "failed to clone extents" in line or (found != "" and " btrfs.compression=" in rest)
