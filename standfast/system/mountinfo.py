"""Mount tables and the NFS client's list of file systems, as values.

Invariant: pure. A line that isn't understood is left out; nothing here ever touches a path, since
a path below a dead mount hangs whoever looks at it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

NFS_KINDS = ("nfs", "nfs4")


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo."""

    device: str
    root: str
    """The directory of its file system that is seen at `point`."""
    point: str
    kind: str
    id: int = 0
    source: str = ""
    options: str = ""
    """Of the file system, not of the mount."""

    @property
    def is_nfs(self) -> bool:
        return self.kind in NFS_KINDS

    @property
    def is_autofs(self) -> bool:
        return self.kind == "autofs"

    @property
    def address(self) -> str | None:
        """The server's address, as the kernel has it; None for other kinds."""
        return self.option("addr") if self.is_nfs else None

    @property
    def export(self) -> str | None:
        """The server's path of an NFS mount: what follows the host in HOST:/PATH."""
        _host, found, path = self.source.partition(":/")
        return f"/{path}" if self.is_nfs and found else None

    def option(self, name: str) -> str | None:
        for word in self.options.split(","):
            key, found, value = word.partition("=")
            if key == name and found:
                return value
        return None


def parse_mountinfo(text: str) -> list[Mount]:
    """All mounts, in the order in which they were made; later ones hide earlier ones."""
    mounts = []
    # Only what the kernel parts by counts: a name may hold any other blank or line end that Unicode
    # has, and bytes that are no text.
    for line in text.split("\n"):
        # Super options may hold " - "; the optional fields before the separator never do.
        fields, _, rest = line.partition(" - ")
        parts, after = fields.split(" "), rest.split(" ")
        if len(parts) < 5 or not after[0]:
            continue
        mounts.append(
            Mount(
                device=parts[2],
                root=unescaped(parts[3]),
                point=unescaped(parts[4]),
                kind=after[0],
                id=int(parts[0]) if parts[0].isdigit() else 0,
                source=unescaped(after[1]) if len(after) > 1 else "",
                options=unescaped(after[2]) if len(after) > 2 else "",
            )
        )
    return mounts


def unescaped(text: str) -> str:
    """A field as the kernel means it: blanks and backslashes are written as octal there."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def stack_at(mounts: Iterable[Mount], path: Path) -> tuple[Mount, ...]:
    """Everything mounted at `path`, the lowest first: the last one is what is seen."""
    return tuple(mount for mount in mounts if mount.point == str(path))


def mounted_at(mounts: Sequence[Mount], path: Path) -> Mount | None:
    """What is seen at `path`: the last mount made there."""
    return next((mount for mount in reversed(mounts) if mount.point == str(path)), None)


def root_of(mounts: Sequence[Mount], path: Path) -> tuple[str, str] | None:
    """Device and path inside its file system of a directory, to compare with a bind mount's."""
    around = [m for m in mounts if path.is_relative_to(m.point)]
    if not around:
        return None
    longest = max(len(mount.point) for mount in around)
    mount = [m for m in around if len(m.point) == longest][-1]
    inside = path.relative_to(mount.point)
    return mount.device, str(Path(mount.root) / inside)


def part_of(mount: Mount, export: str) -> Path | None:
    """Which part of the server's `export` is seen, relative to it; None: no NFS mount of it.

    Of a bind mount of a directory the NFS client shows the directory in the source (HOST:/PATH/DIR)
    and "/" as the root; other file systems show it as the root.
    """
    if mount.export is None or not Path(mount.export).is_relative_to(export):
        return None
    return Path(mount.export).relative_to(export) / mount.root.lstrip("/")


def elsewhere(mounts: Iterable[Mount], path: Path, export: str) -> tuple[Mount, ...]:
    """NFS mounts of this export at other places than `path`: bind mounts of it, whole or in
    part. Those on top of each other come as they were made."""
    return tuple(
        mount for mount in mounts if part_of(mount, export) is not None and mount.point != str(path)
    )


def same_address(one: str, other: str) -> bool:
    """Whether two addresses are one, in whatever way they are written."""
    return canonical(one) == canonical(other)


def canonical(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address.lower()
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(mapped or parsed)


def parse_volumes(text: str) -> dict[str, str]:
    """/proc/fs/nfsfs/volumes: device -> the fsid that the server told this kernel."""
    found = {}
    for line in text.splitlines():
        parts = line.split()
        # NV SERVER PORT DEV FSID FSC
        if len(parts) >= 5 and re.fullmatch(r"\d+:\d+", parts[3]):
            found[parts[3]] = parts[4]
    return found


def wire_fsid(fsid: str) -> str | None:
    """How /proc/fs/nfsfs/volumes shows an export's fsid UUID: two hexadecimal halves."""
    digits = re.sub(r"[^0-9a-f]", "", fsid.lower())
    if len(digits) != 32:
        return None
    return f"{int(digits[:16], 16):x}:{int(digits[16:], 16):x}"
