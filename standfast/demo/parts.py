"""What the demo's programs are made of, instead of this machine's server, disk and firewall."""

from __future__ import annotations

from standfast.assembly.parts import Parts
from standfast.config.model import Config
from standfast.demo.stand_ins.directory import DirectoryStore
from standfast.demo.stand_ins.embedded import EmbeddedBind, EmbeddedNfs, EmbeddedUnits
from standfast.demo.stand_ins.fence import fence_of
from standfast.demo.stand_ins.schedule import OnDemand
from standfast.node.ports import BindMount, Fence, NfsServer, Schedule, Units
from standfast.replication.ports import ReplicaStore


class DemoParts(Parts):
    """Plain directories, a small file server and a file for a fence: without root."""

    is_machine = False

    def store(self, config: Config) -> ReplicaStore:
        return DirectoryStore(config.paths)

    def nfs(self, config: Config) -> NfsServer:
        return EmbeddedNfs(config)

    def fence(self, config: Config) -> Fence:
        return fence_of(config)

    def bind(self, config: Config) -> BindMount:
        return EmbeddedBind(config)

    def units(self, config: Config) -> Units:
        return EmbeddedUnits(config)

    def schedule(self, config: Config) -> Schedule:  # noqa: ARG002
        return OnDemand()
