"""One round of following: look, decide, act; called again and again by a thread of the agent.

Invariants: nothing here keeps the storage from moving; what failed is done by a later round, from
a fresh look. While a demotion has this node's jobs stopped, a round doesn't bring them back.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from standfast.config.load import load
from standfast.config.model import Config
from standfast.consul.blindness import blindness
from standfast.consul.ports import Keys
from standfast.errors import (
    ConfigError,
    ConsulError,
    NomadError,
    Refused,
    StandfastError,
    TimedOut,
    ours,
)
from standfast.nomad.constraints import PRIMARY, Meta
from standfast.nomad.decide import CHANGING, Decision, decide
from standfast.nomad.downtime import Downtimes, Stopped, by_job
from standfast.nomad.notes import Notes
from standfast.nomad.observation import Noted, Observed, Role, constrained_of
from standfast.nomad.ports import Allocation, Node, NomadGateway
from standfast.nomad.reports import Report
from standfast.nomad.steps import AWAY, Steps
from standfast.reasons import Reason
from standfast.system.clock import Deadline, monotonic

log = logging.getLogger(__name__)

QUICK_S = 1.0
SLOW_S = 10.0
# Rounds that come quickly while something is on its way; then it takes longer than it should.
QUICK_ROUNDS = 90
THOROUGH_EVERY_S = 60.0
WHY_EVERY = 5
# Beyond the kill timeouts, for the calls of a release.
RELEASE_SLACK_S = 10.0


@dataclass(slots=True)
class Follower:
    """Makes one volume's jobs on this node's Nomad follow the role."""

    config: Config
    nomad: NomadGateway
    consul: Keys
    notes: Notes = field(init=False)
    steps: Steps = field(init=False)
    downtimes: Downtimes = field(default_factory=Downtimes)
    released: bool = False
    """A demotion has stopped the jobs here, or is about to; until its plan ends."""
    release_failed: tuple[str, ...] = ()
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _thorough_at: float = float("-inf")
    _unsettled: int = 0
    _last: tuple[Role, int] | None = None

    def __post_init__(self) -> None:
        self.notes = Notes(self.config, self.consul)
        self.steps = Steps(self.nomad, self.notes, self.meta, self.downtimes)

    @property
    def meta(self) -> Meta:
        return Meta(self.config.nomad.meta_key, PRIMARY)

    # One round

    def round(self, role: Role, epoch: int, still: Callable[[], bool] = lambda: True) -> Report:
        """Runs one round. A failure of Nomad or Consul is a report, not an exception.

        `still` says whether the node has that role in that epoch: what was decided before it
        changed is not done after it.
        """
        with self._lock:
            if role is Role.PRIMARY and self.released:
                role = Role.CHANGING
            if (role, epoch) != self._last:
                self._last, self._thorough_at, self._unsettled = (role, epoch), float("-inf"), 0
                if role is Role.PRIMARY:
                    self.downtimes.forget()
            try:
                report = self._round(role, epoch, still)
            except Exception as failure:  # noqa: BLE001  # a report, too
                error = ours(failure)
                report = Report(
                    role=role, reason=reason_of(error), sentence=str(error), settled=False
                )
            self._unsettled = 0 if report.settled else self._unsettled + 1
            return replace(report, jobs=tuple(self.downtimes.known.values()))

    def _round(self, role: Role, epoch: int, still: Callable[[], bool]) -> Report:
        if role is Role.CHANGING:
            said = CHANGING.sentence
            return Report(role=role, reason=CHANGING.reason, sentence=said, settled=True)
        seen = self.look(role)
        decision = decide(seen)
        done, failed = self._act(decision, role, epoch, still)
        if self.downtimes.pending and self._unsettled % WHY_EVERY == WHY_EVERY - 1:
            self.downtimes.ask_why(self.nomad)
        return Report(
            role=role,
            reason=decision.reason,
            sentence=decision.sentence,
            settled=decision.settled and not self.downtimes.pending,
            done=done,
            failed=(*self.release_failed, *failed),
        )

    def pause_s(self, report: Report) -> float:
        """Returns the seconds until the next round."""
        if report.role is Role.CHANGING:
            return QUICK_S
        # A refused connection costs nothing, and at boot each second counts.
        quick = not report.settled and self._unsettled <= QUICK_ROUNDS
        quick = quick and report.reason is not Reason.NOMAD_TIMEOUT
        return QUICK_S if quick else SLOW_S

    def look(self, role: Role) -> Observed:
        """Reads what the servers and the own agent say; allocations only where they may matter."""
        config, nomad, meta = self.config, self.nomad, self.meta
        noted = self.notes.load()
        own = nomad.own_node()
        names = [name for name in config.nodes if name != own.name]
        others = (
            () if role is not Role.PRIMARY and not self.downtimes.pending else nomad.nodes(names)
        )
        others = tuple(node for node in others if node.id != own.id)
        local = nomad.local_meta().meta.get(meta.key) == meta.value
        seen = Observed(role, meta, own, local, others, noted)
        now = monotonic()
        unsettled = self._unsettled > 0 or self.downtimes.pending
        if unsettled or now - self._thorough_at >= THOROUGH_EVERY_S:
            self._thorough_at = now
            seen = self._with_allocations(seen)
        # The primary may be making this node ineligible at this moment: half of that is no picture.
        if _index(self.notes.load(), own) != _index(noted, own):
            raise Refused(
                Reason.NOMAD_ROLE_CHANGING,
                f"{own.name}'s note in Consul changed while Nomad was read",
            )
        return seen

    def _with_allocations(self, seen: Observed) -> Observed:
        nodes = {node.id: node for node in (seen.own, *seen.others)}
        allocations = {node_id: tuple(self.nomad.allocations(node_id)) for node_id in nodes}
        constrained = tuple(
            job
            for node_id, those in allocations.items()
            for allocation in those
            if (job := constrained_of(allocation, seen.meta, nodes[node_id])) is not None
        )
        if seen.role is Role.PRIMARY:
            for job in constrained:
                if job.node_id != seen.own.id:
                    self.downtimes.begin(Stopped(job, monotonic(), ""), nodes[job.node_id])
        self._arrived(nodes, allocations, seen)
        return dataclasses.replace(seen, constrained=constrained)

    def _arrived(
        self,
        nodes: Mapping[str, Node],
        allocations: Mapping[str, tuple[Allocation, ...]],
        seen: Observed,
    ) -> None:
        for downtime in self.downtimes.look(by_job(nodes, allocations, seen.shows)):
            log.info(
                "%s runs on %s, %.1f s after it was stopped on %s",
                downtime.job,
                downtime.target,
                downtime.down_s,
                downtime.source,
            )

    def _act(
        self, decision: Decision, role: Role, epoch: int, still: Callable[[], bool]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Executes the steps in their order; after a failed one it skips those of the same node."""
        done: list[str] = []
        failed: list[str] = []
        spoilt: set[str] = set()
        for step in decision.steps:
            if self.released and role is Role.PRIMARY:
                break  # a demotion waits for the lock
            if not still():
                break  # the look took so long that a role changed meanwhile
            where = "" if step.node is None else step.node.id
            if where in spoilt:
                continue
            try:
                self.steps.execute(step, epoch if role is Role.PRIMARY else 0)
            except (NomadError, Refused) as error:
                log.warning("nomad: %s: %s", step.says, error)
                failed.append(f"{step.says}: {error}")
                spoilt.add(where)
                if isinstance(error, NomadError) and error.outcome in AWAY:
                    raise
                continue
            log.info("nomad: %s", step.says)
            done.append(step.says)
        return tuple(done), tuple(failed)

    # A switchover, a demotion

    def prepare(self, name: str, epoch: int, deadline: Deadline) -> str:
        """Prepares node `name` for a switchover, while this node serves; returns the result in a
        sentence, or raises StandfastError."""
        return self.steps.prepare(name, epoch, deadline)

    def release(self, deadline: Deadline) -> None:
        """Stops the jobs before the storage goes; StandfastError when some may not have ended."""
        self.released = True
        if not self._lock.acquire(timeout=max(0.0, deadline.remaining_s())):
            raise TimedOut(
                "the last round of following Nomad doesn't end: its jobs were not stopped"
            )
        try:
            self.downtimes.forget()
            self._thorough_at = float("-inf")  # should the role stay, what is ending is looked for
            self.release_failed = ()
            outcome = self.steps.release(self.config.nomad.kill_timeout_limit, deadline)
            for stopped in outcome.stopped:
                self.downtimes.begin(stopped, outcome.node)
        except StandfastError as error:
            self.release_failed = (f"the jobs were not stopped in order: {error}",)
            raise
        finally:
            self._lock.release()
        if outcome.failed:
            self.release_failed = tuple(outcome.failed)
            raise StandfastError("; ".join(outcome.failed))

    def release_limit_s(self) -> float:
        """Returns how long a release may take at most, seconds."""
        return self.config.nomad.kill_timeout_limit + RELEASE_SLACK_S

    def resume(self) -> None:
        """Ends the plan, whether it succeeded or failed."""
        self.released = False


