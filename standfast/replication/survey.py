"""What this node and a standby say of themselves at about the same moment.

Invariant: nothing is changed on either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from standfast.config.model import Config
from standfast.replication import session, storage_facts, wire
from standfast.replication.ports import ReplicaStore
from standfast.system.clock import Deadline, monotonic


@dataclass(frozen=True, slots=True)
class BothSides:
    """The answers of both sides."""

    ours: storage_facts.Facts
    theirs: storage_facts.Facts
    snapshots: Sequence[wire.Offer]
    """What the standby has."""
    apart_s: float
    """At most between the moments at which the two said what time it is."""


def both_sides(config: Config, store: ReplicaStore, standby: str, deadline: Deadline) -> BothSides:
    """Asks the standby, over a conversation as replication has it, then this node; StandfastError
    or OSError.

    `apart_s` counts from the question on: how long the way took says nothing of their clocks.
    """
    with session.greet(config, standby, deadline, wire.Purpose.ASK) as (asked, welcome):
        asked_at = monotonic()
        answer = session.ask(asked, wire.Survey(), deadline)
    ours = storage_facts.facts_here(config, store)
    apart_s = monotonic() - asked_at
    theirs = storage_facts.Facts.parse(wire.parse(answer, wire.Surveyed).facts)
    return BothSides(ours, theirs, welcome.snapshots, apart_s)
