"""A node's service manager: what starts and ends processes, and what follows from their end.

Services with the restarts and limits of the shipped unit files, the timers of the replication, and
the NFS server's unit, which asks the shipped guard before each start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from standfast import guard
from standfast.config.model import Config
from standfast.errors import CommandFailed, Refused, StandfastError, TimedOut
from standfast.lease import cutoff
from standfast.lease.files import NOTHING_HELD
from standfast.system.clock import Deadline
from tests.sim.clockwork import Signal, SimProcess

if TYPE_CHECKING:
    from tests.sim.node import Seat, SimNode

AGENT_RESTART_S = 0.5
LEASE_RESTART_S = 0.1
LEASE_BURST, LEASE_INTERVAL_S = 5, 60.0
WATCHDOG_S = 30.0
STOP_S = 10.0
EXEC_S = 0.15
"""From a start to the program's first own step."""


@dataclass(slots=True, eq=False)
class SimService:
    """One service: `body` is the program's own main function."""

    node: SimNode
    name: str
    body: Callable[[], object]
    restart_s: float
    always: bool = False
    """Restart=always without a limit; otherwise on-failure, with the lease unit's limit."""
    on_failure: Callable[[], None] = lambda: None
    wanted: bool = False
    process: SimProcess | None = None
    ready: bool = False
    stopping: bool = False
    watched_at: float | None = None
    """When the program last said that it lives; None: it never did."""
    starts: list[float] = field(default_factory=list)
    error: BaseException | None = None
    masked: bool = False
    """No start succeeds that a program asks for; one that runs goes on."""
    changed: Signal = field(init=False)

    def __post_init__(self) -> None:
        self.changed = Signal(self.node.world.clockwork)

    @property
    def runs(self) -> bool:
        return self.process is not None and not self.process.dead

    def launch(self) -> bool:
        """Start the program, unless it runs; False: the start limit is reached."""
        if self.runs:
            return True
        now = self.node.world.now
        if not self.always:
            self.starts = [at for at in self.starts if now - at < LEASE_INTERVAL_S]
            if len(self.starts) >= LEASE_BURST:
                self.wanted = False
                self.on_failure()
                return False
            self.starts.append(now)
        self.wanted, self.ready, self.stopping, self.error = True, False, False, None
        self.watched_at = None

        def body() -> None:
            self.node.world.clockwork.take(self.node.exec_s)
            self.body()

        self.process = self.node.spawn(self.name, body, self._ended)
        return True

    def _ended(self, _process: SimProcess, error: BaseException | None) -> None:
        self.error = error
        self.changed.set()
        if error is not None:
            self.node.world.log(f"{self.node.name}: {self.name} ended: {error!r:.300}")
        if self.stopping or not self.wanted:
            self.wanted = False
            return
        refused = isinstance(error, StandfastError) and error.exit_code in (1, 2)
        if self.always or (error is not None and not refused):
            self._again()
            return
        self.wanted = False
        if error is not None:
            self.on_failure()

    def _again(self) -> None:
        boot = self.node.boots

        def start() -> None:
            if self.node.boots == boot and self.node.powered and self.wanted and not self.runs:
                self.launch()

        self.node.after(self.restart_s, start)

    def killed(self) -> None:
        """kill -9 by somebody; systemd starts it again."""
        if self.process is not None and self.runs:
            self.node.world.clockwork.kill(self.process)
            self.changed.set()
            self._again()

    def look_at_watchdog(self) -> None:
        watched_at, now = self.watched_at, self.node.world.now
        if self.runs and watched_at is not None and now - watched_at > WATCHDOG_S:
            self.node.world.log(f"{self.node.name}: the watchdog kills {self.name}")
            self.killed()

    def forget(self) -> None:
        """The machine went down with it."""
        self.wanted = self.ready = False
        self.process = None
        self.starts = []

    # systemctl, called by a program

    def start(self, deadline: Deadline) -> None:
        self.node.world.clockwork.take(0.02)
        if self.masked and not self.runs:
            raise CommandFailed(f"Unit {self.name} is masked.", returncode=1)
        if not self.runs and not self.launch():
            raise CommandFailed(f"{self.name}: start request repeated too quickly", returncode=1)
        until = self._until(deadline)
        while not self.ready:
            if not self.runs and not (self.wanted and self.error is None):
                raise CommandFailed(f"Job for {self.name} failed: {self.error}", returncode=1)
            if self.node.world.now >= until:
                raise TimedOut(f"systemctl start {self.name}: the deadline passed")
            self.changed.wait(min(until, self.node.world.now + 0.5))

    def stop(self, deadline: Deadline, ask: Callable[[], None]) -> None:
        """`ask` is SIGTERM; SIGKILL follows."""
        clockwork = self.node.world.clockwork
        clockwork.take(0.02)
        self.stopping, self.wanted = True, False
        if not self.runs:
            return
        ask()
        until = min(self._until(deadline), clockwork.now + STOP_S)
        while self.runs and clockwork.now < until:
            self.changed.wait(until)
        if self.runs and self.process is not None:
            clockwork.kill(self.process)
            clockwork.check()

    def _until(self, deadline: Deadline) -> float:
        return self.node.world.now + self.node.clock.real_s(deadline.remaining_s())


