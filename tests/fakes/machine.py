"""A storage node in memory, behind the ports of act.ports: what a plan did can be looked at.

Only what the plans rely on is modelled; the real parts have contract tests and the lab.
"""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from msgspec import structs

from standfast.config.model import Config
from standfast.consul.records import Holder, LeaderState
from standfast.consul.values import Registration
from standfast.demo.stand_ins.schedule import OnDemand
from standfast.errors import CommandFailed, Refused, StandfastError, TimedOut
from standfast.lease.files import LeaseStatus, take_claim
from standfast.names import SnapshotName
from standfast.node.node import Machine
from standfast.node.obstacle import Obstacle
from standfast.node.ports import Ailment, FenceState, LiveTree, Snapshot, Writer
from standfast.node.space import Space
from standfast.reasons import Reason
from standfast.system.clock import Deadline, monotonic
from tests.fakes.consul import MemoryConsul
from tests.support.configs import config_in


class Cut(BaseException):
    """The power cut of a test: not an error that anything handles."""


@dataclass
class World:
    """What is true of the node, and how many more effects happen before the cut."""

    log: list[str] = field(default_factory=list)
    cut_after: int | None = None
    breaks_with: Exception | None = None
    """What that effect raises, once, instead of the cut."""

    def break_at(self, number: int, error: Exception) -> None:
        """The effect after `number` more fails with this; those after it don't."""
        self.cut_after, self.breaks_with = number, error

    def effect(self, name: str) -> None:
        if self.cut_after is not None and self.cut_after <= 0:
            if self.breaks_with is not None:
                self.cut_after = None
                raise self.breaks_with
            raise Cut(name)
        if self.cut_after is not None:
            self.cut_after -= 1
        self.log.append(name)


ROOM = Space(size=1 << 41, data=1 << 40, metadata=1 << 40)


@dataclass
class FakeStore:
    world: World
    base: str
    parent: Path
    tree: LiveTree | None = None
    taken: list[Snapshot] = field(default_factory=list)
    set_aside: list[Path] = field(default_factory=list)
    writing: Sequence[Writer] = ()
    made_from: Snapshot | None = None
    read_only: bool = False
    """The whole file system, after an error."""

    room: Space = ROOM
    disk: str = "disk-1"
    in_the_way: str | None = None
    """At the live path, or missing around it."""
    left_out: str | None = None
    """Why no snapshot would be whole."""
    mounted: bool = True
    """Without its disk there is nothing at its paths."""

    def file_system(self) -> str:
        if not self.mounted:
            raise StandfastError(
                f"{self.parent} is on no btrfs: it is not mounted; nothing was touched"
            )
        return self.disk

    def live(self) -> LiveTree | None:
        return self.tree if self.mounted else None

    def obstacle(self) -> str | None:
        return self.in_the_way

    def snapshot_obstacle(self) -> str | None:
        try:
            self._check_whole()
        except Refused as refusal:
            return str(refusal)
        return None

    def _check_whole(self) -> None:
        self._live()
        if self.left_out is not None:
            raise Refused(Reason.INCOMPLETE, self.left_out)

    def snapshots(self) -> Sequence[Snapshot]:
        taken = self.taken if self.mounted else ()
        return tuple(sorted(taken, key=lambda snapshot: (snapshot.name, snapshot.received)))

    def _live(self) -> LiveTree:
        live = self.live()
        if live is None:
            raise Refused(Reason.VOLUME_MISSING, "there is no live tree")
        return live

    def take_snapshot(self, name: SnapshotName) -> Snapshot:
        self._check_whole()
        latest = max((s.name.stamp for s in self.taken), default=0.0)
        name = SnapshotName(max(name.stamp, latest + 1), name.base)
        snapshot = Snapshot(name, self.parent / str(name), uuid.uuid4().hex, received=False)
        self._write()
        self.world.effect("snapshot")
        self.taken.append(snapshot)
        return snapshot

    def delete(self, snapshots: Sequence[Snapshot]) -> None:
        if snapshots:
            self._write()
            self.world.effect("delete")
            self.taken = [snapshot for snapshot in self.taken if snapshot not in snapshots]

    def create_live_from(self, base: Snapshot) -> LiveTree:
        if self.tree is not None:
            raise Refused(Reason.UNEXPECTED, "there is a live tree: keep it aside first")
        self._write()
        self.world.effect("create")
        self.made_from = base
        self.tree = LiveTree(self.parent / self.base, uuid.uuid4().hex, writable=True)
        return self.tree

    def set_live_writable(self, writable: bool) -> None:
        live = self._live()
        self._write()
        self.world.effect(f"writable={writable}")
        self.tree = replace(live, writable=writable)

    def writers(self, deadline: Deadline) -> Sequence[Writer]:
        self.world.effect("look-for-writers")
        return self.writing

    def ailment(self, deadline: Deadline) -> Ailment | None:
        if not self.read_only:
            return None
        return Ailment(Reason.VOLUME_READ_ONLY, f"the file system of {self.base} is read-only")

    def is_read_only(self) -> bool:
        return self.read_only

    def _write(self) -> None:
        if self.read_only:
            raise OSError(errno.EROFS, "Read-only file system", str(self.parent))

    def keep_aside(self, name: str) -> Path:
        self._live()
        if self.parent / name in self.set_aside:
            raise Refused(Reason.UNEXPECTED, f"{name} is there already")
        self._write()
        self.world.effect("aside")
        self.tree = None
        self.set_aside.append(self.parent / name)
        return self.set_aside[-1]

    def aside(self) -> Sequence[Path]:
        return tuple(sorted(self.set_aside)) if self.mounted else ()

    def free_bytes(self) -> int:
        return self.room.data

    def space(self) -> Space:
        return self.room


