"""What a client knows at one moment, as frozen values; nothing here decides or acts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from msgspec import Struct

from standfast.reasons import Reason
from standfast.system.mountinfo import Mount, canonical, wire_fsid


class Answer(StrEnum):
    """What a child process got that looked into the mount."""

    NOT_ASKED = "not-asked"
    ANSWERS = "answers"
    STALE = "stale"
    """ESTALE: the server has another tree at the place of ours."""
    HANGS = "hangs"
    FAILS = "fails"
    """Any other error."""


@dataclass(frozen=True, slots=True)
class Server:
    """The entry of the node that holds the current epoch, while it is healthy."""

    node: str
    address: str
    """As registered: an address or a host name."""
    addresses: frozenset[str]
    """Canonical addresses of it; empty: the name could not be resolved."""
    epoch: int
    fsid: str | None
    """None: its node's version doesn't tell yet."""
    strangers: tuple[str, ...] = ()
    """Nodes that may serve next, by its word, and that this node's file doesn't have: they would
    not be followed."""


@dataclass(frozen=True, slots=True)
class NoServer:
    """Consul answers, and nobody serves as far as it knows."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Consul can't be asked."""

    reason: Reason
    sentence: str


Service = Server | NoServer | Unreadable


class Note(Struct, frozen=True):
    """What was mounted last: `mounted.json`, of this boot."""

    kind: str
    """nfs, or bind on a primary."""
    address: str
    fsid: str | None
    epoch: int
    mount_id: int
    device: str
    let_go: bool = False
    """It was unmounted here to be mounted anew, and that isn't done yet."""
    confirmed: bool = False
    """The epoch was that of Consul's key then; an older version took the service's word for it."""

    def is_of(self, mount: Mount) -> bool:
        """Tells whether it speaks of this very mount. Ids and devices are used again, addresses
        not."""
        return (
            self.kind == "nfs"
            and (self.mount_id, self.device) == (mount.id, mount.device)
            and mount.address is not None
            and canonical(mount.address) == canonical(self.address)
        )


@dataclass(frozen=True, slots=True)
class Tie:
    """What ties this node to the volume as a client."""

    unit: bool = False
    """A mount unit is enabled for the path, or /etc/fstab made it."""
    automount: bool = False
    """An automount unit is active for it."""
    mounting: bool = False
    """The service manager is trying to mount it just now."""


class Role(StrEnum):
    """This node's own, which makes the path the agent's."""

    NONE = "none"
    PRIMARY = "primary"
    CHANGING = "changing"
    """A plan of the agent is under way, or has to be gone on with."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that a decision is made on."""

    service: Service
    stack: tuple[Mount, ...] = ()
    """What is mounted at paths.bind, the lowest first."""
    note: Note | None = None
    answer: Answer = Answer.NOT_ASKED
    detail: str = ""
    """The error of an answer that is one."""
    role: Role = Role.NONE
    stopped: tuple[str, ...] = ()
    """Services that were stopped with the bind mount of this node's epoch."""
    tie: Tie = Tie()
    wires: Mapping[str, str] = field(default_factory=dict)
    """Of each NFS file system here, by device, the fsid that the server told the kernel."""
    elsewhere: tuple[Mount, ...] = ()
    """Bind mounts of the volume at other places of this mount namespace."""
    waited_s: float = 0.0
    """Since this node first saw the server that it has to move to, seconds."""

    @property
    def top(self) -> Mount | None:
        return self.stack[-1] if self.stack else None


class Tree(StrEnum):
    """Whether the mount shows the tree that the service has now."""

    CURRENT = "current"
    OTHER = "other"
    UNKNOWN = "unknown"


def tree_of(observed: Observed, server: Server, mount: Mount) -> Tree:
    """Tells which tree it is: by the kernel's word where it has one, or else by the note; a note of
    another mount, or a service without an fsid, says nothing."""
    if server.fsid is None:
        return Tree.UNKNOWN
    told, expected = observed.wires.get(mount.device), wire_fsid(server.fsid)
    if told is not None and told == expected:
        return Tree.CURRENT
    note = observed.note
    if note is None or note.fsid is None or not note.is_of(mount):
        return Tree.UNKNOWN
    if note.fsid == server.fsid:
        return Tree.CURRENT
    # Without the kernel's word the mount's answer tells: an old handle fails. A server that makes
    # up fsids of its own on the wire (nfs-ganesha) leaves the note alone to speak.
    return Tree.UNKNOWN if told is None else Tree.OTHER


def left_behind(observed: Observed, server: Server, current: Mount) -> tuple[Mount, ...]:
    """Returns the mounts elsewhere that show an earlier server or tree."""
    return tuple(
        mount for mount in observed.elsewhere if not _is_same(mount, observed, server, current)
    )


def _is_same(mount: Mount, observed: Observed, server: Server, current: Mount) -> bool:
    if mount.device == current.device:
        return True
    told = observed.wires.get(mount.device)
    at_home = mount.address is not None and canonical(mount.address) in server.addresses
    return at_home and told is not None and told == observed.wires.get(current.device)
