"""Looks again and again at what a promotion of this node would meet, in a thread of its own.

Invariant: a look that hangs keeps neither the agent nor its upkeep; who asks for a look of now
waits for that one, and for no second one at the same time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from standfast.errors import Refused, StandfastError, UsageError, did_you_mean, ours
from standfast.node.obstacle import CHECKS, Obstacle, Weight, barring, told
from standfast.node.ports import ReplicaSender
from standfast.reasons import Reason
from standfast.role.ahead.inspection import Scene, inspect
from standfast.system.clock import Deadline, monotonic, sleep

log = logging.getLogger(__name__)

EVERY_S = 60.0
STALE_S = 3 * EVERY_S
"""An inspection that is older says nothing of now: the looks fail, or one hangs."""
AGAIN_S = 10.0
"""While this node is barred: as soon as that is mended it may take over."""
TICK_S = 1.0
POLL_S = 0.05
ASK_S = 45.0
"""For another node's look."""
REST_S = 1.0
"""Between two looks for who asks: others can ask as often as they like, and none costs nothing."""
LIMIT_S = 35.0
"""For a look that somebody waits for, with one before it; each of its questions has its own."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found, and when (monotonic s) the look began."""

    obstacles: tuple[Obstacle, ...]
    at: float


@dataclass(slots=True)
class Inspector:
    """Keeps the last inspection of this node; None: none yet, or it is no standby."""

    scene: Callable[[], Scene | None]
    """What there is to look at; None: nothing yet."""
    last: Inspection | None = None
    wanted_at: float = float("-inf")
    """When somebody last asked for a look (monotonic s)."""
    _began_at: float = float("-inf")
    """When the last look began (monotonic s), also where nothing of it is kept."""
    _ended_at: float = float("-inf")
    """When the last look for somebody ended (monotonic s)."""
    _failed: tuple[float, Exception] | None = None
    """When the last look that failed began, and of what it failed."""
    _looking: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def known(self) -> tuple[Obstacle, ...] | None:
        """What is known to be in the way; None: nothing is known yet. That of an old look vouches
        for nothing, and is told with that."""
        last = self.last
        if last is None or (age_s := monotonic() - last.at) <= STALE_S:
            return None if last is None else last.obstacles
        evidence = f"the last look at what is in the way is {age_s:.0f} s old: no other has ended"
        fix = "the journal of standfast-agent may say why; `standfast doctor` on that node"
        return *last.obstacles, Obstacle("inspection", evidence, fix, Weight.REFUSES)

    @property
    def barring(self) -> tuple[Obstacle, ...]:
        last = self.last
        return () if last is None else barring(last.obstacles)

    def want(self) -> float:
        """Has the inspector's own thread look soon; returns what to ask `since` with."""
        self.wanted_at = monotonic()
        return self.wanted_at

    def since(self, at: float) -> Inspection | None:
        """Returns an inspection that began at `at` or later; None: it isn't there yet."""
        if self.scene() is None:
            return Inspection((), at)
        return self.last if self.last is not None and self.last.at >= at else None

    def asked(self) -> tuple[Obstacle, ...]:
        """Inspects for somebody who may ask again and again: never twice within REST_S, and once
        for all who wait for that, also where it fails; errors as `look`."""
        return self._look(REST_S)

    def look(self) -> tuple[Obstacle, ...]:
        """Inspects now; for any thread. TimedOut; StandfastError where there is nothing to look at
        yet, which is not the same as nothing in the way."""
        return self._look(0.0)

    def _look(self, rest_s: float) -> tuple[Obstacle, ...]:
        if self.scene() is None:
            raise StandfastError(
                "it starts, and has not looked at Consul yet: ask again in seconds"
            )
        asked_at, limit = monotonic(), Deadline.after(LIMIT_S)
        while not self._begin():
            limit.check("what is in the way of a promotion: the look before doesn't end")
            sleep(POLL_S)
            if (found := self._found_since(asked_at)) is not None:
                return found
        try:
            if (found := self._found_since(asked_at)) is not None:
                return found  # by one that ended while nobody else could begin
            # Only now: another may have ended since this was asked.
            sleep(max(0.0, self._ended_at + rest_s - monotonic()))
            return self._look_now(for_somebody=rest_s > 0)
        finally:
            self._looking = False

    def _look_now(self, *, for_somebody: bool) -> tuple[Obstacle, ...]:
        self._began_at = monotonic()
        try:
            self.last = self._inspected()
            return self.last.obstacles
        except Exception as error:
            self._failed = (self._began_at, error)
            raise
        finally:
            if for_somebody:
                self._ended_at = monotonic()

    def _found_since(self, at: float) -> tuple[Obstacle, ...] | None:
        """Returns what a look that began after `at` has found, or raises what it failed of; None:
        there was none."""
        last, failed = self.last, self._failed
        if last is not None and last.at > at:
            return last.obstacles
        if failed is not None and failed[0] > at:
            raise failed[1]
        return None

    def _begin(self) -> bool:
        with self._lock:
            if self._looking:
                return False
            self._looking = True
            return True

    def _inspected(self) -> Inspection:
        at, before, scene = monotonic(), self.last, self.scene()
        obstacles = () if scene is None else inspect(scene)
        known = () if before is None else before.obstacles
        new = {obstacle.check for obstacle in obstacles} - {obstacle.check for obstacle in known}
        for obstacle in obstacles:
            if obstacle.check in new:
                log.warning("in the way of a promotion here: %s -> %s", obstacle, obstacle.fix)
        return Inspection(obstacles, at)

    def turn(self) -> None:
        """Looks when it is time; a node that has, or had, an epoch of its own is no candidate."""
        scene, last = self.scene(), self.last
        wanted = self.wanted_at > self._began_at
        # One that comes back may be the next all the same: what was in its way is looked at again.
        is_next = scene is not None and (
            scene.local.own is None or (bool(self.barring) and not _holds(scene))
        )
        if scene is None or not (is_next or wanted):
            if scene is None or monotonic() - self.wanted_at >= EVERY_S:
                self.last = None  # before that, somebody may still come for the answer
            return
        every_s = AGAIN_S if self.barring else EVERY_S
        if last is None or wanted or monotonic() - last.at >= every_s:
            self.look()


