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

from standfast.system.lines import fields_of, lines_of, number, unescaped

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
    flags: str = ""
    """Of the mount itself: nosuid, ro..."""

    @property
    def is_nfs(self) -> bool:
        return self.kind in NFS_KINDS

    @property
    def is_autofs(self) -> bool:
        return self.kind == "autofs"

    @property
    def address(self) -> str | None:
        """Returns the server's address, as the kernel has it; None for other kinds."""
        return self.option("addr") if self.is_nfs else None

    @property
    def export(self) -> str | None:
        """Returns the server's path of an NFS mount: what follows the host in HOST:/PATH."""
        _host, separator, path = self.source.partition(":/")
        return f"/{path}" if self.is_nfs and separator else None

    def option(self, name: str) -> str | None:
        for word in self.options.split(","):
            key, equals, value = word.partition("=")
            if key == name and equals:
                return value
        return None


def parse_mountinfo(text: str) -> list[Mount]:
    """Returns all mounts, in the order in which they were made; later ones hide earlier ones."""
    mounts = []
    for line in lines_of(text):
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
                id=number(parts[0]) or 0,
                source=unescaped(after[1]) if len(after) > 1 else "",
                options=unescaped(after[2]) if len(after) > 2 else "",
                flags=parts[5] if len(parts) > 5 else "",
            )
        )
    return mounts


def stack_at(mounts: Iterable[Mount], path: Path) -> tuple[Mount, ...]:
    """Returns everything mounted at `path`, the lowest first: the last one is what is seen."""
    return tuple(mount for mount in mounts if mount.point == str(path))


def mounted_at(mounts: Sequence[Mount], path: Path) -> Mount | None:
    """Returns what is seen at `path`: the last mount made there."""
    return next((mount for mount in reversed(mounts) if mount.point == str(path)), None)


def around(mounts: Iterable[Mount], path: Path) -> Mount | None:
    """Returns the mount through which the path is seen; the later of two at one point hides the
    other."""
    above = [mount for mount in mounts if path.is_relative_to(mount.point)]
    return max(reversed(above), key=lambda mount: len(mount.point), default=None)


def root_of(mounts: Sequence[Mount], path: Path) -> tuple[str, str] | None:
    """Returns the device of a directory and its path inside that file system, to compare with a
    bind mount's."""
    mount = around(mounts, path)
    if mount is None:
        return None
    return mount.device, str(Path(mount.root) / path.relative_to(mount.point))


def part_of(mount: Mount, export: str) -> Path | None:
    """Returns which part of the server's `export` is seen, relative to it; None: no NFS mount of
    it.

    Of a bind mount of a directory the NFS client shows the directory in the source (HOST:/PATH/DIR)
    and "/" as the root; other file systems show it as the root.
    """
    if mount.export is None or not Path(mount.export).is_relative_to(export):
        return None
    return Path(mount.export).relative_to(export) / mount.root.lstrip("/")


def elsewhere(mounts: Iterable[Mount], path: Path, export: str) -> tuple[Mount, ...]:
    """Returns the NFS mounts of this export at other places than `path`: bind mounts of it, whole
    or in part. Those on top of each other come as they were made."""
    return tuple(
        mount for mount in mounts if part_of(mount, export) is not None and mount.point != str(path)
    )


def canonical(address: str) -> str:
    """Returns an address in the one spelling that it is compared in; a name in lower case."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address.lower()
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(mapped or parsed)


def parse_volumes(text: str) -> dict[str, str]:
    """Returns by device the fsid that the server told this kernel, from /proc/fs/nfsfs/volumes."""
    fsids = {}
    for line in lines_of(text):
        parts = fields_of(line)
        # NV SERVER PORT DEV FSID FSC
        if len(parts) >= 5 and re.fullmatch(r"\d+:\d+", parts[3]):
            fsids[parts[3]] = parts[4]
    return fsids


def wire_fsid(fsid: str) -> str | None:
    """Returns an export's fsid UUID as /proc/fs/nfsfs/volumes shows it: two hexadecimal halves."""
    digits = re.sub(r"[^0-9a-f]", "", fsid.lower())
    if len(digits) != 32:
        return None
    return f"{int(digits[:16], 16):x}:{int(digits[16:], 16):x}"
