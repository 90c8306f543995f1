"""What is in the way of a change of role, as it was found by looking before anything stops."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

CHECKS = (
    "bind",
    "clients",
    "consul",
    "disk",
    "exports",
    "fence",
    "hidden",
    "hold",
    "hooks",
    "inspection",
    "lease",
    "name",
    "nfs-conf",
    "port",
    "server",
    "service",
    "snapshot",
    "space",
    "unit",
    "volumes",
    "way-back",
    "writers",
)
"""Every check that an obstacle may be of."""


class Weight(StrEnum):
    """What an obstacle keeps from happening; each one also what the lighter ones do."""

    BARS = "bars"
    """A promotion of this node would fail with the lease in its hands: it isn't begun."""
    REFUSES = "refuses"
    """The role isn't moved here while somebody serves; after a death it is better than nobody."""
    TOLD = "told"
    """It is told, and keeps nothing from happening."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What was found, and what mends it; `check` is one word, by which it is named everywhere."""

    check: str
    evidence: str
    fix: str
    weight: Weight = Weight.BARS

    def __str__(self) -> str:
        return f"{self.check}: {self.evidence}"


def barring(obstacles: Iterable[Obstacle]) -> tuple[Obstacle, ...]:
    """Returns those that no promotion gets past."""
    return tuple(obstacle for obstacle in obstacles if obstacle.weight is Weight.BARS)


def heaviest_first(obstacles: Iterable[Obstacle]) -> tuple[Obstacle, ...]:
    """Returns them in the order in which they matter, for whoever shows the first one only."""
    return tuple(sorted(obstacles, key=lambda obstacle: list(Weight).index(obstacle.weight)))


def told(obstacles: Iterable[Obstacle]) -> str:
    """Writes each on a line of its own, with what mends it."""
    return "\n".join(f"  {obstacle}\n    -> {obstacle.fix}" for obstacle in obstacles)
