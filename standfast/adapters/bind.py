"""The volume at the path where every node sees it: a bind mount on the primary.

Unmounting it is never lazy: what can't be let go of stays, and its users are named. Only an NFS
mount that is in the way, of a primary that may be dead, is let go of lazily. Where a systemd
mount unit owns the path (an NFS mount, on a node that is a client at other times), a runtime
drop-in turns it into a bind mount; the next boot starts from the unit as it was written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from standfast.act.ports import BindMount
from standfast.adapters.systemd import SystemdUnits
from standfast.clock import Deadline
from standfast.config.model import Config
from standfast.errors import CommandFailed, StandfastError
from standfast.run import run

DROP_IN = "standfast-bind"
MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo."""

    device: str
    root: str
    point: str
    kind: str


def parse_mountinfo(text: str) -> list[Mount]:
    """All mounts, in the order in which they were made; later ones hide earlier ones."""
    mounts = []
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        parts = fields.split()
        if len(parts) >= 5 and rest:
            mounts.append(
                Mount(parts[2], _unescaped(parts[3]), _unescaped(parts[4]), rest.split()[0])
            )
    return mounts


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mounted_at(mounts: list[Mount], path: Path) -> Mount | None:
    """What is seen at `path`: the last mount made there."""
    return next((mount for mount in reversed(mounts) if mount.point == str(path)), None)


def root_of(mounts: list[Mount], path: Path) -> tuple[str, str] | None:
    """Device and path inside its file system of a directory, to compare with a bind mount's."""
    around = [m for m in mounts if path.is_relative_to(m.point)]
    if not around:
        return None
    longest = max(len(mount.point) for mount in around)
    mount = [m for m in around if len(m.point) == longest][-1]
    inside = path.relative_to(mount.point)
    return mount.device, str(Path(mount.root) / inside)


class LiveBind:
    """live -> bind. `proc` can be another directory for a test."""

    def __init__(
        self, live: Path, bind: Path, units: SystemdUnits | None, *, proc: Path = Path("/proc")
    ) -> None:
        self._live = live
        self._bind = bind
        self._units = units
        self._proc = proc

    def _mounts(self) -> list[Mount]:
        return parse_mountinfo((self._proc / "self/mountinfo").read_text())

    def is_mounted(self) -> bool:
        """Whether the live subvolume, and not something else, is what is seen there."""
        mounts = self._mounts()
        found = mounted_at(mounts, self._bind)
        return found is not None and (found.device, found.root) == root_of(mounts, self._live)

    def mount(self, deadline: Deadline) -> None:
        if self.is_mounted():
            return
        self._let_go_of_dead_nfs(deadline)
        unit = self._unit(deadline)
        if unit is not None and self._units is not None:
            self._units.stop(unit, deadline)
            self._units.write_drop_in(unit, DROP_IN, drop_in(self._live), deadline)
            self._units.start(unit, deadline)
        elif (foreign := mounted_at(self._mounts(), self._bind)) is not None:
            raise StandfastError(
                f"{self._bind} is taken: {foreign.kind} {foreign.root} is mounted there; unmount "
                f"it, or give it a systemd mount unit, which is then turned into the bind mount"
            )
        else:
            self._bind.mkdir(parents=True, exist_ok=True)
            argv = ["mount", "--bind", "--", str(self._live), str(self._bind)]
            run(argv, deadline=deadline, op="mount:bind")
        if not self.is_mounted():
            raise StandfastError(
                f"{self._live} was mounted at {self._bind}, but isn't what is seen there"
            )

    def _let_go_of_dead_nfs(self, deadline: Deadline) -> None:
        """An NFS mount of the previous primary: its users hang for ever, and so would umount."""
        mounts = self._mounts()
        while (found := mounted_at(mounts, self._bind)) and found.kind in ("nfs", "nfs4"):
            run(["umount", "-l", "--", str(self._bind)], deadline=deadline, op="umount:nfs")
            mounts = self._mounts()

    def unmount(self, deadline: Deadline) -> None:
        """Mounts of others at the path are left alone; a busy one names its users."""
        unit = self._unit(deadline)
        while self._ours() is not None:
            try:
                self._unmount_once(unit, deadline)
            except CommandFailed as error:
                raise CommandFailed(
                    f"{self._bind} is in use by {self.users()}: end them and try again ({error})",
                    returncode=error.returncode,
                    stderr=error.stderr,
                ) from error
        if unit is not None and self._units is not None:
            self._units.remove_drop_in(unit, DROP_IN, deadline)

    def _unmount_once(self, unit: str | None, deadline: Deadline) -> None:
        if unit is not None and self._units is not None and self._units.is_active(unit):
            self._units.stop(unit, deadline)
        if self._ours() is not None:
            run(["umount", "--", str(self._bind)], deadline=deadline, op="umount:bind")

    def _ours(self) -> Mount | None:
        """The mount to take away: the live subvolume's, or what is left of a moved one."""
        mounts = self._mounts()
        found = mounted_at(mounts, self._bind)
        around = root_of(mounts, self._live)
        if found is None or around is None or found.device != around[0]:
            return None
        return found

    def _unit(self, deadline: Deadline) -> str | None:
        """The mount unit that somebody wrote for the path, if there is one."""
        if self._units is None:
            return None
        argv = ["systemd-escape", "--path", "--suffix=mount", str(self._bind)]
        unit = run(argv, deadline=deadline, op="escape:bind").stdout.strip()
        # A mount made by hand has a unit too, but no file.
        fragment = run(
            ["systemctl", "show", "--property=FragmentPath", "--value", "--", unit],
            deadline=deadline,
            op="show:bind",
        ).stdout.strip()
        return unit if fragment else None

    def users(self) -> str:
        """Processes that have something open, mapped or their directory in the mount."""
        found = [text for pid in self._pids() if (text := self._use_by(pid)) is not None]
        named = ", ".join(found[:MAX_NAMED])
        if len(found) > MAX_NAMED:
            named += f" and {len(found) - MAX_NAMED} more"
        return named or "nobody to be seen (a mount below it, or another mount namespace)"

    def _pids(self) -> list[int]:
        return sorted(int(entry.name) for entry in self._proc.iterdir() if entry.name.isdigit())

    def _use_by(self, pid: int) -> str | None:
        process = self._proc / str(pid)
        links = [process / "cwd", process / "root"]
        targets = []
        try:
            links += list((process / "fd").iterdir())
            targets += re.findall(
                r" (/.*)$", (process / "maps").read_text(errors="replace"), re.MULTILINE
            )
            name = (process / "comm").read_text(errors="replace").strip()
        except OSError:
            return None  # it has ended, or is a kernel thread
        for link in links:
            try:
                targets.append(str(link.readlink()))
            except OSError:
                continue
        hit = next((t for t in targets if Path(t).is_relative_to(self._bind)), None)
        return None if hit is None else f"{name} (pid {pid}: {hit})"


def drop_in(live: Path) -> str:
    """Turns a mount unit, whatever it mounts, into a bind mount of the live subvolume."""
    return f"[Mount]\nWhat={str(live).replace('%', '%%')}\nType=none\nOptions=bind\n"


def bind_from(config: Config) -> BindMount:
    """The bind mount; without systemd as the service manager, plain mounts only."""
    managed = Path("/run/systemd/system").is_dir()
    return LiveBind(config.paths.live, config.paths.bind, SystemdUnits() if managed else None)
