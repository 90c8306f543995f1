"""Builds a node's parts from its configuration: the one place that knows which adapter is which."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from standfast.config.model import Config
from standfast.errors import ConfigError
from standfast.node.node import Machine
from standfast.node.ports import BindMount, Fence, NfsServer, Schedule, Units
from standfast.reasons import Reason
from standfast.replication.ports import ReplicaStore
from standfast.system.systemd import SystemdUnits

if TYPE_CHECKING:
    from standfast.consul.gateway import ConsulGateway
    from standfast.nomad.loop import Follower

log = logging.getLogger(__name__)

__all__ = [
    "bind_from",
    "fence_from",
    "jobs_from",
    "machine_from",
    "nfs_from",
    "open_store",
    "schedule_from",
    "settled_fence",
    "units_from",
]


def fence_from(config: Config) -> Fence:
    """The kernel's fence, or the demo's."""
    if config.fence.backend == "embedded":
        from standfast.demo.fence import FileFence

        return FileFence(config.paths.run / "fence", config.nfs.port)
    from standfast.fence import choice

    return choice.fence_from(config)


def settled_fence(config: Config, nfs: NfsServer) -> Fence:
    """The fence of a process that is going to set it; InvalidConfig, see `fence.choice.settle`."""
    from standfast.fence.choice import settle

    made = fence_from(config)
    settle(config, made, nfs)
    return made


def units_from(config: Config) -> Units:
    """systemd, or the demo's process starter."""
    if config.nfs.server == "embedded":
        from standfast.demo.embedded import EmbeddedUnits

        return EmbeddedUnits(config)
    return SystemdUnits()


def nfs_from(config: Config) -> NfsServer:
    """The kernel's NFS server, nfs-ganesha, or the demo's stand-in."""
    if config.nfs.server == "embedded":
        from standfast.demo.embedded import EmbeddedNfs

        return EmbeddedNfs(config)
    if config.nfs.server == "ganesha":
        from standfast.nfs.ganesha import GaneshaNfs

        return GaneshaNfs(config, SystemdUnits())
    from standfast.nfs.kernel import KernelNfs

    return KernelNfs(config, SystemdUnits())


def bind_from(config: Config) -> BindMount:
    """A bind mount, or the demo's symbolic link."""
    if config.nfs.server == "embedded":
        from standfast.demo.embedded import EmbeddedBind

        return EmbeddedBind(config)
    from standfast.mounts import bind

    return bind.bind_from(config)


def schedule_from(config: Config) -> Schedule:
    """systemd timers; the demo replicates by its script."""
    if config.nfs.server == "embedded":
        from standfast.demo.schedule import OnDemand

        return OnDemand()
    from standfast.replication.timers import ReplicationTimers

    return ReplicationTimers(config, SystemdUnits())


def jobs_from(config: Config, consul: ConsulGateway) -> Follower | None:
    """Nomad's jobs, where [nomad] is configured."""
    if not config.nomad.enabled:
        return None
    from standfast.nomad import reports
    from standfast.nomad.gateway import NomadAgent
    from standfast.nomad.loop import Follower, refuse_conflicts

    try:
        refuse_conflicts(config)
        return Follower(config, NomadAgent.from_config(config), consul)
    except ConfigError as error:
        # No reason for the storage to stay away.
        log.error("Nomad is not followed until the agent starts again: %s", error)
        reports.save(config, reports.none(str(error), Reason.CONFIG_INVALID))
        return None


def machine_from(config: Config) -> Machine:
    """This node, for one volume."""
    from standfast.consul.gateway import ConsulGateway
    from standfast.lease.files import holder_of
    from standfast.replication.cycle import Sender

    consul = ConsulGateway.from_config(config, timeout_s=config.lease.request_timeout)
    store = open_store(config)
    return Machine(
        config=config,
        me=holder_of(config),
        consul=consul,
        store=store,
        nfs=nfs_from(config),
        fence=fence_from(config),
        bind=bind_from(config),
        units=units_from(config),
        sender=Sender(config, store, consul),
        schedule=schedule_from(config),
        jobs=jobs_from(config, consul),
    )


def open_store(config: Config) -> ReplicaStore:
    """Nothing is touched before the first call."""
    if config.store == "directory":
        from standfast.demo.directory import DirectoryStore

        return DirectoryStore(config.paths)
    from standfast.btrfs.store import BtrfsStore

    return BtrfsStore(config.paths)
