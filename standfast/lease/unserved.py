"""For how long the holder has not served, and to whom it surrenders then.

It is the lease process that looks, and not the agent: it has nothing to do with the disk, and goes
on where the agent is dead or hangs in the kernel's hands.

Invariants: the agent vouches for serving by a file; while it says nothing, the server itself is
asked (an agent that is merely away is no reason to lose data). It waits for others only right after
a heartbeat that committed, and for all of them together no longer than `LOOK_S`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from standfast.config.model import Config
from standfast.consul.records import Handover
from standfast.errors import ours
from standfast.lease.files import Vouch, was_flushed
from standfast.lease.holding import LeaseKeys
from standfast.lease.protocol import NEVER
from standfast.lease.surrender import (
    OUTAGE_LIMIT_S,
    TOLD_FROM_S,
    Sign,
    Spell,
    Standing,
    successor,
    watch,
)
from standfast.node.ports import NfsServer
from standfast.reasons import Reason
from standfast.system.clock import Deadline

log = logging.getLogger(__name__)

VOUCH_S = 20.0
"""An agent that has said nothing for so long says nothing: it looks every 5 s."""
ASK_EVERY_S = 5.0
ASK_S = 1.0
LOOK_S = 2.0
"""For the server and Consul together; with `request_timeout`, where that is less."""


@dataclass(frozen=True, slots=True)
class Now:
    """The lease process at one moment."""

    at: float
    epoch: int
    since: float
    valid: bool
    """The lease has time left."""
    serving: bool
    """The port is open: meant to be, and permitted by the kernel."""
    draining: bool
    heard: bool
    """A heartbeat has just committed: there is time to ask somebody."""


@dataclass(slots=True)
class Service:
    """Of one lease, since this process has it."""

    config: Config
    keys: LeaseKeys
    nfs: NfsServer
    spell: Spell
    signs: dict[str, Sign] = field(default_factory=dict)
    asked_at: float = NEVER
    looked_at: float = NEVER
    said: Reason | None = None
    """Why it doesn't surrender although it is time, as it was logged last."""

    def look(self, now: Now) -> Handover | None:
        """Returns what to surrender with, when it is time and somebody else could do better."""
        if not now.valid:
            self.spell = self.spell.paused(now.at)
            self.signs, self.said = {}, None
            return None
        limit = Deadline.after(min(LOOK_S, self.config.lease.request_timeout))
        self._see(now, limit)
        unserved_s = self.spell.unserved_s(now.at)
        patience_s = self.config.surrender_after
        if not patience_s or unserved_s < min(TOLD_FROM_S, patience_s / 3):
            self.signs, self.said = {}, None
            return None
        if not now.heard or now.at - self.looked_at < ASK_EVERY_S:
            return None
        self.looked_at = now.at
        prospects = self.keys.prospects(now.epoch, limit)
        self.signs = watch(self.signs, prospects.candidates, now.at)
        if self.spell.why is None:
            return None  # for the moment; it may be about to die again
        standing = Standing(
            now.epoch,
            now.at - now.since,
            unserved_s,
            patience_s + (OUTAGE_LIMIT_S if now.draining else 0.0),
            prospects.pause,
            prospects.history_entry,
            self.spell.served,
            prospects.had_it,
            self.signs,
        )
        return self._handover(successor(standing, self.config, now.at), unserved_s)

    def word(self, now: float) -> Handover:
        """Returns what the heartbeat tells; nothing: it serves, or has for most of the last
        seconds."""
        unserved_s = self.spell.unserved_s(now)
        if self.spell.why is None or unserved_s < TOLD_FROM_S:
            return Handover()
        return Handover(unserved=unserved_s, idle=self.idle)

    @property
    def idle(self) -> bool:
        """Tells whether no client was served in this epoch."""
        return not self.spell.opened and not was_flushed(self.config.run_dir)

    def _handover(self, to: str | Reason | None, unserved_s: float) -> Handover | None:
        why = f"{self.config.node} had not served for {unserved_s:.0f} s: {self.spell.why}"
        if isinstance(to, Reason):
            if to is not self.said:
                log.warning("%s; not surrendered: %s", why, to)
            self.said = to
            return None
        self.said = None
        return None if to is None else Handover(to=to, note=why, surrendered=True)

    def _see(self, now: Now, limit: Deadline) -> None:
        """Sees whether this node serves, as far as anybody can say at the moment."""
        vouch = Vouch.load(self.config.run_dir)
        if vouch is not None and 0 <= now.at - vouch.at <= VOUCH_S:
            self.spell = self.spell.seen(now.at, vouch.why)
        elif not now.serving:
            why = "the port was not opened, and the agent says nothing"
            self.spell = self.spell.seen(now.at, why)
        elif now.heard and now.at - self.asked_at >= ASK_EVERY_S:
            self.asked_at = now.at
            self.spell = self.spell.seen(now.at, self._ailment(limit))

    def _ailment(self, limit: Deadline) -> str | None:
        try:
            sick = self.nfs.check(limit.within(ASK_S))
        except Exception as error:  # noqa: BLE001  # what can't be looked at doesn't serve
            sick = str(ours(error))
        return None if sick is None else f"{sick}, and the agent says nothing"
