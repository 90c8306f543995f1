"""What is worth an entry of its own in the journal: each change of role, refusal and failed cycle.

Invariants: a kind's name, its MESSAGE_ID and the names of the fields never change, for people's
alerts hang on them. An event is said once: `tell` hands it to the log, and where that goes to the
journal the entry takes the line's place (`events.journal`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from standfast.config.model import Config
    from standfast.reasons import Reason

log = logging.getLogger(__name__)


class Kind(StrEnum):
    """What happened; the value is STANDFAST_EVENT."""

    LEASE_ACQUIRED = "lease-acquired"
    FAILOVER_DECIDED = "failover-decided"
    PROMOTED = "promoted"
    SERVING_AGAIN = "serving-again"
    SWITCHOVER_BEGUN = "switchover-begun"
    SWITCHOVER_ENDED = "switchover-ended"
    DEMOTED = "demoted"
    ROLE_CHANGE_FAILED = "role-change-failed"
    LEASE_LOST = "lease-lost"
    SURRENDERED = "surrendered"
    FENCE_CLOSED = "fence-closed"
    FENCE_REOPENED = "fence-reopened"
    PROMOTION_REFUSED = "promotion-refused"
    CLAIM_REFUSED = "claim-refused"
    GUARD_REFUSED = "guard-refused"
    RECEIVE_REFUSED = "receive-refused"
    CYCLE_FAILED = "cycle-failed"
    HOOK_FAILED = "hook-failed"

    @property
    def message_id(self) -> str:
        """Returns 32 hexadecimal digits, as `journalctl MESSAGE_ID=` takes them."""
        return _TABLE[self][0]

    @property
    def level(self) -> int:
        """Returns the level of `logging`."""
        return _TABLE[self][1]

    @property
    def priority(self) -> int:
        """Returns the priority of syslog: 3 error, 4 warning, 5 notice."""
        return _PRIORITIES[self.level]


NOTICE = 25
"""Between logging's INFO and WARNING: a change that is wanted, and worth finding again."""
logging.addLevelName(NOTICE, "NOTICE")
_PRIORITIES = {logging.ERROR: 3, logging.WARNING: 4, NOTICE: 5}
_TABLE: Mapping[Kind, tuple[str, int]] = {
    Kind.LEASE_ACQUIRED: ("757c7abe96dc4d8f834d69e599e8e89f", NOTICE),
    Kind.FAILOVER_DECIDED: ("baea7a9a74a64d1e8597778a82102646", logging.WARNING),
    Kind.PROMOTED: ("d66514c58b6a4990b8a4ff66c149a93b", NOTICE),
    Kind.SERVING_AGAIN: ("f36d35ecb0e845a49a43cf32671d9bab", NOTICE),
    Kind.SWITCHOVER_BEGUN: ("9e308debf318444997f0c595d85744ae", NOTICE),
    Kind.SWITCHOVER_ENDED: ("901c72f5cf7942d99fa26310ad42db2e", NOTICE),
    Kind.DEMOTED: ("8b172cc8a36241e68ce354ac1f6aaf8f", NOTICE),
    Kind.ROLE_CHANGE_FAILED: ("60935f7fc1624a5b960c84ab8c68e5bc", logging.ERROR),
    Kind.LEASE_LOST: ("d422630ecfdc459bb7264acf5ffa6b45", logging.ERROR),
    Kind.SURRENDERED: ("84bb068b9c1b479087969e0f802c177b", logging.ERROR),
    Kind.FENCE_CLOSED: ("c59d7c7124644ed2bd1f38b335120f3a", logging.WARNING),
    Kind.FENCE_REOPENED: ("c762f6091ad64191a25402445b20b8d8", NOTICE),
    Kind.PROMOTION_REFUSED: ("b66cd79f9b3444ec80f7776346ff17b5", logging.WARNING),
    Kind.CLAIM_REFUSED: ("d89b9104b9504cc990a75c6a854a4612", logging.WARNING),
    Kind.GUARD_REFUSED: ("33e8f58086134435a20a00c9b8f8f4e3", logging.WARNING),
    Kind.RECEIVE_REFUSED: ("158e4892576949938b23e353d38cf0ee", logging.WARNING),
    Kind.CYCLE_FAILED: ("75deccc309d8413b82e0aa11f64545b3", logging.ERROR),
    Kind.HOOK_FAILED: ("7fab8054c2824531b29fa4a655a9b987", logging.WARNING),
}


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened on this node; `sentence` is what a person reads."""

    kind: Kind
    sentence: str
    volume: str
    node: str
    epoch: int | None = None
    reason: str | None = None
    standby: str | None = None
    more: Mapping[str, str] = field(default_factory=dict)
    """Further fields under their own names."""

    def fields(self) -> dict[str, str]:
        """Returns what programs read; nothing that isn't known."""
        known = {
            "STANDFAST_EVENT": str(self.kind),
            "STANDFAST_VOLUME": self.volume,
            "STANDFAST_NODE": self.node,
            "STANDFAST_EPOCH": None if self.epoch is None else str(self.epoch),
            "STANDFAST_REASON": self.reason,
            "STANDFAST_STANDBY": self.standby,
        }
        return {name: value for name, value in known.items() if value is not None} | dict(self.more)


def happened(
    config: Config,
    kind: Kind,
    sentence: str,
    *,
    epoch: int | None = None,
    reason: Reason | None = None,
    standby: str | None = None,
    **more: str,
) -> Event:
    """Makes an event of this node and volume."""
    code = None if reason is None else str(reason)
    return Event(kind, sentence, config.volume, config.node, epoch, code, standby, more)


def tell(event: Event) -> None:
    """Tells it to the log; whoever set that up (`cli.services.set_up_log`) knows where it goes."""
    log.log(event.kind.level, "%s", event.sentence, extra={"event": event})
