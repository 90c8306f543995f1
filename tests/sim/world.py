"""Two or three storage nodes, a Consul, clients that write, and the invariants that must hold.

`with World(tmp_path) as world:` puts the program on virtual time. After each event it is looked at
who serves; at each transaction that epochs only grow and have one owner; at each promotion where
its data comes from (see `invariants`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from unittest.mock import patch

from msgspec.structs import replace

from standfast.config.model import Config, Hooks, KeepOwn, KeepPublished, LeaseTiming, Replication
from standfast.config.model import Node as NodeConfig
from standfast.consul.gateway import Entry
from standfast.consul.records import CandidateRecord, HistoryEntry, Hold, Leader, Pause, parse_epoch
from standfast.errors import StandfastError
from standfast.node.other_server import DOORS_S, Door
from standfast.role.decision import Action
from tests.sim.clockwork import UTC_START, Clockwork, NodeClock, SimProcess, Violation
from tests.sim.disk import SimDisk, SimTree, paths_of
from tests.sim.doors import entered, run_accept_epoch
from tests.sim.invariants import Invariants
from tests.sim.model_consul import ConsulFault, ConsulStore, Link, Saved
from tests.sim.node import Connection, Seat, SimNode
from tests.sim.systemd import EXEC_S

CRITICAL_AFTER_S = 6.0
WRITE_EVERY_S = 0.5
INTERVAL_S = 5.0
FAST = LeaseTiming(heartbeat=0.5, request_timeout=0.5, length=2.0, fence=1.0, wait=4.1, drift=0.01)
VOLUMES = {"data": "services", "media": "films"}
"""Volume -> base name of its live subvolume."""


class SimWorld:
    def __init__(
        self,
        directory: Path,
        names: Sequence[str] = ("a", "b", "c"),
        *,
        volumes: Sequence[str] = ("data",),
        timing: LeaseTiming | None = None,
        timings: Mapping[str, LeaseTiming] | None = None,
        rates: Sequence[float] = (1.0, 1.0, 1.0),
        mode: str = "auto",
        failover_cooldown_s: float = 0.0,
        max_data_loss_s: float = 600.0,
        seed: int = 1,
    ) -> None:
        self.rng = random.Random(seed)
        self.clockwork = Clockwork()
        self.store = ConsulStore(self.clockwork)
        self.cut_ways: set[tuple[str, str]] = set()
        """(from, to): packets that way don't arrive."""
        self.removed: set[str] = set()
        self.lines: list[tuple[float, str, bool]] = []
        self.copy_s = 0.2
        self.copies_held = False
        """No stream arrives whole until this ends."""
        self.nodes: dict[str, SimNode] = {}
        self.volumes = tuple(volumes)
        self.timing = timing or LeaseTiming()
        self.lasting = ""
        self._bugs: list[Exception] = []
        """What the program itself takes for a fault of its own: it tells it, and goes on."""
        """A node whose faults of disk and server are there to stay."""
        self.seed = seed
        self._directory = directory
        self._disks: dict[Path, SimDisk | None] = {}
        self._stack = ExitStack()
        self.writing = True
        self.invariants = Invariants(self)
        self.store.on_commit = self.invariants.committed
        self.clockwork.after_event = self.invariants.look
        self.clockwork.on_crash = self._crashed
        self.clockwork.on_stall = lambda process, seconds: self.log(
            f"{process.name} stands still for {seconds:g} s"
        )
        for number, name in enumerate(names):
            clock = NodeClock(rates[number], origin=1000.0 * number)
            self._add(name, number, clock)
        for name in names:
            timing_here = (timings or {}).get(name) or timing or LeaseTiming()
            for volume in volumes:
                config = Config(
                    volume=volume,
                    source=directory / f"{volume}.toml",
                    cluster="sim",
                    node=name,
                    mode=mode,
                    failover_cooldown=failover_cooldown_s,
                    max_data_loss=max_data_loss_s,
                    nodes={n: NodeConfig(address=node.address) for n, node in self.nodes.items()},
                    lease=timing_here,
                    replication=Replication(interval=INTERVAL_S),
                    hooks=Hooks(dir=directory / "no-hooks"),
                    paths=paths_of(directory / name, VOLUMES[volume]),
                )
                self.nodes[name].seats[volume] = Seat(self.nodes[name], config)

    def _add(self, name: str, number: int, clock: NodeClock) -> SimNode:
        home = self._directory / name
        node = SimNode(
            self,
            name,
            f"10.0.0.{number + 1}",
            home,
            clock,
            SimDisk(home / "persist", f"disk-{name}"),
            Link(self.clockwork, self.store),
        )
        node.disk.root.mkdir(parents=True)
        self.nodes[name] = node
        return node

    def __enter__(self) -> SimWorld:
        self._stack.enter_context(entered(self))
        self._stack.enter_context(patch("standfast.errors._tell_bug", self._bugs.append))
        state = random.getstate()
        random.seed(self.seed)
        self._stack.callback(random.setstate, state)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Whatever still waits is unwound, so that its locks and files are closed.
        self.clockwork.after_event = lambda: None
        for node in self.nodes.values():
            for process in node.processes:
                self.clockwork.kill(process)
        self.clockwork.run_until(self.now)
        self._stack.close()

    def __getitem__(self, name: str) -> SimNode:
        return self.nodes[name]

    def node_named(self, name: str) -> SimNode:
        """By the name in a configuration, which somebody may have changed."""
        return self.nodes[name.removesuffix("-renamed")]

    def _crashed(self, process: SimProcess, error: BaseException, text: str) -> None:
        if "/agent@" in process.name and not isinstance(error, StandfastError):
            raise Violation(f"{process.name} ended by a traceback\n{text}\n{self.story()}")
        self.log(f"{process.name} crashed: {text.strip().splitlines()[-1]:.200}")
        logging.getLogger("sim").debug("%s", text)

    # Time

    @property
    def now(self) -> float:
        return self.clockwork.now

    def after(self, delay_s: float, what: Callable[[], object]) -> None:
        def event() -> None:
            what()

        self.clockwork.after(delay_s, event)

    def run(self, seconds: float) -> None:
        self.clockwork.run_until(self.now + seconds)

    def wait_for(self, what: str, happened: Callable[[], bool], limit_s: float = 60.0) -> float:
        """Run until it happened; the seconds that it took."""
        started = self.now
        while not happened():
            if self.now - started > limit_s:
                raise Violation(f"{what}: not within {limit_s:g} s\n{self.story()}")
            self.run(0.1)
        return self.now - started

    def log(self, line: str, *, detail: bool = False) -> None:
        self.lines.append((self.now, line, detail))

    def story(self, last: int = 60, *, details: bool = True) -> str:
        """The timeline's end, and what each node says."""
        lines = [f"{at:8.3f} {line}" for at, line, detail in self.lines if details or not detail]
        nodes = [
            f"{seat.node.name}/{seat.volume}: {seat.decision.action}: {seat.decision.sentence}"
            for seat in self.seats()
            if seat.decision is not None
        ]
        return "\n".join([*lines[-last:], *nodes])

    def seats(self, volume: str | None = None) -> list[Seat]:
        return [
            seat
            for node in self.nodes.values()
            for seat in node.seats.values()
            if volume in (None, seat.volume)
        ]

    # How it begins

    def begin(self, first: str | None = None) -> SimNode:
        """All nodes up, the first one serves, and every standby has a snapshot."""
        for node in self.nodes.values():
            node.boot()
        primary = self.nodes[first] if first else next(iter(self.nodes.values()))
        for seat in primary.seats.values():
            live = seat.config.paths.live
            live.mkdir()
            primary.disk.data.put(live, SimTree(primary.disk.new_uuid(), []))
        self.run(0.5)
        for seat in primary.seats.values():
            seat.ask("promote")
        self.after(WRITE_EVERY_S, self._write)
        for volume in self.volumes:
            self.wait_for_primary(primary.name, volume=volume)
        self.wait_for(
            "a first replication",
            lambda: all(node.snapshots(v) for node in self.nodes.values() for v in self.volumes),
        )
        self.run(1.0)
        return primary

    def wait_for_primary(
        self, name: str | None = None, limit_s: float = 60.0, *, volume: str | None = None
    ) -> float:
        def happened() -> bool:
            primary = self.primary(volume)
            return primary is not None and (name is None or primary.name == name)

        return self.wait_for(f"{name or 'somebody'} serves", happened, limit_s)

    def primary(self, volume: str | None = None) -> SimNode | None:
        """The node that serves and says so."""
        for node in self.nodes.values():
            seat = node.seats[volume or self.volumes[0]]
            if seat.serves and seat.registered is not None:
                return node
        return None

    def settled(self, volume: str) -> bool:
        """Somebody serves, or every node that lives says who has to do what."""
        if self.primary(volume) is not None:
            return True
        living = [seat for seat in self.seats(volume) if seat.node.runs]
        return bool(living) and all(self._says_why(seat) for seat in living)

    def _says_why(self, seat: Seat) -> bool:
        """Blocked; or it can't look at its disk, or can't serve with its lease, and nobody else
        could do better."""
        if seat.decision is not None and seat.decision.action is Action.BLOCKED:
            return True
        leader, agent = self.leader(seat.volume), seat.agent
        if agent is None:
            return False
        if leader is None:  # nobody takes the role without a word: one with a bad disk can't look
            return agent.trouble is not None and seat.node.name == self.lasting
        holder = self.nodes.get(leader.holder.node)
        entry = self.store.get(self.key(f"history/{leader.epoch}", seat.volume))
        began = None if entry is None else HistoryEntry.parse(entry.value)
        if began is not None and began.is_automatic and seat.config.failover_cooldown:
            return True  # no second change of the role by itself
        if holder is seat.node:
            return agent.trouble is not None
        word = self.store.get(self.key(f"candidates/{seat.node.name}", seat.volume))
        return word is not None and not CandidateRecord.parse(word.value).ready

    def check_settled(self, limit_s: float = 120.0) -> None:
        for volume in self.volumes:
            what = f"{volume}: a primary again, or a reason why not"
            self.wait_for(what, lambda volume=volume: self.settled(volume), limit_s)  # type: ignore[misc]

    # A random run

    def be_random(self, quick: bool) -> None:
        """Replies and programs take different times; short histories; quick to give up."""
        rng = self.rng
        self.clockwork.pace = 0.05 if quick else 1.0

        def latency_s() -> float:
            return 0.0005 if quick else rng.choice((0.001, 0.004, 0.004, 0.02, 0.15))

        for node in self.nodes.values():
            node.link.latency_s = latency_s
            node.nfsd.start_s = node.nfsd.stop_s = 0.002 if quick else 0.1
            node.exec_s = 0.002 if quick else EXEC_S
        for seat in self.seats():
            seat.config = replace(
                seat.config,
                failover_after=2 * seat.config.lease.wait,
                surrender_after=2 * seat.config.lease.wait,
                replication=Replication(interval=15.0, timeout=60.0, stall_timeout=30.0),
                retention_own=KeepOwn(keep_last=4),
                retention_published=KeepPublished(
                    keep_last=4, hourly=0, daily=0, weekly=0, monthly=0
                ),
            )

    def repair(self) -> None:
        """The faults stop, but those that last."""
        self.store.quorum = True
        self.cut_ways.clear()
        self.copy_s, self.copies_held = 0.2, False
        for name, node in self.nodes.items():
            node.link.faults.clear()
            node.link.agent_down, node.link.stale_s = False, 0.0
            self.join(name)
            node.busy = node.nfsd.stuck = False
            node.nfsd.answer_s = 0.0
            if name != self.lasting:
                node.disk.full = node.disk.broken = node.disk.frozen = False
                node.disk.only = ""
                node.nfsd.broken, node.nfsd.masked, node.var_error = False, False, 0
                node.rules.unknown = False
                for seat in node.seats.values():
                    seat.lease.masked = False
            node.boot()
            for seat in node.seats.values():
                if not seat.agent_service.runs and not seat.agent_service.wanted:
                    seat.agent_service.launch()

    def settle(self, limit_s: float) -> None:
        """Within that time, and for a while longer: somebody serves, or all say why not."""
        end = self.now + limit_s
        quiet_since: float | None = None
        while True:
            if all(self.settled(volume) for volume in self.volumes):
                quiet_since = self.now if quiet_since is None else quiet_since
                if self.now - quiet_since > 3.0:
                    return
            else:
                quiet_since = None
                if self.now > end:
                    raise Violation(f"it does not settle in {limit_s:g} s\n{self.story()}")
            self.run(0.5)

    def check_replicates(self, limit_s: float) -> None:
        """Within that time: what the primary has by now arrives at every standby that can take it.

        One that tells why it takes nothing (Consul was restored, say) is left out. A primary that
        changes meanwhile is asked anew: what was not replicated is lost with it.
        """
        for volume in self.volumes:
            wanted: tuple[SimNode, int] | None = None
            end = self.now + limit_s
            while (primary := self.primary(volume)) is not None and primary.name != self.lasting:
                live, config = primary.seats[volume].live, primary.seats[volume].config
                if live is None or not live.writes:
                    break
                if wanted is None or wanted[0] is not primary:
                    wanted = primary, live.writes[-1]
                behind = [
                    node.name
                    for node in self.nodes.values()
                    if node.name in config.standbys  # an older file may be back on either of them
                    and primary.name in node.seats[volume].config.nodes
                    and self._takes_in(node.seats[volume])
                    and not node.seats[volume].has(wanted[1])
                ]
                if not behind:
                    break
                if self.now > end:
                    raise Violation(
                        f"{volume}: {', '.join(behind)} got nothing newer from {primary.name} "
                        f"in {limit_s:g} s\n{self.story()}"
                    )
                self.run(0.5)

    def _takes_in(self, seat: Seat) -> bool:
        """Whether nothing keeps this standby from it that it tells or that is there to stay."""
        if seat.node.name in (self.lasting, *self.removed):
            return False
        return seat.decision is None or seat.decision.action is not Action.BLOCKED

    # What happens to it

    def isolate(self, name: str, *, standbys: bool = True) -> None:
        """Cut off from Consul, and from the other nodes."""
        self[name].link.cut = True
        self[name].down_since = self.now
        if standbys:
            for other in self.nodes:
                if other != name:
                    self.unlink(name, other)

    def unlink(self, one: str, other: str) -> None:
        self.cut_ways |= {(one, other), (other, one)}

    def join(self, name: str) -> None:
        link = self[name].link
        link.cut = link.replies_cut = False
        self.cut_ways = {way for way in self.cut_ways if name not in way}

    def fault(self, name: str, kind: str, what: str, delay_s: float = 0.0, count: int = 1) -> None:
        self[name].link.faults.append(ConsulFault(kind, what, delay_s, count))

    def pause_failover(self, volume: str | None = None) -> None:
        pause = Pause("op", "maintenance", UTC_START)
        self.store.put(self.key("pause", volume), pause.dump())

    def hold(self, node: str) -> None:
        hold = Hold(node, "op", "maintenance", UTC_START)
        self.store.put(self.key(f"holds/{node}"), hold.dump())

    def restore(self, saved: Saved) -> None:
        """Consul from a backup."""
        self.store.restore(saved)
        for node in self.nodes.values():
            node.link.restore(saved[2])
        for volume in self.volumes:
            self.invariants.restored(volume, self.epoch(volume))

    def import_(self, entries: Mapping[str, Entry]) -> None:
        """Consul's keys from an export."""
        self.store.import_(entries)
        for volume in self.volumes:
            self.invariants.restored(volume, self.epoch(volume))

    def accept_epoch(self, name: str, volume: str | None = None) -> None:
        node = self[name]
        seat = node.seats[volume or self.volumes[0]]
        node.spawn("accept-epoch", lambda: run_accept_epoch(seat))

    def ask(self, name: str, command: str, volume: str | None = None, **args: object) -> Connection:
        seat = self[name].seats[volume or self.volumes[0]]
        return seat.ask(command, **args)

    def configure(self, name: str, timing: LeaseTiming) -> None:
        """A new [lease] on one node, taken up as the guide says."""
        for seat in self[name].seats.values():
            seat.configure(replace(seat.config, lease=timing))

    def key(self, name: str, volume: str | None = None) -> str:
        seat = next(iter(self.nodes.values())).seats[volume or self.volumes[0]]
        return seat.config.key(name)

    def leader(self, volume: str | None = None) -> Leader | None:
        entry = self.store.get(self.key("leader", volume))
        return None if entry is None else Leader.parse(entry.value)

    def epoch(self, volume: str | None = None) -> int:
        entry = self.store.get(self.key("epoch", volume))
        return 0 if entry is None else parse_epoch(entry.value)

    # What the nodes see of each other

    def linked(self, one: str, other: str) -> bool:
        """Whether a connection between the two works: it needs both ways."""
        return (one, other) not in self.cut_ways and (other, one) not in self.cut_ways

    def health(self, name: str) -> str:
        """serfHealth."""
        if name not in self.nodes:
            return "absent"
        node = self.nodes[name]
        if node.runs and not node.link.cut:
            return "passing"
        if name in self.removed:
            return "absent"
        return "critical" if self.now - node.down_since >= CRITICAL_AFTER_S else "passing"

    def _at(self, address: str) -> SimNode:
        return next(node for node in self.nodes.values() if node.address == address)

    def answers(self, asking: SimNode, address: str) -> bool:
        """The watcher's probe."""
        asked = self._at(address)
        self.clockwork.take(0.002)
        if asked.runs and self.linked(asking.name, asked.name):
            return True
        self.clockwork.take(0.4)
        return False

    def answering(self, asking: SimNode, doors: Sequence[Door]) -> set[Door]:
        """The guard's question to other nodes' NFS servers, which are asked at once."""
        self.clockwork.take(0.002)
        answered = set()
        for door in doors:
            asked = self._at(door.address)
            if asked.answers and self.linked(asking.name, asked.name):
                answered.add(door)
        if len(answered) < len(doors):
            self.clockwork.take(DOORS_S)
        return answered

    def changed_at(self, paths: Sequence[Path]) -> tuple[int, ...]:
        """`local_view.changed_at`: real times of change are too coarse for virtual time."""
        changes = []
        for path in paths:
            disk = self._disk_of(path)
            if disk is not None:
                changes.append(disk.changes)
                continue
            try:
                changes.append(path.stat().st_ino)
            except FileNotFoundError:
                changes.append(0)
        return tuple(changes)

    def _disk_of(self, path: Path) -> SimDisk | None:
        if path not in self._disks:
            here = (node.disk for node in self.nodes.values())
            self._disks[path] = next(
                (mount for mount in here if path.is_relative_to(mount.root)), None
            )
        return self._disks[path]

    def epoch_prepared(self, seat: Seat) -> None:
        self.invariants.prepared(seat)

    # Clients

    def _write(self) -> None:
        if self.writing:
            for node in self.nodes.values():
                if node.nfsd.running and node.answers:
                    for volume in list(node.nfsd.table):
                        self._write_to(node, volume)
        self.after(WRITE_EVERY_S, self._write)

    def _write_to(self, node: SimNode, volume: str) -> None:
        live = node.seats[volume].live
        disk = node.disk
        faulty = disk.hits(volume) and (disk.frozen or disk.full or disk.broken)
        if live is None or live.read_only or faulty:
            return
        number = self.invariants.asked(volume)
        live.writes.append(number)
        server = node.nfsd.starts

        def answer() -> None:
            alive = node.nfsd.running and node.nfsd.starts == server
            if alive and node.runs and node.rules.lets_out(self.now):
                fenced = node.rules.asks and node.rules.answers
                self.invariants.acknowledged(volume, number, node.name, fenced=fenced)

        if node.nfsd.answer_s:
            node.after(node.nfsd.answer_s, answer)
        else:
            answer()

    def check_kept(self, volume: str, writes: Sequence[int]) -> None:
        """These are still somewhere else: what had them was just deleted."""
        kept = set().union(*(self.kept_on(node, volume) for node in self.nodes.values()))
        lost = set(writes) - kept - self.invariants.unanswered[volume]
        if lost:
            raise Violation(f"writes {sorted(lost)[:10]} were deleted\n{self.story()}")

    def kept_on(self, node: SimNode, volume: str) -> set[int]:
        base = node.seats[volume].config.base
        return node.disk.everything(base)

    def check_no_bug(self) -> None:
        for bug in self._bugs:
            raise Violation(f"an error that is nobody's: {bug!r}\n{self.story()}") from bug

    def check_nothing_deleted(self) -> None:
        for volume in self.volumes:
            self.check_kept(volume, self.invariants.all_acknowledged(volume))
