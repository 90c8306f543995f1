"""The parts of which each program of a node is made: by default this machine's own.

The demo's programs take others (`use`), once, before anything is made. A part is
loaded when it is asked for: a server waits for the guard, and a client has none of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from standfast.config.model import Config
from standfast.node.other_server import Door
from standfast.node.ports import BindMount, Fence, NfsServer, Schedule, Units
from standfast.replication.ports import ReplicaStore
from standfast.system.clock import Deadline


class Parts:
    """Makes each part from the configuration; nothing is touched before the part's first call."""

    is_machine = True
    """Whether the node is this machine: its units, its clock and its mounts are the node's own."""

    def store(self, config: Config) -> ReplicaStore:
        from standfast.btrfs.store import BtrfsStore

        return BtrfsStore(config.paths)

    def nfs(self, config: Config) -> NfsServer:
        """Returns the server that the configuration names: the kernel's or nfs-ganesha."""
        from standfast.system.systemd import SystemdUnits

        if config.nfs.server == "ganesha":
            from standfast.nfs.ganesha import GaneshaNfs

            return GaneshaNfs(config, SystemdUnits())
        from standfast.nfs.kernel import KernelNfs

        return KernelNfs(config, SystemdUnits())

    def fence(self, config: Config) -> Fence:
        """TimedOut when the kernel doesn't say in time what it offers (backend "auto")."""
        from standfast.fence.choice import fence_from

        return fence_from(config)

    def settled_fence(self, config: Config, nfs: NfsServer) -> Fence:
        """Returns the fence of a process that is going to set it; InvalidConfig, see `settle`."""
        from standfast.fence.choice import settle

        fence = self.fence(config)
        settle(config, fence, nfs)
        return fence

    def answering(self, doors: Sequence[Door], deadline: Deadline) -> Collection[Door]:
        """Returns those of other servers' doors that answer by the deadline."""
        from standfast.nfs.elsewhere import answering

        return answering(doors, deadline)

    def bind(self, config: Config) -> BindMount:
        from standfast.mounts.bind import bind_from

        return bind_from(config)

    def units(self, config: Config) -> Units:  # noqa: ARG002
        from standfast.system.systemd import SystemdUnits

        return SystemdUnits()

    def schedule(self, config: Config) -> Schedule:
        from standfast.replication.timers import ReplicationTimers
        from standfast.system.systemd import SystemdUnits

        return ReplicationTimers(config, SystemdUnits())


_parts = Parts()


def use(parts: Parts) -> None:
    """Lets `parts` make every part of this process; for the demo's programs and for tests."""
    global _parts  # noqa: PLW0603  # a process has one set of parts
    _parts = parts


def parts() -> Parts:
    """This process's."""
    return _parts


def open_store(config: Config) -> ReplicaStore:
    return _parts.store(config)
