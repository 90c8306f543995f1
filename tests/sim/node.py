"""A storage node: the shipped agent, lease process, guard, sender and receiver on simulated parts.

A Node is the machine: power, clock, disk, kernel, service manager, network. A Seat is one volume
on it: its configuration, its services, and how their programs are put together.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from standfast.agent.command import Command
from standfast.agent.local_view import LocalView
from standfast.agent.loop import Agent
from standfast.agent.main import serve
from standfast.agent.watcher import Watcher
from standfast.config.model import Config
from standfast.config.node_name import keep_name
from standfast.errors import TimedOut, Unreachable
from standfast.fence.choice import settle
from standfast.lease import process as keeping
from standfast.lease.files import LeaseStatus, holder_of
from standfast.lease.holding import LeaseKeys
from standfast.lease.inbox import Answer, Inbox
from standfast.node.node import Consul, Machine
from standfast.replication.cycle import Sender
from standfast.replication.published import take
from standfast.role.decision import Decision
from standfast.role.plan import Do
from standfast.system.clock import Deadline
from standfast.system.locks import exclusive
from tests.sim.clockwork import NodeClock, Signal, SimEvent, SimProcess
from tests.sim.disk import SimDisk, SimStore, SimTree
from tests.sim.machine import Nfsd, PacketFilter, SimBind, SimFence, SimNfs
from tests.sim.model_consul import Link, SimConsul
from tests.sim.streams import SimConversation, serve_receiver
from tests.sim.systemd import (
    AGENT_RESTART_S,
    EXEC_S,
    LEASE_RESTART_S,
    SimSchedule,
    SimService,
    SimUnits,
    Systemd,
)

if TYPE_CHECKING:
    from tests.sim.world import SimWorld

BOOT_S = 1.0


@dataclass(slots=True, eq=False)
class SimInbox:
    """The lease process's socket, and the signal that ends it."""

    node: SimNode
    requests: deque[tuple[Mapping[str, Any], list[dict[str, Any] | None], Signal]] = field(
        default_factory=deque
    )
    listening: bool = False
    stopped: bool = False
    more: Signal = field(init=False)

    def __post_init__(self) -> None:
        self.more = Signal(self.node.world.clockwork)

    @contextlib.contextmanager
    def open(self) -> Iterator[Inbox]:
        self.requests.clear()
        self.listening, self.stopped = True, False
        try:
            yield self
        finally:
            self.close()

    def close(self) -> None:
        self.listening = False
        for _, reply, answered in self.requests:
            reply.append(None)
            answered.set()
        self.requests.clear()

    def stop(self) -> None:
        self.stopped = True
        self.more.set()

    def wait(self, patience_s: float, answer: Answer) -> bool:
        clockwork = self.node.world.clockwork
        clockwork.door()
        if not self.requests and not self.stopped:
            self.more.wait(clockwork.now + self.node.clock.real_s(max(patience_s, 0.0005)))
        if self.stopped:
            return False
        if self.requests:
            request, reply, answered = self.requests.popleft()
            reply.append(answer(request))
            answered.set()
        return True

    def ask(self, request: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
        """What `local_socket.ask` does, from another process."""
        clockwork = self.node.world.clockwork
        clockwork.take(0.001)
        if not self.listening:
            raise Unreachable("nobody answers at lease.sock")
        reply: list[dict[str, Any] | None] = []
        answered = Signal(clockwork)
        self.requests.append((dict(request), reply, answered))
        self.more.set()
        until = clockwork.now + self.node.clock.real_s(deadline.remaining_s())
        while not reply:
            if clockwork.now >= until:
                raise TimedOut("no whole line arrived in time")
            answered.wait(until)
        if reply[0] is None:
            raise Unreachable("the process at lease.sock ended without an answer")
        return reply[0]


class Connection:
    """The operator's end of a command to the agent."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.closed = False

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def sendall(self, data: bytes) -> None:
        self.said.append(data)

    @property
    def last(self) -> str:
        return self.said[-1].decode().strip() if self.said else ""


@dataclass(slots=True, eq=False)
class Seat:
    """One volume on one node."""

    node: SimNode
    config: Config
    agent_service: SimService = field(init=False)
    lease: SimService = field(init=False)
    inbox: SimInbox = field(init=False)
    agent: Agent | None = None
    timers: dict[str, float] = field(default_factory=dict)
    """Of each standby whose timer runs: since when."""
    cycles: dict[str, SimProcess] = field(default_factory=dict)
    copies: bool = True
    """False: no timer starts a cycle."""
    cut_before: Do | None = None
    """The power fails when this step is about to begin."""
    cut_after: Do | None = None
    failures: list[str] = field(default_factory=list)
    claimed_at: float = 0.0
    """When its last promotion began."""

    def __post_init__(self) -> None:
        node = self.node
        name = self.config.volume
        self.inbox = SimInbox(node)
        self.agent_service = SimService(
            node, f"agent@{name}", self._run_agent, AGENT_RESTART_S, always=True
        )
        self.lease = SimService(
            node,
            f"lease@{name}",
            self._run_lease,
            LEASE_RESTART_S,
            on_failure=lambda: node.systemd.ended(self),
        )

    @property
    def volume(self) -> str:
        return self.config.volume

    # Parts

    def client(self, timeout_s: float) -> SimConsul:
        return SimConsul(self.node, timeout_s)

    def store(self) -> SimStore:
        return SimStore(self.config.paths, self.node, self.volume)

    def fence(self) -> SimFence:
        directory = self.config.paths.run / "fence"
        return SimFence(self.node, self.config.nfs.port, directory, self.volume)

    def nfs(self) -> SimNfs:
        return SimNfs(self.node, self.volume)

    def sender(self) -> Sender:
        return Sender(self.config, self.store(), self.client(5.0))

    # Programs

    def _run_agent(self) -> None:
        """agent.main"""
        config = self.config
        clockwork = self.node.world.clockwork
        lock = config.run_dir / "agent.lock"
        with exclusive(lock, "another agent of this volume", Deadline.after(2)):
            keep_name(config)
            consul = cast(Consul, self.client(config.lease.request_timeout))
            machine = Machine(
                config=config,
                me=holder_of(config),
                consul=consul,
                store=self.store(),
                nfs=self.nfs(),
                fence=self.fence(),
                bind=SimBind(self.node, self.volume),
                units=SimUnits(self),
                sender=self.sender(),
                schedule=SimSchedule(self),
            )
            agent = Agent(
                machine,
                Watcher(config, consul),
                LocalView(machine),
                stopping=cast(Any, SimEvent(clockwork)),
                woken=cast(Any, SimEvent(clockwork)),
                answering=lambda doors, _deadline: self.node.world.answering(self.node, doors),
                volumes=lambda: [seat.config for seat in self.node.seats.values()],
            )
            self.agent = agent
            settle(config, machine.fence, machine.nfs)
            process = self.agent_service.process
            assert process is not None
            serve(agent, lambda _name, body: clockwork.begin_task(process, body))

    def _run_lease(self) -> None:
        """lease.process.main"""
        config = self.config
        lock = config.run_dir / "lease.lock"
        with exclusive(lock, "another lease process of this volume", Deadline.after(2.0)):
            keep_name(config)
            client = self.client(config.lease.request_timeout)
            keys = LeaseKeys(config, client, holder_of(config))
            fence, nfs = self.fence(), self.nfs()
            settle(config, fence, nfs)
            keeping.run(config, keys, fence, nfs, self.inbox.open())

    # The replication's timers

    def start_timers(self) -> None:
        """Those of the standbys of now; nothing happens to one that runs."""
        for standby in self.config.standbys:
            if standby not in self.timers:
                self.timers[standby] = self.node.world.now
                self._tick_in(1.0, standby, self.timers[standby])

    def stop_timers(self) -> None:
        for standby in self.config.standbys:
            self.timers.pop(standby, None)

    def _tick_in(self, seconds: float, standby: str, began: float) -> None:
        def tick() -> None:
            if self.timers.get(standby) != began or not self.node.powered:
                return
            self._tick_in(self.config.replication.interval, standby, began)
            running = self.cycles.get(standby)
            if self.copies and (running is None or running.dead):
                name = f"replicate@{self.volume}:{standby}"
                self.cycles[standby] = self.node.spawn(name, lambda: self.cycle(standby))

        self.node.after(seconds, tick)

    def cycle(self, standby: str) -> None:
        """One `standfast replicate`."""
        try:
            self.sender().cycle(standby)
        except Exception as error:
            self.note(f"cycle to {standby}: {error}")

    def snapshot(self, epoch: int) -> None:
        """One of this epoch, known as such, as a cycle takes it."""
        take(self.config, self.store(), epoch)

    def note(self, failure: str) -> None:
        self.failures.append(failure)
        self.node.world.log(f"{self.node.name}: {failure:.200}", detail=True)

    # What is known of it

    @property
    def decision(self) -> Decision | None:
        seen = None if self.agent is None else self.agent.seen
        return None if seen is None else seen.decision

    @property
    def live(self) -> SimTree | None:
        return self.node.disk.here.trees.get(self.config.paths.live)

    @property
    def serves(self) -> bool:
        """Whether a client that asks for this volume now gets an answer."""
        node = self.node
        return node.answers and self.volume in node.nfsd.table and self.live is not None

    @property
    def registered(self) -> str | None:
        """The epoch that the node's own Consul agent tells; None: it has no entry."""
        service = self.node.link.services.get(f"standfast-{self.volume}")
        return None if service is None else service.meta.get("epoch")

    def has(self, write: int) -> bool:
        """Whether a snapshot here holds this write."""
        base = f"{self.config.base}@"
        return any(
            tree.read_only and write in tree.writes
            for path, tree in self.node.disk.data.trees.items()
            if path.name.startswith(base) and ".staging" not in path.parts
        )

    def status(self) -> LeaseStatus | None:
        return LeaseStatus.load(self.config.run_dir)

    # What is done to it

    def ask(self, command: str, **arguments: object) -> Connection:
        """An operator's command to the agent; it is carried out later, if the agent lives."""
        connection = Connection()
        if self.agent is not None and self.agent_service.runs:
            request = {"command": command, "args": arguments}
            self.agent.commands.put(Command(cast(Any, connection), request))
        return connection

    def configure(self, config: Config) -> None:
        """A changed file, and the restarts that the guide names."""
        self.config = config
        for service in (self.agent_service, self.lease):
            if service.runs and service.process is not None:
                self.node.world.clockwork.kill(service.process)
                service.launch()


@dataclass(slots=True, eq=False)
class SimNode:
    """One machine."""

    world: SimWorld
    name: str
    address: str
    directory: Path
    clock: NodeClock
    disk: SimDisk
    link: Link
    rules: PacketFilter = field(default_factory=PacketFilter)
    nfsd: Nfsd = field(default_factory=Nfsd)
    systemd: Systemd = field(init=False)
    seats: dict[str, Seat] = field(default_factory=dict)
    binds: set[str] = field(default_factory=set)
    processes: list[SimProcess] = field(default_factory=list)
    powered: bool = False
    paused_until: float = 0.0
    down_since: float = 0.0
    boots: int = 0
    booted_at: float = 0.0
    """By its own clock."""
    taken: set[str] = field(default_factory=set)
    """Volumes at whose path somebody else mounted something."""
    busy: bool = False
    """Somebody has a file open to write through each of the bind mounts."""
    exec_s: float = EXEC_S
    watchdogs: bool = True
    """False: the service manager itself stands still."""
    var_error: int = 0
    """errno of every write to the state directory; 0: they succeed."""
    late_mount_s: float = 0.0
    """At the next boot the disk is mounted so long after the agent's start."""

    def __post_init__(self) -> None:
        self.systemd = Systemd(self)

    # One volume's, for a world that has one

    @property
    def seat(self) -> Seat:
        return next(iter(self.seats.values()))

    @property
    def config(self) -> Config:
        return self.seat.config

    @property
    def live(self) -> SimTree | None:
        return self.seat.live

    @property
    def decision(self) -> Decision | None:
        return self.seat.decision

    @property
    def serves(self) -> bool:
        return self.seat.serves

    @property
    def answers(self) -> bool:
        """Whether the server answers clients at all."""
        rules, now = self.rules, self.world.now
        return (
            self.nfsd.running
            and self.runs
            and not self.nfsd.broken
            and rules.lets_in(now)
            and rules.lets_out(now)
        )

    @property
    def runs(self) -> bool:
        return self.powered and self.world.now >= self.paused_until

    def disk_of(self, volume: str) -> SimTree | None:
        return self.seats[volume].live

    def asides(self, volume: str | None = None) -> dict[str, SimTree]:
        """What was kept aside, by name."""
        seat = self.seat if volume is None else self.seats[volume]
        live = seat.config.paths.live
        return {
            path.name: tree
            for path, tree in self.disk.data.trees.items()
            if path.parent == live.parent and path.name.startswith(f"{live.name}.")
        }

    def snapshots(self, volume: str | None = None) -> list[str]:
        """Names of what is published or taken here."""
        seat = self.seat if volume is None else self.seats[volume]
        base = seat.config.base
        return sorted(
            path.name
            for path in self.disk.data.trees
            if path.name.startswith(f"{base}@") and ".staging" not in path.parts
        )

    # An operator's words, for a world with one volume

    def ask(self, command: str, **arguments: object) -> Connection:
        return self.seat.ask(command, **arguments)

    def hand_to(self, name: str) -> Connection:
        return self.ask("switchover", to=name)

    # Power

    def boot(self) -> None:
        if self.powered:
            return
        self.boots += 1
        self.booted_at = self.clock.monotonic(self.world.now)
        self.powered = True
        run = self.directory / "run"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(parents=True)
        (run / "instance").write_text(f"{self.name}{self.boots}")
        (self.directory / "state").mkdir(exist_ok=True)
        self.rules.asks = self.rules.answers = False
        self.rules.open_until = 0.0
        self.world.log(f"{self.name}: boots")
        if self.late_mount_s:
            self.disk.unmount()
            self.after(self.late_mount_s, self.disk.mount)
            self.late_mount_s = 0.0
        else:
            self.disk.mount()
        for seat in self.seats.values():
            self.after(0.0, seat.agent_service.launch)
        self.after(BOOT_S, lambda: self.systemd.begin_nfs() and None)
        self._watchdog()

    def _watchdog(self) -> None:
        boot = self.boots

        def look() -> None:
            if self.powered and self.boots == boot and self.watchdogs:
                for seat in self.seats.values():
                    seat.lease.look_at_watchdog()
                self.after(5.0, look)

        self.after(5.0, look)

    def power_cut(self) -> None:
        if not self.powered:
            return
        self.world.log(f"{self.name}: power cut")
        self.powered = False
        self.down_since = self.world.now
        self.paused_until = 0.0
        for process in self.processes:
            self.world.clockwork.kill(process)
        self.processes = []
        for seat in self.seats.values():
            seat.agent = None
            seat.timers.clear()
            seat.inbox.close()
            seat.agent_service.forget()
            seat.lease.forget()
        self.systemd.job = None
        self.nfsd.running = False
        self.nfsd.table = {}
        self.binds.clear()
        self.taken.clear()
        for service in self.link.services.values():
            service.passing = False

    def spawn(
        self,
        name: str,
        body: Callable[[], object],
        ended: Callable[[SimProcess, BaseException | None], None] | None = None,
    ) -> SimProcess:
        process = SimProcess(f"{self.name}/{name}", self.clock, self)
        process.frozen_until = self.paused_until
        process.booted_at = self.booted_at
        if ended is not None:
            process.ended = ended
        if len(self.processes) > 40:
            self.processes = [process for process in self.processes if not process.dead]
        self.processes.append(process)
        return self.world.clockwork.start(process, body)

    def after(self, delay_s: float, what: Callable[[], object]) -> None:
        """An event of this machine's: not while it is paused, and not after a power cut."""
        boot = self.boots

        def event() -> None:
            if self.boots != boot or not self.powered:
                return
            if self.paused_until > self.world.now:
                self.world.clockwork.at(self.paused_until, event)
                return
            what()

        self.world.after(delay_s, event)

    def receive(self, conversation: SimConversation) -> SimProcess:
        volume = conversation._volume
        return self.spawn("receive", lambda: serve_receiver(self, volume, conversation),
                          lambda _process, _error: conversation.back.close())  # fmt: skip

    # Processes, as deeds treat them

    def start_agent(self, volume: str | None = None) -> None:
        seat = self.seat if volume is None else self.seats[volume]
        if self.powered and not seat.agent_service.runs:
            seat.agent_service.launch()

    def kill_agent(self, volume: str | None = None, *, again: bool = False) -> None:
        """kill -9; `again`: as its unit does, otherwise it stays away."""
        service = (self.seat if volume is None else self.seats[volume]).agent_service
        if again:
            service.killed()
        elif service.process is not None:
            service.wanted = False
            self.world.clockwork.kill(service.process)

    def kill_keeper(self, volume: str | None = None) -> None:
        """kill -9; the service manager starts it again."""
        seat = self.seat if volume is None else self.seats[volume]
        seat.lease.killed()

    def stop_keeper(self) -> None:
        """kill -9, and it stays away."""
        service = self.seat.lease
        if service.process is not None:
            service.wanted = False
            self.world.clockwork.kill(service.process)

    def freeze(self, service: SimService, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        if service.process is not None:
            self._freeze(service.process, seconds)

    def _freeze(self, process: SimProcess, seconds: float) -> None:
        process.frozen_until = max(process.frozen_until, self.world.now + seconds)

    def everybody_frozen(self) -> bool:
        """Nobody is left who could notice a flush: of some volume both processes stand still."""
        now = self.world.now
        return any(
            all(
                service.process is None
                or service.process.dead
                or service.process.frozen_until > now
                for service in (seat.lease, seat.agent_service)
            )
            for seat in self.seats.values()
        )

    def freeze_all(self, seconds: float) -> None:
        """All of user space stands still, the service manager with it; the kernel goes on."""
        for process in self.processes:
            self._freeze(process, seconds)
        for seat in self.seats.values():
            # systemd doesn't look at its watchdogs either, and gives each the whole time after.
            if seat.lease.watched_at is not None:
                seat.lease.watched_at = max(seat.lease.watched_at, self.world.now + seconds)

    def pause_vm(self, seconds: float, *, clock_stops: bool) -> None:
        """The hypervisor stops the machine; its kernel's timers stop with it or catch up."""
        self.paused_until = self.world.now + seconds
        self.freeze_all(seconds)
        self.down_since = self.world.now
        if clock_stops:
            if self.rules.open_until > self.world.now:
                self.rules.open_until += seconds
            # Nobody on this node reads the clock before the end of the pause.
            self.world.after(0.0, lambda: self._stop_clock(seconds))

    def _stop_clock(self, seconds: float) -> None:
        self.clock.stopped_s += seconds