@dataclass
class FakeNfs:
    world: World
    fsid: str | None = None
    """Of the export that a server has, or would have when it ran."""
    running: bool = False
    guard: Callable[[], None] = lambda: None
    """Refused: the server may not start."""
    in_the_way: Sequence[Obstacle] = ()
    daemon_is_dead: bool = False

    def obstacles(self) -> Sequence[Obstacle]:
        return self.in_the_way

    def export(self, fsid: str) -> None:
        self.world.effect("export")
        self.fsid = fsid

    def is_exported(self, fsid: str) -> bool:
        return self.running and self.fsid == fsid

    def would_export(self) -> bool:
        return self.fsid is not None

    def unexport(self) -> None:
        self.world.effect("unexport")
        self.fsid = None

    def start(self, deadline: Deadline) -> None:
        if not self.running:
            self.guard()
        self.world.effect("start-nfs")
        self.running = True

    def stop(self, deadline: Deadline) -> None:
        self.world.effect("stop-nfs")
        self.running = False

    def is_running(self) -> bool:
        return self.running

    def unfenced(self) -> str | None:
        return None

    def check(self, deadline: Deadline) -> str | None:
        if not self.running or self.fsid is None:
            return "not running" if not self.running else "not exported"
        return "its daemon is dead" if self.daemon_is_dead else None

    def mend(self, deadline: Deadline) -> str | None:
        if not (self.running and self.daemon_is_dead):
            return None
        self.world.effect("mend")
        self.daemon_is_dead = False
        return "its daemon had ended: started again"


@dataclass
class FakeFence:
    """One volume has the port for itself."""

    world: World
    open_until: float = 0.0
    in_place: bool = True
    claimed: bool = False

    def claim(self) -> None:
        self.world.effect("claim")
        self.claimed = True

    def release(self) -> None:
        self.world.effect("release")
        self.claimed = False

    def ensure_closed(self, deadline: Deadline | None = None) -> None:
        self.world.effect("shut")
        self.in_place, self.open_until = True, 0.0

    def arm(self, until: float, latest: float) -> bool:
        if monotonic() >= min(until, latest):
            raise TimedOut("too late: nothing was opened")
        self.world.effect("open")
        put_back, self.in_place = not self.in_place, True
        self.open_until = until
        return put_back

    def state(self) -> FenceState:
        open_for_s = max(0.0, self.open_until - monotonic())
        return FenceState(self.in_place, open_for_s, claimed=self.claimed)


