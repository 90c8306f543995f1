"""One storage node's kernel in virtual time: the fence's rules and timer, nfsd, the bind mounts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from standfast.errors import CommandFailed, StandfastError, TimedOut
from standfast.fence.kernel import KernelFence, left_for
from standfast.node.obstacle import Obstacle
from standfast.node.ports import FenceState
from standfast.system.clock import Deadline

if TYPE_CHECKING:
    from tests.sim.node import SimNode

ARM_S = 0.002


@dataclass(slots=True)
class PacketFilter:
    """The table of rules; the permit ends by the kernel's own time, whoever is frozen or dead."""

    asks: bool = False
    """The half that drops what comes in is there."""
    answers: bool = False
    """The half that drops what goes out is there."""
    open_until: float = 0.0
    """Real time."""
    freeze_in_arm_s: float = 0.0
    """The next arming is frozen so long between its last look at the clock and the kernel."""
    flushed_at: float = float("-inf")
    slow_s: float = 0.0
    """So long the kernel takes to do what it was told."""
    keeps_latest: bool = True
    unknown: bool = False
    """The kernel has nothing of the kind: no rules can be put up."""

    def lets_in(self, now: float) -> bool:
        return not self.asks or now < self.open_until

    def lets_out(self, now: float) -> bool:
        return not self.answers or now < self.open_until

    def flush(self, half: str = "both", now: float = float("-inf")) -> None:
        """Somebody else's firewall takes the rules away."""
        if self.asks or self.answers:
            self.flushed_at = now
        self.asks = self.asks and half == "answers"
        self.answers = self.answers and half == "asks"


class SimFence(KernelFence):
    """The shipped claims and order of arming, over this kernel."""

    def __init__(self, node: SimNode, port: int, run_dir: Path, volume: str) -> None:
        super().__init__(port, run_dir, volume)
        self._node = node

    def _state(self) -> FenceState:
        world, rules = self._node.world, self._node.rules
        world.clockwork.take(ARM_S)
        left_s = (rules.open_until - world.now) * self._node.clock.rate
        return FenceState(rules.asks and rules.answers, max(0.0, left_s))

    def _build(self, deadline: Deadline) -> None:
        world, rules = self._node.world, self._node.rules
        world.clockwork.take(ARM_S)
        if rules.unknown:
            raise CommandFailed("ipset: Kernel error received", returncode=1)
        rules.asks = rules.answers = True
        rules.open_until = 0.0

    def remove(self, deadline: Deadline) -> None:
        self._node.world.clockwork.take(ARM_S)
        self._node.rules.flush()

    def _permit(self, until: float, latest: float) -> bool:
        """As `exec_before`: frozen on the way past `latest`, nothing is opened."""
        world, rules = self._node.world, self._node.rules
        left_s = left_for(until)
        freeze_s, rules.freeze_in_arm_s = rules.freeze_in_arm_s, 0.0
        if freeze_s:
            world.clockwork.stall(freeze_s)
        world.clockwork.take(ARM_S)
        # The child's timer is the kernel's: nobody stands still between its look and the permit.
        if rules.keeps_latest and self._node.clock.monotonic(world.now) > latest:
            raise TimedOut("the timer ended the arming: nothing was opened")
        if not (rules.asks and rules.answers):
            return False

        def permit() -> None:
            rules.open_until = world.now + self._node.clock.real_s(left_s)

        if rules.slow_s:
            # From here on it is the kernel's: neither freezing nor killing the process stops it.
            self._node.after(rules.slow_s, permit)
            world.clockwork.pause(world.now + rules.slow_s)
        else:
            permit()
        return True


@dataclass(slots=True)
class Nfsd:
    """The server of the whole node: its threads outlive every process of ours."""

    running: bool = False
    stuck: bool = False
    """Threads hang: no stop succeeds."""
    broken: bool = False
    """No start succeeds, and it answers nobody."""
    masked: bool = False
    """No start succeeds; whoever looks at its unit sees that."""
    stop_s: float = 0.1
    start_s: float = 0.1
    starts: int = 0
    """So many servers there were; what one was asked dies with it."""
    answer_s: float = 0.0
    """From doing what a client asks for to telling it: a disk that is slow to sync."""
    files: dict[str, str] = field(default_factory=dict)
    """Export files: volume -> fsid; they survive a reboot."""
    table: dict[str, str] = field(default_factory=dict)
    """What the running server exports."""


