"""A pause that was set for a time: it ends like every other one, when its key is deleted.

Invariant: no clocks are compared. A node deletes the key after it has seen that very pause for the
whole time on its own clock; one that starts anew counts anew. So it may last longer than was asked,
and never shorter.
"""

from __future__ import annotations

from dataclasses import dataclass

from standfast.config.model import Config
from standfast.consul.ports import Keys
from standfast.consul.records import Pause
from standfast.consul.values import CheckIndex, Committed, Delete
from standfast.text import duration


@dataclass(slots=True)
class PauseWatch:
    """What one node has seen of the pause of a volume."""

    config: Config
    consul: Keys
    pause: Pause | None = None
    since: float = 0.0

    def look(self, pause: Pause | None, now: float) -> str | None:
        """Ends a pause whose time is over, and returns what happened; None: nothing. `now`:
        monotonic seconds. ConsulError, ForeignValue."""
        if pause != self.pause:
            self.pause, self.since = pause, now
        if pause is None or pause.lasts is None or now - self.since < pause.lasts:
            return None
        key = self.config.key("pause")
        entry = self.consul.read([key])[key]
        if entry is None or Pause.parse(entry.value, key) != pause:
            return None
        ended = self.consul.txn([CheckIndex(key, entry.modify_index), Delete(key)])
        if not isinstance(ended, Committed):
            return None
        return (
            f"the pause of {pause.by} for {duration(pause.lasts)} is over: automatic failover is "
            "enabled again"
        )