@dataclass
class FakeBind:
    world: World
    mounted: bool = False
    writer: str = ""
    """Who has a file open for writing."""
    foreign: str = ""
    """What somebody else put at the path."""
    below: Sequence[str] = ()
    """Where others mounted something below it."""
    services: Sequence[str] = ()
    """They require the path, and are stopped with it."""
    store: FakeStore | None = None
    """Whose live tree it is: of one that is read-only nobody keeps it."""

    def mount(self, deadline: Deadline) -> None:
        if (why := self.obstacle(deadline)) is not None:
            raise StandfastError(why)
        self.world.effect("bind")
        self.mounted = True

    def unmount(self, deadline: Deadline) -> None:
        live = None if self.store is None else self.store.live()
        kept_by = self.writer or ", ".join(self.below)
        if self.mounted and kept_by and (live is None or live.writable):
            raise CommandFailed(f"the path is in use by {kept_by}", returncode=32)
        self.world.effect("unbind")
        self.mounted = False

    def is_mounted(self) -> bool:
        return self.mounted

    def obstacle(self, deadline: Deadline) -> str | None:
        return f"the path is taken: {self.foreign}" if self.foreign else None

    def mounts_below(self, deadline: Deadline) -> Sequence[str]:
        return self.below if self.mounted else ()

    def stops(self, deadline: Deadline) -> Sequence[str]:
        return self.services if self.mounted else ()


@dataclass
class FakeKeeper:
    """The lease unit: makes good a claim, and answers as lease.sock does (see ask_keeper)."""

    world: World
    config: Config
    me: Holder
    fence: FakeFence
    epoch: int | None = None
    clean: bool = False
    running: bool = False
    opened: bool = False
    masked: bool = False

    def reset_failed(self, unit: str, deadline: Deadline) -> None:
        self.world.effect("reset-failed")

    def start(self, unit: str, deadline: Deadline) -> None:
        if (why := self.obstacle(unit)) is not None:
            raise CommandFailed(why, returncode=1)
        claim = take_claim(self.config.run_dir)
        self.world.effect("start-lease")
        if claim is not None and self.epoch is None:
            self.epoch, self.clean, self.opened = claim.epoch + 1, False, False
        if self.epoch is None:
            raise StandfastError("nothing to hold")
        self.running = True
        self._save(LeaderState.STARTING, serving=False)

    def guard(self) -> None:
        """What the guard asks first."""
        if self.epoch is None:
            raise Refused(Reason.LEASE_NOT_HELD, "no lease is held here")

    def stop(self, unit: str, deadline: Deadline) -> None:
        self.world.effect("stop-lease")
        self.running = False

    def is_active(self, unit: str) -> bool:
        return self.running

    def obstacle(self, unit: str) -> str | None:
        return f"{unit} is masked" if self.masked else None

    def ask(
        self, _path: Path, request: Mapping[str, str | None], _deadline: Deadline
    ) -> Mapping[str, object]:
        self.world.effect(f"lease:{request['cmd']}")
        if request["cmd"] == "serve":
            self.fence.open_until = monotonic() + 60
            self.opened = True
            self._save(LeaderState.SERVING, serving=True)
        else:
            self.fence.open_until = 0.0
            self._save(LeaderState.DRAINING, serving=False)
        if request["cmd"] == "release":
            self.clean, self.epoch, self.running = True, None, False
        return {"ok": True}

    def _save(self, state: LeaderState, *, serving: bool) -> None:
        assert self.epoch is not None
        until = monotonic() + 60
        status = LeaseStatus(
            self.epoch, self.me.instance, 1, state, serving, until, until, 1, monotonic()
        )
        structs.replace(status, opened=self.opened).save(self.config.run_dir)