class SimNfs:
    """One volume's view of the server."""

    def __init__(self, node: SimNode, volume: str) -> None:
        self._node = node
        self._volume = volume

    @property
    def _server(self) -> Nfsd:
        return self._node.nfsd

    def export(self, fsid: str) -> None:
        self._node.world.clockwork.take(0.01)
        self._server.files[self._volume] = fsid
        self._refresh()

    def _refresh(self) -> None:
        if self._server.running:
            self._node.world.clockwork.take(0.01)
            self._server.table = dict(self._server.files)

    def is_exported(self, fsid: str) -> bool:
        table, files = self._server.table, self._server.files
        return table.get(self._volume) == files.get(self._volume) == fsid

    def obstacles(self) -> Sequence[Obstacle]:
        self._node.world.clockwork.take(0.05)
        if not self._server.masked:
            return ()
        return (Obstacle("unit", "nfs-server.service is masked", "`systemctl unmask` it"),)

    def would_export(self) -> bool:
        return self._volume in self._server.files

    def unexport(self) -> None:
        self._node.world.clockwork.take(0.01)
        self._server.files.pop(self._volume, None)
        self._refresh()

    def start(self, deadline: Deadline) -> None:
        self._node.systemd.start_nfs(deadline)
        if not self.is_running():
            raise StandfastError("the unit is started, but nfsd has no threads")

    def stop(self, deadline: Deadline) -> None:
        clockwork = self._node.world.clockwork
        self._node.systemd.cancel_nfs()
        until = clockwork.now + self._node.clock.real_s(deadline.remaining_s())
        clockwork.door()
        clockwork.pause(min(clockwork.now + self._server.stop_s, max(until, clockwork.now)))
        if self._server.stuck or clockwork.now >= until:
            raise StandfastError("threads of the NFS server are left")
        self._server.running = False
        self._server.table = {}

    def is_running(self) -> bool:
        return self._server.running

    def unfenced(self) -> str | None:
        return None

    def check(self, deadline: Deadline) -> str | None:
        self._node.world.clockwork.take(0.005)
        if not self._server.running:
            return "no threads"
        if self._server.broken:
            return "no answer"
        return None if self._volume in self._server.table else "not exported"

    def mend(self, deadline: Deadline) -> str | None:
        return None


class SimBind:
    """The bind mount; gone at a reboot, as it is in a set of the node's."""

    def __init__(self, node: SimNode, volume: str) -> None:
        self._node = node
        self._volume = volume

    def mount(self, deadline: Deadline) -> None:
        self._node.world.clockwork.take(0.01)
        if (why := self.obstacle(deadline)) is not None:
            raise StandfastError(why)
        if self._node.disk_of(self._volume) is None:
            raise CommandFailed("mount: the live subvolume does not exist", returncode=32)
        self._node.binds.add(self._volume)

    def unmount(self, deadline: Deadline) -> None:
        self._node.world.clockwork.take(0.01)
        live = self._node.disk_of(self._volume)
        frozen = live is not None and live.read_only
        if self.is_mounted() and self._node.busy and not frozen:
            raise CommandFailed("the path is in use by python3 (pid 42: file)", returncode=32)
        self._node.binds.discard(self._volume)

    def is_mounted(self) -> bool:
        return self._volume in self._node.binds

    def obstacle(self, deadline: Deadline) -> str | None:
        taken = not self.is_mounted() and self._volume in self._node.taken
        return "the path is taken: tmpfs / is mounted there" if taken else None

    def mounts_below(self, deadline: Deadline) -> Sequence[str]:
        return ()

    def stops(self, deadline: Deadline) -> Sequence[str]:
        return ()