def reason_of(error: StandfastError) -> Reason:
    """Returns the code of the error that ended a round."""
    if isinstance(error, NomadError):
        return Reason(f"nomad-{error.outcome}")
    if isinstance(error, ConsulError):
        return blindness(error).reason
    if isinstance(error, Refused):
        return error.reason
    return Reason.UNEXPECTED


def _index(notes: Mapping[str, Noted], node: Node) -> int:
    """Returns the ModifyIndex of a node's note; 0 when there is none."""
    noted = notes.get(node.id)
    return 0 if noted is None else noted.index


def refuse_conflicts(config: Config) -> None:
    """Raises ConfigError when another volume of this node has the same nomad.meta_key.

    A standby of one volume would unset what the primary of the other sets, and stop its jobs.
    """
    for path in sorted(config.source.parent.glob("*.toml")):
        if path.stem == config.volume:
            continue
        try:
            other = load(path, require_storage=False)
        except ConfigError:
            continue  # that one isn't followed either
        if other.nomad.enabled and other.nomad.meta_key == config.nomad.meta_key:
            raise ConfigError(
                f"{config.volume} and {other.volume} both have nomad.meta_key = "
                f'"{config.nomad.meta_key}": give one of them another key, and its jobs the '
                "constraint that goes with it"
            )