def _holds(scene: Scene) -> bool:
    """Tells whether this boot of the node has the role."""
    leader, mine = scene.leader, (scene.config.node, scene.local.instance)
    if leader is None or leader.is_clean:
        return False
    return (leader.holder.node, leader.holder.instance) == mine


def refuse_unready(sender: ReplicaSender, to: str, despite: frozenset[str]) -> Sequence[Obstacle]:
    """Has the node that is to take over look, and returns what it found; Refused for what keeps the
    role from being moved there, but for the checks that somebody goes past knowingly."""
    try:
        obstacles = sender.inspect(to, Deadline.after(ASK_S))
    except Exception as error:  # noqa: BLE001  # an older version doesn't understand
        evidence = f"{to} could not be asked what is in its way: {ours(error)}"
        fix = f"`standfast doctor` on both nodes; is {to} of an older version? Upgrade it first"
        obstacles = (Obstacle("inspection", evidence, fix, Weight.REFUSES),)
    lighter = [seen for seen in obstacles if seen.weight is Weight.REFUSES]
    left = [obstacle for obstacle in lighter if obstacle.check not in despite]
    refusing = [*barring(obstacles), *left]
    if refusing:
        names = ",".join(sorted({obstacle.check for obstacle in lighter}))
        way = "" if not left or barring(obstacles) else f"\nIn spite of it: `--despite {names}`"
        raise Refused(
            Reason.NOT_READY,
            f"{to} is not ready to take over; nothing was stopped:\n{told(refusing)}{way}",
        )
    return obstacles


def checks_in(text: str | None) -> frozenset[str]:
    """Returns the checks of a list with commas; UsageError for one that nobody knows."""
    names = frozenset(filter(None, (text or "").split(",")))
    unknown = names - set(CHECKS)
    if unknown:
        raise UsageError(
            f"no check is called {min(unknown)!r}{did_you_mean(min(unknown), CHECKS)}; they are "
            f"{', '.join(CHECKS)}"
        )
    return names
