"""One storage node's parts in virtual time: the kernel's fence, the NFS server, the volume."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from standfast.act.ports import FenceState, Snapshot
from standfast.clock import Deadline
from standfast.errors import StandfastError, TimedOut
from standfast.names import SnapshotName
from standfast.observe import Available
from tests.sim.clockwork import Clockwork, NodeClock


@dataclass(slots=True)
class KernelFence:
    """The permit ends by the kernel's own time, whoever is frozen or dead."""

    clockwork: Clockwork
    clock: NodeClock
    in_place: bool = False
    open_until: float = 0.0
    """Real time."""
    freeze_in_arm_s: float = 0.0
    """The next arming is frozen so long between its last look at the clock and the kernel."""
    keeps_latest: bool = True

    def claim(self) -> None: ...

    def release(self) -> None: ...

    def passes(self) -> bool:
        """Whether the port passes; without the rules nothing stops it."""
        return not self.in_place or self.clockwork.now < self.open_until

    def ensure_closed(self, deadline: Deadline | None = None) -> None:
        self.in_place, self.open_until = True, 0.0

    def arm(self, until: float, latest: float) -> bool:
        put_back = not self.in_place
        if put_back:
            self.ensure_closed()
        left_s = until - self._clock()
        freeze_s, self.freeze_in_arm_s = self.freeze_in_arm_s, 0.0
        self.clockwork.pass_time(0.002 + freeze_s)
        if self.keeps_latest and self._clock() > latest:
            raise TimedOut("the timer ended the arming: nothing was opened")
        self.in_place = True
        self.open_until = self.clockwork.now + self.clock.real_s(left_s)
        self.clockwork.pass_time(0.001)
        return put_back

    def _clock(self) -> float:
        return self.clock.monotonic(self.clockwork.now)

    def state(self) -> FenceState:
        return FenceState(self.in_place, max(0.0, self.open_until - self.clockwork.now))


@dataclass(slots=True)
class KernelNfs:
    """nfsd's threads: they outlive every process of ours."""

    clockwork: Clockwork
    running: bool = False
    stuck: bool = False
    """Threads hang: no stop succeeds."""
    stop_s: float = 0.1

    def export(self, fsid: str) -> None: ...

    def is_exported(self, fsid: str) -> bool:
        return True

    def unexport(self) -> None: ...

    def start(self, deadline: Deadline) -> None:
        self.clockwork.pass_time(0.1)
        self.running = True

    def stop(self, deadline: Deadline) -> None:
        self.clockwork.pass_time(min(self.stop_s, 30.0))
        if self.stuck:
            raise StandfastError("threads of the NFS server are left")
        self.running = False

    def is_running(self) -> bool:
        return self.running

    def check(self, deadline: Deadline) -> str | None:
        return None if self.running else "no threads"


@dataclass(slots=True, eq=False)
class Tree:
    """A subvolume: the writes in it, in their order."""

    writes: list[int]
    writable: bool = True


@dataclass(slots=True)
class Disk:
    """A node's subvolumes; nothing is ever taken away from here."""

    live: Tree | None = None
    snapshots: list[Available] = field(default_factory=list)
    contents: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Content id -> the writes in it."""
    asides: dict[str, Tree] = field(default_factory=dict)

    def snapshot(self, base: str, utc: float, epoch: int) -> Available:
        """A snapshot of the live tree."""
        assert self.live is not None
        taken = {one.snapshot.name for one in self.snapshots}
        name = SnapshotName.at(base, utc)
        while name in taken:
            name = SnapshotName.at(base, name.stamp + 1)
        content_id = f"{name}#{epoch}#{len(self.live.writes)}"
        snapshot = Snapshot(name, Path("/persist") / str(name), content_id, received=False)
        self.contents[content_id] = tuple(self.live.writes)
        found = Available(snapshot, epoch)
        self.snapshots.append(found)
        return found

    def receive(self, available: Available, content: tuple[int, ...]) -> None:
        self.contents[available.snapshot.content_id] = content
        if all(one.snapshot.name != available.snapshot.name for one in self.snapshots):
            self.snapshots.append(available)

    def keep_aside(self, name: str) -> None:
        assert self.live is not None
        while name in self.asides:
            name += "+"
        self.asides[name] = self.live
        self.live = None

    def everything(self) -> set[int]:
        """Every write that is somewhere on this disk."""
        trees = [tree.writes for tree in self.asides.values()]
        if self.live is not None:
            trees.append(self.live.writes)
        return set().union(*trees, *self.contents.values())
