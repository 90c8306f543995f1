"""Who uses a mount, by /proc alone: links are read, never followed, so that no dead mount hangs us.

/proc/PID/maps and cmdline are not read here: both wait for a process whose memory is locked while
it hangs in a page fault of the mount. A file of a mount that was let go of lazily shows no path any
more, but the number of its mount stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from standfast.clients.ports import Use
from standfast.system.files import read_foreign_text
from standfast.system.lines import lines_of, number

PROC = Path("/proc")


def unit_of(process: Path) -> str:
    """Returns the innermost systemd unit of a /proc/PID; empty when there is none."""
    try:
        text = read_foreign_text(process / "cgroup")
    except OSError:
        return ""
    for line in lines_of(text):
        for part in reversed(line.split(":", 2)[-1].split("/")):
            if part.endswith((".service", ".scope")):
                return part
    return ""


def pids_in(proc: Path) -> list[int]:
    """Returns the numbers of all processes that /proc shows, in order."""
    return sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdigit())


class ProcProcesses:
    """Looks at the processes of this machine, but for this one."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc

    def users(self, path: Path, mount_ids: Collection[int]) -> Sequence[Use]:
        """Returns who has something of the path, or of these mounts, open or as its directory."""
        return self._uses(
            lambda target, mount: mount in mount_ids or Path(target).is_relative_to(path)
        )

    def holders(self, mount_ids: Collection[int]) -> Sequence[Use]:
        """Returns who has files of these mounts open; they need not be mounted any more."""
        return self._uses(lambda _, mount: mount in mount_ids) if mount_ids else []

    def hanging(self) -> Sequence[Use]:
        """Returns the processes in uninterruptible sleep inside the NFS client."""
        hanging = []
        for process in self._all():
            where = _read(process / "wchan")
            if hangs(process) and where.startswith(("rpc_", "nfs", "__rpc", "wait_on_commit")):
                name = _read(process / "comm")
                hanging.append(
                    Use(int(process.name), name, where, unit_of(process), writes=False, hangs=True)
                )
        return hanging

    def _uses(self, hit: Callable[[str, int | None], bool]) -> list[Use]:
        return [use for process in self._all() if (use := _use(process, hit)) is not None]

    def _all(self) -> Iterator[Path]:
        return (self._proc / str(pid) for pid in pids_in(self._proc) if pid != os.getpid())


def _use(process: Path, hit: Callable[[str, int | None], bool]) -> Use | None:
    """Returns the first use that counts, one for writing before others."""
    uses = sorted(
        (not writes, target) for target, mount_id, writes in _open(process) if hit(target, mount_id)
    )
    if not uses:
        return None
    reads, target = uses[0]
    return Use(
        int(process.name),
        _read(process / "comm"),
        target,
        unit_of(process),
        writes=not reads,
        hangs=hangs(process),
    )


def _open(process: Path) -> Iterator[tuple[str, int | None, bool]]:
    """(what, number of its mount, for writing): files, directory and root of a process."""
    try:
        numbers = [entry.name for entry in (process / "fd").iterdir()]
    except OSError:
        numbers = []  # it has ended, or isn't ours to look at
    for open_as in numbers:
        try:
            target = str((process / "fd" / open_as).readlink())
            info = read_foreign_text(process / "fdinfo" / open_as)
        except OSError:
            continue
        if target.startswith("/"):
            fields = fdinfo_of(info)
            flags, mount = fields.get("flags", "0"), fields.get("mnt_id", "")
            writes = int(flags, 8) & os.O_ACCMODE != os.O_RDONLY
            yield target, number(mount), writes
    for link in ("cwd", "root"):
        try:
            yield str((process / link).readlink()), None, False
        except OSError:
            continue


def fdinfo_of(text: str) -> Mapping[str, str]:
    """Returns the fields of a /proc/PID/fdinfo; what a driver adds to them comes last, and changes
    none."""
    fields: dict[str, str] = {}
    for line in lines_of(text):
        key, _, value = line.partition(":")
        fields.setdefault(key, value.strip())
    return fields


def hangs(process: Path) -> bool:
    """Tells whether a /proc/PID is in uninterruptible sleep."""
    return _read(process / "stat").rpartition(")")[2].startswith(" D ")


def _read(path: Path) -> str:
    try:
        return read_foreign_text(path).strip()
    except OSError:
        return ""
