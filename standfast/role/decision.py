"""The answers that `decide` gives, and the little it is asked with besides what is known."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from standfast.reasons import Reason
from standfast.role.observation import Available


class Action(StrEnum):
    """What follows from a decision."""

    NOTHING = "nothing"
    WAIT = "wait"
    """Becomes possible by itself; look again."""
    BLOCKED = "blocked"
    """Somebody has to do something; the sentence says what."""
    PROMOTE = "promote"
    FINISH_PROMOTION = "finish-promotion"
    FINISH_DEMOTION = "finish-demotion"
    HOLD_LEASE = "hold-lease"
    """This node holds the lease and its keeper is not running."""
    STEP_DOWN = "step-down"
    """The lease is another's, or was surrendered: stop serving, keep what was written aside."""


@dataclass(frozen=True, slots=True)
class Decision:
    """An answer with its reason; the same sentence is logged, shown and tested."""

    action: Action
    reason: Reason
    sentence: str
    base: Available | None = None
    """For a promotion: the snapshot to start from; None: the node's own live tree."""
    in_place: bool = False
    epoch: int = 0
    """For a promotion: the epoch that it comes after; 0: there was none."""
    follows: int | None = None
    """For a promotion: see HistoryEntry.follows."""
    lost_s: float | None = None
    unless_paused: bool = False
    """For a promotion that nobody asked for: a pause, or a hold on this node, that is set meanwhile
    ends it."""


def blocked(reason: Reason, sentence: str) -> Decision:
    """Somebody has to do something; the sentence says what."""
    return Decision(Action.BLOCKED, reason, sentence)


def wait(reason: Reason, sentence: str) -> Decision:
    """It becomes possible by itself; the sentence says when, as far as that is known."""
    return Decision(Action.WAIT, reason, sentence)


@dataclass(frozen=True, slots=True)
class Request:
    """An operator's word that lifts some of the rules; never the wait."""

    promote: bool = False
    accept_data_loss: bool = False
    despite: frozenset[str] = frozenset()
    """Checks of readiness whose obstacles are known, and don't count."""


NO_REQUEST = Request()


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, on this node's two clocks."""

    monotonic: float
    utc: float
