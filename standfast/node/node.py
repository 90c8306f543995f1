"""One node's parts, each behind a narrow protocol: what plans act through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from standfast.config.model import Config
from standfast.consul.gateway import Entry, Instance
from standfast.consul.ports import Keys
from standfast.consul.records import Holder
from standfast.consul.values import Check, Registration
from standfast.node.ports import (
    BindMount,
    Fence,
    Jobs,
    NfsServer,
    ReplicaSender,
    Schedule,
    Units,
    VolumeStore,
)
from standfast.system.clock import Deadline


class Consul(Keys, Protocol):
    """What plans and observations need of the gateway."""

    def wait(self, key: str, index: int, *, wait_s: float) -> tuple[int, Entry | None]: ...

    def self_check(self, *, deadline: Deadline | None = None) -> None: ...

    def instances(
        self, service: str, *, consistent: bool = True, deadline: Deadline | None = None
    ) -> tuple[Instance, ...]: ...

    def node_health(self, node: str, *, deadline: Deadline | None = None) -> str: ...

    def critical_on(self, node: str, *, deadline: Deadline | None = None) -> tuple[Check, ...]: ...

    def node_name(self, *, deadline: Deadline | None = None) -> str: ...

    def is_leader(self, *, deadline: Deadline | None = None) -> bool: ...

    def transfer_leadership(self, *, deadline: Deadline | None = None) -> None: ...

    def register(self, entry: Registration, *, deadline: Deadline | None = None) -> None: ...

    def deregister(self, service_id: str, *, deadline: Deadline | None = None) -> None: ...

    def local_services(
        self, *, deadline: Deadline | None = None
    ) -> Mapping[str, Mapping[str, str]]: ...

    def pass_check(self, check_id: str, note: str, *, deadline: Deadline | None = None) -> None: ...

    def fail_check(self, check_id: str, note: str, *, deadline: Deadline | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Machine:
    """A storage node, for one volume."""

    config: Config
    me: Holder
    consul: Consul
    store: VolumeStore
    nfs: NfsServer
    fence: Fence
    bind: BindMount
    units: Units
    sender: ReplicaSender
    schedule: Schedule
    jobs: Jobs | None = None
    """None: no scheduler follows the role."""

    @property
    def lease_unit(self) -> str:
        return f"standfast-lease@{self.config.volume}.service"
