"""The copies of an orderly handover that are made while clients are still served.

What is left after them is sent while clients wait: no more than what was written during the last
round, so they go on until a round was short.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from standfast.errors import StandfastError
from standfast.lease.surrender import OUTAGE_LIMIT_S
from standfast.node.node import Machine
from standfast.role import volume
from standfast.system.clock import Deadline, monotonic

SHORT_S = 15.0
"""What was written in so short a round is sent in no time that clients mind."""
MOST_ROUNDS = 5
"""The first one may wait for a full replication; each later one sends what was written during the
one before."""
LONGEST_S = OUTAGE_LIMIT_S / 2
"""To send what was written during a longer one may take more than the handover has, in which the
server stops, too."""


class Next(Enum):
    """What follows a round."""

    AGAIN = auto()
    GO_ON = auto()
    GIVE_UP = auto()


def next_after(rounds: int, last_s: float) -> Next:
    """Tells what follows that many rounds, the last of which took `last_s`, with its wait for
    another replication."""
    if last_s <= SHORT_S:
        return Next.GO_ON
    if rounds < MOST_ROUNDS:
        return Next.AGAIN
    return Next.GO_ON if last_s <= LONGEST_S else Next.GIVE_UP


def copy_ahead(
    machine: Machine,
    to: str,
    epoch: int,
    deadline: Deadline,
    give_up: Callable[[], str | None],
    say: Callable[[str], None],
) -> None:
    """Replicates new snapshots to `to` until little is left to send; all rounds have the one
    deadline. `say` is told of each further round.

    StandfastError where the last of them was too long for clients to wait, and of a replication.
    """
    rounds, then = 0, Next.AGAIN
    while then is Next.AGAIN:
        # Before the snapshot: what is written from then on is not in it.
        started = monotonic()
        snapshot = volume.snapshot_of_epoch(machine, epoch)
        machine.sender.replicate(to, snapshot, epoch, deadline, give_up)
        rounds, last_s = rounds + 1, monotonic() - started
        then = next_after(rounds, last_s)
        if then is Next.AGAIN:
            say(f"replicate to {to} once more while still serving: that took {last_s:.0f} s")
    if then is Next.GIVE_UP:
        raise StandfastError(
            f"{machine.config.paths.live} is written faster than it is replicated to {to}: after "
            f"{rounds} rounds the last one took {last_s:.0f} s, and clients would wait as long. "
            f"Nothing was stopped. Try again when less is written, or end what writes most first; "
            f"`replication.bandwidth_limit` and `replication.verify` make it slower"
        )
