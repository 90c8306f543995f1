"""What the clients' work needs of the machine: narrow protocols, met by real parts.

Every effect has a deadline and is done by a child process that can be left behind: stat, df,
mount and umount all hang on the mount of a dead server.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from standfast.clients.observation import Answer, Tie
from standfast.consul.gateway import Entry, Instance
from standfast.system.clock import Deadline
from standfast.system.mountinfo import Mount


@dataclass(frozen=True, slots=True)
class Use:
    """A process that has something of a mount open, as its directory, or as its root."""

    pid: int
    name: str
    target: str
    """What it has open, as the kernel names it."""
    unit: str
    """The systemd unit that it runs in; empty: none, or not known."""
    writes: bool
    """It is open for writing."""
    hangs: bool
    """The process is in uninterruptible sleep."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """Another mount namespace than this process's, and some of the processes in it."""

    id: str
    pids: tuple[int, ...]
    units: tuple[str, ...]
    mounts: tuple[Mount, ...]


class Mounts(Protocol):
    """Mount tables, and what changes them."""

    def here(self) -> Sequence[Mount]: ...

    def namespaces(self) -> Sequence[Namespace]: ...

    def wires(self) -> Mapping[str, str]:
        """Returns device -> fsid on the wire, of every NFS file system of this kernel."""

    def mount(self, source: str, path: Path, options: str, deadline: Deadline) -> None: ...

    def bind(self, source: Path, path: Path, deadline: Deadline) -> None: ...

    def let_go(self, path: Path, deadline: Deadline, *, wake: bool = True) -> None:
        """Takes the uppermost mount at the path away, whoever uses it."""

    def probe(self, path: Path, deadline: Deadline) -> tuple[Answer, str]:
        """Returns what somebody gets who looks into the mount now, and the error if it is one."""

    def resolve(self, name: str, deadline: Deadline) -> frozenset[str]:
        """Returns the canonical addresses of a host name; empty: it doesn't resolve."""


class Processes(Protocol):
    def users(self, path: Path, mount_ids: Collection[int]) -> Sequence[Use]:
        """Tells who uses one of these mounts, by files, or the path, by any means."""


class MountUnits(Protocol):
    """The service manager, as far as a mount point and its users are concerned."""

    def tie(self, path: Path) -> Tie: ...

    def options(self, path: Path) -> str | None:
        """Returns mount options that the unit of the path gives; None: there is no unit."""

    def dependants(self, path: Path) -> tuple[str, ...]:
        """Returns active services that require the path to be mounted."""

    def active(self, units: Sequence[str]) -> tuple[str, ...]: ...

    def restart(self, units: Sequence[str], deadline: Deadline) -> None: ...

    def end_mounting(self, path: Path, deadline: Deadline) -> None:
        """Kills the attempt of the mount unit that is under way."""


class Consul(Protocol):
    def instances(
        self, service: str, *, consistent: bool = True, deadline: Deadline | None = None
    ) -> tuple[Instance, ...]: ...

    def get(
        self, key: str, *, consistent: bool = False, deadline: Deadline | None = None
    ) -> Entry | None: ...

    def put(self, key: str, value: bytes, *, deadline: Deadline | None = None) -> None: ...
