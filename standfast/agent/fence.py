"""The agent's own look at the fence, independent of the lease process, which may be frozen or dead.

Invariant: while this node has an epoch that it has not put away and its lease isn't valid, rules
that were flushed are back shut a heartbeat interval after the last look. It has a thread of its
own, which waits neither for the volume's disk nor for the server or the lease process.

What it costs: a look is a process (`nft list`, some milliseconds). While the lease is valid none is
needed: the lease process sees the rules at each heartbeat, and were it to hang, nobody else serves
before this lease has run out, which is seen here by its own file. So a healthy primary pays for two
small files each interval. A node without an epoch serves nothing and is seen to by the upkeep.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from standfast.errors import ours
from standfast.events.events import Kind, happened, tell
from standfast.lease.cutoff import SHUT_S
from standfast.lease.files import LeaseStatus, note_flush
from standfast.node.node import Machine
from standfast.node.own_epoch import OwnEpoch
from standfast.role import volume
from standfast.system.clock import Deadline, monotonic

log = logging.getLogger(__name__)


@dataclass(slots=True)
class FenceWatch:
    """Watches one volume's fence for its agent; used by one thread."""

    machine: Machine
    flushes: int = 0
    """How often the rules were found gone here in this node's epoch."""
    trouble: str | None = None
    seen: bool = False
    """The rules were in place at some look of this process."""

    def look(self) -> None:
        """Puts back shut what is missing; what can't be done is logged and tried again."""
        try:
            if self._has_to_be_shut():
                if not self._is_shut() and self._has_to_be_shut():
                    # A lease renewed in between has put the rules back itself.
                    self._put_back()
                self.seen = True
            trouble = None
        except Exception as error:  # noqa: BLE001  # tried again, whatever it was
            trouble = str(ours(error))
        if trouble is not None and trouble != self.trouble:
            log.error("the fence can't be confirmed: %s", trouble)
        self.trouble = trouble

    def _has_to_be_shut(self) -> bool:
        config = self.machine.config
        try:
            own = OwnEpoch.load(config.state_dir)
            lease = LeaseStatus.load(config.run_dir)
            if own is None and (lease is None or not volume.has_begun(self.machine, lease.epoch)):
                self.flushes = 0
                return False
        except Exception:  # noqa: BLE001
            return True  # in doubt there is an epoch, and no lease
        mine = lease is not None and lease.instance == self.machine.me.instance
        return not mine or lease is None or lease.remaining_s(monotonic()) <= 0

    def _put_back(self) -> None:
        were_there = self._were_there()
        self.machine.fence.ensure_closed(Deadline.after(SHUT_S))
        note_flush(self.machine.config.run_dir)
        if were_there:
            self.flushes += 1
            text = "the fence's rules were gone while the lease was over: put back shut"
            tell(happened(self.machine.config, Kind.FENCE_CLOSED, text))

    def _were_there(self) -> bool:
        """After a boot they aren't, and nobody flushed them; the lease process leaves its file."""
        return self.seen or (self.machine.config.run_dir / "lease.json").exists()

    def _is_shut(self) -> bool:
        """Tells whether the rules are there. What is left of a permit ends by itself, unless
        somebody put one there by hand that doesn't."""
        state = self.machine.fence.state()
        return state.in_place and state.open_for_s < math.inf
