"""The parts of which each program of a node is made: by default this machine's own.

The demo's programs take others (`use`), once, before anything is made.
"""

from __future__ import annotations

from standfast.btrfs.store import BtrfsStore
from standfast.config.model import Config
from standfast.fence.choice import fence_from, settle
from standfast.mounts.bind import bind_from
from standfast.nfs.ganesha import GaneshaNfs
from standfast.nfs.kernel import KernelNfs
from standfast.node.ports import BindMount, Fence, NfsServer, Schedule, Units
from standfast.replication.ports import ReplicaStore
from standfast.replication.timers import ReplicationTimers
from standfast.system.systemd import SystemdUnits


class Parts:
    """Makes each part from the configuration; nothing is touched before the part's first call."""

    is_machine = True
    """Whether the node is this machine: its units, its clock and its mounts are the node's own."""

    def store(self, config: Config) -> ReplicaStore:
        return BtrfsStore(config.paths)

    def nfs(self, config: Config) -> NfsServer:
        """The server that the configuration names: the kernel's or nfs-ganesha."""
        server = GaneshaNfs if config.nfs.server == "ganesha" else KernelNfs
        return server(config, SystemdUnits())

    def fence(self, config: Config) -> Fence:
        """TimedOut when the kernel doesn't say in time what it offers (backend "auto")."""
        return fence_from(config)

    def settled_fence(self, config: Config, nfs: NfsServer) -> Fence:
        """The fence of a process that is going to set it; InvalidConfig, see `settle`."""
        fence = self.fence(config)
        settle(config, fence, nfs)
        return fence

    def bind(self, config: Config) -> BindMount:
        return bind_from(config)

    def units(self, config: Config) -> Units:  # noqa: ARG002
        return SystemdUnits()

    def schedule(self, config: Config) -> Schedule:
        return ReplicationTimers(config, SystemdUnits())


_parts = Parts()


def use(parts: Parts) -> None:
    """Have every part of this process made by `parts`; for the demo's programs and for tests."""
    global _parts  # noqa: PLW0603  # a process has one set of parts
    _parts = parts


def parts() -> Parts:
    """This process's."""
    return _parts


def open_store(config: Config) -> ReplicaStore:
    return _parts.store(config)
