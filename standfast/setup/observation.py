"""What is there on a node before setup: frozen values, from which problems and plan are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from standfast.node.obstacle import Obstacle
from standfast.setup.record import Installed


@dataclass(frozen=True, slots=True)
class InConsul:
    """What the node's own Consul agent says."""

    name: str = ""
    """What the agent is called; empty: it doesn't say."""
    trouble: str | None = None
    """Why it can't be used with the token that was given; None: it can."""
    leader: str | None = None
    """The node that was last heard of as primary; None: nobody has been yet, or it isn't known."""


@dataclass(frozen=True, slots=True)
class Server:
    """The NFS server's unit."""

    enablement: str = ""
    """As `systemctl is-enabled` says it; empty: there is no such unit."""
    active: bool = False
    exports_others: bool = False
    """It serves something beside the volume, or that isn't known."""
    ours: bool = False
    """This node has the role: the agent started it."""


@dataclass(frozen=True, slots=True)
class Observed:
    """One look at the machine."""

    has_systemd: bool
    kernel: tuple[int, ...]
    lacking: tuple[str, ...]
    """Programs that are needed and not there."""
    consul: InConsul
    server: Server
    obstacles: tuple[Obstacle, ...]
    """What a server would meet, and what is wrong with the storage."""
    there: Mapping[Path, str]
    """What the wanted files hold that are there."""
    leads: Mapping[Path, str]
    """Where the wanted links lead that are there; to "" for what is no link."""
    modes: Mapping[Path, int]
    """Type and mode (st_mode) of what is where a directory is wanted; nothing of a path that
    something is mounted at: who looks at a dead mount hangs."""
    token: str | None
    """What the token's file holds; None: there is none."""
    has_key: bool
    running: frozenset[str]
    """The wanted units that are active."""
    enabled: frozenset[str]
    """The wanted units that are enabled."""
    answers: bool
    """The agent answers; of a client its watches run."""
    installed: Installed
    shadowed: tuple[Path, ...] = ()
    """Unit files of an earlier installation that go before those of a package."""
    others: tuple[str, ...] = ()
    """What is wrong beside the other volumes of this node."""
    foreign_mount: str | None = None
    """Who mounts something at a client's path already: a unit's file, or fstab."""