@dataclass
class FakeSender:
    world: World
    sent: list[Snapshot] = field(default_factory=list)
    broken: bool = False
    standbys: tuple[str, ...] = ("n2", "n3")
    latest: dict[tuple[str, int], Snapshot] = field(default_factory=dict)
    """By standby and epoch: it needs none that was taken before."""
    in_the_way: Sequence[Obstacle] = ()
    """What a standby that is asked to look tells."""

    def greet(self, standby: str, deadline: Deadline) -> None:
        if standby not in self.standbys:
            raise Refused(Reason.UNKNOWN_NODE, f"{standby} is not another storage node")
        if self.broken:
            raise StandfastError(f"{standby} can't be reached")

    def inspect(self, standby: str, deadline: Deadline) -> Sequence[Obstacle]:
        self.greet(standby, deadline)
        return self.in_the_way

    def replicate(
        self,
        standby: str,
        snapshot: Snapshot,
        epoch: int,
        deadline: Deadline,
        give_up: Callable[[], str | None] = lambda: None,
    ) -> None:
        if standby not in self.standbys:
            raise Refused(Reason.UNKNOWN_NODE, f"{standby} is not another storage node")
        deadline.check(f"a replication to {standby}")
        if self.broken:
            raise StandfastError(f"{standby} can't be reached")
        self.world.effect(f"replicate:{standby}")
        if (why := give_up()) is not None:
            raise TimedOut(why)
        latest = self.latest.setdefault((standby, epoch), snapshot)
        if latest.name > snapshot.name:
            return
        self.latest[(standby, epoch)] = snapshot
        if snapshot not in self.sent:
            self.sent.append(snapshot)


@dataclass
class FakeSchedule:
    """The replication's timers."""

    calls: list[str] = field(default_factory=list)
    runs: bool = False

    def start(self) -> None:
        self.calls.append("start")
        self.runs = True

    def stop(self) -> None:
        self.calls.append("stop")
        self.runs = False


@dataclass
class FakeJobs:
    """The jobs of the primary, which run on this node until they are released."""

    error: Exception | None = None
    """How everything ends that is asked of the scheduler."""
    asked_s: float | None = None
    """How long the release was given."""
    prepared: tuple[str, int] | None = None
    resumed: int = 0
    running: bool = True

    def prepare(self, name: str, epoch: int, deadline: Deadline) -> str:
        self.prepared = (name, epoch)
        if self.error is not None:
            raise self.error
        return "ready"

    def release(self, deadline: Deadline) -> None:
        self.asked_s = deadline.remaining_s()
        if self.error is not None:
            raise self.error
        self.running = False

    def release_limit_s(self) -> float:
        return 40.0

    def resume(self) -> None:
        self.resumed += 1


@dataclass
class FakeNode:
    """All of a node's fakes, and the Machine made of them."""

    world: World
    config: Config
    store: FakeStore
    nfs: FakeNfs
    fence: FakeFence
    bind: FakeBind
    keeper: FakeKeeper
    consul: MemoryConsul
    sender: FakeSender

    @property
    def machine(self) -> Machine:
        return Machine(
            config=self.config,
            me=self.keeper.me,
            consul=self.consul,
            store=self.store,
            nfs=self.nfs,
            fence=self.fence,
            bind=self.bind,
            units=self.keeper,
            sender=self.sender,
            schedule=OnDemand(),
        )

    def successor_serves(self) -> None:
        """n2 is registered as the primary, and its check passes."""
        there, config = self.consul.at("n2"), self.config
        names = (config.service_id, config.service)
        there.register(Registration(*names, "192.168.1.3", 2049, {"epoch": "99"}, 1e6, "nfs"))
        there.pass_check(f"service:{config.service_id}", "")

    @property
    def serves(self) -> bool:
        """Whether a client could write: the server runs, exports, and the port is open."""
        return self.nfs.running and self.nfs.fsid is not None and self.fence.state().open_for_s > 0


def fake_node(directory: Path) -> FakeNode:
    config = config_in(directory)
    world = World()
    fence = FakeFence(world)
    me = Holder("n1", "boot-1")
    store = FakeStore(world, config.base, directory)
    keeper = FakeKeeper(world, config, me, fence)
    consul = MemoryConsul(*config.nodes)
    consul.effect = world.effect
    return FakeNode(
        world,
        config,
        store,
        FakeNfs(world, guard=keeper.guard),
        fence,
        FakeBind(world, store=store),
        keeper,
        consul,
        FakeSender(world),
    )
