"""`standfast-agent@V.service`: look, decide, act; one thread, one plan at a time.

Invariants: every action follows from a decision made on what was just read; an event only makes
the next look come sooner. A cut at any point is repaired by the next look.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from standfast.agent.announcer import Announcer
from standfast.agent.command import Command
from standfast.agent.fence import FenceWatch
from standfast.agent.inspector import Inspector
from standfast.agent.local_view import LocalView
from standfast.agent.watcher import Watcher
from standfast.config.model import Config
from standfast.consul.blindness import Blind
from standfast.consul.leadership import Leadership
from standfast.consul.records import CandidateRecord
from standfast.errors import ours
from standfast.lease.pauses import PauseWatch
from standfast.node.node import Machine
from standfast.node.other_server import Answering, nobody
from standfast.reasons import Reason
from standfast.role.ahead.inspection import Scene
from standfast.role.decide import decide
from standfast.role.decision import NO_REQUEST, Action, Decision, Moment, Request
from standfast.role.execute import execute
from standfast.role.observation import Cluster, Local
from standfast.role.plan import Plan, plan_for
from standfast.role.steps import Effects
from standfast.system.clock import Deadline, monotonic, utc_now
from standfast.system.locks import exclusive

log = logging.getLogger(__name__)

TICK_S = 1.0
PATIENCE_S = 360.0
"""Longer than the longest wait of a look, or of a step that goes by no plan's deadline (btrfs' 300
s)."""
BACK_OFF_S = (1.0, 2.0, 5.0, 15.0)


# While Consul is in such a state no primary can heartbeat, alive or not.
UNHOLDABLE = (Reason.EPOCH_WENT_BACK, Reason.EPOCH_MISSING, Reason.LEADER_MISSING)


def now() -> Moment:
    return Moment(monotonic(), utc_now())


@dataclass(frozen=True, slots=True)
class Seen:
    """Holds one look and what it led to: what `status` shows."""

    view: Cluster | Blind
    local: Local
    decision: Decision
    at: Moment


@dataclass(slots=True)
class Agent:
    """Holds the loop's state between two looks."""

    machine: Machine
    watcher: Watcher
    local: LocalView
    commands: queue.SimpleQueue[Command] = field(default_factory=queue.SimpleQueue)
    stopping: threading.Event = field(default_factory=threading.Event)
    woken: threading.Event = field(default_factory=threading.Event)
    seen: Seen | None = None
    busy: str | None = None
    """What is being done right now, for `status`."""
    trouble: str | None = None
    failures: int = 0
    retry_at: float = 0.0
    sick: str | None = None
    hidden: str | None = None
    """Why Consul tells nobody of this node's service, as it serves or as it would."""
    unkept: str | None = None
    """Why the last turn of upkeep failed."""
    unshut: str | None = None
    """Why upkeep could not put the fence's rules in place, when it last tried."""
    scheduled_at: float | None = float("-inf")
    """When the replication timers were last seen to; None: they don't run. Unknown at first."""
    mended_at: float = float("-inf")
    """When the daemons that the server needs were last seen to."""
    leadership: Leadership = field(default_factory=Leadership)
    since: float = field(default_factory=monotonic)
    """When this process began: of what was before it only the files tell."""
    moved_at: float = field(default_factory=monotonic)
    """When a look, a step or a plan ended last, well or not: one that fails doesn't hang."""
    effects: Effects | None = None
    """Of the plan that is being carried out: its deadline changes on the way."""
    told: CandidateRecord | None = None
    told_at: float = 0.0
    """The last word on whether this node could take over, and when it was written."""
    announcer: Announcer = field(init=False)
    fence: FenceWatch = field(init=False)
    pauses: PauseWatch = field(init=False)
    answering: Answering = nobody
    """Tells where another server answers."""
    volumes: Callable[[], Sequence[Config]] = tuple
    """Reads the configurations of all volumes that are stored here, as the guard will."""
    program: Sequence[str] = ()
    """What starts `standfast` here, for requests that are a program's work; empty: nothing does."""
    inspector: Inspector = field(init=False)

    def __post_init__(self) -> None:
        self.announcer = Announcer(self.machine.config)
        self.fence = FenceWatch(self.machine)
        self.pauses = PauseWatch(self.config, self.machine.consul)
        self.inspector = Inspector(self._scene)

    @property
    def config(self) -> Config:
        return self.machine.config

    def overdue_at(self) -> float:
        """Returns when the loop has broken its word: what it does now has been over for certain.

        A step has the deadline of its plan, or the hooks' one, or less time than PATIENCE_S."""
        effects = self.effects
        plan_at = self.moved_at if effects is None else effects.deadline.at
        return max(plan_at, self.moved_at + self.config.hooks.timeout) + PATIENCE_S

    def _scene(self) -> Scene | None:
        seen = self.seen
        if seen is None:
            return None
        asks, volumes = self.answering, self.volumes
        return Scene(self.machine, seen.view, seen.local, seen.at, asks, volumes, self.unshut)

    def look(
        self, wait_s: float = 0.0, *, fresh: bool = False, request: Request = NO_REQUEST
    ) -> Seen:
        """Reads, remembers the epoch, decides; whatever can't be understood is raised."""
        try:
            seen = self._seen(wait_s, fresh=fresh, request=request)
        finally:
            self.moved_at = monotonic()
        if seen.decision.reason in UNHOLDABLE:
            self.watcher.distrust()
        before = self.seen.decision if self.seen is not None else None
        if before is None or before.reason != seen.decision.reason:
            if seen.decision.action is Action.BLOCKED and request == NO_REQUEST:
                self.announcer.blocked(seen.decision)
            else:
                log.info("%s: %s", seen.decision.reason, seen.decision.sentence)
        self.seen = seen
        self._look_ahead(seen)
        return seen

    def _look_ahead(self, seen: Seen) -> None:
        """Has the inspector look once more when the primary falls silent, while there is nothing
        but waiting to do: who learns of an obstacle with the lease in its hands keeps it from
        others."""
        if isinstance(seen.view, Blind) or seen.decision.action is not Action.WAIT:
            return
        if self.inspector.wanted_at < seen.view.last_heartbeat.first_seen:
            self.inspector.want()

    def _seen(self, wait_s: float, *, fresh: bool, request: Request) -> Seen:
        view = self.watcher.look(wait_s, fresh=fresh)
        if isinstance(view, Cluster) and view.epoch is not None:
            self.local.note_epoch(view.epoch)
        local = replace(self.local.look(fresh=fresh), obstacles=self.inspector.barring)
        moment = now()
        return Seen(view, local, decide(view, local, self.config, moment, request), moment)

    def step(self) -> None:
        """Looks once and does what follows from it."""
        due = Deadline.after(self._pause_s())
        seen = self.look(due.remaining_s())
        if isinstance(seen.view, Blind):
            # A refused connection is no wait for a change: it would be asked again at once.
            self.stopping.wait(due.remaining_s())
        if plan_for(seen.decision, self.config) is None:
            self.failures, self.retry_at, self.trouble = 0, 0.0, None
        elif monotonic() >= self.retry_at:
            self._attempt(self.look(fresh=True))
        self.woken.clear()

    def _pause_s(self) -> float:
        if not self.commands.empty() or self.woken.is_set():
            return 0.0
        if self.seen is not None and self.seen.decision.action is Action.WAIT:
            return min(TICK_S, self.config.lease.heartbeat) / 4
        return TICK_S

    def _attempt(self, seen: Seen) -> None:
        try:
            self.carry_out(seen)
        except Exception as error:  # noqa: BLE001  # tried again, whatever it was
            self.failures += 1
            pause_s = BACK_OFF_S[min(self.failures, len(BACK_OFF_S)) - 1]
            self.retry_at = monotonic() + pause_s
            self.trouble = str(ours(error))
            log.info("trying again in %g s", pause_s)
        else:
            self.failures, self.retry_at, self.trouble = 0, 0.0, None

    def carry_out(
        self,
        seen: Seen,
        *,
        operator: str | None = None,
        note: str | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Runs the plan of a decision; Refused, StepFailed."""
        plan = plan_for(seen.decision, self.config)
        if plan is None:
            return
        last_heartbeat = seen.view.last_heartbeat if isinstance(seen.view, Cluster) else None
        if isinstance(seen.view, Cluster) and seen.view.leader is not None:
            note = note or seen.view.leader.note
            operator = operator or seen.view.leader.operator or None
        effects = Effects(self.machine, seen.decision, last_heartbeat, operator, note)
        self.run_plan(plan, effects, progress)

    def run_plan(
        self, plan: Plan, effects: Effects, progress: Callable[[str], None] | None = None
    ) -> None:
        """Runs any plan under the volume's lock, saying where it is."""

        def say(text: str) -> None:
            self.busy, self.moved_at = text, monotonic()
            log.info("%s", text)
            if progress is not None:
                progress(text)

        effects.say, self.effects = say, effects
        lock = self.config.run_dir / "plan.lock"
        plan_report = self.announcer.plan_report(plan, effects)
        try:
            with exclusive(lock, "another change of the role", Deadline.after(5.0)):
                plan_report.begun()
                execute(plan, effects.table(), say, plan_report.reached)
            plan_report.ended()
        except Exception as error:
            failure = ours(error)
            plan_report.failed(failure)
            if failure is error:
                raise  # one that causes itself has no end
            raise failure from error
        finally:
            self.moved_at, self.busy, self.effects = monotonic(), None, None
            if self.machine.jobs is not None:
                self.machine.jobs.resume()