@dataclass(slots=True, eq=False)
class NfsJob:
    """A start of the NFS server: it goes on when whoever asked for it is gone."""

    process: SimProcess | None = None
    done: bool = False
    error: StandfastError | None = None


@dataclass(slots=True, eq=False)
class Systemd:
    node: SimNode
    job: NfsJob | None = None
    changed: Signal = field(init=False)

    def __post_init__(self) -> None:
        self.changed = Signal(self.node.world.clockwork)

    # The NFS server

    def start_nfs(self, deadline: Deadline) -> None:
        """Refused with the guard's words; nobody is asked when it runs already."""
        world = self.node.world
        world.clockwork.take(0.02)
        if self.node.nfsd.running:
            return
        job = self.begin_nfs()
        until = world.now + self.node.clock.real_s(deadline.remaining_s())
        while not job.done:
            if world.now >= until:
                raise TimedOut("systemctl start nfs-server: the deadline passed")
            self.changed.wait(until)
        if job.error is not None:
            raise job.error

    def begin_nfs(self) -> NfsJob:
        """Queue the start, or join the one that is under way."""
        if self.job is not None and not self.job.done:
            return self.job
        job = self.job = NfsJob()
        job.process = self.node.spawn("nfs-server", lambda: self._start(job))
        return job

    def _start(self, job: NfsJob) -> None:
        try:
            if self.node.nfsd.masked:
                raise CommandFailed("Unit nfs-server.service is masked.", returncode=1)
            self._ask_guard()
            node = self.node
            node.world.clockwork.take(node.nfsd.start_s)
            if node.nfsd.broken:
                raise CommandFailed("rpc.nfsd: it failed", returncode=1)
            node.nfsd.running = True
            node.nfsd.starts += 1
            node.nfsd.table = dict(node.nfsd.files)
        except StandfastError as error:
            job.error = error
        finally:
            job.done = True
            self.changed.set()

    def _ask_guard(self) -> None:
        """The handler: one deadline for everything, whatever it waits for."""
        configs = [seat.config for seat in self.node.seats.values()]
        deadline = Deadline.after(min(config.guard.deadline for config in configs))
        early = Deadline(deadline.at - guard.TO_SAY_WHY_S)
        try:
            guard.node_verdict(configs, early, self._question)
        except Refused as refusal:
            self.node.world.log(f"{self.node.name}: guard: {refusal.reason}: {refusal!s:.160}")
            raise
        if deadline.expired:
            raise guard.refusal(TimedOut("no answer in time"))

    def _question(self, config: Config, deadline: Deadline) -> guard.Question:
        seat = self.node.seats[config.volume]
        world = self.node.world
        return guard.Question(
            config,
            seat.client(config.lease.request_timeout),  # type: ignore[arg-type]
            seat.store(),
            seat.fence(),
            seat.nfs(),
            lambda doors, _deadline: world.answering(self.node, doors),
            deadline,
        )

    def cancel_nfs(self) -> None:
        job = self.job
        if job is not None and not job.done and job.process is not None:
            self.node.world.clockwork.kill(job.process)
            job.error = CommandFailed("Job for nfs-server canceled", returncode=1)
            job.done = True
            self.changed.set()

    def ended(self, seat: Seat) -> None:
        """standfast-ended@V: stops nothing where nothing was held."""
        if not (seat.config.run_dir / NOTHING_HELD).exists():
            self.lost(seat)

    def lost(self, seat: Seat) -> None:
        """standfast-lost@V: conflicts with the NFS server, then shuts the port."""

        def body() -> None:
            node = self.node
            self.cancel_nfs()
            node.world.clockwork.take(min(node.nfsd.stop_s, 30.0))
            if not node.nfsd.stuck:
                node.nfsd.running = False
                node.nfsd.table = {}
            limit = Deadline.after(seat.config.nfs.start_timeout)
            cutoff.stop_for_good(seat.fence(), seat.nfs(), limit)

        self.node.world.log(f"{self.node.name}: standfast-lost@{seat.volume}")
        self.node.spawn(f"lost@{seat.volume}", body)


@dataclass(slots=True, eq=False)
class SimUnits:
    """The lease unit of one volume, as the agent starts and stops it."""

    seat: Seat

    def reset_failed(self, unit: str, deadline: Deadline) -> None:
        self.seat.node.world.clockwork.take(0.02)
        self.seat.lease.starts.clear()

    def start(self, unit: str, deadline: Deadline) -> None:
        self.seat.lease.start(deadline)

    def stop(self, unit: str, deadline: Deadline) -> None:
        self.seat.lease.stop(deadline, self.seat.inbox.stop)

    def is_active(self, unit: str) -> bool:
        return self.seat.lease.runs

    def obstacle(self, unit: str) -> str | None:
        self.seat.node.world.clockwork.take(0.02)
        return f"{unit} is masked" if self.seat.lease.masked else None


@dataclass(slots=True, eq=False)
class SimSchedule:
    """The replication's timers."""

    seat: Seat

    def start(self) -> None:
        self.seat.node.world.clockwork.take(0.01)
        self.seat.start_timers()

    def stop(self) -> None:
        self.seat.node.world.clockwork.take(0.01)
        self.seat.stop_timers()
